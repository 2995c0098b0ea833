"""Settings and calls in the library's messages, as typed on the command line: `bits=32` as --bits 32."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from cmrhash.errors import CmrhashError

COMMANDS = {
    "evaluate": "eval",
    "prune": "cache prune",
    "verify": "cache verify",
    "survey": "cache ls",
}  # the others: same
_WORD = re.compile(r"\w+")
_QUOTED = re.compile(r"`(\w+)(?:=([^`]+))?`")


def message(error: CmrhashError) -> str:
    """The line of an error, its setting as an option."""
    words = str(error)
    return as_typed(f"`{error.option}`" + words[len(error.option) :] if error.option else words)


def as_typed(text: str) -> str:
    """``text`` with each setting or call in backticks as an option or command; other backticks stay."""
    return _QUOTED.sub(_typed, text)


def command_line(command: str, **settings: Any) -> str:
    """``cmrhash command`` with these options, in order; an option with its default value is left out."""
    words = ["cmrhash", command]
    known = options(command.split(" ")[0])
    for name, value in settings.items():
        option = known[name]
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is not None and str(each) != str(option.default):
                named = f"{option.opts[0]} " if option.param_type_name == "option" else ""
                words.append(named + shlex.quote(str(each)))
    return " ".join(words)


def _typed(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    option = _option(name)
    if option is None:
        command = COMMANDS.get(name, name)
        return match[0] if value or command not in commands() else f"cmrhash {command}"
    shown = (
        str(option.opts[0]) if option.param_type_name == "option" else _WORD.findall(option.metavar or name)[0].upper()
    )
    if value == "False" and option.secondary_opts:
        return str(option.secondary_opts[0])
    return shown if value in (None, "True") else " ".join(f"{shown} {word}" for word in _words(value))


def _words(value: str) -> list[str]:
    """Words to type for a value in Python's notation, several for a list, tuple or dict."""
    try:
        found = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return [value]  # a placeholder, as in `bits=N`
    if isinstance(found, dict):
        return [f"{name}={one}" for name, one in found.items()]
    return [str(one) for one in found] if isinstance(found, list | tuple) else [str(found)]


def _option(name: str) -> Any:
    """The option of a setting: of the command that runs if it has one of that name, else of any command."""
    running = " ".join(sys.argv[1:3]) if sys.argv[1:2] == ["cache"] else "".join(sys.argv[1:2])
    for command in sorted(commands(), key=lambda one: one != running):
        known = options(command)
        for called in (name, name.removesuffix("s")):  # `langs=("en", "de")` is --lang en --lang de
            if called in known:
                return known[called]
    return None


@cache
def commands() -> dict[str, Any]:
    """Every command by its name, as "extract" or "cache ls"."""
    import typer

    from cmrhash_cli.app import app

    return dict(_commands(typer.main.get_command(app)))


@cache
def options(command: str) -> dict[str, Any]:
    """The options and arguments of a command by their names in Python."""
    return {option.name: option for option in commands()[command].params}


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} ")
        else:
            yield prefix + name, command
