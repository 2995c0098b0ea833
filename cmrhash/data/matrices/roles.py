"""Roles of the arrays in feature files: by ``maps``, otherwise by common array names.

A slot is (what, part). what: a View, "labels", or "index" for row numbers; part: "train", "query", "database" or "val",
"" for all items. Known names, in any case:

    IAll, YAll or TAll, LAll; images, texts, labels; img, txt, label         all items
    I_tr, T_te, L_db; XTrain, YTest, LDatabase; image_val; databaseL          a part of them (I or X, T or Y, L)
    q_img, r_txt, q_l                                                         query and retrieval
    indexTrain, param.indexQuery, retrieval_idx                               rows of a part
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from cmrhash.data.matrices.arrays import Array
from cmrhash.data.view import View
from cmrhash.errors import DataError, UsageError, did_you_mean

Slot = tuple[str, str]

LANG = "en"  # default language of texts
INDEX = "index"
PARTS = ("train", "query", "database", "val")
LISTED = 40  # most arrays listed in a message

_ALIASES = {"test": "query", "retrieval": "database", **{part: part for part in PARTS}}
_WHAT = {
    View.IMAGE: r"i|x|im|imgs?|images?",
    View.text(LANG): r"t|y|txts?|texts?|tags?",
    "labels": r"l|labs?|labels?",
    INDEX: r"index|idx|inds?|indices|ids?",
}
_PART = {
    "train": r"tr|train|training",
    "query": r"te|test|testing|query|queries",
    "database": r"db|database|retrieval|ret",
    "val": r"val|valid|validation",
}
_SHORT = {"query": "q", "database": "r"}  # prefixes only: q_img, r_l
_FEATURES = r"(?:_?(?:feats?|features?))?"


def _patterns() -> list[tuple[re.Pattern[str], Slot]]:
    """Pattern of array names for every slot."""
    patterns = []
    for what, word in _WHAT.items():
        if what != INDEX:
            patterns.append((re.compile(rf"(?:(?:{word})_?all|(?!(?:[a-z]|im)$)(?:{word}){_FEATURES})"), (what, "")))
        for part, at in _PART.items():
            short = rf"|{_SHORT[part]}_(?:{word})" if part in _SHORT else ""
            named = rf"(?:{word}){_FEATURES}_?(?:{at})|(?:{at})_?(?:{word}){_FEATURES}{short}"
            patterns.append((re.compile(named), (what, part)))
    return patterns


_KNOWN = _patterns()


def recognise(name: str) -> Slot | None:
    """Slot of an array by its name; None if the name is unknown."""
    plain = re.sub(r"[\W_]+", "_", name.rpartition(".")[2].lower())
    return next((slot for pattern, slot in _KNOWN if pattern.fullmatch(plain)), None)


def choose(arrays: Sequence[Array], maps: Sequence[str], also: Sequence[str] = ("labels", INDEX)) -> dict[Slot, Array]:
    """The array of each slot.

    maps: "ROLE[.PART]=[FILE:]ARRAY"; roles and arrays named here are not recognised by name.
    also: roles to recognise besides images and texts. If several arrays have known names, those that cannot be features
    (raw pixels) are ignored.
    Raises UsageError, with a list of all arrays, for an invalid map and for two arrays in one slot; DataError for an
    array that cannot be read.
    """
    chosen = {}
    for option in maps:
        slot, name = _parse(option)
        if slot in chosen:
            raise UsageError(
                f"'{option}' maps {in_words(slot)} a second time", None, "map each role once", option="maps"
            )
        chosen[slot] = _find(option, name, arrays)
    mapped = {what for what, _ in chosen}
    known: dict[Slot, list[Array]] = {}
    for array in [array for array in arrays if array not in chosen.values()]:
        by_name = recognise(array.name)
        if by_name and by_name[0] not in mapped and (isinstance(by_name[0], View) or by_name[0] in also):
            known.setdefault(by_name, []).append(array)
    for slot, candidates in known.items():
        usable = [array for array in candidates if not array.refused and len(array.shape) <= 2] or candidates
        if len(usable) > 1:
            what = f"{' and '.join(array.name for array in usable)} may each be {in_words(slot)}"
            raise UsageError(what, None, advice(arrays, in_words(slot)))
        chosen[slot] = usable[0]
    for what in {what for what, part in chosen if part} & {what for what, part in chosen if not part}:
        named = in_words((what, ""))
        raise UsageError(f"there are arrays for parts of {named} and for all of it", None, advice(arrays, named))
    for slot, array in chosen.items():
        if array.refused:
            raise DataError(f"{array} cannot be {in_words(slot)}", array.file, advice(arrays, in_words(slot)))
    return chosen


def _parse(option: str) -> tuple[Slot, str]:
    """Parse "text.de.query=NAME" to ((View.text("de"), "query"), "NAME")."""
    role, _, name = option.partition("=")
    what, *rest = role.split(".")
    if not rest and what in _ALIASES:
        slot = (INDEX, _ALIASES[what])
    else:
        part = _ALIASES[rest.pop()] if rest and rest[-1] in _ALIASES else ""
        lang = rest.pop() if rest and what == "text" else LANG
        known = {"text": View.text(lang), "image": View.IMAGE, "label": "labels"}
        slot = (known.get(what, what), part)
        if rest or what not in ("image", "text", "label", "labels") or not re.fullmatch(r"[A-Za-z0-9_-]+", lang):
            slot = ("", "")
    if not name or not slot[0]:
        form = "write image, text, text.LANG or labels, then .train, .query, .database or .val for a part, then =ARRAY"
        raise UsageError(f"cannot parse '{option}'", None, f"{form}; or PART=ARRAY for row numbers", option="maps")
    return slot, name


def _find(option: str, name: str, arrays: Sequence[Array]) -> Array:
    fitting = [array for array in arrays if name in (array.name, f"{array.file.stem}:{array.name}")]
    if len(fitting) == 1:
        return fitting[0]
    why = "in several files, write FILE:ARRAY" if fitting else "no such array"
    hint = "" if fitting else did_you_mean(name, [array.name for array in arrays])
    raise UsageError(f"'{option}' ({why})", None, f"{hint} there are {listed(arrays)}", option="maps")


def in_words(slot: Slot) -> str:
    """A slot in the notation of ``maps``."""
    what, part = slot
    role: str = what
    if isinstance(what, View):
        role = what.kind if what.lang in (None, LANG) else f"{what.kind}.{what.lang}"
    return part if what == INDEX else f"{role}.{part}" if part else role


def listed(arrays: Iterable[Array]) -> str:
    """List of arrays with shapes and dtypes, for messages."""
    words = [str(array) for array in arrays]
    return ", ".join(words[:LISTED]) + (", ..." if len(words) > LISTED else "") if words else "no arrays"


def advice(arrays: Sequence[Array], role: str) -> str:
    """Advice to map an array to ``role``, for messages."""
    return f'choose one with `maps=("{role}=ARRAY",)`; there are {listed(arrays)}'


def by_view(chosen: Mapping[Slot, Array]) -> dict[str, dict[str, Array]]:
    """Group the arrays: what -> part -> array, the image first, parts in the order of PARTS."""
    views: dict[str, dict[str, Array]] = {}
    for what, part in sorted(chosen, key=lambda slot: (slot[0], ("", *PARTS).index(slot[1]))):
        views.setdefault(what, {})[part] = chosen[what, part]
    return views
