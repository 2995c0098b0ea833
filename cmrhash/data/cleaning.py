"""One cleaning of captions, labels, ids and language tags for every reader.

The sets of characters are fixed ranges, not categories of the Unicode version that Python comes with: the same text has
the same digest on every Python, also if it contains characters that a version does not know.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Soft hyphens, zero-width spaces, word joiners, byte order marks, marks of direction and the like. They show nothing
# and stand inside words. Joiners (U+200C, U+200D) and the tags of flags (U+E0020 to U+E007F) change what is shown.
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0001]"
)
# Control characters, surrogates and private use.
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
# What a terminal obeys and what reorders a line: control characters, marks of direction, line separators, surrogates.
_UNSHOWN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_JOINERS = "\u200c\u200d"

NO_LABEL = ("", "-1", "-1.0", "nan")  # what tables write where there is no label


def clean_text(text: str) -> str:
    """Normalise a text to NFC and single spaces.

    Control characters and runs of white space become one space; both ends are stripped. Invisible characters inside
    words vanish; joiners and unassigned characters stay. A text of joiners alone is empty.
    """
    if not text.isprintable():
        text = _CONTROL.sub(" ", _INVISIBLE.sub("", text))
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return text if text.isascii() or text.strip(_JOINERS + " ") else ""


def shown(text: object) -> str:
    """A text for a terminal, page or message: characters that control it or hide text become escapes such as \\x1b.

    These are control characters but for line feeds and tabs, marks and overrides of direction, and surrogates.
    """
    words = str(text)
    return words if words.isprintable() else _UNSHOWN.sub(lambda match: ascii(match[0])[1:-1], words)


def shown_json(text: str) -> str:
    """The text of a JSON value with the same characters as escapes of JSON."""
    return text if text.isprintable() else _UNSHOWN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def clean_label(text: str) -> str:
    """Clean a label as ``clean_text`` does; "" for a label that is one of NO_LABEL in any case."""
    label = clean_text(text)
    return "" if label.casefold() in NO_LABEL else label


def is_printable(text: str) -> bool:
    """Whether every character can be printed or is unassigned, and so may be printable for a newer Python."""
    return text.isprintable() or all(c.isprintable() or unicodedata.category(c) == "Cn" for c in text)


def check_language(lang: str) -> str:
    """The language tag if it consists of ASCII letters, digits, "-" and "_"; otherwise raise ValueError."""
    if not (lang.isascii() and lang.replace("-", "").replace("_", "").isalnum()):
        raise ValueError(f"'{lang}' is not a language code")
    return lang


def clean_language(lang: str) -> str:
    """The language tag in lower case: "EN" and "en" are one language. Raises ValueError as ``check_language`` does."""
    return check_language(lang.strip()).lower()


def known_language(asked: str, known: Iterable[str]) -> str:
    """The language that ``asked`` names in any case, as ``known`` writes it; ``asked`` itself if it is not there.

    Data sets extracted by version 0.1 may have upper-case letters in their language tags.
    """
    known = list(known)
    same = [lang for lang in known if lang.lower() == asked.lower()]
    return asked if asked in known or not same else same[0]
