"""Photos at any depth, each with its captions in a text file beside it.

    a/b/c.jpg           .jpg .jpeg .png .webp .gif .bmp .tif .tiff, in any case
    a/b/c.txt           its English captions, one per line; may be missing
    a/b/c.de.txt        its captions in another language, here German

Hidden files and folders are left out. Ids are paths without suffix, or with it where photos differ only in the suffix
(they share their captions). Relevance is by pairs, and the queries are also the database; with ``labels_from`` it is by
labels. Protocol: roles drawn from the seed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from cmrhash.data.cleaning import clean_text
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.parsing import read_lines, report
from cmrhash.data.photos import files_below, folder_labels, ids_of, need_photos, stem_of

_TAGGED = re.compile(r"(?P<stem>.*[^/])\.(?P<lang>[a-z]{2,3}(?:[-_][a-z0-9]{2,8})*)", re.IGNORECASE | re.DOTALL)


def read(root: Path, labels_from: str | None = None) -> ImageTextDataset:
    """Read the data set: an item per photo, with or without captions.

    labels_from: "folder" makes the folder in which a photo lies its label. Raises DataError if there is no
    photo, or if no photo has such a label.
    """
    extra: Counter[str] = Counter()
    files = files_below(root, extra)
    photos = need_photos(root, files, extra)
    stems = {stem_of(path) for path in photos}
    texts: dict[str, dict[str, list[str]]] = {}
    lost = ""  # a text file without a photo
    for path in files:
        if not path.lower().endswith(".txt"):
            continue
        stem, lang = _photo_and_language(stem_of(path), stems)
        if stem not in stems:
            extra["text files without a photo"] += 1
            lost = lost or path
        elif captions := [text for line in read_lines(root / path) if (text := clean_text(line))]:
            texts.setdefault(stem, {}).setdefault(lang, []).extend(captions)
    labels = folder_labels(root, photos) if labels_from else [""] * len(photos)
    classes = tuple(sorted(set(labels) - {""}))
    number = {label: (n,) for n, label in enumerate(classes)}
    items = tuple(
        Item(
            ident,
            path,
            {lang: tuple(lines) for lang, lines in texts.get(stem_of(path), {}).items()},
            number.get(label, ()),
        )
        for ident, path, label in zip(ids_of(photos), photos, labels, strict=True)
    )
    languages = sorted({lang for item in items for lang in item.texts})
    if not languages:
        extra["photos without captions"] = len(items)
    found = report(items, classes, languages, extra)
    bare = next((path for path in photos if stem_of(path) not in texts), None)
    note = f"captions have the name of their photo, such as {stem_of(bare)}.txt for {bare}" if lost and bare else ""
    notes = (f"{note}: {lost} has that of no photo",) if note else ()
    return ImageTextDataset("folder", root, items, classes, "labels" if classes else "pairs", found, notes=notes)


def _photo_and_language(stem: str, photos: Collection[str]) -> tuple[str, str]:
    """Stem of the photo and language of a text file; a stem that is a photo's own names no language."""
    tagged = _TAGGED.fullmatch(stem)
    if stem not in photos and tagged and tagged["stem"] in photos:
        return tagged["stem"], tagged["lang"].lower()
    return stem, "en"
