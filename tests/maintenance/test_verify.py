"""cmrhash cache verify: every flipped bit, changed photo and missing file is found."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cache_states import (
    RUN,
    RUNS,
    STATES,
    TOY,
    contents,
    flip,
    half_extracted,
    half_trained,
    invoke,
    shards,
    tuned,
    verified,
)

from cmrhash.data import manifest
from cmrhash.storage import hdf5
from cmrhash.training import runs


def test_all_is_whole(here):
    assert verified() == (0, {})
    done = invoke("cache", "verify", "--json")
    found = json.loads(done.stdout)
    assert (found["whole"], found["stale"], found["damaged"]) == (len(found["files"]), 0, 0)
    assert {Path(file["file"]).name for file in found["files"]} == {
        *("items.jsonl", "image-toy.h5", "text-de-toy.h5", "text-en-toy.h5", "triplet-8"),
        *(
            "heads.safetensors",
            "history.jsonl",
            "items.digests",
            "codes.h5",
            "image.faiss",
            "text-de.faiss",
            "text-en.faiss",
        ),
    }
    assert "MB read: " in done.stderr
    assert "toy photos: 120/120" in done.stderr


@pytest.mark.faults("flipped bit")
def test_every_flipped_bit_is_found(here, faults):
    """In every file that has a digest, one bit near the end."""
    half_trained()
    tuned("a", manifest.load(TOY).sha256)
    told_by = {RUN / runs.CONFIG: RUN, TOY / "tuned/a" / runs.CONFIG: TOY / "tuned/a"}
    told_by |= {RUNS / "toy/triplet-16" / runs.CHECKPOINT: RUNS / "toy/triplet-16"}
    told_by |= dict.fromkeys((TOY / manifest.ABOUT, TOY / manifest.BLOCKS), TOY / manifest.ITEMS)
    for path in sorted(path for path in contents() if path.suffix != ".jpg" and path.name != runs.METRICS):
        content = path.read_bytes()
        flip(path)
        code, lines = verified("--no-sources")
        faults.tried += 1
        bad = {where for where, line in lines.items() if line.startswith("DAMAGED")}
        faults.survived += code == 6 and bad == {str(told_by.get(path, path))}
        path.write_bytes(content)
    assert faults.tried == 19
    assert verified("--no-sources")[0] == 0


def test_what_is_gone_is_told_with_what_to_do(here):
    (RUN / runs.HEADS).unlink()
    code, lines = verified()
    assert code == 6
    assert lines[str(RUN / runs.HEADS)].endswith("missing: run cmrhash train with --overwrite")
    flip(TOY / "text-de-toy.h5")
    flip(RUN / "image.faiss")
    lines = verified()[1]
    assert lines["cache/toy/text-de-toy.h5"].endswith("delete it and rerun the same cmrhash extract")
    assert lines["runs/toy/triplet-8/image.faiss"].endswith("delete it; cmrhash eval creates it again")


def test_what_is_not_whole_is_told_last(here):
    """The first file is the one with the bad bit, the photos' folder is gone: both stand above the sum."""
    flip(TOY / "image-toy.h5")
    manifest.store(replace(manifest.load(TOY), root=Path("elsewhere")), TOY)
    data = invoke("cache", "verify", "-q").stdout.splitlines()
    assert [line.split()[0] for line in data[:-1]] == ["whole"] * (len(data) - 2) + ["DAMAGED"]
    flip(TOY / "image-toy.h5")
    *_, before, line, total = invoke("cache", "verify", "-q").stdout.splitlines()
    assert before.startswith("whole ")
    assert "photos not compared: " in line
    assert " files checked, " in total


def test_photos_that_changed_or_are_gone(here):
    for n in (3, 5, 7, 9):
        Path(f"cache/{n}.jpg").write_bytes(b"another photo")
    for n in (110, 4):
        Path(f"cache/{n}.jpg").unlink()
    Path("cache/11.jpg").unlink()
    Path("cache/11.jpg").symlink_to("/etc/hostname")  # out of the folder
    code, lines = verified()
    assert code == 4
    (line,) = lines.values()
    assert "image-toy.h5: 4 photos changed (i3, i5, i7, ...), 3 photos gone (i4, i11, i110): run cmrhash" in line
    assert verified("--no-sources") == (0, {})
    flip(RUN / "image.faiss")
    assert verified()[0] == 6  # damage counts more


def test_captions_that_changed(here):
    data = manifest.load(TOY)
    texts = {**data.items[8].texts, "de": ("neu", data.items[8].texts["de"][1])}
    items = [replace(item, texts=texts) if n == 8 else item for n, item in enumerate(data.items)]
    manifest.store(replace(data, items=tuple(items)), TOY)
    code, lines = verified()
    assert code == 4
    assert "1 captions changed (i8)" in lines.pop("cache/toy/text-de-toy.h5")
    assert "codes of other items: cmrhash eval" in lines.pop(str(RUN))
    assert lines == {}
    items[9] = replace(items[9], texts={**items[9].texts, "en": ("one only",)})
    manifest.store(replace(data, items=tuple(items)), TOY)
    assert "captions came or went" in verified()[1]["cache/toy/text-en-toy.h5"]


def test_photos_that_cannot_be_compared(here):
    manifest.store(replace(manifest.load(TOY), root=Path("elsewhere")), TOY)
    done = invoke("cache", "verify", "-q")
    assert done.exit_code == 0
    assert f"image-toy.h5: sealed, photos not compared: {here / 'elsewhere'} is not there" in done.stdout


@pytest.mark.parametrize("name", ["image-other.h5.shard-2-of-3", "image-other.h5.shard-3-of-3.part"])
def test_a_shard_that_is_damaged(here, name):
    shards()
    assert verified()[0] == 0
    flip(TOY / name, hdf5.USER_BLOCK + 20)
    code, lines = verified()
    assert code == 6
    assert lines[f"cache/toy/{name}"].startswith("DAMAGED")


def test_an_unfinished_file_that_is_damaged(here):
    half_extracted()
    flip(TOY / "image-other.h5.part", hdf5.USER_BLOCK + 20)
    code, lines = verified()
    assert code == 6
    assert lines["cache/toy/image-other.h5.part"].startswith("DAMAGED")


@pytest.mark.parametrize(
    "name", ["an extraction", "shards", "features gone", "no codes", "killed while space was set aside"]
)
def test_what_is_neither_stale_nor_damaged(here, name):
    STATES[name][0]()
    code, lines = verified()
    assert code == 0
    assert all(line.split()[0] in ("unfinished", "gone", "leftover") for line in lines.values())


@pytest.mark.parametrize("name", ["other heads", "a newer cmrhash", "an older cmrhash", "words", "tuned encoders"])
def test_what_is_stale(here, name):
    STATES[name][0]()
    assert verified()[0] == 4
