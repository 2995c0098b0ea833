"""Reference of all commands as Markdown: ``python -m cmrhash_cli.reference > docs/cli.md``."""

from __future__ import annotations

from typing import Any

import cmrhash_cli.main  # noqa: F401  adds the commands
from cmrhash_cli.groups import grouped
from cmrhash_cli.typed import commands


def reference() -> str:
    """Reference of every command with examples and options, in the order of ``cmrhash --help``."""
    lines = [
        "# Commands",
        "",
        "Written by `python -m cmrhash_cli.reference`; `cmrhash COMMAND --help` shows the same.",
        "",
    ]
    for name, command in commands().items():
        lines += [f"## cmrhash {name}", "", *_about(command.help or ""), *_options(command), ""]
    return "\n".join(lines).rstrip() + "\n"


def _about(text: str) -> list[str]:
    """Description of a command, its examples as code."""
    lines = []
    for paragraph in text.split("\n\n"):
        one = " ".join(paragraph.split())
        lines += ["    " + one if one.startswith("cmrhash ") else one, ""]
    return lines


def _options(command: Any) -> list[str]:
    lines = ["| argument or option | default | |", "|---|---|---|"]
    for group, members in grouped(str(command.name), command.params).items():
        lines += [f"| **{group}** | | |", *map(_option, members)]
    return lines


def _option(option: Any) -> str:
    argument = option.param_type_name == "argument"
    name = (option.metavar or option.name.upper()) if argument else ", ".join(option.opts + option.secondary_opts)
    words = (option.help or "").replace("|", "\\|")
    return f"| `{name}` | {_default(option)} | {words} |"


def _default(option: Any) -> str:
    value = option.default
    left_out = option.multiple or value is None or isinstance(value, bool) or not str(value)
    return "" if left_out else f"`{value}`"


if __name__ == "__main__":
    print(reference(), end="")
