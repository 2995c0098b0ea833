"""The feature file: blocks, resume, seal, refusal. The crash enumeration has its own file."""

import contextlib
import hashlib
import json
import os

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrhash.errors import CmrhashError, DamagedError, DataError, LockedError, StaleError
from cmrhash.features.file import FeatureWriter, read_features
from cmrhash.storage import files, hdf5
from cmrhash.storage.hdf5 import read_sealed, write_sealed
from cmrhash.storage.sealed import Unfinished, read_manifest, read_note

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
    superblock = path.read_bytes()[hdf5.USER_BLOCK :][8]
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


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
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


@pytest.mark.faults("stale: one field of the recipe")
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (RECIPE | {"encoder": "vgg16"}, "encoder = resnet18, but this call has vgg16"),
        (RECIPE | {"crop": {"size": 112}}, "crop.size = 224, but this call has 112"),
        (RECIPE | {"dtype": "bfloat16"}, "dtype = nothing, but this call has bfloat16"),
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


@pytest.mark.faults("stale: one field of the recipe")
def test_an_unfinished_file_of_other_items_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    with writer(path):
        pass
    with pytest.raises(StaleError, match="other items"), writer(path, ids=tuple(reversed(IDS))):
        pass


@pytest.mark.faults("second writer, reader meanwhile")
def test_a_second_writer_is_told_who_holds_the_file(tmp_path):
    path = tmp_path / "x.h5"
    with writer(path), pytest.raises(LockedError, match="being written by process"), writer(path):
        pass


@pytest.mark.faults("flipped bit")
def test_every_byte_before_the_manifest_counts(tmp_path, faults):
    path = make(tmp_path / "x.h5")
    whole = path.read_bytes()
    for at in range(len(hdf5.MAGIC) + 70):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(DamagedError, match="delete it and create it again"):
            read_features(path)
        faults.tried += 1
        faults.survived += 1


def test_a_file_of_a_newer_version_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    monkeypatch.setattr(hdf5, "VERSION", 2)
    make(path)
    monkeypatch.undo()
    with pytest.raises(StaleError, match="file format version 2"):
        read_manifest(path)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="run `extract` first"):
        read_features(tmp_path / "none.h5")


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
    part.write_bytes(kept[: hdf5.USER_BLOCK + 100])  # cut short before the records
    assert read_note(part).done == 0
    part.write_bytes(b"\0" * hdf5.USER_BLOCK + kept[hdf5.USER_BLOCK :])  # as earlier versions left it
    assert read_note(part) is None
    with writer(tmp_path / "x.h5") as w:
        assert w.done == {0, 2}


def test_a_lock_that_is_cleared_away_is_not_held_twice(tmp_path):
    """Who waits with an open lock file that is deleted meanwhile must not think that he holds the one that counts."""
    path, lock = tmp_path / "x.h5", files.portalocker.lock

    def delete_first(file, how):
        lock(file, how)
        if not deleted:
            deleted.append(files.lock_of(path).unlink())

    deleted = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.portalocker, "lock", delete_first)
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


# ---------------------------------------------------------------------------------------------- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ALMOST = st.fixed_dictionaries({}, optional=dict.fromkeys(("version", "kind", "payload_sha256", "payload_bytes"), JSON))
BODY = st.one_of(
    st.binary(max_size=100),
    (JSON | ALMOST).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"[" * 8000, b'{"a":' * 1600, b"\xff\xfe{\0}\0", b"1" * 5000, b""]),
)


def sealed_with(body):
    """A user block whose digest fits whatever it is that stands there as manifest."""
    return hdf5.MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@given(st.binary(max_size=200) | BODY.map(sealed_with))
@settings(max_examples=200)
def test_any_user_block_is_a_manifest_or_refused(tmp_path_factory, block):
    path = tmp_path_factory.getbasetemp() / "block.h5"
    path.write_bytes(block.ljust(hdf5.USER_BLOCK, b"\0"))
    with contextlib.suppress(CmrhashError):
        assert read_manifest(path)["version"] == hdf5.VERSION


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A feature file that is not to be changed."""
    return make(tmp_path_factory.mktemp("sound") / "x.h5")


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 255)), min_size=1, max_size=4))
@settings(max_examples=200)
def test_a_changed_user_block_is_refused_or_means_the_same(sound, tmp_path_factory, changes):
    content = bytearray(sound.read_bytes()[: hdf5.USER_BLOCK])
    for place, bits in changes:
        content[place] ^= bits
    path = tmp_path_factory.getbasetemp() / "changed.h5"
    path.write_bytes(content)
    with contextlib.suppress(CmrhashError):
        assert read_manifest(path) == read_manifest(sound)
