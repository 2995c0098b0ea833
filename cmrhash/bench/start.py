"""Benchmark of start-up: the cost of a command before it does any work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cmrhash.bench import Case, Path

STACK = "import torch, torchvision, transformers, faiss, h5py, typer, rich; transformers.BertModel"


@contextmanager
def _help() -> Iterator[Case]:
    """The naive way imports everything that any command needs at the top of the script."""
    yield Case(
        lambda: _run("-c", STACK),
        lambda: _run("-m", "cmrhash_cli.main", "--help"),
        lambda: _run("-c", "import typer"),
    )


def _run(*args: str) -> None:
    subprocess.run([sys.executable, *args], check=True, capture_output=True)


PATHS = {"help": Path("cmrhash --help; against imports at the top of the script", "python and typer", 10, _help)}
