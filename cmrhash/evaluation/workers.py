"""Processes that train: started with one thread each, given jobs, and stopped without losing an epoch."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any

import cmrhash
from cmrhash import errors
from cmrhash.errors import CmrhashError

WORKER = ("-P", "-m", "cmrhash.evaluation.worker")  # -P: modules do not come from the current folder
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
PATIENCE = 60.0  # seconds in which an interrupted process saves its training
AGAIN = "finished runs are kept; rerun to resume"
Answer = dict[str, Any]


class Workers:
    """Processes of ``cmrhash.evaluation.worker``, to be used in a ``with`` block.

    Each is in a session of its own: Ctrl-C reaches this process alone. At the end of the block, or of this process,
    the stdin of the others closes, and they save what they are training.
    """

    def __init__(self, count: int, shared: Mapping[str, Any]) -> None:
        self._answers: SimpleQueue[tuple[int, Answer | None]] = SimpleQueue()
        self._jobs: dict[int, str] = {}
        path = os.pathsep.join([str(Path(cmrhash.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": path.rstrip(os.pathsep)}
        command, pipes = [sys.executable, *WORKER], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._processes = [
            subprocess.Popen(command, encoding="utf-8", env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload]
            for _ in range(count)
        ]
        for at in range(count):
            Thread(target=self._listen, args=(at,), daemon=True).start()
            self._send(at, shared)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End idle processes, interrupt the others, and wait until they have saved."""
        for at, process in enumerate(self._processes):
            if at not in self._jobs:
                self._send(at, None)
            with contextlib.suppress(OSError):
                process.stdin.close()
        with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):  # a second Ctrl-C does not wait
            for process in self._processes:
                process.wait(PATIENCE)
        for process in self._processes:
            process.kill()
            process.wait()

    def __len__(self) -> int:
        return len(self._processes)

    def give(self, at: int, name: str, job: Mapping[str, Any]) -> None:
        """Give a process its next job. name: as messages call it."""
        self._jobs[at] = name
        self._send(at, job)

    def next_answer(self) -> tuple[int, Answer]:
        """Wait for an answer, and return it with the number of its process, from 0.

        Log records are passed on. Raises CmrhashError if a process died.
        """
        while True:
            try:
                at, answer = self._answers.get(timeout=1)  # on Windows Ctrl-C does not end an unlimited wait
            except Empty:
                continue
            if answer is None:
                name = self._jobs.pop(at, "a training")
                raise CmrhashError(f"{name}: {self._end_of(at)}", None, f"use fewer `jobs` if memory is short; {AGAIN}")
            if "log" in answer:
                name, level, message = answer["log"]
                logging.getLogger(name).log(level, "%s", message)
                continue
            if "done" not in answer:
                del self._jobs[at]
            return at, answer

    def _listen(self, at: int) -> None:
        """Pass on what a process answers; None at its end."""
        with self._processes[at].stdout as lines:
            for line in lines:
                with contextlib.suppress(json.JSONDecodeError):  # cut off where the process died
                    self._answers.put((at, json.loads(line)))
        self._answers.put((at, None))

    def _send(self, at: int, line: Mapping[str, Any] | None) -> None:
        with contextlib.suppress(OSError):  # it died, as its answers will show
            self._processes[at].stdin.write(json.dumps(line) + "\n")
            self._processes[at].stdin.flush()

    def _end_of(self, at: int) -> str:
        """How a process ended, in words."""
        code = self._processes[at].wait()
        if code >= 0:
            return f"its process ended with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process was killed by signal {-code}"


def error_of(answer: Mapping[str, Any]) -> Exception:
    """The error that a process met, as ``worker.error_as_json`` described it."""
    kind, parts = answer["kind"], answer["parts"]
    if kind == "OSError":
        return OSError(*parts)
    own = getattr(errors, kind, None)
    if own is None:
        what = f"unexpected {kind}: {parts[0]}"
        return CmrhashError(what, None, "rerun without `jobs` and with --debug, and report the traceback")
    error: CmrhashError = own(*parts, option=answer["option"])
    return error
