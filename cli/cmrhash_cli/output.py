"""Shared parts of the commands: common options, progress on stderr, results on stdout, errors on one line."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from cmrhash import config
from cmrhash.config import Progress
from cmrhash.data.cleaning import shown, shown_json
from cmrhash.errors import CmrhashError, UsageError
from cmrhash_cli.hints import hint, number
from cmrhash_cli.streams import open_streams
from cmrhash_cli.tables import print_table as print_table
from cmrhash_cli.typed import message

Dataset = Annotated[
    str | None, typer.Option("--dataset", help="Data set in the cache; needed only if the cache holds several.")
]
Cache = Annotated[Path, typer.Option("--cache", help="Folder of the feature files.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the trained runs.")]
Bits = Annotated[list[int] | None, typer.Option("--bits", help="Code length (repeatable); default: all trained.")]
ShownLang = Annotated[
    list[str] | None, typer.Option("--lang", help="Language to show (repeatable); default: all that a run covers.")
]
Encoder = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        help="image=NAME or LANG=NAME: the encoder to use if the cache holds features of several (repeatable).",
    ),
]
Relevance = Annotated[
    str | None,
    typer.Option(
        "--relevance",
        help="labels (items that share a label are relevant) or pairs (only the item's own counterpart is); "
        "default: labels if the data set has them.",
    ),
]
Noise = Annotated[
    float,
    typer.Option(
        help="Label noise, for experiments: share of train items of which one label is removed and a wrong one added."
    ),
]
OneDirection = Annotated[
    str | None,
    typer.Option(
        "--direction", help="Train and score one search direction only: i2t (texts by images) or t2i; default: both."
    ),
]
DropNear = Annotated[
    bool,
    typer.Option(
        "--drop-near-duplicates",
        help="Leave out train items whose photo is a query's, byte for byte or by a cosine above 0.9.",
    ),
]
TrainedBy = Annotated[
    str | None,
    typer.Option(
        "--trained-by",
        help="Relevance of the training, if another than --relevance: with pairs, labels are hidden in training "
        "and score alone; default: as --relevance.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        help="Trainings at a time, each in a process of one thread; default: one after another, each on all cores.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto (the GPU if there is one), cpu, cuda, cuda:1, ...")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace existing files, even if made with other settings.")
]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no notes on stderr.")]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the log, and the traceback of errors.", envvar="CMRHASH_DEBUG")
]

Config = TypeVar("Config", config.ExtractConfig, config.FinetuneConfig)
CACHE, RUNS = config.CACHE, config.RUNS

STARVED = re.compile(
    "can't start new thread|can(no|')t allocate memory|out of memory|failed to map segment", re.IGNORECASE
)
LONG_WORD = re.compile(r"(\S{200})\S{300,}(\S{50})")  # of an error: an option of 10,000 characters, ...
INTERRUPTED = "Interrupted. Finished work is kept; rerun to resume"
MISNAMED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EACCES)  # a path
STEADY = 600  # seconds whose mean rate says how long the rest of a bar takes
Misuse: Any = typer.BadParameter.__mro__[2]  # the base of the parser's own errors, wherever Typer has it from


def run(app: typer.Typer) -> None:
    """Run the command line.

    Exit codes are those of cmrhash.errors, 130 after Ctrl-C, and 1 for an unexpected error.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # its doubts about odd photos; quarantine.jsonl lists them
    if open_streams():
        note("stdout is closed: results that are not files are lost")
    debug = "--debug" in sys.argv or os.environ.get("CMRHASH_DEBUG", "") not in ("", "0", "false")
    with _log_on_stderr("DEBUG" if debug else "WARNING"):
        _run(app, debug)


