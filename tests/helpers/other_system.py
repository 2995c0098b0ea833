"""Commands on a system that lacks what only POSIX systems have, and what Windows refuses; as a program of its own.

``other_system.py FOLDER`` runs the commands in the folder and prints {command: what it said}. It hides modules and
functions of Python and refuses what Windows refuses.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import importlib
import io
import json
import mmap
import os
import pkgutil
import shutil
import signal
import socket
import stat
import sys
import types
from pathlib import Path

import faiss
import portalocker
import torch

MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
HIDDEN = {
    os: "chown chroot fchmod fchown fdatasync fork forkpty getegid geteuid getgid getuid killpg lchown lockf mkfifo"
    " O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC posix_fadvise posix_fallocate pread preadv pwrite pwritev"
    " sched_getaffinity sched_setaffinity sync sysconf uname wait3 wait4",
    mmap: "MADV_DONTNEED MADV_RANDOM MADV_SEQUENTIAL MADV_WILLNEED MAP_ANONYMOUS MAP_PRIVATE MAP_SHARED PROT_READ",
    signal: "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 alarm setitimer",
    socket: "AF_UNIX",
    faiss: "OnDiskInvertedLists",
}
FEATURES = ["--image-model", "mobilenet_v3_small", "--image-weights", "random", "--text-model", "random"]
EXTRACT = ["extract", "--dataset", "manifest", "--root", "mine", "--image-batch", "4", "--device", "cpu", *FEATURES]
TRAIN = ["train", "--epochs", "2", "--batch", "16", "--hidden", "16", "--bits", "8", "--device", "cpu"]
STORE = "faiss:store"
COMMANDS = [
    EXTRACT,
    [*EXTRACT, "--overwrite"],
    [*EXTRACT, "--overwrite", "--shard", "1/2"],
    [*EXTRACT, "--overwrite", "--shard", "2/2"],
    TRAIN,
    [*TRAIN, "--overwrite"],
    ["eval"],
    ["search", "--id", "i3", "--to", "text", "--device", "cpu"],
    ["index", "--store", STORE, "--approximate"],
    ["index", "--store", STORE, "--exact"],
    ["search", "--id", "i3", "--to", "text", "--device", "cpu", "--store", STORE],
    ["cache", "verify"],
    ["cache", "prune", "--yes"],
    ["cache", "ls"],
]


class Without(types.ModuleType):
    """A module that lacks some names."""

    def __init__(self, real, hidden):
        super().__init__(real.__name__)
        self._real, self._hidden = real, hidden

    def __getattr__(self, name):
        if name in self._hidden:
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'", name=name)
        return getattr(self._real, name)


def hide() -> None:
    """Let cmrhash import nothing that other systems lack; what its libraries do with the system is theirs."""
    real = builtins.__import__
    less = {module.__name__: Without(module, names.split()) for module, names in HIDDEN.items()}
    less["os"].name = "nt"

    def without(name, globals=None, *rest, **more):
        if not str((globals or {}).get("__name__")).startswith("cmrhash"):
            return real(name, globals, *rest, **more)
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        module = real(name, globals, *rest, **more)
        return less.get(module.__name__, module)

    builtins.__import__ = without


def refuse() -> None:
    """Refuse what Windows refuses: folders as files, a sync of what is only read, and changes of what is open."""
    open_, fsync, lock = os.open, os.fsync, portalocker.lock
    shutil._use_fd_functions = False  # it would open folders

    def no_folder(path, flags, mode=0o777, **more):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return open_(path, flags, mode, **more)

    def writable_only(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        fsync(handle)

    def exclusive_only(file, how):
        assert not how & portalocker.LockFlags.SHARED, "Windows has them with pywin32 alone"
        lock(file, how)

    def closed_only(real):
        def change(*paths, **more):
            for path in paths:
                if is_open(path):
                    raise PermissionError(errno.EACCES, "it is being used by another process", path)
            return real(*paths, **more)

        return change

    os.open, os.fsync, portalocker.lock = no_folder, writable_only, exclusive_only
    for name in ("replace", "rename", "remove", "unlink"):
        setattr(os, name, closed_only(getattr(os, name)))


def is_open(path) -> bool:
    """Whether this process has a file open, or mapped."""
    with contextlib.suppress(FileNotFoundError):
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            return False
        for handle in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(int(handle)), info):
                    return True
        return f" {os.path.realpath(path)}\n" in Path("/proc/self/maps").read_text()
    return False


def import_all() -> int:
    """Every module there is, but for those that want a library that is not installed; how many there are."""
    import cmrhash.errors
    import cmrhash_cli

    count = 0
    for package in (cmrhash, cmrhash_cli):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            try:
                importlib.import_module(module.name)
                count += 1
            except cmrhash.errors.CmrhashError as error:
                assert error.fix.startswith("pip install"), error
    return count


def said(args: list[str]) -> str:
    """What a command prints; it must succeed."""
    from cmrhash_cli.main import main

    sys.argv = ["cmrhash", *args, "--json", "-q"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as end:
            assert not end.code, args
    return out.getvalue()


if __name__ == "__main__":
    torch.set_num_threads(1)
    hide()
    refuse()
    assert import_all() > 100
    os.chdir(sys.argv[1])
    print(json.dumps({" ".join(args): said(args) for args in COMMANDS}))
