"""A stored data set whose ``dataset.json`` has a missing or odd field, or changed bytes, with the right digest over it.

CMRHASH_FUZZ changes the bytes of so many times more files.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import mutated_files
import odd_records
import pytest

from cmrhash.data import manifest
from cmrhash.data.additions import settled
from cmrhash.data.changes import renewed
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.errors import CmrhashError
from cmrhash.storage.files import read_json, write_json

KIND = "record of others: field missing or of another type"
FUZZ = int(os.environ.get("CMRHASH_FUZZ", "1"))
CHANGED = 1600  # files of changed bytes


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A data set whose description has all fields, and its folder."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    items = tuple(
        Item(f"i{n}", f"{n}.jpg", {"en": (f"dog {n}",)}, (n % 2,), frozenset({"query" if n < 2 else "database"}))
        for n in range(8)
    )
    of_splits = {"split_seed": 0, "chosen": "first:2", "found": {"photos": 8}}
    of_rows = {"added": 2, "later": frozenset({"i6", "i7"}), "brought": frozenset({"i5"})}
    dataset = ImageTextDataset("toy", Path("/photos"), items, ("a", "b"), "labels", **of_splits, **of_rows)
    manifest.store(dataset, tmp_path / "toy")
    return dataset, tmp_path / "toy"


def used(stored):
    """What ``extract`` and every other command do with the description."""
    dataset, folder = stored
    read = manifest.load(folder)
    assert isinstance(read.name, str)
    assert read.added >= 0
    assert all(isinstance(label, str) for label in read.classes)
    assert all(isinstance(count, int) for count in read.found.values())
    assert f"{read!r} {read.split}"
    manifest.check_blocks(folder)
    renewed(dataset, folder)
    settled(dataset, folder, None, False)
    manifest.keep(dataset, folder)


def outcome(stored):
    """ "read", "refused", or the error that nobody foresaw."""
    try:
        used(stored)
    except CmrhashError as error:
        return "refused" if "\n" not in str(error) else f"two lines: {error}"
    except Exception as error:
        return repr(error)
    return "read"


@pytest.mark.faults(KIND)
def test_every_odd_description_is_read_or_refused(stored, faults):
    path = stored[1] / manifest.ABOUT
    about = read_json(path, "")
    wrong = {}
    for name, odd in odd_records.odd(about):
        write_json(path, odd)
        faults.tried += 1
        what = outcome(stored)
        faults.survived += what in ("read", "refused")
        wrong |= {name: what} if what not in ("read", "refused") else {}
    assert not wrong
    assert faults.tried > 300


@pytest.mark.faults(KIND)
def test_changed_bytes_of_a_description_are_read_or_refused(stored, faults):
    """Under their own digest, so that they are parsed."""
    path = stored[1] / manifest.ABOUT
    whole, items = path.read_bytes(), (stored[1] / manifest.ITEMS).read_bytes()
    body = re.sub(rb' "sha256": .*\n', b"", whole, count=1)
    wrong, seen = {}, set()
    for number in range(CHANGED * FUZZ):
        content = mutated_files.mutated([body], number)
        digest = hashlib.sha256(content).hexdigest()
        path.write_bytes(content.replace(b"{\n", f'{{\n "sha256": "{digest}",\n'.encode(), 1))
        faults.tried += 1
        what = outcome(stored)
        seen.add(what)
        faults.survived += what in ("read", "refused")
        wrong |= {number: what} if what not in ("read", "refused") else {}
        assert (stored[1] / manifest.ITEMS).read_bytes() == items
    assert not wrong
    assert seen == {"read", "refused"}
