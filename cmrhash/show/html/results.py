"""Search results as HTML: the query, a gallery of result cards, and the sheet of ``cmrhash search --html``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cmrhash.data.items import RELEVANCE, Item
from cmrhash.search.hasher import Hasher
from cmrhash.search.judge import Judged
from cmrhash.show.answers import Answer
from cmrhash.show.html.document import esc, picture, standalone
from cmrhash.show.html.thumbnails import Thumbnails, data_uri

Address = Callable[[Item], str]  # URL of an item's thumbnail, a path or a data: URI; "" without a photo
TITLES = {"image": "Images", "text": "Captions", "both": "Images and captions"}


def about(hasher: Hasher) -> str:
    """Describe a run and its protocol in one line."""
    run, data = hasher.run, hasher.dataset
    untrained, val = run.untrained_views, run.outcome.val_map_mean
    trained = " and ".join(run.langs) or "images"
    parts = [
        f"{data.name}: {run.method}, {run.bits} bits, seed {run.seed}, trained on {trained}",
        hasher.scope,
        f"relevant: {RELEVANCE[data.relevance]}" if data.can_be_scored else "",
        f"validation mAP {val:.3f}" if val else "",
        "UNTRAINED ENCODERS" if untrained else "",
    ]
    return "; ".join(part for part in parts if part)


def sheet(hasher: Hasher, answer: Answer) -> str:
    """Build a document of one search that needs no other file."""
    thumbnails = Thumbnails(hasher.dataset.root, limit=0)
    shown = results(hasher, answer, lambda item: data_uri(thumbnails.of(item.image)))
    body = f"<main>\n<h1>{esc(in_words(answer))}</h1>\n{shown}\n</main>\n{footer(hasher)}"
    return standalone(f"{in_words(answer)} - cmrhash", body)


def footer(hasher: Hasher) -> str:
    """Name the run and its protocol at the end of a document."""
    return f"<footer><p>{esc(about(hasher))}</p>\n<p>Run <code>{esc(hasher.run.folder)}</code></p></footer>"


def in_words(answer: Answer) -> str:
    """Name the query of an answer, for a title."""
    question = answer.question
    parts = []
    if question.text is not None:
        parts.append(f"“{question.text}”")
    if question.photo is not None or not question.parts:
        parts.append("Your photo" if not parts else "your photo")
    if question.ident is not None:
        kind = "photo" if question.by == "image" else "caption"
        parts.append(f"{kind if parts else kind.capitalize()} of item {question.ident}")
    return " and ".join(parts)


def counted(answer: Answer) -> str:
    """Count the results of each kind, and the relevant ones among them."""
    return ", ".join(_count(to, hits) for to, hits in answer.parts.items()) or "no results"


def _count(to: str, hits: Sequence[Judged]) -> str:
    judged = [hit for hit in hits if hit.relevant is not None and not hit.itself]
    relevant = sum(bool(hit.relevant) for hit in judged)
    share = f" ({relevant} of {len(judged)} relevant)" if judged else ""
    return f"{len(hits)} {TITLES[to].lower() if len(hits) != 1 else TITLES[to].lower().rstrip('s')}{share}"


def results(hasher: Hasher, answer: Answer, thumb: Address) -> str:
    """Build the query and a gallery for each kind of result."""
    order = f", {hasher.order}" if any(answer.parts.values()) else ""
    parts = [_asked(answer, thumb), f'<p class="count">{esc(counted(answer) + order)}</p>']
    for to, hits in answer.parts.items():
        items = [hasher.item(judged.hit.id) for judged in hits]
        cards = [
            card(judged, hasher.run.bits, thumb(item) if item else "") for judged, item in zip(hits, items, strict=True)
        ]
        parts.append(
            f'<section aria-labelledby="found-{to}"><h2 id="found-{to}">{TITLES[to]}</h2>\n'
            f"{gallery(to, cards)}</section>"
        )
    return "\n".join(parts)


def _asked(answer: Answer, thumb: Address) -> str:
    item = answer.item
    if item is not None:
        caption = next(iter(item.texts.get(answer.lang, ())), "")
        return query(
            picture(thumb(item), caption or f"item {item.id}"), described(item, answer.labels, caption, answer.lang)
        )
    if answer.thumb:
        return query(picture(data_uri(answer.thumb), "the query photo"), "")
    return f'<p class="asked">query language: <b>{esc(answer.lang)}</b></p>'


def query(shown: str, words: str) -> str:
    """Frame a query. shown: HTML of its picture; words: HTML beside it."""
    return f'<section class="query" aria-label="Query">{shown}<div>{words}</div></section>'


def described(item: Item, labels: Sequence[str], caption: str, lang: str) -> str:
    """Describe the item of a query: its caption, labels, id and splits."""
    words = f'<p class="caption" lang="{esc(lang)}">{esc(caption)}</p>' if caption else ""
    splits = " and ".join(sorted(item.splits)) or "no split"
    return f'{words}{_labels(labels)}<p class="id">item {esc(item.id)}, {splits}</p>'


def gallery(to: str, cards: Sequence[str]) -> str:
    """Lay out cards. to: kind of the results; captions get wider cards than images."""
    joined = "\n".join(cards)
    return f'<ol class="{"texts" if to == "text" else "images"}">\n{joined}\n</ol>'


def card(judged: Judged, bits: int, thumb: str) -> str:
    """Build the card of a result: thumbnail, distance, verdict, caption, labels and id. thumb: URL of the thumbnail."""
    hit = judged.hit
    caption = hit.caption or f"item {hit.id}"
    kind, verdict = _verdict(judged)
    return (
        f'<li class="{kind}">{picture(thumb, caption)}\n<div><p class="meta"><span class="distance" '
        f'title="similarity, at most 1; Hamming distance in bits, out of {bits}">score {hit.score:.3f}, distance '
        f"{hit.distance}</span>{verdict}</p>\n"
        f'<p class="caption"><span lang="{esc(hit.lang or "")}">{esc(caption)}</span></p>'
        f'{_labels(hit.labels, judged.shared)}<p class="id">{esc(hit.id)}</p></div></li>'
    )


def _verdict(judged: Judged) -> tuple[str, str]:
    """Class of the card, and the verdict as HTML; none for an item without labels, unless it is that of the query."""
    if judged.itself:
        kind, words = "itself", "its own caption" if judged.hit.modality == "text" else "the query itself"
    elif judged.relevant is None or not (judged.relevant or judged.hit.labels):
        return "unjudged", ""
    else:
        kind, words = ("relevant", "✓ relevant") if judged.relevant else ("irrelevant", "✗ not relevant")
    return kind, f'<span class="verdict">{words}</span>'


def _labels(labels: Sequence[str], shared: Sequence[str] = ()) -> str:
    if not labels:
        return ""
    each = [f"<b>{esc(label)}</b>" if label in shared else esc(label) for label in labels]
    return f'<p class="labels">{", ".join(each)}</p>'
