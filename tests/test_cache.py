"""The feature file: blocks, resume, seal, refusal. The crash enumeration has its own file."""

import os

import h5py
import numpy as np
import pytest

from cmrhash import cache, files
from cmrhash.cache import FeatureWriter, read_features, read_manifest, read_sealed, write_sealed
from cmrhash.errors import CmrhashError, DamagedError, DataError, LockedError, StaleError
from cmrhash.sealed import Unfinished, read_note

ROWS, DIM, BLOCK = 10, 3, 4
IDS = tuple(f"Bild {n} ü" for n in range(ROWS))
RECIPE = {"kind": "image", "crop": {"size": 224}, "encoder": "resnet18"}
X = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
SOURCE = np.random.default_rng(1).integers(0, 256, (ROWS, 16)).astype(np.uint8)
ITEM = np.arange(ROWS, dtype=np.int32)


def writer(path, recipe=RECIPE, ids=IDS, dim=DIM):
    return FeatureWriter(path, ITEM, ids, dim, recipe, BLOCK)


def fill(w, blocks=None, bad=()):
    for block in range(w.blocks) if blocks is None else blocks:
        rows = w.slice(block)
        valid = np.array([row not in bad for row in range(rows.start, rows.stop)])
        w.commit(block, np.where(valid[:, None], X[rows], 0), valid, SOURCE[rows])


def make(path, **kwargs):
    with writer(path, **kwargs) as w:
        fill(w)
        w.seal({"torch": "1"})
    return path


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "image-resnet18.h5"
    with writer(path) as w:
        fill(w, bad=(7,))
        w.seal({"torch": "1"})
    features = read_features(path)
    assert features.ids == IDS
    assert features.valid.tolist() == [row != 7 for row in range(ROWS)]
    np.testing.assert_array_equal(np.delete(features.x, 7, 0), np.delete(X, 7, 0))
    assert not features.x[7].any()
    np.testing.assert_array_equal(features.source, SOURCE)
    assert features.recipe == RECIPE
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == [path.name]


def test_any_hdf5_reader_opens_it(tmp_path):
    path = make(tmp_path / "x.h5")
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["x"][...], X)
        assert file["x"].chunks is None
    superblock = path.read_bytes()[cache.USER_BLOCK :][8]
    assert superblock <= 2  # later ones carry a status flag that a kill leaves set


def test_an_interrupted_file_resumes_to_the_same_bytes(tmp_path):
    whole = make(tmp_path / "whole.h5")
    path = tmp_path / "killed.h5"
    with writer(path) as w:
        fill(w, [1])
    assert not path.exists()
    with writer(path) as w:
        assert w.done == {1}
        np.testing.assert_array_equal(w.committed("x", 1), X[4:8])
        fill(w, [0, 2])
        w.seal({"torch": "1"})
    assert path.read_bytes() == whole.read_bytes()


def test_a_block_that_no_longer_matches_its_record_is_done_again(tmp_path):
    path = tmp_path / "x.h5"
    with writer(path) as w:
        fill(w)
    with h5py.File(tmp_path / "x.h5.part", "r+") as file:
        file["x"][5, 0] = 99
    with writer(path) as w:
        assert w.done == {0, 2}


def test_a_file_with_missing_blocks_is_never_sealed(tmp_path):
    with writer(tmp_path / "x.h5") as w:
        fill(w, [0, 2])
        with pytest.raises(CmrhashError, match="1 of 3 blocks are missing"):
            w.seal({})


@pytest.mark.parametrize(
    ("x", "valid", "source"),
    [
        (X[:3], np.ones(4, bool), SOURCE[:4]),  # HDF5 would broadcast or cut
        (X[:4].astype(np.float64), np.ones(4, bool), SOURCE[:4]),
        (np.where(np.eye(4, 3) > 0, np.nan, X[:4]).astype(np.float32), np.ones(4, bool), SOURCE[:4]),
        (X[:4], np.array([1, 1, 0, 1], bool), SOURCE[:4]),  # a bad row must be zeros
        (X[:4], np.ones(4, bool), SOURCE[:4, :8]),
    ],
)
def test_blocks_that_do_not_fit_are_refused(tmp_path, x, valid, source):
    with writer(tmp_path / "x.h5") as w:
        with pytest.raises(CmrhashError):
            w.commit(0, x, valid, source)
        assert w.done == set()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (RECIPE | {"encoder": "vgg16"}, "encoder = resnet18, asked for vgg16"),
        (RECIPE | {"crop": {"size": 112}}, "crop.size = 224, asked for 112"),
        (RECIPE | {"dtype": "bfloat16"}, "dtype = nothing, asked for bfloat16"),
    ],
)
def test_an_unfinished_file_of_another_recipe_is_refused_by_field(tmp_path, recipe, words):
    path = tmp_path / "x.h5"
    with writer(path) as w:
        fill(w, [0])
    with pytest.raises(StaleError, match=words), writer(path, recipe):
        pass
    with writer(path) as w:
        assert w.done == {0}


