"""What a program does to files, system call by system call: a small tracer for Linux on x86-64.

The program is a child process that calls ``trace_me()`` once its imports are done. ptrace(2) stops it before and after
every system call; the calls that create, write, cut, sync, rename or remove a file are kept in their order, with the
bytes that were written. What it prints is kept as well, at its place in the order: by then it has told its user so.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

import pytest

TRACEME, SETOPTIONS, SYSCALL, GET_SYSCALL_INFO = 0, 0x4200, 24, 0x420E
GOOD, EXITKILL = 1, 1 << 20  # stops at system calls are marked; the child ends with its tracer
BEFORE, AFTER = 1, 2  # a system call
REFUSED = 77  # exit code of a child that may not be traced
CALLS = {  # numbers of x86-64; `test_the_recording_is_complete` notices if one is missing
    1: "write",
    2: "open",
    18: "pwrite64",
    74: "fsync",
    75: "fdatasync",
    77: "ftruncate",
    82: "rename",
    83: "mkdir",
    87: "unlink",
    257: "openat",
    285: "fallocate",
}
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.ptrace.restype = ctypes.c_long


class Event(NamedTuple):
    """kind: create, write, size, grow, sync, rename, unlink, mkdir, or say (then data is what was printed).

    at: where the bytes go, or the size. path: of the file, as it is named then; to: its new name.
    """

    kind: str
    path: str = ""
    at: int = 0
    data: bytes = b""
    to: str = ""


class Info(ctypes.Structure):
    """struct ptrace_syscall_info. values: before a call its number and arguments, after it the result and "failed"."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("arch", ctypes.c_uint32),
        ("pointers", ctypes.c_uint64 * 2),
        ("values", ctypes.c_uint64 * 8),
    )


def trace_me() -> None:
    """Let the parent process, which runs ``record``, see every system call from here on."""
    if libc.ptrace(TRACEME, 0, None, None):
        sys.exit(REFUSED)
    os.kill(os.getpid(), signal.SIGSTOP)


def record(command: Sequence[str]) -> list[Event]:
    """Run a Python program that calls ``trace_me`` and return what it did; skips the test where that cannot be."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("the tracer knows the system calls of Linux on x86-64 only")
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn(sys.executable, [sys.executable, *command], os.environ, file_actions=silent)
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == REFUSED:
        pytest.skip("this system does not permit ptrace")
    assert os.WIFSTOPPED(status), f"the child ended with status {status}"
    libc.ptrace(SETOPTIONS, pid, None, GOOD | EXITKILL)
    events: list[Event] = []
    call: list[Event] = []
    info, passed_on = Info(), 0
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    while True:
        libc.ptrace(SYSCALL, pid, None, passed_on)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            break
        passed_on = os.WSTOPSIG(status)
        if passed_on != signal.SIGTRAP | 0x80:
            continue
        passed_on = 0
        if libc.ptrace(GET_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info)) < 0:
            raise OSError(ctypes.get_errno(), "ptrace")
        if info.op == BEFORE:
            call = _before(pid, memory, CALLS.get(info.values[0], ""), list(info.values[1:7]))
        elif info.op == AFTER and not info.values[1] & 0xFF:
            events += _after(pid, call, info.values[0])
    os.close(memory)
    assert os.waitstatus_to_exitcode(status) == 0, f"the child ended with status {status}"
    return events


def _before(pid: int, memory: int, name: str, a: list[int]) -> list[Event]:
    """What a call is about to do. a: its arguments."""
    if name in ("write", "pwrite64"):
        data = os.pread(memory, a[2], a[1])
        if a[0] == 1:
            return [Event("say", data=data)]
        return [Event("write", _path(pid, a[0]), a[3] if name == "pwrite64" else _position(pid, a[0]), data)]
    if name in ("open", "openat"):
        flags = a[1] if name == "open" else a[2]
        return [Event("create")] * bool(flags & os.O_CREAT) + [Event("size")] * bool(flags & os.O_TRUNC)
    if name in ("fsync", "fdatasync"):
        return [Event("sync", _path(pid, a[0]))]
    if name == "ftruncate":
        return [Event("size", _path(pid, a[0]), a[1])]
    if name == "fallocate":
        assert a[1] == 0, "only the plain mode is known here"
        return [Event("grow", _path(pid, a[0]), a[2] + a[3])]
    if name == "rename":
        return [Event("rename", _text(memory, a[0]), to=_text(memory, a[1]))]
    return [Event(name, _text(memory, a[0]))] if name else []


def _after(pid: int, call: list[Event], result: int) -> list[Event]:
    """What the call has done: a write may be short, and a file has its name once it is open."""
    if call and not call[0].path and call[0].kind != "say":
        return [event._replace(path=_path(pid, result)) for event in call]
    return [event._replace(data=event.data[:result]) if event.kind == "write" else event for event in call]


def _path(pid: int, handle: int) -> str:
    return os.readlink(f"/proc/{pid}/fd/{handle}")


def _position(pid: int, handle: int) -> int:
    with open(f"/proc/{pid}/fdinfo/{handle}") as file:
        fields = dict(line.split(":\t", 1) for line in file)
    appends = int(fields["flags"], 8) & os.O_APPEND
    return os.stat(f"/proc/{pid}/fd/{handle}").st_size if appends else int(fields["pos"])


def _text(memory: int, address: int) -> str:
    """A path in the child's memory, read page by page."""
    text = b""
    while b"\0" not in text:
        at = address + len(text)
        text += os.pread(memory, 4096 - at % 4096, at)
    return os.fsdecode(text.partition(b"\0")[0])
