"""A process that trains the runs that another process names: ``python -m cmrhash.evaluation.worker``.

JSON lines on stdin: first what all trainings share, then one training per line, null at the end. JSON lines on stdout:
``done``, ``total`` and ``note`` of the present training, ``log``, and per training ``finished`` (its folder) or
``error``. When stdin closes early, because the other process stops or is gone, the present training is saved and this
process ends.
"""

from __future__ import annotations

import _thread
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any

from cmrhash.errors import CmrhashError

Tell = Callable[[Mapping[str, Any]], None]
INTERRUPTED = 130  # exit code


def main() -> None:
    """Answer the lines of stdin until the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the other process, which closes stdin
    signal.signal(signal.SIGTERM, _interrupt)
    lines: SimpleQueue[str] = SimpleQueue()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # stdout is for answers alone, whatever a library prints

    def tell(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    Thread(target=_listen, args=(lines,), daemon=True).start()
    code = 0
    try:
        serve(lines.get, tell)
    except (KeyboardInterrupt, BrokenPipeError):
        code = INTERRUPTED
    os._exit(code)  # a second interrupt would show a traceback


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _listen(lines: SimpleQueue[str]) -> None:
    """Pass lines of stdin on; interrupt the training when they end."""
    for line in sys.stdin:
        lines.put(line)
    lines.put("null")
    _thread.interrupt_main(signal.SIGTERM)


def serve(next_line: Callable[[], str], tell: Tell) -> None:
    """Train what each line names until one is null. tell: takes the answers."""
    first = json.loads(next_line())
    if first is None:
        return
    from cmrhash.evaluation.jobs import Job, Shared, work

    _log_to(tell, first["level"])
    shared = Shared.read(first)
    while (line := json.loads(next_line())) is not None:
        try:
            run = work(Job.read(line), shared, partial(_tell_progress, tell))
            tell({"finished": str(run.folder)})
        except Exception as error:
            tell({"error": error_as_json(error)})


def _tell_progress(tell: Tell, done: int, total: int, note: str) -> None:
    tell({"done": done, "total": total, "note": note})


def error_as_json(error: Exception) -> dict[str, Any]:
    """Kind and parts of an error, from which ``workers.error_of`` makes it again."""
    if isinstance(error, CmrhashError):
        where = None if error.where is None else str(error.where)
        return {"kind": type(error).__name__, "parts": [error.what, where, error.fix], "option": error.option}
    if isinstance(error, OSError) and error.errno:
        where = None if error.filename is None else str(error.filename)
        return {"kind": "OSError", "parts": [error.errno, error.strerror, where]}
    return {"kind": type(error).__name__, "parts": [" ".join(str(error).split())[:200]]}


def _log_to(tell: Tell, level: int) -> None:
    """Send log records of cmrhash to the other process."""

    class Sent(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell({"log": [record.name, record.levelno, record.getMessage()]})

    log = logging.getLogger("cmrhash")
    log.addHandler(Sent())
    log.setLevel(level)


if __name__ == "__main__":
    main()
