"""The page: a form, an answer below it, and the run's scores at the foot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from cmrhash.config import ServeConfig
from cmrhash.data.items import Item
from cmrhash.encoders.pixels import FORMATS
from cmrhash.evaluation import saved_scores
from cmrhash.search.hasher import TARGETS, Hasher
from cmrhash.show.server.answers import Answer, Question, starts
from cmrhash.show.server.html import document, esc, footer, in_words, results, start_cards, table

HEAD = """<link rel="stylesheet" href="/style.css">
<link rel="icon" href="/favicon.svg" type="image/svg+xml">
<script src="/drop.js" defer></script>"""
SHOWN = {None: "what fits the query", "image": "images", "text": "captions", "both": "images and captions"}
PHOTOS = ",".join(f"image/{name.lower()}" for name in FORMATS)
STARTS = 12  # query items on the first page
assert set(SHOWN) == {None, *TARGETS}


def page(
    hasher: Hasher,
    config: ServeConfig,
    pictures: Mapping[str, str],
    question: Question,
    answer: Answer | None = None,
    problem: str = "",
) -> str:
    """A whole document. answer: to the question, None where nothing was asked. problem: why there is none.

    pictures: name of a plot -> what it shows.
    """
    source = _source(hasher)
    if answer is not None:
        shown, title = results(hasher, answer, source), f"{in_words(answer)} - cmrhash"
    elif problem:
        shown, title = f'<p class="problem" role="alert">{esc(problem)}</p>', "not found - cmrhash"
    else:
        title = f"{hasher.dataset.name} - cmrhash"
        cards = start_cards(hasher, starts(hasher, STARTS), question.lang, source)
        shown = f'<section aria-labelledby="start"><h2 id="start">Or start from a query item</h2>\n{cards}</section>'
        shown = shown if cards else ""
    more = ' · <a href="/openapi.json">API</a>'
    body = f"""<a class="skip" href="#results">Skip to the results</a>
<header><p class="name"><a href="/">cmrhash</a> <span>{esc(hasher.dataset.name)}, {hasher.run.bits} bits</span></p>
{forms(hasher, config, question)}</header>
<main id="results" tabindex="-1">
<h1>{esc(in_words(answer) if answer else "Search")}</h1>
{shown}
<details class="run"><summary>This run: scores and plots</summary>
{scored(hasher)}
{_plots(pictures)}</details>
</main>
{footer(hasher, more)}"""
    return document(title, HEAD, body)


def forms(hasher: Hasher, config: ServeConfig, question: Question) -> str:
    """A sentence, a photo, or an item's id; what is chosen stays chosen."""
    lang = question.lang if question.text is not None else None  # that of found captions says nothing of a sentence
    focus = "" if question.text or question.ident or question.photo else " autofocus"
    limit = f"{config.max_body / 1e6:g} MB"
    choices = f"""<label>Show <select name="to">{_options(SHOWN, question.to)}</select></label>
<label>How many <input type="number" name="k" min="1" max="{config.max_k}" value="{question.k}"></label>"""
    by = _options({"image": "its photo", "text": "its caption"}, question.by)
    return f"""<search>
<form action="/" method="get" class="sentence" id="ask">
<label for="q">Sentence</label>
<input id="q" name="q" type="search" required maxlength="{config.max_text}" value="{esc(question.text or "")}"
 placeholder="what is in the picture?" autocomplete="off"{focus}>
<button>Search</button>
<div class="choices"><label>Language <select name="lang">{_options(_langs(hasher), lang)}</select></label>
{choices}</div>
</form>
<form action="/" method="post" enctype="multipart/form-data" class="photo" id="drop" data-most="{config.max_body}">
<label for="photo">Photo <small>(at most {limit}<span class="droppable">; drop or paste it here</span>)</small></label>
<input id="photo" name="photo" type="file" required accept="{PHOTOS}">
<input type="hidden" name="lang" value="{esc(lang or "")}">
<input type="hidden" name="to" value="{esc(question.to or "")}">
<input type="hidden" name="k" value="{question.k}">
<button>Search by photo</button>
<p class="problem" role="alert" hidden>This file is larger than {limit}.</p>
</form>
<details class="item"{" open" if question.ident else ""}><summary>Search by an item of the data set</summary>
<form action="/" method="get"><label>Id <input name="id" required value="{esc(question.ident or "")}"></label>
<label>by <select name="by">{by}</select></label>
<label>Captions <select name="lang">{_options(dict.fromkeys(hasher.langs), question.lang)}</select></label>
{choices}
<button>Search</button></form></details>
</search>"""


def scored(hasher: Hasher) -> str:
    """What ``cmrhash eval`` found for this run, if it was asked."""
    report = saved_scores.shown(hasher.run)
    if report is None:
        return "<p>Not scored yet: run <code>cmrhash eval</code>.</p>"
    cells = [_score(row) for row in report["rows"]]
    protocol = {key: value for key, value in report["protocol"].items() if value}
    columns = list(dict.fromkeys(column for row in cells for column in row))
    lines = [[row.get(column, "") for column in columns] for row in cells]
    points = "".join(f"<dt>{esc(key)}</dt><dd>{esc(_listed(value))}</dd>" for key, value in protocol.items())
    return f"{table(columns, lines, 'what cmrhash eval found for this run')}<dl>{points}</dl>"


def _plots(pictures: Mapping[str, str]) -> str:
    """A browser asks for a picture once it can be seen: none is drawn for a section that stays closed."""
    if not pictures:
        return '<p>For plots: <code>pip install "cmrhash[viz]"</code></p>'
    shown = "\n".join(
        f'<figure><a href="/plot/{esc(name)}.svg">'
        f'<img src="/plot/{esc(name)}.svg" loading="lazy" alt="plot: {esc(words)}"></a>'
        f"<figcaption>{esc(words)}</figcaption></figure>"
        for name, words in pictures.items()
    )
    return f'<div class="plots">\n{shown}\n</div>'


def _score(row: dict[str, Any]) -> dict[str, str]:
    """Column -> cell. By pairs what counts is R@k, by labels mAP."""
    lang = "-".join(filter(None, (row["lang"], row.get("database_lang"))))
    cells = {"direction": row["direction"], "language": lang}
    if row["relevance"] == "pairs":
        cells |= {f"R@{k}": f"{value:.3f}" for k, value in row["hit_at"].items()}
        cells["median rank"] = f"{row['median_rank']:.1f}"
    else:
        maps = {"mAP": "map", "chance": "chance", "mAP real-valued": "map_real"}
        cells |= {column: f"{row[key]:.3f}" for column, key in maps.items()}
        cells |= {f"P@{k}": f"{value:.3f}" for k, value in row["precision_at"].items()}
    return {**cells, "queries": f"{row['queries']}", "database": f"{row['database']}"}


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _langs(hasher: Hasher) -> dict[str | None, str]:
    own: dict[str | None, str] = {lang: lang for lang in hasher.langs}
    return {None: "by its words", **own} if len(own) > 1 else own


def _options(choices: Mapping[Any, str | None], chosen: str | None) -> str:
    """words None: those of the value itself."""
    return "".join(
        f'<option value="{esc(value or "")}"{" selected" if value == chosen else ""}>{esc(words or value)}</option>'
        for value, words in choices.items()
    )


def _source(hasher: Hasher) -> Any:
    """An item's address below /thumb/. The digest keeps a browser from showing another data set's picture."""
    version = hasher.dataset.sha256[:8]

    def source(item: Item) -> str:
        return f"/thumb/{quote(item.id, safe='')}?v={version}" if item.image else ""

    return source
