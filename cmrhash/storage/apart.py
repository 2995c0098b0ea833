"""Readers of foreign files in a process of their own, whose end is an error and not the end of the command.

Libraries in C and C++ may crash on damaged bytes, or loop for ever. One process per program reads such files, one
request at a time with a limit of CPU time, and is started again after it ended. Requests and answers are JSON with the
bytes of arrays and files behind it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash import errors
from cmrhash.errors import CmrhashError, DataError

BUILT_IN = (FileNotFoundError, IsADirectoryError, PermissionError, KeyError, IndexError, ValueError, MemoryError)
CPU_SECONDS, BYTES_A_SECOND = 60, 2 * 10**6  # a request may take so long, and a second more for so many bytes
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from cmrhash.storage import apart; apart.serve()"
_LENGTHS = struct.Struct("<QQ")  # bytes of the JSON, bytes behind it
_BYTES, _ARRAY, _OBJECTS = "\0bytes", "\0array", "\0objects"  # keys of what JSON does not have


def call(function: str, path: Path, *args: Any) -> Any:
    """Result of ``function`` ("module:name") with a path and more arguments, run in the other process.

    It may consist of what JSON has, of bytes and of NumPy arrays. Raises the errors of the function (others than
    BUILT_IN and those of cmrhash as ValueError), and DataError if the process ended.
    """
    return _ask(path, "call", function, os.path.abspath(path), *args)


def stream(function: str, path: Path, *args: Any) -> Iterator[Any]:
    """Results of a generator function, as ``call`` gives them."""
    process, number = _ask(path, "open", function, os.path.abspath(path), *args)
    try:
        while answer := _ask(path, "next", process, number):
            yield answer[0]
    finally:
        with contextlib.suppress(CmrhashError):
            _ask(path, "close", process, number)


# ---------------------------------------------------------------------------------------------- this side

_lock = threading.Lock()
_reader: subprocess.Popen[bytes] | None = None
_started_by = 0  # a forked process must not share the pipes


def _ask(path: Path, *request: Any) -> Any:
    with _lock:
        reader = _running()
        try:
            _send(reader.stdin, (_limit(path), *request))
            kind, answer = _receive(reader.stdout)
        except (OSError, EOFError):
            raise DataError(
                f"the file ended the process that reads it ({_end(reader)})", path, "it may be damaged: get it again"
            ) from None
        except BaseException:  # Ctrl-C between question and answer: the next question must not get this answer
            _stop()
            raise
    if kind == "error":
        raise _error(answer[0], answer[1], path)
    return answer


def _limit(path: Path) -> int:
    """Seconds of CPU time that a request may take: reading a healthy file is much quicker, a slow disk takes none."""
    with contextlib.suppress(OSError):
        return CPU_SECONDS + path.stat().st_size // BYTES_A_SECOND
    return CPU_SECONDS


def _running() -> subprocess.Popen[bytes]:
    """The other process, started if there is none."""
    global _reader, _started_by
    if _reader is None or _started_by != os.getpid() or _reader.poll() is not None:
        command = [sys.executable, "-c", _START, json.dumps(sys.path)]
        pipe = subprocess.PIPE
        _reader = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        _started_by = os.getpid()
    return _reader


@atexit.register
def _stop() -> None:
    """End the other process."""
    global _reader
    if _reader is not None and _started_by == os.getpid():
        _reader.kill()
        _end(_reader)
    _reader = None


def _end(reader: subprocess.Popen[bytes]) -> str:
    """Wait for the end of the process; how it ended, in words."""
    for pipe in (reader.stdin, reader.stdout):
        with contextlib.suppress(OSError):
            assert pipe is not None
            pipe.close()
    code = reader.wait()
    return signal.strsignal(-code) or str(code) if code < 0 else f"exit code {code}"


def _error(kind: str, words: list[str | None], path: Path) -> Exception:
    """The error of that class; it names the file as the caller does."""
    ours = getattr(errors, kind, None)
    if isinstance(ours, type) and issubclass(ours, CmrhashError):
        what, where, fix, option = words
        return ours(what or "", path if where == os.path.abspath(path) else where, fix, option=option)
    known: type[Exception] = next((one for one in BUILT_IN if one.__name__ == kind), ValueError)
    return known(*words)


# ---------------------------------------------------------------------------------------------- the other side


def serve() -> None:
    """Answer the requests on stdin until it is closed."""
    _bound_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the other side decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    streams: dict[int, Iterator[Any]] = {}
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            limit, verb, *rest = _receive(sys.stdin.buffer)
            _bound_time(limit)
            try:
                answer: tuple[str, Any] = "answer", _answer(streams, verb, *rest)
            except Exception as error:
                answer = "error", _described(error)
            _send(answers, answer)


def _bound_memory() -> None:
    """Refuse memory beyond that of this machine: a few damaged bytes can ask for any amount."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if soft == resource.RLIM_INFINITY or soft > memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, hard))


