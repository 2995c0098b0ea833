"""The log of the library: silent by itself, on stderr of the commands when it is wanted."""

import logging
import subprocess
import sys

import pytest
import typer

from cmrhash_cli import output


@pytest.fixture
def logged(monkeypatch, capsys):
    """A function that runs a command which logs two records, and returns its exit code and stderr."""
    app = typer.Typer()

    @app.command()
    def command(debug: output.Debug = False):
        logging.getLogger("cmrhash.features").info("encoded %d photos", 3)
        logging.getLogger("cmrhash.storage").debug("waiting for a lock")

    def run(*args, **environment):
        for name in ("CMRHASH_LOG", "CMRHASH_DEBUG"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["cmrhash", *args])
        with pytest.raises(SystemExit) as end:
            output.run(app)
        return end.value.code, capsys.readouterr().err

    return run


def test_nothing_is_logged_unless_it_is_wanted(logged):
    assert logged() == (0, "")


@pytest.mark.parametrize("level", ["INFO", "info"])
def test_an_environment_variable_names_the_level(logged, level):
    code, error = logged(CMRHASH_LOG=level)
    assert code == 0
    assert error.endswith(" INFO cmrhash.features: encoded 3 photos\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize("given", [{"args": ["--debug"]}, {"CMRHASH_DEBUG": "1"}])
def test_debug_shows_everything(logged, given):
    code, error = logged(*given.pop("args", []), **given)
    assert code == 0
    assert [line.split(" ", 1)[1] for line in error.splitlines()] == [
        "INFO cmrhash.features: encoded 3 photos",
        "DEBUG cmrhash.storage: waiting for a lock",
    ]


def test_the_named_level_counts_also_with_debug(logged):
    assert logged("--debug", CMRHASH_LOG="ERROR") == (0, "")


def test_an_unknown_level_is_an_error(logged):
    code, error = logged(CMRHASH_LOG="LOUD")
    assert code == 2
    assert error.startswith("error: CMRHASH_LOG=LOUD: ")


def test_a_command_leaves_no_handler_behind(logged):
    log = logging.getLogger("cmrhash")
    before = log.level, list(log.handlers)
    logged("--debug")
    assert (log.level, log.handlers) == before


def test_a_program_that_imports_the_library_sees_no_log_by_itself():
    code = "import logging, cmrhash; logging.getLogger('cmrhash.features').error('lost')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b""
