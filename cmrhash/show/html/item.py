"""The page of an item, which the lightbox shows too: its photo, captions in every language, labels and links."""

from __future__ import annotations

from dataclasses import replace

from cmrhash.data.items import Item
from cmrhash.search.hasher import Hasher
from cmrhash.search.judge import label_names
from cmrhash.show.answers import Question
from cmrhash.show.html.document import esc
from cmrhash.show.html.languages import language_name
from cmrhash.show.html.links import Links
from cmrhash.show.html.photo_sizes import Size


def item_view(hasher: Hasher, links: Links, item: Item, question: Question, size: Size | None, whole: bool) -> str:
    """Build the view of an item. question: whose results it was in; whole: the original photo can be shown.

    size: (width, height) of the photo in pixels, None if it cannot be read.
    """
    lang = question.lang if question.lang in item.texts else next(iter(item.texts), "")
    title = next(iter(item.texts.get(lang or "", ())), f"item {item.id}")
    return f"""<article class="item" aria-label="{esc(title)}">
{_photo(links, item, title, size, whole)}
<div class="about">
<h2 lang="{esc(lang)}">{_searched(links, question, lang or "", title)}</h2>
{_actions(hasher, links, item, question, whole)}
{_captions(links, item, question, lang or "")}{_labels(hasher, links, item, question)}
<p class="id">{esc(_described(item, size))}</p>
</div></article>"""


def _photo(links: Links, item: Item, title: str, size: Size | None, whole: bool) -> str:
    if size is None:
        return '<figure><span class="none">no photo</span></figure>'
    shown = links.photo(item) if whole else links.thumb(item)
    space = f' width="{size[0]}" height="{size[1]}"' if whole else ""
    return f'<figure><img src="{esc(shown)}" alt="{esc(title)}"{space} decoding="async"></figure>'


def _actions(hasher: Hasher, links: Links, item: Item, question: Question, whole: bool) -> str:
    own = Question(lang=question.lang, k=question.k, ident=item.id)
    by = "image" if item.image else "text"
    each = [f'<a class="button" href="{esc(links.search(own, by=by))}">More like this</a>']
    if question.parts and item.image and item.id != question.ident and hasher.kind("image") == "image":
        unlike = (*(ident for ident in question.unlike if ident != item.id), item.id)[-8:]
        less = links.search(question, unlike=unlike, skip=0)
        each.append(f'<a class="button plain" href="{esc(less)}">Less like this</a>')
    each.append(f'<a class="button plain copy" href="{esc(links.item(item.id))}">Link to this page</a>')
    if whole:
        each.append(f'<a class="button plain" href="{esc(links.photo(item))}">Original photo</a>')
    return f'<p class="actions">{" ".join(each)}</p>'


def _captions(links: Links, item: Item, question: Question, shown: str) -> str:
    """Build the captions in every language. shown: the language whose first caption is the title."""
    parts = []
    for lang, texts in sorted(item.texts.items(), key=lambda pair: pair[0] != shown):
        each = "".join(f"<li>{_searched(links, question, lang, text)}</li>" for text in texts[lang == shown :])
        if each:
            parts.append(f'<h3 lang="{esc(lang)}">{esc(language_name(lang))}</h3><ul lang="{esc(lang)}">{each}</ul>')
    return "\n".join(parts)


def _searched(links: Links, question: Question, lang: str, text: str) -> str:
    """Build a caption that leads to a search by its words."""
    if not lang:
        return esc(text)
    address = links.search(Question(text=text, lang=lang, k=question.k))
    return f'<a href="{esc(address)}" title="Search by these words">{esc(text)}</a>'


def _labels(hasher: Hasher, links: Links, item: Item, question: Question) -> str:
    names = label_names(hasher.dataset, item)
    if not names:
        return ""
    base = replace(question, skip=0) if question.parts else Question(lang=question.lang, k=question.k, ident=item.id)
    each = []
    for name in names:
        kept = (*(label for label in base.labels if label != name), name)
        address = links.search(base, labels=kept)
        each.append(f'<a class="chip" href="{esc(address)}" title="Only results with this label">{esc(name)}</a>')
    return f'\n<h3>Labels</h3><p class="chips">{"".join(each)}</p>'


def _described(item: Item, size: Size | None) -> str:
    splits = " and ".join(sorted(item.splits)) or "no split"
    pixels = f"{size[0]} × {size[1]} pixels" if size else ""
    return ", ".join(part for part in (f"item {item.id}", pixels, splits) if part)
