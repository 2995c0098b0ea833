"""Photos at any depth, each with its captions in a text file beside it.

    a/b/c.jpg           .jpg .jpeg .png .webp .gif .bmp .tif .tiff, in any case
    a/b/c.txt           its English captions, one per line; may be missing
    a/b/c.de.txt        its captions in another language, here German

Hidden files and folders are left out. Ids are paths without suffix, or with it where photos differ only in the suffix
(they share their captions). Relevance is by pairs. Protocol: roles drawn from the seed; the queries are also the
database.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from cmrhash.data.items import ImageTextDataset, Item, clean_text
from cmrhash.data.parsing import read_lines, report
from cmrhash.data.photos import files_below, ids_of, need_photos, stem_of

_TAGGED = re.compile(r"(?P<stem>.*[^/])\.(?P<lang>[a-z]{2,3}(?:[-_][a-z0-9]{2,8})*)", re.IGNORECASE | re.DOTALL)


def read(root: Path) -> ImageTextDataset:
    """Read the data set: an item per photo, with or without captions.

    Raises DataError if there is no photo, or for a link that leaves the root.
    """
    extra: Counter[str] = Counter()
    files = files_below(root, extra)
    photos = need_photos(root, files)
    stems = {stem_of(path) for path in photos}
    texts: dict[str, dict[str, list[str]]] = {}
    for path in files:
        if not path.lower().endswith(".txt"):
            continue
        stem, lang = _photo_and_language(stem_of(path), stems)
        if stem not in stems:
            extra["text files without a photo"] += 1
        elif captions := [text for line in read_lines(root / path) if (text := clean_text(line))]:
            texts.setdefault(stem, {}).setdefault(lang, []).extend(captions)
    items = tuple(
        Item(ident, path, {lang: tuple(captions) for lang, captions in texts.get(stem_of(path), {}).items()}, ())
        for ident, path in zip(ids_of(photos), photos, strict=True)
    )
    languages = sorted({lang for item in items for lang in item.texts})
    if not languages:
        extra["photos without captions"] = len(items)
    return ImageTextDataset("folder", root, items, (), "pairs", found=report(items, (), languages, extra))


def _photo_and_language(stem: str, photos: Collection[str]) -> tuple[str, str]:
    """Stem of the photo and language of a text file; a stem that is a photo's own names no language."""
    tagged = _TAGGED.fullmatch(stem)
    if stem not in photos and tagged and tagged["stem"] in photos:
        return tagged["stem"], tagged["lang"].lower()
    return stem, "en"