def _run(app: typer.Typer, debug: bool) -> None:
    """Run the command and end the process with its exit code."""
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()  # a full disk or a closed pipe shows here, and not when Python ends
        if code == 130:  # Typer's word for Ctrl-C
            _fail(INTERRUPTED, 130, debug)
        sys.exit(code or 0)
    except (KeyboardInterrupt, typer.Abort):
        _fail(INTERRUPTED, 130, debug)
    except Misuse as error:
        command = error.ctx.command_path if getattr(error, "ctx", None) else _asked(app)
        what, fix = number(error) or (error.format_message().rstrip("."), "")
        parts = [what, hint(error, sys.argv[1:]) or fix, "" if fix else f"see {command} --help"]
        _fail(": ".join(filter(None, parts)), 2, debug)
    except CmrhashError as error:
        _fail(_misfit(error) or _starved(error) or message(error), error.exit_code, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has closed the pipe: no complaint
        sys.exit(1)
    except OSError as error:
        parts = [error.strerror or str(error), error.filename, "check the path, its permissions and the free space"]
        named = ": ".join(str(part) for part in parts if part)
        _fail(_starved(error) or named, 2 if error.errno in MISNAMED else 1, debug)
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        unforeseen = f"unexpected {type(error).__name__}: {words}: rerun with --debug and report the traceback"
        _fail(_misfit(error) or _starved(error) or unforeseen, 1, debug)


def _asked(app: typer.Typer) -> str:
    """The command whose help a user needs, as far as the first word says."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    group: Any = typer.main.get_command(app) if isinstance(app, typer.Typer) else app
    return f"cmrhash {first}" if first in group.commands else "cmrhash"


class _LogLines(logging.Handler):
    """Log records on whatever stderr is at the time, so that lines appear above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        note(self.format(record))


@contextmanager
def _log_on_stderr(level: str) -> Iterator[None]:
    """Show the library's log from a level on; CMRHASH_LOG names another one, such as INFO."""
    wanted = os.environ.get("CMRHASH_LOG", "").upper() or level
    if wanted not in logging.getLevelNamesMapping():
        _fail(f"CMRHASH_LOG={wanted}: no log level: set it to DEBUG, INFO, WARNING or ERROR", 2, False)
    log, lines = logging.getLogger("cmrhash"), _LogLines()
    before = log.level
    lines.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    log.addHandler(lines)
    log.setLevel(wanted)
    try:
        yield
    finally:
        log.removeHandler(lines)
        log.setLevel(before)


def _misfit(error: BaseException | None) -> str:
    """Say that torch and torchvision are of different releases if that caused the error, else ""."""
    while error:
        if re.search(r"operator torchvision::\w+ does not exist", str(error)):
            from importlib.metadata import version

            pair = " and ".join(f"{name} {version(name)}" for name in ("torch", "torchvision"))
            return f"{pair} do not match: install both together"
        error = error.__cause__ or error.__context__  # transformers and our encoders reword it
    return ""


def _starved(error: BaseException | None) -> str:
    """Say that memory is short if that caused the error, else ""."""
    while error:
        short = isinstance(error, OSError) and error.errno == errno.ENOMEM
        if short or isinstance(error, MemoryError) or STARVED.search(str(error)):
            return "not enough memory: raise its limit or give smaller batches, and rerun: finished work is kept"
        error = error.__cause__ or error.__context__
    return ""


def _fail(message: str, code: int, debug: bool) -> None:
    if os.environ.get("WORLD_SIZE", "1") != "1" and not _speaks():
        sys.exit(code)
    if debug:
        import traceback

        traceback.print_exc()
    note("error: " + LONG_WORD.sub(r"\1...\2", message))
    sys.exit(code)


def _speaks() -> bool:
    """Whether this process is the one that reports to the user."""
    from cmrhash.compute import processes

    try:
        return processes.speaks()
    except CmrhashError:  # the environment variables make no sense
        return True


def print_version(wanted: bool) -> None:
    """The callback of --version."""
    if wanted:
        from cmrhash.version import __version__

        print(f"cmrhash {__version__}")
        raise typer.Exit()


def note(message: str, quiet: bool = False) -> None:
    """Print a line for people on stderr, in one piece: several processes may share it."""
    if not quiet:
        sys.stderr.write(shown(message) + "\n")


def print_line(*lines: object) -> None:
    """Print lines for people on stdout."""
    print(*map(shown, lines), sep="\n", end="\n" * bool(lines))


def print_json(value: Any) -> None:
    """Print a result for programs on stdout; see ``json_text``."""
    print(json_text(value, indent=1))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON of a value: in ASCII unless stdout takes UTF-8, with escapes for what a terminal obeys."""
    plain = not (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    return shown_json(json.dumps(value, indent=indent, ensure_ascii=plain, default=str))


def size_of(count: int) -> str:
    """Number of bytes as people read it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def titled(title: str, protocol: Mapping[str, Any]) -> str:
    """Title of a table, with a warning if its encoders are untrained."""
    return title + (" -- UNTRAINED ENCODERS" if protocol["untrained_encoders"] else "")


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Progress]:
    """Progress bars with rate and time left on stderr; without a terminal, a line now and then."""
    if quiet:
        yield lambda *_: None
    elif sys.stderr.isatty():
        yield from _bars()
    else:
        yield _Lines()


def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress as Bars

    from cmrhash_cli.bar_columns import columns

    console = Console(stderr=True)
    with Bars(*columns(console.width), console=console, speed_estimate_period=STEADY) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int, note: str = "") -> None:
            what = shown(what)
            known = total if total > 1 or done else None  # one step of unknown length: a bar that moves
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=known, completed=done, rate="", note=note)
            task = bars.tasks[bars.task_ids.index(tasks[what])]
            if done < task.completed:  # the next one of the same name
                bars.reset(tasks[what], total=known, completed=done)
            rate = f"{task.speed:.1f}/s" if task.speed and what != config.GRID else ""
            bars.update(tasks[what], total=known, completed=done, rate=rate, note=note)

        yield show


class _Lines:
    """Progress for a log file: a line at the start, at the end, and every ten seconds in between.

    A single step has no line at its end unless it took so long.
    """

    def __init__(self) -> None:
        # what -> (start, done at the start, last shown, last done)
        self._shown: dict[str, tuple[float, int, float, int]] = {}

    def __call__(self, what: str, done: int, total: int, remark: str = "") -> None:
        import time

        now = time.monotonic()
        start, first, last, before = self._shown.get(what, (now, done, -1e9, done))
        if done < before:  # the next one of the same name
            start, first = now, done
        single = total == 1 and what != config.GRID  # one step of unknown length
        ended = done == total and not single and not (done == before and what in self._shown)
        if now - last >= 10 or ended:
            rate = (done - first) / (now - start) if done > first and now > start and what != config.GRID else 0
            left = f", {rate:.1f}/s, {(total - done) / rate:.0f} s left" if rate and done < total else ""
            count = " ..." if single and not done else f": {done}/{total}"
            note(f"{what}{count}{left}{'  ' + remark if remark else ''}")
            last = now
        self._shown[what] = (start, first, last, done)


def not_empty(text: str) -> Path:
    """The path of an argument; raises UsageError for "", which would be the current folder, and for a NUL."""
    if not text:
        raise UsageError("the path is empty", None, "give a path; the current folder is .")
    if "\0" in text:
        raise UsageError(f"{text!r} cannot be a path", None, "give a path without a NUL character")
    return Path(text)


def filled(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A config whose fields have the values of these names; other values are not used."""
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})
