"""The library's messages name settings and calls as Python has them, never options or commands of the shell."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import cmrhash
from cmrhash import config
from cmrhash_cli.typed import COMMANDS, commands, options

TREE = Path(cmrhash.__file__).parent
FUNCTIONS = ("extract", "train", "evaluate", "compare", "load", "from_pretrained", "find_runs", "dataset")
SETTINGS = {
    *(
        field.name
        for each in vars(config).values()
        if dataclasses.is_dataclass(each)
        for field in dataclasses.fields(each)
    ),
    *(name for command in commands() for name in options(command)),
    *(name for each in map(cmrhash.__getattr__, FUNCTIONS) for name in inspect.signature(each).parameters),
    *cmrhash.Encoder.__annotations__,
    *inspect.signature(cmrhash.PretrainedHasher.encode_image).parameters,
}
CALLS = {*COMMANDS, *commands(), *cmrhash.__all__, *dir(cmrhash.Hasher)}
TYPED = re.compile(rf"(?<![\w-])--[a-z][\w-]*|\bcmrhash (?:{'|'.join(sorted(commands(), key=len, reverse=True))})\b")


def raised():
    """Place and text of every string in a ``raise``, also of the names that it uses."""
    for path in sorted(TREE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    for name in ast.walk(target):
                        if isinstance(name, ast.Name):
                            named.setdefault(name.id, []).append(node.value)
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None:
                parts = [
                    node.exc,
                    *(v for n in ast.walk(node.exc) if isinstance(n, ast.Name) for v in named.get(n.id, [])),
                ]
                for text in (t for part in parts for t in texts(part)):
                    yield f"{path.relative_to(TREE)}:{node.lineno}", text


def texts(tree):
    """The strings of an expression, each f-string as one with {} for its values."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


@pytest.fixture(scope="module")
def messages():
    return list(dict.fromkeys(raised()))


def test_there_are_messages_to_look_at(messages):
    assert len(messages) > 100


def test_no_message_knows_the_command_line(messages):
    assert [(where, text) for where, text in messages if TYPED.search(text)] == []


def test_what_stands_in_backticks_is_a_setting_or_a_call(messages):
    for where, text in messages:
        for name in re.findall(r"`(\w+)(?:=[^`]*)?`", text):
            assert {name, name.removesuffix("s")} & (SETTINGS | CALLS), f"{where}: {text}"


@pytest.mark.parametrize(("text", "found"), [("use --bits 3", True), ("run cmrhash cache ls", True), ("a -- b", False)])
def test_the_rule_sees_options_and_commands(text, found):
    assert bool(TYPED.search(text)) is found


def test_every_option_of_an_error_is_a_setting():
    for path in TREE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                for keyword in node.exc.keywords:
                    if keyword.arg == "option" and isinstance(keyword.value, ast.Constant):
                        assert {keyword.value.value, keyword.value.value.removesuffix("s")} & SETTINGS, (
                            f"{path.relative_to(TREE)}:{node.lineno}"
                        )
