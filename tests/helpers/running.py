"""Commands in this process, on small data sets, and what they leave behind."""

from __future__ import annotations

import contextlib
import json
import resource
import sys

import numpy as np
import typer
from PIL import Image

from cmrhash_cli import main as cli

BUILT = typer.main.get_command(cli.app)  # once, not at every call

QUICK = ["--epochs", "2", "--batch", "16", "--hidden", "16", "--bits", "8", "--device", "cpu"]
ENCODERS = ["--image-model", "mobilenet_v3_small", "--image-weights", "random", "--text-model", "random"]
EXTRACT = ["extract", "--dataset", "manifest", "--root", "mine", "--image-batch", "4", "--device", "cpu", *ENCODERS]


def write_own(root, count=8, change=None):
    """A small data set of photos and a manifest. change: entries -> entries."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    entries = []
    for n in range(count):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(root / "images" / f"{n}.png")
        texts = {"en": [f"dog {n}"], "de": [f"Hund {n}"]}
        splits = ["query"] if n == 0 else ["database", "val" if n == 1 else "train"]
        entry = {"id": f"i{n}", "image": f"images/{n}.png", "texts": texts, "labels": ["ab"[n % 2]], "splits": splits}
        entries.append(entry)
    write_manifest(root, change(entries) if change else entries)


def write_manifest(root, entries):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(*args):
    """Run a command as the script does; returns its exit code."""
    before, sys.argv = (sys.argv, cli.app), ["cmrhash", *map(str, args)]
    cli.app = BUILT
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv, cli.app = before
    return 0


def files(folder):
    """Content of every file but the locks, which name the last process."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")}


@contextlib.contextmanager
def largest_file(size):
    """No file of this process may grow beyond ``size`` bytes: what a full disk looks like from inside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
