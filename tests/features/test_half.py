"""Features as float16 with a scale per column: how exact, how stable, and what is refused."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cmrhash.errors import DamagedError
from cmrhash.features.file import FeatureWriter, open_features, read_features
from cmrhash.features.half import HalfRows, encode
from cmrhash.storage import hdf5

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
MATRICES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=5), elements=FLOATS)
ROWS, DIM, BLOCK = 10, 3, 4
RECIPE = {"kind": "image", "encoder": "x", "weights": "random", "store_dtype": "float16"}
X = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32) * np.float32([1e-9, 1, 1e9])


def decoded(x):
    half, scale = encode(x)
    return half, scale, HalfRows(half, scale[None], len(x))[...]


@given(MATRICES)
def test_every_value_keeps_eleven_digits_beside_the_largest_of_its_column(x):
    half, scale, back = decoded(x)
    assert np.isfinite(half).all()
    assert np.isfinite(back).all()
    largest = np.abs(x.astype(float)).max(0)
    error = np.abs(back.astype(float) - x)
    assert (error <= np.maximum(np.abs(x.astype(float)) * 2**-11, np.maximum(largest * 2**-38, 2.0**-148))).all()
    assert (np.frexp(scale)[0] == 0.5).all()  # powers of two


@given(MATRICES)
def test_what_was_read_is_stored_as_the_same_bytes(x):
    half, scale, back = decoded(x)
    again, scale_again, back_again = decoded(back)
    np.testing.assert_array_equal(again, half)
    np.testing.assert_array_equal(scale_again, scale)
    np.testing.assert_array_equal(back_again, back)


@given(st.integers(0, 10), st.integers(0, 10))
def test_any_slice_is_that_of_all_rows(start, stop):
    blocks = [encode(X[first : first + BLOCK]) for first in range(0, ROWS, BLOCK)]
    rows = HalfRows(np.concatenate([x for x, _ in blocks]), np.stack([scale for _, scale in blocks]), BLOCK)
    assert (len(rows), rows.shape) == (ROWS, (ROWS, DIM))
    np.testing.assert_array_equal(rows[start:stop], rows[...][start:stop])
    np.testing.assert_allclose(rows[...], X, rtol=2**-11)


def writer(path):
    return FeatureWriter(path, np.arange(ROWS, dtype=np.int32), tuple(map(str, range(ROWS))), DIM, RECIPE, BLOCK)


def fill(w, blocks):
    for block in blocks:
        rows = w.slice(block)
        w.commit(
            block, X[rows], np.ones(rows.stop - rows.start, bool), np.zeros((rows.stop - rows.start, 16), np.uint8)
        )


def make(path):
    with writer(path) as w:
        fill(w, range(w.blocks))
        w.seal({})
    return path


def test_an_interrupted_file_resumes_to_the_same_bytes(tmp_path):
    whole, path = make(tmp_path / "whole.h5"), tmp_path / "killed.h5"
    with writer(path) as w:
        fill(w, [1])
    with writer(path) as w:
        assert w.done == {1}
        assert w.committed("x", 1).dtype == np.float32
        np.testing.assert_allclose(w.committed("x", 1), X[4:8], rtol=2**-11)
        fill(w, [0, 2])
        w.seal({})
    assert path.read_bytes() == whole.read_bytes()
    features = read_features(path)
    assert features.x.dtype == np.float32
    np.testing.assert_allclose(features.x, X, rtol=2**-11)
    with open_features(path) as (_, found):
        np.testing.assert_array_equal(found["x"][4:8], features.x[4:8])


def test_a_changed_scale_is_found_on_resuming(tmp_path):
    path = tmp_path / "x.h5"
    with writer(path) as w:
        fill(w, range(w.blocks))
    with h5py.File(tmp_path / "x.h5.part", "r+") as file:
        file["scale"][1, 0] *= 2
    with writer(path) as w:
        assert w.done == {0, 2}


def test_any_hdf5_reader_can_read_it(tmp_path):
    path = make(tmp_path / "x.h5")
    with h5py.File(path, "r") as file:
        x = file["x"][...].astype(np.float32) * file["scale"][...].repeat(BLOCK, 0)[:ROWS]
    np.testing.assert_array_equal(x, read_features(path).x)


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("harm", ["no block_rows", "block_rows 0", "a word", "too few scales", "no scale", "float32"])
def test_scales_that_do_not_fit_are_damage(tmp_path, harm):
    path = make(tmp_path / "x.h5")
    with open_features(path) as (header, _):
        manifest = {key: value for key, value in header.manifest.items() if "payload" not in key and key != "version"}
    found = dict(hdf5.read_sealed(path)[1])
    if harm == "no block_rows":
        del manifest["block_rows"]
    elif harm in ("block_rows 0", "a word"):
        manifest["block_rows"] = 0 if harm == "block_rows 0" else "4"
    elif harm == "too few scales":
        found["scale"] = found["scale"][:-1]
    elif harm == "no scale":
        del found["scale"]
    else:
        found["x"] = X
    hdf5.write_sealed(tmp_path / "bad.h5", found, manifest)
    with pytest.raises(DamagedError, match=r"bad\.h5: delete it"):
        read_features(tmp_path / "bad.h5")
