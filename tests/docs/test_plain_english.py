"""Plain English in pages, help and error messages: none of the phrases that only insiders understand."""

import ast
import re

import pytest
from pages import ROOT, TEXTS

from cmrhash_cli.reference import reference

THING = "row|line|column|file|item|image|photo|caption|step|pass|class|epoch|query|unit|view|method|language|GPU"
OPAQUE = (  # a phrase, and what replaces it
    r"(?-i:\bWhat\b)(?![^.|]*\?)",  # a cleft, "What is searched is the database": name the thing
    r"(?m)^#+ (when|where|who|how|why|not)\b",  # a heading: a noun
    r"\b(is|are|was|were|be|been) (told|said|asked)\b",  # show, report, use
    r"\b(lies?|lay|stands?|stood) (in|on|at|beside|below|behind|there|with|side by side)\b",  # is in, next to
    r"\b(goes|go|going|went|gone) on\b",  # resume, continue
    r"\banew\b|\bmend(s|ed|ing)?\b|\bthe very\b|\bof ours\b|\bslips? of the pen\b",  # again, fix, same, cmrhash's, typo
    r"\b(was|is|were|are) there\b|\bthere (is|was) something\b|\bnot there( yet)?\b",  # exists, is missing
    r"\bby pairs\b|\bto whom\b",  # pair relevance, ground-truth relevance
    r"\bin the place of\b|\bin \w+'s place\b|\bwhat is of\b",  # instead of
    rf"\b({THING})s? an? ({THING})\b",  # one row per item, not "a row an item"
)


def prose(text):
    """A text without code and quotations."""
    return re.sub(r'(?m)^    .*$|`(?:[^`\n]|\n(?!\n))*`|"[^"\n]*"', "", text)


def messages():
    """The words of every error that the code can raise, one paragraph per message."""
    paths = [path for room in ("cmrhash", "cli") for path in (ROOT / room).rglob("*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    errors = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error")]
    words = [[leaf.value for leaf in ast.walk(error) if isinstance(leaf, ast.Constant)] for error in errors]
    return "\n\n".join(" ... ".join(part for part in parts if isinstance(part, str)) for parts in words)


SOURCES = {str(page.relative_to(ROOT)): page.read_text for page in TEXTS if page.name != "cli.md"}  # that is the help
SOURCES |= {"CHANGELOG.md": lambda: (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## ")[1]}  # its newest version
SOURCES |= {"help": reference, "errors": messages}


def opaque(text):
    return [found.group() for pattern in OPAQUE for found in re.finditer(pattern, text, re.IGNORECASE)]


@pytest.mark.parametrize("source", SOURCES)
def test_no_opaque_phrase(source):
    assert opaque(prose(SOURCES[source]())) == []


@pytest.mark.parametrize(
    "text",
    [
        "What is searched is the database.",
        "## Where things lie",
        "The run is asked.",
        "Features lie in the cache.",
        "The same command goes on.",
        "Items a step",
        "relevance by pairs",
    ],
)
def test_an_opaque_phrase_is_found(text):
    assert opaque(text)


def test_ordinary_phrases_and_quotations_pass():
    text = (
        'What is a code? An item stands for a photo; two codes lie 3 bits apart. "He went on" is a caption, `by pairs`.'
    )
    assert not opaque(prose(text))
