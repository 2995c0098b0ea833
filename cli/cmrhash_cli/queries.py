"""Queries of ``cmrhash search``: a sentence, a photo, an item, a blend of these, or a file of many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmrhash.config import SearchConfig
from cmrhash.errors import UsageError
from cmrhash.storage.files import is_there
from cmrhash_cli.output import json_text

if TYPE_CHECKING:
    from cmrhash.search.hasher import Hasher
    from cmrhash.search.results import Hit, How

PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
NAMED = 5  # lines in a message
LINES = 512  # of a file of queries that are searched together


@dataclass(frozen=True)
class Asked:
    """A query of the command line. like, unlike: ids of items that results resemble, or do not."""

    text: str | None = None
    photo: Path | None = None
    item: str | None = None
    like: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, query: str | None, photo: Path | None, item: str | None, like: Sequence[str], unlike: Sequence[str]
    ) -> Asked:
        """Sort the arguments of a call; raises UsageError for none, or for two that exclude each other."""
        if query is not None and not query.strip():
            raise UsageError("the query is empty", None, "give a sentence or a photo")
        named = photo_of(query) if query is not None else None
        if named and photo:
            raise UsageError("two photos", None, "give a sentence beside --photo")
        asked = cls(None if named else query, named or photo, item, tuple(like), tuple(unlike))
        fix = "give one of a sentence, a photo, or --id"
        if item is not None and asked != cls(item=item):
            raise UsageError("both a query and --id" if query is not None else "another query beside --id", None, fix)
        if asked == cls(unlike=asked.unlike):
            raise UsageError("no query", None, fix)
        return asked

    @property
    def is_blend(self) -> bool:
        """Whether it has several parts."""
        return bool(self.like or self.unlike or (self.text is not None and self.photo))

    def find(self, hasher: Hasher, config: SearchConfig) -> list[Hit]:
        """Search by the query."""
        if self.item is not None:
            return hasher.search_item(self.item, by=config.by, **how(config))
        parts = [part for part in (self.text, self.photo) if part is not None]
        if not self.is_blend:
            return hasher.search(parts[0], **how(config))
        if config.rank == "features":
            raise UsageError("several queries have no features in common", None, "leave it out", option="rank")
        vector = hasher.blend(*parts, like=self.like, unlike=self.unlike, by=config.by, lang=config.lang)
        return hasher.search(vector, **how(config))

    def as_json(self, by: str) -> Any:
        """What ``--json`` prints of the query."""
        if self.item is not None:
            return {"id": self.item, "by": by}
        if not self.is_blend:
            return self.text if self.photo is None else str(self.photo)
        parts = {"text": self.text, "photo": self.photo and str(self.photo), "like": self.like, "unlike": self.unlike}
        return {name: part for name, part in parts.items() if part}

    def __str__(self) -> str:
        parts = [self.text, self.photo and self.photo.name, *(f"like {i}" for i in self.like)]
        return ", ".join([*(str(part) for part in parts if part), *(f"unlike {i}" for i in self.unlike)])


def how(config: SearchConfig) -> How:
    """Keywords of ``Hasher.search`` in a config."""
    return {"lang": config.lang, "to": config.to, "k": config.k, "radius": config.radius, "where": config.where}


def photo_of(query: str) -> Path | None:
    """Path of a photo given as the query, None for a sentence."""
    path = Path(query)
    there = is_there(query) and ("/" in query or path.is_file())  # a word may be a folder's name, too
    return path if there or path.suffix.lower() in PHOTOS else None


def answers(hasher: Hasher, config: SearchConfig, path: Path) -> Iterator[dict[str, Any]]:
    """Search by every line of a file, a sentence or the path of a photo; empty lines are left out.

    Yields query, lang and results of each, as ``--json`` prints them. Raises UsageError for a file that cannot be read
    or has no query, for photos that are missing, and for a line in a language that cannot be told, before any search.
    """
    fix = "give a text file with one query per line"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not UTF-8"
        raise UsageError(f"cannot read the queries ({reason})", path, fix) from None
    queries, missing = list[str | Path](), list[str]()
    langs = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        photo = photo_of(line)
        if photo and not photo.is_file():
            missing.append(f"line {number}: {line}")
        try:
            langs.append(hasher.understood(config.lang, None if photo else line))
        except UsageError as error:
            raise UsageError(f"line {number}: {error.what}", path, error.fix, option=error.option) from None
        queries.append(photo or line)
    if missing:
        named = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        what = f"{len(missing)} photo{'s are' if len(missing) > 1 else ' is'} missing ({named})"
        raise UsageError(what, path, "fix these lines; nothing was searched")
    if not queries:
        raise UsageError("no query in the file", path, fix)
    for start in range(0, len(queries), LINES):
        some = queries[start : start + LINES]
        for query, lang, hits in zip(some, langs[start:], hasher.search(some, **how(config)), strict=False):
            yield {"query": str(query), "lang": lang, "results": [hit.as_json() for hit in hits]}


def print_lines(found: Iterator[dict[str, Any]]) -> None:
    """Print one line of JSON per answer."""
    for answer in found:
        print(json_text(answer))
