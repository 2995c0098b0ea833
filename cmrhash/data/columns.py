"""Roles of a table's columns: by ``maps``, otherwise by the usual names in any case."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmrhash.data.cleaning import clean_text
from cmrhash.data.tables import Table
from cmrhash.errors import DataError, UsageError, did_you_mean, some_of

NAMES = {  # role -> usual names, the first that is there counts
    "image": [
        *("image", "filename", "file_name", "file", "path", "img", "photo", "image_path"),
        *("image_name", "file_path", "filepath", "picture"),
    ],
    "labels": ["labels", "label", "tags", "category", "class"],
    "split": ["split", "fold", "set"],
    "id": ["id", "key", "image_id"],
}
TEXTS = ["caption", "text", "sentence", "description", "title", "comment", "raw"]
# Languages that a column's name may have; without codes that mean something else, as "id" and "no".
LANGUAGES = (
    *("en", "de", "fr", "es", "it", "pt", "nl", "cs", "pl", "ru", "uk", "zh", "ja", "ko", "ar", "fa", "tr", "vi"),
    *("sv", "da", "fi", "el", "hu", "ro", "bg", "hr", "sk", "sl"),
)
_NUMBER = r"(?:[_. -]?\d+)?"
_TEXT = re.compile(rf"({'|'.join(TEXTS)})s?(?:[_. -]({'|'.join(LANGUAGES)}))?{_NUMBER}")
_LANGUAGE = re.compile(rf"({'|'.join(LANGUAGES)}){_NUMBER}")
DEFAULT = "en"
FORM = 'write image=COLUMN, text.LANG=COLUMN, labels=COLUMN, split=COLUMN or id=COLUMN; "ROLE=" means no column'


@dataclass(frozen=True)
class Columns:
    """Numbers of the columns with a role.

    texts: language -> columns of captions. own_id: ``maps`` names the id, which then tells items apart.
    """

    image: int | None
    texts: dict[str, list[int]]
    labels: list[int]
    split: int | None
    id: int | None
    own_id: bool

    @property
    def used(self) -> list[int]:
        """Every column with a role, once."""
        single = [at for at in (self.image, self.split, self.id) if at is not None]
        return list(dict.fromkeys([*single, *self.labels, *(at for found in self.texts.values() for at in found)]))


def choose(table: Table, maps: Sequence[str], labels: Sequence[str] = ()) -> Columns:
    """Give the columns of a table their roles.

    maps: "ROLE=COLUMN"; roles and columns named here are not guessed. labels: names of the columns of labels, instead
    of maps. Raises UsageError for a map or name that does not fit, DataError if no column holds images or texts and no
    map says that there is none.
    """
    mapped = _mapped(table, maps)
    if labels and "labels" in mapped:
        raise UsageError("`maps` names columns of labels, too", None, "use one of the two", option="labels")
    if labels:
        mapped["labels"] = label_columns(table.columns, labels, table.path)
    taken = {at for role, found in mapped.items() if role != "id" for at in found}  # an id may be a photo's name, too
    plain = [clean_text(name).casefold() for name in table.columns]
    inside = {at for at, name in enumerate(table.columns) if name in table.photos}
    found = {role: mapped.get(role, _guessed(names, plain, taken | inside)) for role, names in NAMES.items()}
    if "image" not in mapped and inside:
        found["image"] = _guessed(NAMES["image"], plain, set(range(len(plain))) - inside) or [min(inside)]
    taken |= {at for columns in found.values() for at in columns} | inside
    texts = {} if mapped.get("text.") == [] else caption_columns(plain, taken)
    texts |= {role.removeprefix("text."): columns for role, columns in mapped.items() if role.startswith("text.")}
    texts = {lang: columns for lang, columns in sorted(texts.items()) if columns}
    if not found["image"] and "image" not in mapped:
        _refuse(table, "image", "photos", NAMES["image"])
    if not texts and "text." not in mapped:
        _refuse(table, "text", "texts", TEXTS)
    image, split, ident = (next(iter(found[role]), None) for role in ("image", "split", "id"))
    return Columns(image, texts, found["labels"], split, ident, own_id=bool(mapped.get("id")))


def count_unused(table: Table, used: Collection[int], extra: Counter[str]) -> None:
    """Count in ``extra`` the named columns that are not among ``used``, under a key that lists the first five."""
    if unused := [name for at, name in enumerate(table.columns) if name and at not in used]:
        names = f"{', '.join(unused[:5])}{', ...' if len(unused) > 5 else ''}"
        extra[f'columns not used ({names}; `maps=("ROLE=COLUMN",)` uses one)'] += len(unused)


def _refuse(table: Table, role: str, what: str, names: Sequence[str]) -> None:
    """Raise DataError that lists the columns and, if one is near a usual name, the nearest."""
    by_name = {name.casefold(): name for name in table.columns}
    near = next(filter(None, (did_you_mean(name, by_name) for name in names)), "")
    has = f"no column of {what} (the columns are {some_of(table.columns)})"
    fix = f'{near} name it with `maps=("{role}=COLUMN",)`, or write `maps=("{role}=",)` if there is none'
    raise DataError(has, table.path, fix)


def _guessed(names: Sequence[str], columns: Sequence[str], taken: set[int]) -> list[int]:
    """The first column with one of these names, as a list."""
    free = [at for at in range(len(columns)) if at not in taken and columns[at] in names]
    return sorted(free, key=lambda at: names.index(columns[at]))[:1]


def caption_columns(columns: Sequence[str], taken: Container[int] = ()) -> dict[str, list[int]]:
    """Columns of captions by language: for each, those of the first usual name that has it.

    columns: names in lower case. taken: numbers of the columns that hold something else.

    >>> caption_columns(["file", "text", "caption_de_0", "caption_de_1"])
    {'en': [1], 'de': [2, 3]}
    """
    found: defaultdict[str, defaultdict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for at, name in enumerate(columns):
        if at in taken:
            continue
        if match := _TEXT.fullmatch(name):
            found[match[2] or DEFAULT][TEXTS.index(match[1])].append(at)
        elif match := _LANGUAGE.fullmatch(name):
            found[match[1]][len(TEXTS)].append(at)
    return {lang: ranked[min(ranked)] for lang, ranked in found.items()}


def _mapped(table: Table, maps: Sequence[str]) -> dict[str, list[int]]:
    """Role -> columns; a text is "text.LANG", and "text." with no columns means that there are none."""
    mapped: dict[str, list[int]] = {}
    for option in maps:
        role, equals, name = option.partition("=")
        role = {"label": "labels", "text": f"text.{DEFAULT}"}.get(role, role)
        language = role.removeprefix("text.").lower() if role.startswith("text.") else None
        if not equals or (language is None and role not in NAMES):
            near = did_you_mean(role, [*NAMES, "text"])
            raise UsageError(f"cannot parse '{option}'", None, f"{near} {FORM}", option="maps")
        if language is not None:
            if not (language.isascii() and language.replace("-", "").replace("_", "").isalnum()):
                raise UsageError(f"'{language}' is not a language code ('{option}')", None, FORM, option="maps")
            role = f"text.{language}" if name else "text."
        if mapped.get(role) and role in ("image", "split", "id"):
            raise UsageError(f"'{option}' maps {role} a second time", None, "map it once", option="maps")
        mapped.setdefault(role, []).extend(
            [_column(table.columns, name, table.path, "maps", f" ('{option}')")] if name else []
        )
    return mapped


def label_columns(columns: Sequence[str], asked: Sequence[str], path: Path) -> list[int]:
    """Numbers of the columns that ``labels`` names, each once.

    columns: names of the table at ``path``. asked: names of columns, also several joined by commas. Raises UsageError.
    """
    names = [name for each in asked for name in ([each] if each in columns else each.split(","))]
    return list(dict.fromkeys(_column(columns, name.strip(), path, "labels") for name in names))


def label_prefixes(columns: Sequence[str], labels: Sequence[int]) -> dict[int, str]:
    """What stands before the labels of a column: its name if there are several columns of labels, else nothing.

    >>> label_prefixes(["file", "kind", "colour"], [1, 2])
    {1: 'kind:', 2: 'colour:'}
    """
    return {at: f"{columns[at]}:" if len(labels) > 1 else "" for at in labels}


def _column(columns: Sequence[str], name: str, path: Path, option: str, given: str = "") -> int:
    """Number of the column with that name, in any case if no other has it; raises UsageError."""
    if name in columns:
        return columns.index(name)
    near = [at for at, column in enumerate(columns) if column.casefold() == name.casefold()]
    if len(near) == 1:
        return near[0]
    fix = f"{did_you_mean(name, columns)} the columns are {some_of(columns)}"
    raise UsageError(f"no column '{name}'{given}", path, fix, option=option)
