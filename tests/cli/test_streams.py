"""Streams that are no UTF-8 terminal: closed, ASCII, cp1252, full. Results come whole, or one line says why not."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from cmrhash_cli import output, streams

KIND = "odd stream or foreign text"
TEXT = "Hünd 狗 🐕 \u202e"
CODE = f"""
import sys
import typer
from cmrhash_cli import output, streams
app = typer.Typer(add_completion=False)
@app.command()
def command(fail: bool = False):
    output.print_table({TEXT!r}, ["a", "b"], [[{TEXT!r}, "1"]], {TEXT!r})
    output.print_json({{"text": {TEXT!r}}})
    output.note({TEXT!r})
    opened = open("made", "w")
    opened.write(str(opened.fileno()))
    opened.close()
    if fail:
        raise output.UsageError({TEXT!r})
output.run(app)
"""


def command(folder, redirect="", encoding="utf-8", *args):
    """Run the command above by a shell; its exit code, stdout and stderr."""
    env = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "200"}
    words = ["sh", "-c", f'"$@" {redirect}', "sh", sys.executable, "-c", CODE, *args]
    done = subprocess.run(words, capture_output=True, cwd=folder, env=env)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.faults(KIND)
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_a_stream_cannot_encode_is_escaped(tmp_path, encoding):
    code, out, err = command(tmp_path, "", encoding, "--fail")
    shown, told = out.decode(encoding), err.decode(encoding)
    assert code == 2
    assert r"\u72d7 \U0001f415 \u202e" in shown
    assert json.loads(shown[shown.index("{") :]) == {"text": TEXT}
    assert told.count("\n") == 2
    assert r"\u72d7" in told


@pytest.mark.faults(KIND)
@pytest.mark.parametrize(("redirect", "lines"), [(">&-", 2), ("2>&-", 0), (">&- 2>&-", 0), ("<&- >&- 2>&-", 0)])
def test_closed_streams(tmp_path, redirect, lines):
    code, out, err = command(tmp_path, redirect)
    assert code == 0
    assert (b"stdout is closed" in err) == (lines > 0)
    assert err.count(b"\n") == lines
    assert out.count(b"\n") == (0 if ">&- " in f"{redirect} " and redirect != "2>&-" else 10), out
    assert int((tmp_path / "made").read_text()) > 2  # no file stands where messages go


@pytest.mark.faults(KIND)
def test_an_error_does_not_land_among_the_results(tmp_path):
    code, out, err = command(tmp_path, "2>&-", "utf-8", "--fail")
    assert (code, err) == (2, b"")
    assert b"error" not in out


@pytest.mark.faults(KIND)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_stdout_is_one_line(tmp_path):
    code, _, err = command(tmp_path, ">/dev/full")
    assert code == 1
    assert err.splitlines()[-1] == b"error: No space left on device: check the path, its permissions and the free space"
    assert b"Traceback" not in err


class Refusing(io.TextIOWrapper):
    """A stream of ASCII that refuses everything else, as it is before the command mends it."""

    def __init__(self):
        super().__init__(io.BytesIO(), encoding="ascii", errors="strict")

    def written(self):
        self.flush()
        return self.buffer.getvalue().decode("ascii")


def test_logs_and_progress_on_such_a_stream(monkeypatch):
    stream = Refusing()
    monkeypatch.setattr(sys, "stderr", stream)
    streams.open_streams()
    with output.progress_bars(quiet=False) as progress:
        progress(TEXT, 1, 1, TEXT)
    assert stream.written().count(r"\u72d7") == 2
