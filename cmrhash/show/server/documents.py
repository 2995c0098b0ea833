"""Documents of the server: search page, page of an item, page of scores, and messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cmrhash.data.items import Item
from cmrhash.evaluation import saved_scores
from cmrhash.search.hasher import Hasher
from cmrhash.show.answers import Answer, Question, example_items
from cmrhash.show.html.bar import bar
from cmrhash.show.html.document import document, esc, figure, points
from cmrhash.show.html.found import SAMPLES, found, samples
from cmrhash.show.html.item import item_view
from cmrhash.show.html.links import Links
from cmrhash.show.html.results import about, in_words
from cmrhash.show.html.scores import score_table
from cmrhash.show.html.tiles import examples
from cmrhash.show.server.served import Collection, Served

EXAMPLES = 24  # photos on the first page
LONGEST = 60  # characters of a sentence on the first page
SKELETONS = (30, 15, 27, 13, 30, 20, 27, 30, 15, 27)  # shapes of the tiles shown while encoders load
SCRIPTS = ("search.js", "more.js", "lightbox.js")


class Pages:
    """Documents about a collection."""

    def __init__(self, collection: Collection) -> None:
        self.collection, self.config = collection, collection.config
        self._examples: tuple[Served, list[Item]] | None = None

    def answered(self, served: Served, answer: Answer) -> str:
        """Build the results of a query."""
        shown = found(served.hasher, served.links, self.collection.sizes, answer)
        return self._search(served, answer.question, in_words(answer), shown)

    def start(self, served: Served, question: Question, lang: str | None) -> str:
        """Build the first page: sentences and photos to start from. lang: of the captions; None: the first one."""
        hasher, links = served.hasher, served.links
        lang = lang or hasher.understood(None)
        items = self._to_start_from()
        cards = examples(links, self.collection.sizes, items, lang, question)
        shown = samples(links, question, _sentences(hasher, items, lang))
        if cards:
            title = "Or start from a photo" if shown else "Start from a photo"
            shown += f'\n<section aria-labelledby="start"><h2 id="start">{title}</h2>\n'
            shown += f'<ol class="tiles">\n{cards}\n</ol></section>'
        return self._search(served, question, f"Search {hasher.dataset.name}", shown, at_start=True)

    def _to_start_from(self) -> list[Item]:
        first = self.collection.first
        if self._examples is None or self._examples[0] is not first:
            self._examples = first, example_items(first.hasher, EXAMPLES)
        return self._examples[1]

    def loading(self, served: Served, question: Question) -> str:
        """Build the page that waits for the encoders: it loads itself again."""
        tiles = "".join(f'<li class="tile w{step}"><span class="frame"></span></li>' for step in SKELETONS)
        shown = f"""<p class="count" role="status">Getting ready: the server has just started and is loading what it
needs to read words and photos. The results appear here in a few seconds.</p>
<ol class="tiles skeleton" aria-hidden="true">{tiles}</ol>
<noscript><p>If nothing happens, load the page again.</p></noscript>"""
        return self._search(served, question, "Getting ready", shown, '<meta http-equiv="refresh" content="1">\n')

    def problem(self, served: Served, question: Question, title: str, words: str = "") -> str:
        """Build a message in the place of the results."""
        more = f"<p>{esc(words)}</p>" if words else ""
        shown = f"""<div class="message" role="alert"><p class="title">{esc(title)}</p>{more}
<p><a href="{esc(served.links.start)}">Go to the first page</a></p></div>"""
        return self._search(served, question, title, shown)

    def item(self, served: Served, item: Item, question: Question, lang: str | None, whole: bool) -> str:
        """Build the page of an item.

        question: whose results it was in; lang: of its title; whole: the original photo can be shown.
        """
        size = self.collection.sizes.of(item.image)
        back = served.links.search(question) if question.parts else served.links.start
        words = "Back to the results" if question.parts else "Go to the first page"
        asked = replace(question, lang=lang)
        view = item_view(served.hasher, served.links, item, asked, size, whole)
        shown = f'<p class="back"><a href="{esc(back)}">← {words}</a></p>\n{view}'
        return self._search(served, question, f"Item {item.id}", shown)

    def scores(self, served: Served) -> str:
        """Build the page of scores and plots."""
        hasher, links = served.hasher, served.links
        runs = "".join(
            f'<a class="chip" href="{esc(self._scores_of(served, name))}"'
            f"{' aria-current=true' if name == hasher.run.folder.name else ''}>{esc(name)}</a>"
            for name in self.collection.names
        )
        body = f"""<main class="scores" id="results" tabindex="-1">
