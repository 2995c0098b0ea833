"""The part of the page below the search bar: what was found, filters by label and language, and further results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from cmrhash.data.view import View
from cmrhash.search.hasher import Hasher
from cmrhash.search.judge import Judged
from cmrhash.show.answers import Answer, Question
from cmrhash.show.html.document import esc
from cmrhash.show.html.languages import language_name
from cmrhash.show.html.links import Links
from cmrhash.show.html.photo_sizes import PhotoSizes
from cmrhash.show.html.tiles import rows, tiles

TITLES = {"image": "Photos", "text": "Captions", "both": "Photos and captions"}
ONE = {"image": "photo", "text": "caption", "both": "result"}
CHIPS = 10  # most labels offered as filters
SAMPLES = 5  # words offered on the first page


def found(hasher: Hasher, links: Links, sizes: PhotoSizes, answer: Answer) -> str:
    """Build the results of a query. The question's ``digest`` stands for an uploaded photo."""
    question, shown_in = answer.question, replace(answer.question, lang=answer.lang)
    parts = [_toolbar(hasher, links, question, answer)]
    if answer.doubt:
        parts.append(f'<p class="doubt" role="note">The results may not fit: {esc(answer.doubt)}.</p>')
    several = len(answer.parts) > 1
    for to, hits in answer.parts.items():
        title = f'<h2 id="found-{to}"{"" if several else " class=unseen"}>{TITLES[to]}</h2>'
        shown = _list(hasher, links, sizes, shown_in, to, hits)
        more = _more(links, question, to, len(hits), to in answer.more)
        parts.append(f'<section aria-labelledby="found-{to}">{title}\n{shown}\n{more}</section>')
    return "\n".join(parts)


def _list(hasher: Hasher, links: Links, sizes: PhotoSizes, question: Question, to: str, hits: Sequence[Judged]) -> str:
    if not hits:
        words = "Nothing further." if question.skip else "Nothing found."
        fix = " Remove a filter to see more." if question.labels else ""
        return f'<p class="nothing">{words}{fix}</p>'
    if to == "text":
        return f'<ol class="captions" id="list-{to}">\n{rows(hasher, links, question, hits)}\n</ol>'
    return f'<ol class="tiles" id="list-{to}">\n{tiles(hasher, links, sizes, question, hits)}\n</ol>'


def _more(links: Links, question: Question, to: str, count: int, more: bool) -> str:
    """Build the links to the results before and after these."""
    each = []
    if question.skip:
        back = links.search(question, to=to, skip=max(question.skip - question.k, 0))
        each.append(f'<a href="{esc(back)}">Show the ones before</a>')
    if more:
        on = links.search(question, to=to, skip=question.skip + count)
        words = f"Show more {TITLES[to].lower()}"
        each.append(f'<a class="button plain" data-list="list-{to}" href="{esc(on)}">{words}</a>')
    return f'<p class="paging">{" ".join(each)}</p>' if each else ""


def counted(hasher: Hasher, answer: Answer) -> str:
    """Count the results shown, and the photos or captions that were searched."""
    views = {"image": [View.IMAGE], "text": [View.text(answer.lang)]}
    views["both"] = [*views["image"], *views["text"]]
    among = {to: sum(len(hasher.views[v].database) for v in views[to] if v in hasher.views) for to in answer.parts}
    each = (
        f"{len(hits)} of {among[to]:,} {ONE[to]}{'s' if among[to] != 1 else ''}" for to, hits in answer.parts.items()
    )
    return " and ".join(each)


def _toolbar(hasher: Hasher, links: Links, question: Question, answer: Answer) -> str:
    langs = _languages(hasher, links, question, answer.lang)
    chips = langs + _unlike(links, question) + _labels(links, question, answer)
    seconds = f" in {max(answer.seconds, 0.001):.3f} s" if answer.seconds else ""
    return (
        f'<div class="toolbar"><p class="count" role="status" aria-live="polite">{esc(counted(hasher, answer))}'
        f'<span class="time">{seconds}</span></p>\n'
        f'<nav class="chips" aria-label="Filters">{chips}</nav></div>'
    )


def _languages(hasher: Hasher, links: Links, question: Question, chosen: str) -> str:
    """Build the switch of the language; the photo, item or sentence of the query stays."""
    if len(hasher.langs) < 2:
        return ""
    each = [
        _chip(language_name(lang), links.search(question, lang=lang), lang == chosen, lang) for lang in hasher.langs
    ]
    return f'<span class="group" role="group" aria-label="Language">{"".join(each)}</span>'


def _labels(links: Links, question: Question, answer: Answer) -> str:
    """Build the filters: labels of the results, the most frequent first; a chosen one can be taken away."""
    counts = Counter(label for hits in answer.parts.values() for judged in hits for label in judged.hit.labels)
    each = []
    for label in question.labels:
        without = tuple(other for other in question.labels if other != label)
        each.append(_chip(f"{label} ×", links.search(question, labels=without, skip=0), True))
    offered = [label for label, _ in counts.most_common() if label not in question.labels]
    for label in offered[: max(CHIPS - len(each), 0)]:
        narrower = links.search(question, labels=(*question.labels, label), skip=0)
        each.append(_chip(label, narrower))
    return f'<span class="group" role="group" aria-label="Labels">{"".join(each)}</span>' if each else ""


def _unlike(links: Links, question: Question) -> str:
    each = []
    for ident in question.unlike:
        without = tuple(other for other in question.unlike if other != ident)
        each.append(_chip(f"less like {ident} ×", links.search(question, unlike=without, skip=0), True))
    return f'<span class="group">{"".join(each)}</span>' if each else ""


def _chip(words: str, address: str, chosen: bool = False, lang: str = "") -> str:
    spoken = f' lang="{esc(lang)}"' if lang else ""
    return f'<a class="chip" href="{esc(address)}"{spoken}{" aria-current=true" if chosen else ""}>{esc(words)}</a>'


def samples(links: Links, question: Question, sentences: Sequence[tuple[str, str]]) -> str:
    """Build the sentences to start from. sentences: (language, words)."""
    each = [
        _chip(words, links.search(question, text=words, lang=lang), lang=lang) for lang, words in sentences[:SAMPLES]
    ]
    return f'<nav class="chips" aria-label="Examples"><span>Try</span>{"".join(each)}</nav>' if each else ""