def _bound_time(seconds: int) -> None:
    """End this process after so many more seconds of CPU time."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _answer(streams: dict[int, Iterator[Any]], verb: str, *rest: Any) -> Any:
    if verb in ("call", "open"):
        module, _, name = rest[0].partition(":")
        result = getattr(importlib.import_module(module), name)(Path(rest[1]), *rest[2:])
        if verb == "call":
            return result
        number = max(streams, default=0) + 1
        streams[number] = iter(result)
        return os.getpid(), number
    process, number = rest
    if process != os.getpid():
        raise DataError("its reader was ended by another file", None, "run the command again")
    if verb == "close":
        streams.pop(number, None)
        return None
    return [one for one in [next(streams[number], None)] if one is not None]


def _described(error: Exception) -> tuple[str, list[str | None]]:
    """Name of the error's class and its arguments."""
    if isinstance(error, CmrhashError):
        where = None if error.where is None else str(error.where)
        return type(error).__name__, [error.what, where, error.fix, error.option]
    words = " ".join(str(error).split())
    known = type(error) in BUILT_IN
    return type(error).__name__, [words if known else f"{type(error).__name__}: {words}"]


# ---------------------------------------------------------------------------------------------- messages


def _send(pipe: IO[bytes] | None, value: Any) -> None:
    """Write a message: two lengths, JSON, bytes."""
    assert pipe is not None
    parts: list[bytes | memoryview] = []
    at = 0

    def held(value: Any) -> Any:
        """Put bytes and arrays behind the JSON, which says where; other objects are told as an object."""
        nonlocal at
        if isinstance(value, np.ndarray) and value.dtype.kind != "O":
            turned = value.flags.f_contiguous and not value.flags.c_contiguous
            plain = np.ascontiguousarray(value.T if turned else value)
            about = {_ARRAY: [at, value.size, value.dtype.str, list(value.shape), "F" if turned else "C"]}
            parts.append(plain.reshape(-1).view(np.uint8).data)
        elif isinstance(value, bytes):
            about = {_BYTES: [at, len(value)]}
            parts.append(value)
        elif isinstance(value, np.ndarray):
            return {_OBJECTS: [value.ravel().tolist(), list(value.shape)]}
        elif isinstance(value, np.generic):
            return value.item()
        else:
            return {type(value).__name__: str(value)}
        parts.append(bytes(-len(parts[-1]) % 16))
        at += len(parts[-2]) + len(parts[-1])
        return about

    text = json.dumps(value, default=held).encode()
    pipe.write(_LENGTHS.pack(len(text), at))
    pipe.write(text)
    for part in parts:
        pipe.write(part)
    pipe.flush()


def _receive(pipe: IO[bytes] | None) -> Any:
    """Read a message. Raises EOFError at the end."""
    assert pipe is not None
    length, more = _LENGTHS.unpack(_read(pipe, _LENGTHS.size))
    text, behind = _read(pipe, length), _read(pipe, more)

    def found(value: dict[str, Any]) -> Any:
        if _ARRAY in value:
            at, count, kind, shape, order = value[_ARRAY]
            array: NDArray[Any] = np.frombuffer(behind, kind, count, at) if count else np.zeros(0, kind)
            return array.reshape(shape, order=order)
        if _OBJECTS in value:
            values, shape = value[_OBJECTS]
            objects = np.empty(len(values), object)
            for at, one in enumerate(values):
                objects[at] = one
            return objects.reshape(shape)
        if _BYTES in value:
            at, count = value[_BYTES]
            return bytes(memoryview(behind)[at : at + count])
        return value

    return json.loads(text, object_hook=found)


def _read(pipe: IO[bytes], count: int) -> bytearray:
    content = bytearray(count)
    view, at = memoryview(content), 0
    while at < count:
        got = pipe.readinto(view[at:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        at += got
    return content
