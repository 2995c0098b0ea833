"""What a folder may hold after a crash, given every system call that was on its way there.

    killed      the process ends between two calls: all that it wrote so far is there
    torn        it ends inside a write: the first bytes of that one are there
    power cut   so does the machine: what was synced is there; of all other writes any 512-byte sectors, of all other
                names (of new files, renames, removals, new folders) any; in whatever order they were made

A file's content is safe once the file was synced, its name once the folder was: no more is promised by POSIX.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracing import Event

SECTOR = 512
LOCK = ".lock"  # such files are left out: they say which process it was, and what they say is told to people only
NAMES = ("create", "rename", "unlink", "mkdir")  # change what a folder holds
SAMPLES = 3  # random power cuts at a crash point, beside those that lose all that was not synced, or one such write


@dataclass(frozen=True)
class Op:
    """An event with the file that it is about, whatever the name: a number; or the folder whose names it changes."""

    event: Event
    target: int | str


@dataclass(frozen=True)
class Crash:
    """files: content by path. folders: all that exist. said: what the program had printed, line by line."""

    files: dict[str, bytes]
    folders: tuple[str, ...]
    said: tuple[str, ...]

    @property
    def key(self) -> object:
        """Equal for crashes that leave the same behind."""
        return frozenset(self.files.items()), self.folders, self.said

    def rebuild(self, folder: Path) -> None:
        for path in self.folders:
            (folder / path).mkdir(parents=True, exist_ok=True)  # made again after its removal, which is not recorded
        for path, content in self.files.items():
            (folder / path).write_bytes(content)


class History:
    """What was done below a folder, ready to be cut off anywhere."""

    def __init__(self, events: Sequence[Event], folder: Path) -> None:
        self.ops: list[Op] = []
        names: dict[str, int] = {}
        for event in events:
            if event.kind == "say":
                self.ops.append(Op(event, ""))
            if not Path(event.path).is_relative_to(folder) or event.path.endswith(LOCK):
                continue
            path, to = (os.path.relpath(name, folder) if name else "" for name in (event.path, event.to))
            event = event._replace(path=path, to=to)
            if event.kind in NAMES:
                if event.kind == "create":
                    if event.path in names:
                        continue
                    names[event.path] = len(self.ops)
                target = names.get(event.path, -1)
                if event.kind == "rename":
                    names[event.to] = names.pop(event.path)
                elif event.kind == "unlink":
                    del names[event.path]
                self.ops.append(Op(event, target))
            else:
                self.ops.append(Op(event, names.get(event.path, event.path)))

    def whole(self) -> Crash:
        return _replay(self.ops)

    def killed(self) -> Iterator[Crash]:
        for end in range(len(self.ops) + 1):
            yield _replay(self.ops[:end])

    def torn(self) -> Iterator[Crash]:
        luck = random.Random(0)
        for at, op in enumerate(self.ops):
            if op.event.kind == "write":
                size = len(op.event.data)
                for cut in sorted({1, size // 2, size - 1, luck.randrange(size)} - {0, size}):
                    torn = Op(op.event._replace(data=op.event.data[:cut]), op.target)
                    yield _replay([*self.ops[:at], torn])

    def power_cut(self) -> Iterator[Crash]:
        for end in range(len(self.ops) + 1):
            ops = self.ops[:end]
            loose = [at for at, safe in enumerate(_safe(ops)) if not safe]
            yield _replay([op for at, op in enumerate(ops) if at not in loose])
            for lost in loose:
                yield _replay([*ops[:lost], *ops[lost + 1 :]])
            for sample in range(SAMPLES):
                luck = random.Random(end * SAMPLES + sample)
                parts = (_some(op, luck) if at in loose else [op] for at, op in enumerate(ops))
                yield _replay(list(itertools.chain.from_iterable(parts)))


def _safe(ops: Sequence[Op]) -> list[bool]:
    """Whether each was synced before the end; what was printed stays printed."""
    synced: set[int | str] = set()
    safe = []
    for op in reversed(ops):
        kind = op.event.kind
        if kind == "sync":
            synced.add(op.target)
        held_by: set[int | str] = {op.target}
        if kind in NAMES:
            held_by = {str(Path(path).parent) for path in (op.event.path, op.event.to) if path}
        safe.append(kind == "say" or held_by <= synced)
    return safe[::-1]


def _some(op: Op, luck: random.Random) -> list[Op]:
    """A random part of an op that was not synced."""
    if op.event.kind != "write":
        return [op] if luck.random() < 0.5 else []
    at, data = op.event.at, op.event.data
    edges = [at, *range(at - at % SECTOR + SECTOR, at + len(data), SECTOR), at + len(data)]
    return [
        Op(op.event._replace(at=first, data=data[first - at : last - at]), op.target)
        for first, last in itertools.pairwise(edges)
        if luck.random() < 0.5
    ]


def _replay(ops: Sequence[Op]) -> Crash:
    names: dict[str, int] = {}  # of files, also below folders that may not exist
    folders: list[str] = []
    content: dict[int, bytearray] = {}
    said = ""
    for op in ops:
        event, number = op.event, op.target
        if event.kind == "say":
            said += event.data.decode()
        elif event.kind == "mkdir":
            folders.append(event.path)
        elif event.kind == "create":
            names[event.path] = number
        elif event.kind == "rename":
            if names.get(event.path) == number:
                del names[event.path]
            names[event.to] = number
        elif event.kind == "unlink":
            if names.get(event.path) == number:
                del names[event.path]
        elif event.kind != "sync":
            _change(content.setdefault(number, bytearray()), event)
    there = {"."}
    for folder in folders:
        if str(Path(folder).parent) in there:
            there.add(folder)
    files = {path: bytes(content.get(number, b"")) for path, number in names.items() if str(Path(path).parent) in there}
    return Crash(files, tuple(f for f in folders if f in there), tuple(said.split()))


def _change(content: bytearray, event: Event) -> None:
    if event.kind == "size":
        del content[event.at :]
    end = event.at + len(event.data)
    content.extend(bytes(max(0, end - len(content))))
    content[event.at : end] = event.data
