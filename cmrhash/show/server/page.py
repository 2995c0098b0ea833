"""The page: search forms, the results of a query, and the scores and plots of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from cmrhash.config import ServeConfig
from cmrhash.encoders.pixels import FORMATS
from cmrhash.evaluation import saved_scores
from cmrhash.search.finder import TARGETS
from cmrhash.search.hasher import Hasher
from cmrhash.show.answers import Answer, Question, example_items
from cmrhash.show.html.document import document, esc, figure, points
from cmrhash.show.html.results import Address, example_queries, footer, in_words, results
from cmrhash.show.html.scores import score_table
from cmrhash.training.runs import WORDS

HEAD = """<link rel="stylesheet" href="/style.css">
<link rel="icon" href="/favicon.svg" type="image/svg+xml">
<script src="/drop.js" defer></script>"""
SHOWN = {None: "automatic", "image": "images", "text": "captions", "both": "images and captions"}
PHOTOS = ",".join(f"image/{name.lower()}" for name in FORMATS)
EXAMPLES = 12  # example queries on the first page
assert set(SHOWN) == {None, *TARGETS}


def page(
    hasher: Hasher,
    config: ServeConfig,
    pictures: Mapping[str, str],
    question: Question,
    answer: Answer | None = None,
    problem: str = "",
) -> str:
    """Build the whole document. answer: None without a query, or if it failed; problem: why it failed.

    pictures: name of a plot -> its caption.
    """
    thumb = _thumb(hasher)
    if answer is not None:
        shown, title = results(hasher, answer, thumb), f"{in_words(answer)} - cmrhash"
    elif problem:
        shown, title = f'<p class="problem" role="alert">{esc(problem)}</p>', "error - cmrhash"
    else:
        title = f"{hasher.dataset.name} - cmrhash"
        cards = example_queries(hasher, example_items(hasher, EXAMPLES), question.lang, thumb)
        shown = f'<section aria-labelledby="start"><h2 id="start">Example queries</h2>\n{cards}</section>'
        shown = shown if cards else ""
    more = ' · <a href="/openapi.json">API</a>'
    body = f"""<a class="skip" href="#results">Skip to the results</a>
<header><p class="name"><a href="/">cmrhash</a> <span>{esc(hasher.dataset.name)}, {hasher.run.bits} bits</span></p>
{forms(hasher, config, question)}</header>
<main id="results" tabindex="-1">
<h1>{esc(in_words(answer) if answer else "Search")}</h1>
{shown}
<details class="run"><summary>Scores and plots of this run</summary>
{scored(hasher)}
{_plots(pictures)}</details>
</main>
{footer(hasher, more)}"""
    return document(title, HEAD, body)


def forms(hasher: Hasher, config: ServeConfig, question: Question) -> str:
    """Build the forms for a sentence, a photo and an item, filled in as the last query was."""
    lang = (
        question.lang if question.text is not None else None
    )  # the language of result captions is no choice for a sentence
    focus = "" if question.text or question.ident or question.photo else " autofocus"
    limit = f"{config.max_body / 1e6:g} MB"
    choices = f"""<label>Show <select name="to">{_options(SHOWN, question.to)}</select></label>
<label>Results <input type="number" name="k" min="1" max="{config.max_k}" value="{question.k}"></label>"""
    by = _options({"image": "photo", "text": "first caption"}, question.by)
    return f"""<search>
<form action="/" method="get" class="sentence" id="ask">
<label for="q">Sentence</label>
<input id="q" name="q" type="search" required maxlength="{config.max_text}" value="{esc(question.text or "")}"
 placeholder="describe a picture" autocomplete="off"{focus}>
<button>Search</button>
<div class="choices"><label>Language <select name="lang">{_options(_langs(hasher), lang)}</select></label>
{choices}</div>
</form>
<form action="/" method="post" enctype="multipart/form-data" class="photo" id="drop" data-most="{config.max_body}">
<label for="photo">Photo <small>(at most {limit}<span class="droppable">; or drop or paste it</span>)</small></label>
<input id="photo" name="photo" type="file" required accept="{PHOTOS}">
<input type="hidden" name="lang" value="{esc(lang or "")}">
<input type="hidden" name="to" value="{esc(question.to or "")}">
<input type="hidden" name="k" value="{question.k}">
<button>Search by photo</button>
<p class="problem" role="alert" hidden>This file is larger than {limit}.</p>
</form>
<details class="item"{" open" if question.ident else ""}><summary>Search by an item of the data set</summary>
<form action="/" method="get"><label>Id <input name="id" required value="{esc(question.ident or "")}"></label>
<label>Query <select name="by">{by}</select></label>
<label>Caption language <select name="lang">{_options(dict.fromkeys(hasher.langs), question.lang)}</select></label>
{choices}
<button>Search</button></form></details>
</search>"""


def scored(hasher: Hasher) -> str:
    """Build the table of the scores that ``cmrhash eval`` saved for this run, with their protocol."""
    report = saved_scores.shown(hasher.run)
    if report is None:
        return "<p>No scores yet: run <code>cmrhash eval</code>.</p>"
    protocol = {key: _listed(value) for key, value in report["protocol"].items() if value}
    return score_table(report["rows"], "Scores saved by cmrhash eval") + points(protocol)


def _plots(pictures: Mapping[str, str]) -> str:
    """Build the gallery of plots; a browser loads them when the section is opened, which is when they are drawn."""
    if not pictures:
        return '<p>Plots need Matplotlib: <code>pip install "cmrhash[viz]"</code></p>'
    shown = []
    for name, words in pictures.items():
        url = f"/plot/{esc(name)}.svg"
        shown.append(figure(f'<a href="{url}"><img src="{url}" loading="lazy" alt="plot: {esc(words)}"></a>', words))
    joined = "\n".join(shown)
    return f'<div class="plots">\n{joined}\n</div>'


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _langs(hasher: Hasher) -> dict[str | None, str]:
    own: dict[str | None, str] = {lang: lang for lang in hasher.langs}
    tell = bool(hasher.dataset.languages) or WORDS in hasher.run.files  # captions, or words of the training's
    return {None: "detect", **own} if len(own) > 1 and tell else own


def _options(choices: Mapping[Any, str | None], chosen: str | None) -> str:
    """Build the options of a select. choices: value -> text, None for the value itself."""
    return "".join(
        f'<option value="{esc(value or "")}"{" selected" if value == chosen else ""}>{esc(words or value)}</option>'
        for value, words in choices.items()
    )


def _thumb(hasher: Hasher) -> Address:
    """Make URLs of thumbnails; the digest in them keeps a browser from showing another data set's photo."""
    version = hasher.dataset.sha256[:8]
    return lambda item: f"/thumb/{quote(item.id, safe='')}?v={version}" if item.image else ""
