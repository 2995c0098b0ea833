"""Answers as HTML, for the page and for the sheet: every text that came from data goes through ``esc``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.resources import files
from urllib.parse import urlencode

from cmrhash.data.items import RELEVANCE, Item
from cmrhash.search.hasher import Hasher
from cmrhash.show.photos import data_uri
from cmrhash.show.server.answers import Answer, Judged, names

Source = Callable[[Item], str]  # of an item's picture: an address, or the picture itself; "" if there is none
TITLES = {"image": "Images", "text": "Captions", "both": "Images and captions"}


def esc(text: object) -> str:
    """Safe in an element and in a quoted attribute."""
    return escape(str(text), quote=True)


def static(name: str) -> bytes:
    """A file that lies beside this one."""
    return files("cmrhash.show.server").joinpath(name).read_bytes()


def address(**asked: object) -> str:
    """The page that answers a question."""
    return "/?" + urlencode({key: value for key, value in asked.items() if value not in (None, "")})


def about(hasher: Hasher) -> str:
    """The run and its protocol, in a line."""
    run, data = hasher.run, hasher.dataset
    untrained, val = run.untrained_views, run.outcome.val_map_mean
    parts = [
        f"{data.name}: {run.method}, {run.bits} bits, seed {run.seed}, trained on {' and '.join(run.langs)}",
        hasher.scope,
        f"relevant: {RELEVANCE[data.relevance]}",
        f"mAP on val {val:.3f}" if val else "",
        "UNTRAINED ENCODERS" if untrained else "",
    ]
    return "; ".join(part for part in parts if part)


def sheet(hasher: Hasher, answer: Answer, picture: Callable[[Item], bytes | None]) -> str:
    """A whole document: the query, what was found, and how. It needs no other file."""
    shown = results(hasher, answer, lambda item: data_uri(picture(item)), linked=False)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{static("style.css").decode()}</style>'
    )
    body = f"<main>\n<h1>{esc(in_words(answer))}</h1>\n{shown}\n</main>\n{footer(hasher)}"
    return document(f"{in_words(answer)} - cmrhash", head, body)


def document(title: str, head: str, body: str) -> str:
    """The frame of every document."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{esc(title)}</title>
{head}
</head>
<body>
{body}
</body>
</html>
"""


def footer(hasher: Hasher, more: str = "") -> str:
    """Which run it was."""
    return f"<footer><p>{esc(about(hasher))}</p>\n<p>Run <code>{esc(hasher.run.folder)}</code>{more}</p></footer>"


def in_words(answer: Answer) -> str:
    """The query, for a title."""
    question = answer.question
    if question.ident is not None:
        return f"{'photo' if question.by == 'image' else 'caption'} of item {question.ident}"
    return "your photo" if question.text is None else f"“{question.text}”"


def counted(answer: Answer) -> str:
    """How many were found, of which kind, and how many are relevant."""
    return ", ".join(_count(to, hits) for to, hits in answer.parts.items()) or "nothing found"


def _count(to: str, hits: Sequence[Judged]) -> str:
    judged = [hit for hit in hits if hit.relevant is not None and not hit.itself]
    relevant = sum(bool(hit.relevant) for hit in judged)
    share = f" ({relevant} of {len(judged)} relevant)" if judged else ""
    return f"{len(hits)} {TITLES[to].lower() if len(hits) != 1 else TITLES[to].lower().rstrip('s')}{share}"


def results(hasher: Hasher, answer: Answer, source: Source, linked: bool = True) -> str:
    """The query and a gallery for each part. linked: results can be asked by, and searches be changed."""
    time = f" in {1000 * answer.seconds:.0f} ms" if answer.seconds else ""
    parts = [
        query(answer, source),
        f'<p class="count" role="status" aria-live="polite">{esc(counted(answer))}{time}</p>',
    ]
    for to, hits in answer.parts.items():
        cards = "\n".join(_card(hasher, answer, hit, source, linked) for hit in hits)
        kind = "images" if to != "text" else "texts"
        parts.append(
            f'<section aria-labelledby="found-{to}"><h2 id="found-{to}">{TITLES[to]}</h2>\n'
            f'<ol class="{kind}">\n{cards}\n</ol></section>'
        )
    return "\n".join(parts)


def query(answer: Answer, source: Source) -> str:
    """What was asked by."""
    item, lang = answer.item, answer.lang
    words, picture = "", ""
    if item is not None:
        captions = item.texts.get(lang, ())
        words = f'<p class="caption" lang="{esc(lang)}">{esc(captions[0])}</p>' if captions else ""
        words += _labels(answer.labels) + f'<p class="id">item {esc(item.id)}, {_roles(item)}</p>'
        picture = _picture(source(item), captions[0] if captions else f"item {item.id}")
    elif answer.question.text is not None:
        return f'<p class="asked">asked in <b>{esc(lang)}</b></p>'
    elif answer.thumb:
        picture = _picture(data_uri(answer.thumb), "the photo that you searched by")
    return f'<section class="query" aria-label="Query">{picture}<div>{words}</div></section>'


def start_cards(hasher: Hasher, items: Iterable[Item], lang: str | None, source: Source) -> str:
    """Query items that one can start from."""
    lang = lang or hasher.langs[0]
    cards = []
    for item in items:
        caption = next(iter(item.texts.get(lang, ())), f"item {item.id}")
        link = esc(address(id=item.id, by="image", lang=lang))
        labels = _labels(names(hasher, item))
        cards.append(
            f'<li><a href="{link}">{_picture(source(item), caption)}</a>\n'
            f'<p class="caption" lang="{esc(lang)}">{esc(caption)}</p>{labels}</li>'
        )
    return '<ol class="images">\n' + "\n".join(cards) + "\n</ol>" if cards else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Names left, numbers right; the columns of a wide one scroll."""
    head = "".join(f'<th scope="col">{esc(column)}</th>' for column in columns)
    lines = "\n".join("<tr>" + "".join(f"<td>{esc(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}"><table>'
        f"<caption>{esc(caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>{lines}</tbody></table></div>"
    )


def _card(hasher: Hasher, answer: Answer, judged: Judged, source: Source, linked: bool) -> str:
    hit, bits = judged.hit, hasher.run.bits
    caption = hit.caption or f"item {hit.id}"
    item = hasher.item(hit.id)
    picture = _picture(source(item) if item else "", caption)
    words = f'<span lang="{esc(hit.lang or "")}">{esc(caption)}</span>'
    if linked:
        lang, k = answer.lang, answer.question.k
        by_photo = esc(address(id=hit.id, by="image", lang=lang, k=k))
        first = item is not None and hit.caption == next(iter(item.texts.get(lang, ())), None)
        asked = {"id": hit.id, "by": "text"} if first else {"q": caption}  # an item stands for its first caption
        by_words = esc(address(**asked, lang=lang, k=k))
        picture = f'<a href="{by_photo}" title="search by this photo">{picture}</a>' if item and item.image else picture
        words = f'<a href="{by_words}" title="search by this caption">{words}</a>'
    return (
        f'<li class="{_verdict_class(judged)}">{picture}\n<div><p class="meta"><span class="distance" '
        f'title="bits that differ, of {bits}">distance {hit.distance}</span>{_verdict(judged)}</p>\n'
        f'<p class="caption">{words}</p>{_labels(hit.labels, judged.shared)}<p class="id">{esc(hit.id)}</p></div></li>'
    )


def _verdict(judged: Judged) -> str:
    if judged.itself:
        return '<span class="verdict">the query itself</span>'
    if judged.relevant is None:
        return ""
    return f'<span class="verdict">{"✓ relevant" if judged.relevant else "✗ not relevant"}</span>'


def _verdict_class(judged: Judged) -> str:
    if judged.itself:
        return "itself"
    return {True: "relevant", False: "irrelevant", None: "unjudged"}[judged.relevant]


def _picture(source: str, alt: str) -> str:
    if not source:
        return '<span class="none">no photo</span>'
    return f'<img src="{esc(source)}" alt="{esc(alt)}" loading="lazy" decoding="async">'


def _labels(labels: Sequence[str], shared: Sequence[str] = ()) -> str:
    if not labels:
        return ""
    each = [f"<b>{esc(label)}</b>" if label in shared else esc(label) for label in labels]
    return f'<p class="labels">{", ".join(each)}</p>'


def _roles(item: Item) -> str:
    return " and ".join(sorted(item.splits)) or "no role"
