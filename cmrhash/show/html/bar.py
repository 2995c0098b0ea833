"""Search bar: words and a photo, with everything else behind "More options"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmrhash.config import ServeConfig
from cmrhash.data.view import languages_of
from cmrhash.encoders.pixels import FORMATS
from cmrhash.search.finder import TARGETS
from cmrhash.search.hasher import Hasher
from cmrhash.show.answers import Question
from cmrhash.show.html.document import esc
from cmrhash.show.html.languages import language_name
from cmrhash.show.html.links import Links
from cmrhash.training.runs import WORDS

SHOWN = {None: "automatic", "image": "photos", "text": "captions", "both": "photos and captions"}
assert set(SHOWN) == {None, *TARGETS}
PHOTOS = ",".join(f"image/{name.lower()}" for name in FORMATS)
GLASS = (
    '<svg viewBox="0 0 24 24" aria-hidden="true">'
    '<circle cx="10.5" cy="10.5" r="6.5"/><path d="m15.5 15.5 5.5 5.5"/></svg>'
)
CAMERA = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 7h3l2-3h6l2 3h3a1 1 0 0 1 1 1v11a1 1 0 0 1-1 1H4a1 1 0 0 1'
    '-1-1V8a1 1 0 0 1 1-1z"/><circle cx="12" cy="13" r="4"/></svg>'
)


def bar(
    hasher: Hasher, config: ServeConfig, links: Links, question: Question, runs: Sequence[str], at_start: bool
) -> str:
    """Build the search form, filled in as the last query was. runs: names of the runs to choose from."""
    limit = f"{config.max_body / 1e6:g} MB"
    lang = question.lang if question.text is not None else None  # that of captions is no choice for a sentence
    hint = "Add words to the photo" if question.digest or question.ident is not None else "Describe a photo"
    return f"""<search>
<form action="{esc(links.file(""))}" method="post" enctype="multipart/form-data" id="ask" data-most="{config.max_body}"
 data-k="{config.k}">
<div class="bar">
{_chosen(hasher, links, question)}<label class="unseen" for="q">Words to search for</label>
<input id="q" name="q" type="search" maxlength="{config.max_text}" value="{esc(question.text or "")}"
 placeholder="{hint}" autocomplete="off" enterkeyhint="search"{" autofocus" if at_start else ""}>
<label class="camera" for="file" title="Search by a photo: choose, drop or paste one, at most {limit}">{CAMERA}
<span class="unseen">Search by a photo, at most {limit}</span></label>
<input class="file" id="file" name="file" type="file" accept="{PHOTOS}">
<button>{GLASS}<span>Search</span></button>
</div>
<p class="problem" id="too-large" role="alert" hidden>This file is larger than {limit}. Choose a smaller one.</p>
<details class="more"><summary>More options</summary>
<div class="choices">
<label>Language <select name="lang">{_options(_langs(hasher), lang)}</select></label>
<label>Show <select name="to">{_options(SHOWN, question.to)}</select></label>
<label>Results per page <input type="number" name="k" min="1" max="{config.max_k}" value="{question.k}"></label>
{_runs(links, hasher, runs)}
<a href="{esc(links.scores)}">Scores and plots</a>
</div></details>
</form>
</search>"""


def _chosen(hasher: Hasher, links: Links, question: Question) -> str:
    """Build the photo or item that is searched by, with a link that takes it away."""
    kept = "".join(f'<input type="hidden" name="label" value="{esc(label)}">' for label in question.labels)
    if question.digest:
        kept += f'<input type="hidden" name="photo" value="{esc(question.digest)}">'
        shown, without = links.asked(question.digest), links.search(question, digest=None, photo=None, skip=0)
        return kept + _chip(shown, "Your photo", without if question.text else links.start)
    if question.ident is not None:
        kept += f'<input type="hidden" name="id" value="{esc(question.ident)}">'
        kept += f'<input type="hidden" name="by" value="{esc(question.by)}">'
        item = hasher.item(question.ident)
        shown = links.thumb(item) if item and question.by == "image" else ""
        without = links.search(question, ident=None, by="image", skip=0)
        name = "Photo" if question.by == "image" else "Caption"
        return kept + _chip(shown, f"{name} of {question.ident}", without if question.text else links.start)
    return kept


def _chip(shown: str, name: str, without: str) -> str:
    picture = f'<img src="{esc(shown)}" alt="{esc(name)}">' if shown else f"<span>{esc(name)}</span>"
    remove = f'<a href="{esc(without)}" title="Remove: {esc(name)}" aria-label="Remove: {esc(name)}">×</a>'
    return f'<span class="by">{picture}{remove}</span>\n'


def _langs(hasher: Hasher) -> dict[str | None, str]:
    own: dict[str | None, str] = {lang: language_name(lang) for lang in hasher.langs}
    tell = bool(languages_of(hasher.views)) or WORDS in hasher.run.files  # captions, or words of the training's
    return {None: "automatic", **own} if len(own) > 1 and tell else own


def _runs(links: Links, hasher: Hasher, runs: Sequence[str]) -> str:
    if len(runs) < 2:
        return f'<input type="hidden" name="run" value="{esc(links.run)}">' if links.run else ""
    own = hasher.run.folder.name
    return f'<label>Run <select name="run">{_options(dict.fromkeys(runs), own)}</select></label>'


def _options(choices: Mapping[Any, str | None], chosen: str | None) -> str:
    """Build the options of a select. choices: value -> text, None for the value itself."""
    return "".join(
        f'<option value="{esc(value or "")}"{" selected" if value == chosen else ""}>{esc(words or value)}</option>'
        for value, words in choices.items()
    )
