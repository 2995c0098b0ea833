"""Addresses of the search page: every link, form and picture of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlencode

from cmrhash.data.items import Item
from cmrhash.show.answers import Question


@dataclass(frozen=True)
class Links:
    """Addresses of one run's pages.

    prefix: path before every address, such as "/photos" behind a proxy. run: name of the run in addresses, "" for the
    run that the server was started with. version: changes with the data set, so that a browser keeps no old photo.
    k: the number of results that no address names.
    """

    prefix: str = ""
    run: str = ""
    version: str = ""
    k: int = 0

    @property
    def start(self) -> str:
        """Address of the first page."""
        return self._page("/", [])

    @property
    def scores(self) -> str:
        """Address of the page of scores and plots."""
        return self._page("/scores", [])

    def search(self, question: Question, **changed: Any) -> str:
        """Address of a search; changed: fields of the question that differ."""
        return self._page("/", fields(replace(question, **changed), self.k))

    def item(self, ident: str, question: Question | None = None) -> str:
        """Address of an item's page, which leads back to the results of a question."""
        kept = fields(question, self.k) if question else []
        return self._page(f"/item/{quote(ident, safe='')}", kept)

    def thumb(self, item: Item) -> str:
        """Address of an item's thumbnail, "" without a photo."""
        return self._file(f"/thumb/{quote(item.id, safe='')}") if item.image else ""

    def photo(self, item: Item) -> str:
        """Address of an item's original photo."""
        return self._file(f"/photo/{quote(item.id, safe='')}")

    def asked(self, digest: str) -> str:
        """Address of an uploaded photo."""
        return f"{self.prefix}/asked/{quote(digest, safe='')}"

    def plot(self, name: str) -> str:
        """Address of a plot."""
        return self._page(f"/plot/{quote(name, safe='')}.svg", [])

    def file(self, name: str) -> str:
        """Address of a file such as the stylesheet."""
        return f"{self.prefix}/{name}"

    def _file(self, path: str) -> str:
        return f"{self.prefix}{path}" + (f"?v={self.version}" if self.version else "")

    def _page(self, path: str, query: list[tuple[str, str]]) -> str:
        query = query + ([("run", self.run)] if self.run else [])
        return f"{self.prefix}{path}" + ("?" + urlencode(query) if query else "")


def fields(question: Question, k: int) -> list[tuple[str, str]]:
    """Names and values that stand for a question in an address; k: the number of results that needs no name."""
    one = {
        "q": question.text,
        "photo": question.digest,
        "id": question.ident,
        "by": question.by if question.ident is not None and question.by != "image" else None,
        "lang": question.lang,
        "to": question.to,
        "k": question.k if question.k != k else None,
        "skip": question.skip or None,
    }
    several = {"unlike": question.unlike, "label": question.labels}
    given = [(name, str(value)) for name, value in one.items() if value not in (None, "")]
    return given + [(name, value) for name, values in several.items() for value in values]
