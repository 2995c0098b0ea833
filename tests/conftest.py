"""Shared by all tests: no network, small data sets made on the spot, and quick settings."""

from __future__ import annotations

import json
import os
import socket

import numpy as np
import pytest
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to reach another machine is a failure of the test."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise OSError(f"a test tried to connect to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def draw_photo(path, seed, size=(40, 32)):
    """A small JPEG of coloured noise around a mean colour."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, 255, 3)
    pixels = np.clip(colour + rng.integers(-30, 30, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=92)


WORDS = {"en": ["dog", "cat", "tree", "house"], "de": ["Hund", "Katze", "Baum", "Haus"]}


@pytest.fixture
def manifest_root(tmp_path):
    """A user's own data set: 40 photos of 4 classes, one English and one German caption each, splits drawn later."""
    return write_manifest(tmp_path / "mine", 40)


def write_manifest(root, count, splits=True):
    """Photos and ``manifest.jsonl``; every fifth item is a query, every fourth of the others val."""
    lines = []
    for n in range(count):
        kind = n % 4
        draw_photo(root / "images" / f"{n}.jpg", kind * 1000 + n)
        entry = {
            "id": f"i{n}",
            "image": f"images/{n}.jpg",
            "texts": {lang: [f"{words[kind]} {n}"] for lang, words in WORDS.items()},
            "labels": [WORDS["en"][kind]],
        }
        if splits:
            entry["splits"] = ["query"] if n % 5 == 0 else ["database", "val" if n % 4 == 1 and n < 20 else "train"]
        lines.append(json.dumps(entry, ensure_ascii=False))
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root
