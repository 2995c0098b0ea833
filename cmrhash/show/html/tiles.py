"""Results on the page: photos as tiles of their own shape, captions as rows."""

from __future__ import annotations

from collections.abc import Sequence

from cmrhash.data.items import Item
from cmrhash.search.hasher import Hasher
from cmrhash.search.judge import Judged
from cmrhash.search.results import Hit
from cmrhash.show.answers import Question
from cmrhash.show.html.document import esc
from cmrhash.show.html.links import Links
from cmrhash.show.html.photo_sizes import PhotoSizes, Size

STEPS = 20  # classes of shapes per unit of width / height; a class keeps a tile's shape within 2.5 %
NARROWEST, WIDEST = 8, 60  # shapes from 0.4 to 3; narrower and wider photos get a frame of that shape
UNKNOWN = (4, 3)  # shape of a tile without a photo


def shape(size: Size | None) -> str:
    """Class of a tile that has the shape of a photo; see ``shape_rules``."""
    width, height = size or UNKNOWN
    return f"w{min(max(round(STEPS * width / height), NARROWEST), WIDEST)}"


def shape_rules() -> str:
    """Build the style rules of all shapes: in a row, tiles share the width so that all have the same height."""
    rules = []
    for step in range(NARROWEST, WIDEST + 1):
        ratio = step / STEPS
        width = f"flex: {ratio:g} 1 calc({ratio:g} * var(--row)); max-width: calc({ratio:g} * var(--tall))"
        rules.append(f".w{step} {{ {width}; }}\n.w{step} .frame {{ aspect-ratio: {ratio:g}; }}")
    return "\n".join(rules) + "\n"


def likeness(hit: Hit) -> float:
    """Similarity of a result to the query from 0 (as far as a random one) to 1."""
    return min(max(0.0, hit.score), 1.0)


def tiles(hasher: Hasher, links: Links, sizes: PhotoSizes, question: Question, hits: Sequence[Judged]) -> str:
    """Build the tiles of found photos."""
    return "\n".join(_tile(hasher, links, sizes, question, judged) for judged in hits)


def _tile(hasher: Hasher, links: Links, sizes: PhotoSizes, question: Question, judged: Judged) -> str:
    hit = judged.hit
    caption, size = hit.caption or f"item {hit.id}", sizes.of(hit.image)
    item = hasher.item(hit.id)
    frame = f'<span class="frame">{_picture(links, item, caption, hit.lang)}</span>'
    return f"""<li class="tile {shape(size)}"><a class="open" href="{esc(links.item(hit.id, question))}">{frame}
<span class="caption" lang="{esc(hit.lang or "")}" aria-hidden="true">{esc(caption)}</span></a>
{_under(judged)}</li>"""


def rows(hasher: Hasher, links: Links, question: Question, hits: Sequence[Judged]) -> str:
    """Build the rows of found captions, each with the photo of its item."""
    found = []
    for judged in hits:
        hit = judged.hit
        caption, item = hit.caption or f"item {hit.id}", hasher.item(hit.id)
        found.append(
            f'<li class="row"><a class="open" href="{esc(links.item(hit.id, question))}">'
            f'<span class="frame">{_picture(links, item, "", None)}</span>'
            f'<span class="words" lang="{esc(hit.lang or "")}">{esc(caption)}</span></a>\n'
            f"{_under(judged)}</li>"
        )
    return "\n".join(found)


def examples(links: Links, sizes: PhotoSizes, items: Sequence[Item], lang: str, question: Question) -> str:
    """Build tiles of items to start from: each is a search by its photo."""
    found = []
    for item in items:
        caption = next(iter(item.texts.get(lang, ())), f"item {item.id}")
        address = links.search(question, ident=item.id, lang=lang)
        found.append(
            f'<li class="tile {shape(sizes.of(item.image))}"><a href="{esc(address)}" title="Search by this photo">'
            f'<span class="frame">{_picture(links, item, caption, lang)}</span>\n'
            f'<span class="caption" lang="{esc(lang)}" aria-hidden="true">{esc(caption)}</span></a></li>'
        )
    return "\n".join(found)


def _picture(links: Links, item: Item | None, caption: str, lang: str | None) -> str:
    address = links.thumb(item) if item else ""
    if not address:
        return f'<span class="none" lang="{esc(lang or "")}">{esc(caption) or "no photo"}</span>'
    spoken = f' lang="{esc(lang)}"' if lang else ""
    return f'<img src="{esc(address)}" alt="{esc(caption)}"{spoken} loading="lazy" decoding="async">'


def _under(judged: Judged) -> str:
    """Build the line below a result: its rank, a bar of its similarity, and how it relates to the query's item."""
    hit, like = judged.hit, likeness(judged.hit)
    percent = f"{100 * like:.0f} %"
    return (
        f'<p class="under"><span class="rank"><span class="unseen">Result </span>{hit.rank}</span> '
        f'<meter min="0" max="1" value="{like:.3f}" title="{percent} similar" aria-label="similarity">{percent}</meter>'
        f"{_relation(judged)}</p>"
    )


def _relation(judged: Judged) -> str:
    if judged.itself:
        own = judged.hit.modality == "text"
        words, tip = "its own caption" if own else "the query", "This is the item of the query"
    elif judged.shared:
        words, tip = "✓", f"Shares with the query: {', '.join(judged.shared)}"
    else:
        return ""
    return f'<span class="relation" title="{esc(tip)}">{esc(words)}<span class="unseen">{esc(tip)}</span></span>'
