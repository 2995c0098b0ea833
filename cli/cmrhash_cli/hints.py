"""What was probably meant by a command line that the parser refuses, and what is wrong with a number."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

NUMBERS = {"int": ("a whole number", 32), "float": ("a number", 0.001)}  # name of a fault's kind -> words, an example
LIMITS = {"ge": "of at least", "le": "of at most"}


def number(error: Any) -> tuple[str, str] | None:
    """What is wrong with a value that is not the number that an option takes, and what to do; None for another fault.

    error: of the parser, whose cause says what was given and what is wrong with it.
    """
    faults: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    if not faults or getattr(error, "param", None) is None:
        return None
    name, given, limits = error.param.opts[0], faults[0]["input"], faults[0].get("ctx", {})
    wanted = NUMBERS.get(faults[0]["type"].partition("_")[0])
    if wanted:
        return f"{name}: {str(given)!r} is not {wanted[0]}", f"give one, such as {wanted[1]}"
    limit = next((f"{words} {limits[key]:g}" for key, words in LIMITS.items() if key in limits), "")
    return (f"{name}: {given} is out of range", f"give a number {limit}") if limit else None


def hint(error: Any, words: Sequence[str]) -> str:
    """Advice on a sentence without quotes and on several values after one option; "" if neither is the fault.

    error: of the parser; words: those that were typed, without the program.
    """
    option: Any = getattr(error, "param", None)
    joined = [word.rpartition("=")[2] for word in words if re.fullmatch(r"(--[\w-]+=)?\d+(,\d+)+", word)]
    if joined and getattr(option, "multiple", False):
        return _repeated(option.opts[0], joined[0].split(","))
    if "unexpected extra argument" not in error.format_message() or not getattr(error, "ctx", None):
        return ""
    command = error.ctx.command
    alone, values = _sorted(command, words[words.index(command.name) + 1 :])
    sentence = alone or [word for many in values.values() for word in many[1:]]
    if command.name == "search" and len(sentence) > 1:
        return f"quote the sentence: cmrhash search {_quoted(' '.join(sentence))}"
    several = next((name for name in values if len(values[name]) > 1), None)
    return _repeated(several, values[several]) if several else ""


def _repeated(name: str, values: Sequence[str]) -> str:
    return f"repeat the option: {' '.join(f'{name} {shlex.quote(value)}' for value in values)}"


def _quoted(sentence: str) -> str:
    return f'"{sentence}"' if re.fullmatch(r"[\w\s.,:;?'-]+", sentence) else shlex.quote(sentence)


def _sorted(command: Any, words: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Words that belong to no option, and those after each mention of a repeatable option."""
    known = {name: option for option in command.params for name in (*option.opts, *option.secondary_opts)}
    alone: list[str] = []
    values: dict[str, list[str]] = {}
    name, due = "", False  # the option before, and whether its value is still to come
    for word in words:
        if word.startswith("-") and not due:
            name, sign, value = word.partition("=")
            option = known.get(name)
            due = option is not None and not getattr(option, "is_flag", False) and not sign
            values[name] = [value] if sign else []
        elif due or (name and getattr(known.get(name), "multiple", False)):
            values[name].append(word)
            due = False
        else:
            alone.append(word)
    return alone, values
