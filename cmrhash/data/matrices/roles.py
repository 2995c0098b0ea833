"""Roles of the arrays in feature files: by ``maps``, otherwise by common array names.

A slot is (what, part). what: a View, "labels", "ids", "captions.LANG" for texts as strings, or "index" for row numbers;
part: "train", "query", "database" or "val", "" for all items. Known names, in any case:

    IAll, YAll or TAll, LAll; images, texts, labels; img, txt, label         all items
    I_tr, T_te, L_db; XTrain, YTest, LDatabase; VTest; image_val; databaseL   a part of them (I, X or V; T or Y; L)
    I_tra beside I_tr                                                         train, and then tr is the database
    q_img, r_txt, q_l                                                         query and retrieval
    indexTrain, param.indexQuery, retrieval_idx                               rows of a part
    ids, names, file_names; captions, sentences, texts; labels, category      arrays of strings
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from cmrhash.data.matrices.array import Array
from cmrhash.data.view import View
from cmrhash.errors import DataError, UsageError, did_you_mean

Slot = tuple[str, str]

LANG = "en"  # default language of texts
INDEX, LABELS, IDS, CAPTIONS = "index", "labels", "ids", "captions"
PARTS = ("train", "query", "database", "val")
LISTED = 40  # most arrays listed in a message
NOTED = 8  # most unused arrays of a file that its note names

_ALIASES = {"test": "query", "retrieval": "database", **{part: part for part in PARTS}}
_WHAT = {
    View.IMAGE: r"i|x|v|im|imgs?|images?|visual|global_descriptors?",
    View.text(LANG): r"t|y|txts?|texts?|tags?",
    LABELS: r"l|labs?|labels?",
    INDEX: r"index|idx|inds?|indices|ids?",
}
_OF_STRINGS = {
    View.IMAGE: _WHAT[View.IMAGE],  # only to say that text is no image
    IDS: r"ids?|index|keys?|names?|(?:(?:image|img|photo|item|file)_?)?(?:names?|files?|paths?|ids?|keys?)",
    f"{CAPTIONS}.{LANG}": r"t|y|txts?|texts?|tags?|captions?|sentences?|descriptions?",
    LABELS: r"l|labs?|labels?|class|category|categories",
}
_PART = {
    "train": r"tra?|train|training",
    "query": r"te|test|testing|query|queries",
    "database": r"db|database|retrieval|ret",
    "val": r"val|valid|validation",
}
_SHORT = {"query": "q", "database": "r"}  # prefixes only: q_img, r_l
_FEATURES = r"(?:_?(?:feats?|features?))?"
_TRA = re.compile(r"tra$|^tra_", re.IGNORECASE)


def _patterns(words: Mapping[str, str]) -> list[tuple[re.Pattern[str], Slot]]:
    """Pattern of array names for every slot."""
    patterns = []
    for what, word in words.items():
        if what != INDEX:
            patterns.append((re.compile(rf"(?:(?:{word})_?all|(?!(?:[a-z]|im)$)(?:{word}){_FEATURES})"), (what, "")))
        for part, at in _PART.items():
            short = rf"|{_SHORT[part]}_(?:{word})" if part in _SHORT else ""
            named = rf"(?:{word}){_FEATURES}_?(?:{at})|(?:{at})_?(?:{word}){_FEATURES}{short}"
            patterns.append((re.compile(named), (what, part)))
    return patterns


_KNOWN, _KNOWN_STRINGS = _patterns(_WHAT), _patterns(_OF_STRINGS)


def recognise(name: str, is_text: bool = False) -> Slot | None:
    """Slot of an array by its name; None if the name is unknown."""
    plain = re.sub(r"[\W_]+", "_", name.rpartition(".")[2].lower())
    known = _KNOWN_STRINGS if is_text else _KNOWN
    return next((slot for pattern, slot in known if pattern.fullmatch(plain)), None)


def choose(
    arrays: Sequence[Array], maps: Sequence[str], also: Sequence[str] = (LABELS, INDEX, IDS, CAPTIONS)
) -> dict[Slot, Array]:
    """The array of each slot.

    maps: "ROLE[.PART]=[FILE:]ARRAY"; roles and arrays named here are not recognised by name; "ROLE=" means no array.
    also: roles to recognise besides images and texts. If several arrays have known names, those that cannot be features
    (raw pixels) are ignored.
    Raises UsageError, with a list of all arrays, for an invalid map and for two arrays in one slot; DataError for an
    array that cannot be read.
    """
    chosen, mapped = _mapped(arrays, maps)
    known: dict[Slot, list[Array]] = {}
    for array in [array for array in arrays if array not in chosen.values()]:
        by_name = recognise(array.name, array.is_text)
        if by_name and by_name[0] not in mapped and (isinstance(by_name[0], View) or by_name[0].split(".")[0] in also):
            known.setdefault(by_name, []).append(array)
    for slot, candidates in _with_tra(known).items():
        chosen[slot] = _only(slot, candidates, arrays)
    for what in {what for what, part in chosen if part} & {what for what, part in chosen if not part}:
        named = in_words((what, ""))
        raise UsageError(f"there are arrays for parts of {named} and for all of it", None, advice(arrays, named))
    for slot, array in chosen.items():
        unfit = "" if slot[0] in (LABELS, IDS) or array.is_text == slot[0].startswith(CAPTIONS) else ", which is text"
        if array.refused or unfit:
            raise DataError(f"{array} cannot be {in_words(slot)}{unfit}", array.file, advice(arrays, in_words(slot)))
    return chosen


def _mapped(arrays: Sequence[Array], maps: Sequence[str]) -> tuple[dict[Slot, Array], set[str]]:
    """The arrays that ``maps`` name by slot, and everything that is not to be recognised by name."""
    chosen: dict[Slot, Array] = {}
    mapped = set()
    for option in maps:
        slot, name = _parse(option)
        array = _find(option, name, arrays) if name else None
        if array and array.is_text and isinstance(slot[0], View) and not slot[0].is_image:
            slot = f"{CAPTIONS}.{slot[0].lang}", slot[1]
        if slot in chosen:
            raise UsageError(
                f"'{option}' maps {in_words(slot)} a second time", None, "map each role once", option="maps"
            )
        mapped.add(slot[0])
        if array:
            chosen[slot] = array
    return chosen, mapped


def _with_tra(known: dict[Slot, list[Array]]) -> dict[Slot, list[Array]]:
    """The slots, where I_tra beside I_tr is the train part and I_tr the database."""
    for (what, part), candidates in list(known.items()):
        tra = [array for array in candidates if _TRA.search(array.name)]
        if part == "train" and len(tra) == 1 and len(candidates) == 2 and (what, "database") not in known:
            known[what, "database"] = [array for array in candidates if array not in tra]
            known[what, part] = tra
    return known


def _only(slot: Slot, candidates: Sequence[Array], arrays: Sequence[Array]) -> Array:
    """The one of several arrays that can be features, numbers before text; raises UsageError if there are several."""
    usable = [array for array in candidates if not array.refused and len(array.plain) <= 2] or candidates
    usable = [array for array in usable if not array.is_text] or usable
    if len(usable) > 1:
        what = f"{' and '.join(array.name for array in usable)} may each be {in_words(slot)}"
        raise UsageError(what, None, advice(arrays, in_words(slot)))
    return usable[0]


def _parse(option: str) -> tuple[Slot, str]:
    """Parse "text.de.query=NAME" to ((View.text("de"), "query"), "NAME")."""
    role, equals, name = option.partition("=")
    what, *rest = role.split(".")
    if not rest and what in _ALIASES:
        slot = (INDEX, _ALIASES[what])
    else:
        part = _ALIASES[rest.pop()] if rest and rest[-1] in _ALIASES else ""
        lang = rest.pop().lower() if rest and what == "text" else LANG
        known = {"image": View.IMAGE, "label": LABELS, "labels": LABELS, "id": IDS, "ids": IDS}
        slot = (View.text(lang) if what == "text" and lang else known.get(what, ""), part)
        if rest or not re.fullmatch(r"[a-z0-9_-]+", lang):
            slot = ("", "")
    none = equals and not name and not slot[1] and isinstance(slot[0], View)
    if not slot[0] or not (name or none):
        form = "write image, text, text.LANG, labels or ids, then .train, .query, .database or .val for a part"
        ways = f'{form}, then =ARRAY; or PART=ARRAY for row numbers; "text=" means no array'
        raise UsageError(f"cannot parse '{option}'", None, ways, option="maps")
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
    elif what.startswith(f"{CAPTIONS}."):
        role = in_words((View.text(what.removeprefix(f"{CAPTIONS}.")), ""))
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


# ---------------------------------------------------------------------------------------------- what is left over


def left_over(
    arrays: Sequence[Array], chosen: Mapping[Slot, Array], maps: Sequence[str]
) -> dict[str, tuple[Array, str]]:
    """Names of the arrays that have no slot -> the array, and the map to use it ("" if it cannot be used).

    Arrays of a role that a map says nobody has ("text=") are left out.
    """
    none = {_parse(option)[0][0] for option in maps if option.endswith("=")}
    used = list(chosen.values())
    left = [array for array in arrays if array not in used]
    left = [array for array in left if (recognise(array.name, array.is_text) or ("", ""))[0] not in none]
    found = {}
    for array in left:
        name = array.name if sum(one.name == array.name for one in arrays) == 1 else f"{array.file.stem}:{array.name}"
        found[name] = array, "" if array.refused else f"{_guess(array)}={name}"
    return found


def _guess(array: Array) -> str:
    """The role that words in the name of an array point to, for messages; ROLE if none does."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", array.name)
    words = re.split(r"[\W_]+", apart.lower())
    known = {what: word for what, word in _WHAT.items() if what != INDEX}
    if array.is_text:
        known = {what: word for what, word in _OF_STRINGS.items() if what != View.IMAGE}
    whats = [what for what, pattern in known.items() for word in words if re.fullmatch(pattern, word)]
    parts = [part for part, pattern in _PART.items() for word in words if re.fullmatch(pattern, word)]
    if parts and not whats and not array.is_text:
        return parts[0]
    return in_words((whats[0], parts[0] if parts else "")) if whats else "ROLE"