def test_an_unfinished_file_of_other_items_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    with writer(path):
        pass
    with pytest.raises(StaleError, match="other items"), writer(path, ids=tuple(reversed(IDS))):
        pass


def test_a_second_writer_is_told_who_holds_the_file(tmp_path):
    path = tmp_path / "x.h5"
    with writer(path), pytest.raises(LockedError, match="being written by process"), writer(path):
        pass


@pytest.mark.parametrize("where", ["manifest", "payload", "end", "magic"])
def test_a_changed_byte_is_noticed_before_hdf5_reads_it(tmp_path, where):
    path = make(tmp_path / "x.h5")
    content = bytearray(path.read_bytes())
    at = {"magic": 3, "manifest": 150, "payload": cache.USER_BLOCK + 700, "end": len(content) - 1}[where]
    content[at] ^= 4
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="delete it and make it again"):
        read_features(path)


@pytest.mark.parametrize("size", [0, 100, cache.USER_BLOCK, cache.USER_BLOCK + 500, -1])
def test_a_truncated_file_is_noticed(tmp_path, size):
    path = make(tmp_path / "x.h5")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedError):
        read_features(path)


def test_a_file_of_a_newer_version_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    monkeypatch.setattr(cache, "VERSION", 2)
    make(path)
    monkeypatch.undo()
    with pytest.raises(StaleError, match="file format version 2"):
        read_manifest(path)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="run cmrhash extract first"):
        read_features(tmp_path / "none.h5")


def test_a_full_disk_shows_when_the_file_is_created(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_preallocate", full)
    with pytest.raises(CmrhashError, match=r"cannot set aside .* MB .*free some space"), writer(tmp_path / "x.h5"):
        pass
    assert [p for p in tmp_path.iterdir() if not p.name.startswith(".")] == []


def test_links_out_of_the_file_are_not_followed(tmp_path):
    """A file that was sealed by someone else, by our own code, but with a link to another file inside."""
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = [1.0]
    part = tmp_path / "x.h5.part"
    with h5py.File(part, "w", userblock_size=cache.USER_BLOCK) as file:
        file["x"] = h5py.ExternalLink(str(secret), "x")
    cache._seal(part, tmp_path / "x.h5", {"kind": "features"})
    with pytest.raises(DamagedError, match="not a plain dataset"):
        read_sealed(tmp_path / "x.h5")


def test_arrays_made_in_one_go(tmp_path):
    path = tmp_path / "codes.h5"
    write_sealed(path, {"image.packed": SOURCE, "none": np.zeros((0, 2), np.int64)}, {"kind": "codes"})
    manifest, arrays = read_sealed(path)
    assert manifest["kind"] == "codes"
    np.testing.assert_array_equal(arrays["image.packed"], SOURCE)
    assert arrays["none"].shape == (0, 2)
    with pytest.raises(DataError, match="not a feature file"):
        read_features(path)


# ---------------------------------------------------------------------------------------------- what it says of itself


def test_a_finished_file_says_how_much_it_holds(tmp_path):
    with writer(tmp_path / "x.h5") as w:
        fill(w, bad=(2, 7))
        w.seal({})
    manifest = read_manifest(tmp_path / "x.h5")
    assert {key: manifest[key] for key in ("rows", "ok", "dim")} == {"rows": ROWS, "ok": ROWS - 2, "dim": DIM}


def test_an_unfinished_file_says_how_far_it_is(tmp_path):
    part = tmp_path / "x.h5.part"
    for blocks in ([], [2], [0]):
        with writer(tmp_path / "x.h5") as w:
            fill(w, blocks)
            done = len(w.done)
            assert read_note(part) == Unfinished(RECIPE, ROWS, 3, done)
    assert done == 2
    kept = part.read_bytes()
    part.write_bytes(kept[: cache.USER_BLOCK + 100])  # cut short before the records
    assert read_note(part).done == 0
    part.write_bytes(b"\0" * cache.USER_BLOCK + kept[cache.USER_BLOCK :])  # as earlier versions left it
    assert read_note(part) is None
    with writer(tmp_path / "x.h5") as w:
        assert w.done == {0, 2}


def test_a_lock_that_is_cleared_away_is_not_held_twice(tmp_path):
    """Who waits with an open lock file that is deleted meanwhile must not think that he holds the one that counts."""
    path, flock = tmp_path / "x.h5", files.fcntl.flock

    def delete_first(file, how):
        flock(file, how)
        if not deleted:
            deleted.append(files.lock_of(path).unlink())

    deleted = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.fcntl, "flock", delete_first)
        with files.locked(path), pytest.raises(LockedError), files.locked(path):
            pass
    assert deleted


def test_who_holds_a_lock(tmp_path):
    path = tmp_path / "x.h5"
    assert files.holder(path) == ""
    assert not files.lock_of(path).exists()
    with files.locked(path):
        assert files.holder(path).startswith(f"process {os.getpid()} on ")
    assert files.holder(path) == ""