<p class="back"><a href="{esc(links.start)}">← Back to the search</a></p>
<h1>Scores and plots: {esc(hasher.run.folder.name)}</h1>
<p>{esc(about(hasher))}</p>
<nav class="chips" aria-label="Runs">{runs}</nav>
{scored(hasher)}
{_plots(links, served.plots) if hasher.dataset.can_be_scored else ""}
</main>"""
        return document(f"Scores of {hasher.run.folder.name} - cmrhash", self._head(links), body)

    def _scores_of(self, served: Served, name: str) -> str:
        return Links(served.links.prefix, name, served.links.version).scores

    def _search(
        self, served: Served, question: Question, title: str, shown: str, head: str = "", at_start: bool = False
    ) -> str:
        hasher, links = served.hasher, served.links
        logo = f'<img src="{esc(links.file("favicon.svg"))}" alt="">'
        form = bar(hasher, self.config, links, question, self.collection.names, at_start)
        body = f"""<a class="skip" href="#results">Skip to the results</a>
<header><a class="home" href="{esc(links.start)}" title="First page">{logo}<span>{esc(hasher.dataset.name)}</span></a>
{form}</header>
<main id="results" tabindex="-1">
<h1 class="unseen">{esc(title)}</h1>
{shown}
</main>
<footer><p>{esc(about(hasher))}</p>
<p><a href="{esc(links.scores)}">Scores and plots</a> · <a href="{esc(links.file("openapi.json"))}">API</a></p></footer>
<dialog id="lightbox" aria-label="Photo"></dialog>"""
        return document(f"{title} - cmrhash", head + self._head(links), body)

    def _head(self, links: Links) -> str:
        scripts = "\n".join(f'<script src="{esc(links.file(name))}" defer></script>' for name in SCRIPTS)
        return f"""<link rel="stylesheet" href="{esc(links.file("style.css"))}">
<link rel="stylesheet" href="{esc(links.file("page.css"))}">
<link rel="icon" href="{esc(links.file("favicon.svg"))}" type="image/svg+xml">
{scripts}"""


def _sentences(hasher: Hasher, items: list[Item], lang: str) -> list[tuple[str, str]]:
    """Short captions of the example items in turn of languages: (language, caption)."""
    langs = [lang, *(other for other in hasher.langs if other != lang)]
    chosen: dict[str, str] = {}
    for at, item in enumerate(items):
        own = langs[at % len(langs)]
        texts = [text for text in item.texts.get(own, ()) if len(text) <= LONGEST]
        if texts:
            chosen.setdefault(texts[0], own)
    return [(own, words) for words, own in list(chosen.items())[:SAMPLES]]


def scored(hasher: Hasher) -> str:
    """Build the table of the scores that ``cmrhash eval`` saved for this run, with their protocol."""
    report = saved_scores.shown(hasher.run)
    if report is None and not hasher.dataset.can_be_scored:
        return "<p>Nothing to score: the photos have neither captions nor labels.</p>"
    if report is None:
        return "<p>No scores yet: run <code>cmrhash eval</code>.</p>"
    protocol = {key: _listed(value) for key, value in report["protocol"].items() if value}
    return score_table(report["rows"], "Scores saved by cmrhash eval") + points(protocol)


def _plots(links: Links, pictures: Mapping[str, str]) -> str:
    """Build the gallery of plots; a plot is drawn once a browser asks for it."""
    if not pictures:
        return '<p>Plots need Matplotlib: <code>pip install "cmrhash[viz]"</code></p>'
    shown = []
    for name, words in pictures.items():
        url = esc(links.plot(name))
        shown.append(figure(f'<a href="{url}"><img src="{url}" loading="lazy" alt="plot: {esc(words)}"></a>', words))
    joined = "\n".join(shown)
    return f'<div class="plots">\n{joined}\n</div>'


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
