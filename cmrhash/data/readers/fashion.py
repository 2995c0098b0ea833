"""Fashion product images (Kaggle): a photo, a product name and attributes per item.

    styles.csv          with a header; one item per line, "id" and "productDisplayName" among its columns
    images/ID.jpg

The text is the product name. Names may contain unquoted commas; surplus fields of a row belong to the name. Labels are
the columns in ``ATTRIBUTES``, as "COLUMN:VALUE", or those that ``labels`` names. Protocol: roles drawn from the seed,
with the shares of IAPR TC-12.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmrhash.data.cleaning import clean_label, clean_text
from cmrhash.data.columns import label_columns, label_prefixes
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.parsing import IMAGE_SUFFIXES, files_by_stem, need_file, need_folder, read_lines, report, unquoted
from cmrhash.errors import DataError

STYLES, IMAGES = "styles.csv", "images"
IDENT, NAME = "id", "productDisplayName"
# Items that share one of these are relevant to each other. A common value (most usages are "Casual") makes nearly all
# items relevant; eval prints the chance level.
ATTRIBUTES = ("masterCategory", "articleType", "baseColour", "usage")
NO_VALUE = ("", "NA")


def read(root: Path, labels: Sequence[str] = ()) -> ImageTextDataset:
    """Read the data set: an item per row of styles.csv.

    labels: names of the columns of labels. Raises DataError if the table, the photos or a column is missing, or if a
    row has no id, UsageError for a name in ``labels`` that is no column.
    """
    extra: Counter[str] = Counter()
    prefixes, rows = _read_rows(need_file(root, STYLES), labels, extra)
    images = files_by_stem(root, need_folder(root, IMAGES), IMAGE_SUFFIXES, extra)
    own = [_labels(row, prefixes) for row in rows]
    classes = tuple(sorted(set().union(*own)))
    if rows and not classes:
        raise DataError(f"no row has a label in column {', '.join(prefixes)}", root / STYLES, "choose other `labels`")
    number = {label: n for n, label in enumerate(classes)}
    items = tuple(
        Item(
            id=row[IDENT],
            image=images.get(row[IDENT]),
            texts={"en": (row[NAME],)} if row[NAME] not in NO_VALUE else {},
            labels=tuple(sorted(number[label] for label in names)),
        )
        for row, names in zip(rows, own, strict=True)
    )
    extra["photos without a row"] = len(images.keys() - {item.id for item in items})
    return ImageTextDataset("fashion", root, items, classes, found=report(items, classes, ["en"], extra))


def _read_rows(path: Path, labels: Sequence[str], extra: Counter[str]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Prefixes of the columns of labels, and rows: column -> cleaned value, "" for missing fields of a short row."""
    lines = read_lines(path)
    header = [clean_text(unquoted(field)) for field in lines[0].split(",")] if lines else []
    missing = [name for name in (IDENT, NAME, *(() if labels else ATTRIBUTES)) if name not in header]
    if missing:
        raise DataError(
            f"no column {', '.join(missing)} in the first line", path, "use the table as downloaded from Kaggle"
        )
    chosen = label_columns(header, labels or ATTRIBUTES, path)
    prefixes = {header[at]: prefix for at, prefix in label_prefixes(header, chosen).items()}
    rows: list[dict[str, str]] = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        row = _row(header, line.split(","), extra)
        if not row[IDENT]:
            raise DataError(f"line {number} has no id", path, "fix this line")
        rows.append(row)
    return prefixes, rows


def _row(header: list[str], fields: list[str], extra: Counter[str]) -> dict[str, str]:
    """One row as a dict; surplus fields are joined to the name."""
    at, more = header.index(NAME), len(fields) - len(header)
    if more > 0:
        fields = [*fields[:at], ",".join(fields[at : at + more + 1]), *fields[at + more + 1 :]]
        extra["rows with commas in the name"] += 1
    elif more < 0:
        fields = fields + [""] * -more
        extra["rows with fields too few"] += 1
    return {name: clean_text(unquoted(value)) for name, value in zip(header, fields, strict=True)}


def _labels(row: Mapping[str, str], prefixes: Mapping[str, str]) -> set[str]:
    return {prefix + row[name] for name, prefix in prefixes.items() if clean_label(row[name]) not in NO_VALUE}
