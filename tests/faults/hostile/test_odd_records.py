"""Records of strangers: every field of a run's config missing or odd, with the right digest over it.

CMRHASH_FUZZ tries the commands on so many times more of the configs that could be read.
"""

from __future__ import annotations

import os

import odd_records
import pytest
from running import run

from cmrhash.errors import CmrhashError
from cmrhash.storage.files import read_json, write_json
from cmrhash.training import runs

KIND = "record of others: field missing or of another type"
FUZZ = int(os.environ.get("CMRHASH_FUZZ", "1"))
USED = 3 * FUZZ  # configs on which commands are tried
COMMANDS = (["cache", "ls"], ["search", "--id", "i1", "-q"], ["eval", "-q"])


@pytest.mark.faults(KIND)
def test_every_odd_config_of_a_run_is_read_or_refused(mine, faults, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    wrong = []
    for name, config in odd_records.odd(read_json(mine / runs.CONFIG, "")):
        write_json(mine / runs.CONFIG, config)
        faults.tried += 1
        try:
            made = runs.open_run(mine)
            assert isinstance(made.bits, int)
            assert all(isinstance(lang, str) for lang in made.langs)
        except CmrhashError as error:
            assert "\n" not in str(error)
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
            continue
        faults.survived += 1
    assert not wrong


def readable(folder, config, monkeypatch):
    """The odd configs that a run can be read from."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    found = []
    for name, odd in odd_records.odd(config):
        write_json(folder / runs.CONFIG, odd)
        try:
            runs.open_run(folder)
        except CmrhashError:
            continue
        found.append((name, odd))
    return found


@pytest.mark.slow
@pytest.mark.faults(KIND)
def test_commands_on_a_config_that_can_be_read(mine, capsys, faults, monkeypatch):
    saved = {path: path.read_bytes() for path in mine.iterdir() if path.is_file()}
    odd, wrong = readable(mine, read_json(mine / runs.CONFIG, ""), monkeypatch), []
    for name, config in odd[:: max(1, len(odd) // USED)]:
        for command in COMMANDS:
            for path, content in saved.items():
                path.write_bytes(content)
            write_json(mine / runs.CONFIG, config)
            capsys.readouterr()
            code, error = run(*command), capsys.readouterr().err
            good = code != 1 and "unexpected" not in error and error.count("\n") <= (code != 0)
            faults.tried += 1
            faults.survived += good
            wrong += [] if good else [f"{name}: {command[0]}: {code}: {error}"]
    assert not wrong


@pytest.mark.faults(KIND)
def test_one_odd_run_hides_no_other(mine, capsys):
    other = mine.with_name("other")
    other.mkdir()
    write_json(other / runs.CONFIG, {"version": 1, "train": [], "langs": 7})
    assert run("cache", "ls") == 0
    out = capsys.readouterr().out
    assert "damaged" in out
    assert mine.name in out
