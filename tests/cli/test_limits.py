"""The ends of every option: far numbers, empty and endless words, for every option of every command.

CMRHASH_FUZZ tries all values; by default every option gets some of them.
"""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from running import files, run

from cmrhash.checks import check_finetune, check_train
from cmrhash.config import MAX_BITS, FinetuneConfig, TrainConfig
from cmrhash.errors import UsageError
from cmrhash.storage.files import write_bytes
from cmrhash_cli import typed

FUZZ = int(os.environ.get("CMRHASH_FUZZ", "1"))
KIND = "limit of an option"
FAR = {
    int: ("-1", f"-{10**30}", "0", str(2**31), str(2**63), str(10**30), "9" * 5000, "1.5", "x", ""),
    float: ("-inf", "inf", "nan", "-1e400", "1e400", "1e308", "-1", "1e-320", "9" * 5000, "x", ""),
    str: ("", " ", "x" * 10_000, "../x", "=", "x=", ":", "-1", "nan", "[", "*", ",", "..", "\ud800", "\x1b[31m"),
}
LOW = ("-1", f"-{10**30}", "1.5", "x", "", "-inf", "nan", "-1e400")  # no command works long with one of these
BEFORE = {"search": ["--id", "i1"], "plot": ["bits"], "score": ["none.npz"], "export": ["out"], "add": ["none"]}
BEFORE |= {"extract": ["none"], "remove": ["none"], "relocate": ["none"], "sweep": ["--set", "lr=1,2"]}
SLOW = ("bench", "doctor", "env")  # their options are those of others, and they import all packages


@pytest.fixture
def trained(make_cache, tmp_path, monkeypatch):
    make_cache(tmp_path / "cache", count=40)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cases(*kinds):
    """Every option that takes a value: its command, its name, and each value."""
    for command in sorted(typed.commands()):
        for option in typed.options(command).values():
            wanted = getattr(option.type_descriptor, "annotation", str)
            kind = next((kind for kind in (int, float) if kind in {wanted, *get_args(wanted)}), str)
            takes_one = option.param_type_name == "option" and not getattr(option, "is_flag", False)
            if takes_one and kind in kinds and command not in SLOW:
                yield from ((command, str(option.opts[0]), value) for value in FAR[kind])


def judged(command, option, value, capsys):
    """What is wrong about the outcome of a command with a value, "" for nothing."""
    code = run(*command.split(), *BEFORE.get(command, []), f"{option}={value}")
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    good = code in (0, 2, 5) and "error: unexpected " not in error and len(lines) == (code != 0) and len(error) < 2000
    return "" if good else f"{command} {option}={value[:40]}: {code}: {error[:300]}"


@pytest.mark.faults(KIND)
def test_every_value_of_every_option_is_one_line_where_nothing_is_extracted(tmp_path, monkeypatch, capsys, faults):
    """And nothing is written."""
    (tmp_path / "above/here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above/here")
    wrong = [judged(*case, capsys) for case in list(cases(int, float, str))[:: 1 if FUZZ > 1 else 3]]
    faults.tried, faults.survived = len(wrong), wrong.count("")
    assert not [words for words in wrong if words]
    assert not files(tmp_path)
    assert faults.tried > 1000


@pytest.mark.faults(KIND)
@pytest.mark.parametrize("name", ["epochs", "batch", "lr", "margin", "weight_decay", "image_lr", "clip"])
@pytest.mark.parametrize("kind", [TrainConfig, FinetuneConfig])
def test_a_number_that_no_training_can_use_is_refused_before_it(kind, name):
    """10^30 items of a batch were once trained, and the run could not be read."""
    check = check_train if kind is TrainConfig else check_finetune
    if name in {field.name for field in fields(kind)}:
        check(kind(**{name: 1}))
        for value in (10**30, 2**63, 1e39, -1):
            with pytest.raises(UsageError, match=f"{name}: .* is out of range: give a finite number"):
                check(kind(**{name: value}))


@pytest.mark.faults(KIND)
def test_an_endless_word_is_shortened_and_a_folder_is_no_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", "--method", "x" * 10_000) == 2
    assert len(capsys.readouterr().err) < 900
    for folder in ("", "..", "/"):
        with pytest.raises(IsADirectoryError):
            write_bytes(Path(folder), b"")
    assert not files(tmp_path)


@pytest.mark.slow
@pytest.mark.faults(KIND)
def test_no_number_is_unforeseen_where_there_are_features(trained, capsys, faults):
    tried = [case for case in cases(int, float) if case[2] in LOW]
    wrong = [judged(*case, capsys) for case in tried[:: 1 if FUZZ > 1 else 8]]
    faults.tried, faults.survived = len(wrong), wrong.count("")
    assert not [words for words in wrong if words]
    assert faults.tried > 20


@pytest.mark.faults(KIND)
@pytest.mark.parametrize("method", ["triplet", "tie-ap"])
@pytest.mark.parametrize("bits", [1, 1024, MAX_BITS])
def test_the_shortest_and_the_longest_codes(trained, capsys, method, bits):
    epochs = ["--epochs", "1", "--hidden", "8"]
    assert run("train", "--bits", bits, "--method", method, *epochs, "-q", "--device", "cpu") == 0, (
        capsys.readouterr().err
    )
    assert run("search", "--id", "i1", "-q") == 0
