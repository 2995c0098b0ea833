"""The ends of every range: numbers far below and above of every option of every command, and the longest codes."""

from __future__ import annotations

import os
from typing import get_args

import pytest
from running import run

from cmrhash.config import MAX_BITS
from cmrhash_cli import typed

FUZZ = int(os.environ.get("CMRHASH_FUZZ", "1"))
KIND = "limit of an option"
FAR = {int: ("-1", str(-(10**30)), "1.5", "x", ""), float: ("-inf", "nan", "-1e400", "x", "")}
BEFORE = {"search": ["--id", "i1"], "plot": ["bits"], "score": ["none.npz"], "export": ["out"], "add": ["none"]}


@pytest.fixture
def trained(make_cache, tmp_path, monkeypatch):
    make_cache(tmp_path / "cache", count=40)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def numeric():
    """Every option that takes a number: its command and its name."""
    for command in sorted(typed.commands()):
        for option in typed.options(command).values():
            wanted = option.type_descriptor.annotation
            kinds = {wanted, *get_args(wanted)} & set(FAR)
            if kinds and option.param_type_name == "option":
                yield from ((command, str(option.opts[0]), value) for value in FAR[kinds.pop()])


@pytest.mark.slow
@pytest.mark.faults(KIND)
def test_no_number_is_unforeseen(trained, capsys, faults):
    wrong = []
    for command, option, value in list(numeric())[:: 1 if FUZZ > 1 else 4]:
        code = run(*command.split(), *BEFORE.get(command, []), f"{option}={value}")
        error = capsys.readouterr().err
        good = code != 1 and "unexpected" not in error
        faults.tried += 1
        faults.survived += good
        wrong += [] if good else [f"{command} {option}={value}: {code}: {error}"]
    assert not wrong
    assert faults.tried > 50


@pytest.mark.faults(KIND)
@pytest.mark.parametrize("method", ["triplet", "tie-ap"])
@pytest.mark.parametrize("bits", [1, 1024, MAX_BITS])
def test_the_shortest_and_the_longest_codes(trained, capsys, method, bits):
    epochs = ["--epochs", "1", "--hidden", "8"]
    assert run("train", "--bits", bits, "--method", method, *epochs, "-q", "--device", "cpu") == 0, (
        capsys.readouterr().err
    )
    assert run("search", "--id", "i1", "-q") == 0
