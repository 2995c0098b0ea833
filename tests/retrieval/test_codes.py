"""Packing against a loop over bits, the padding rule, and the collapse watch against a loop over pairs."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrhash.errors import DataError, UsageError
from cmrhash.retrieval.codes import Codes, collapse, pack, pad, unpack


def packed_by_loop(x: np.ndarray) -> np.ndarray:
    out = np.zeros((x.shape[0], -(-x.shape[1] // 8)), np.uint8)
    for i, j in itertools.product(*map(range, x.shape)):
        if x[i, j] >= 0:
            out[i, j // 8] |= 1 << (j % 8)
    return out


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 130), rows=st.integers(0, 5), seed=st.integers(0, 999))
def test_pack_is_the_bit_loop_and_unpack_inverts_it(bits, rows, seed):
    x = np.random.default_rng(seed).standard_normal((rows, bits)).astype(np.float32)
    x[::2, ::3] = 0.0
    packed = pack(x)
    assert packed.dtype == np.uint8
    assert np.array_equal(packed, packed_by_loop(x))
    assert np.array_equal(unpack(packed, bits), x >= 0)


def test_zero_of_either_sign_is_a_one():
    assert pack(np.array([[0.0, -0.0, -1e-30, 1e-30]])).tolist() == [[0b1011]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_and_located(bad):
    x = np.ones((5, 8), np.float32)
    x[3, 2] = x[4, 0] = bad
    with pytest.raises(DataError, match=r"2 of 5 rows, first is row 3"):
        pack(x)


@pytest.mark.parametrize("width", [1, 4, 7, 8, 9, 16, 17])
def test_pad_appends_zero_bytes_to_whole_words(width):
    packed = np.random.default_rng(0).integers(0, 256, (3, width), np.uint8)
    padded = pad(packed)
    assert padded.shape == (3, -(-width // 8) * 8)
    assert padded.flags.c_contiguous
    assert np.array_equal(padded[:, :width], packed)
    assert not padded[:, width:].any()
    assert pad(packed[:, ::-1]).flags.c_contiguous


def test_codes_hold_their_invariants():
    packed, item = np.zeros((3, 4), np.uint8), np.arange(3)
    assert len(Codes(packed, 32, item)) == 3
    wrong = [
        (packed.astype(np.int64), 32, item),
        (packed[0], 32, item),
        (packed, 33, item),
        (packed, 24, item),
        (packed, 0, item),
        (packed, 32.0, item),
        (packed, True, item),
        (packed, 32, item[:2]),
        (packed, 32, item.astype(np.float64)),
    ]
    for arguments in wrong:
        with pytest.raises(UsageError):
            Codes(*arguments)


def test_bits_beyond_the_code_are_refused():
    packed = np.zeros((4, 1), np.uint8)
    packed[2] = 0b100000
    assert unpack(packed, 6).shape == (4, 6)
    with pytest.raises(DataError, match="beyond bit 5: first in row 2"):
        unpack(packed, 5)


@pytest.mark.parametrize(("rows", "bits"), [(2, 1), (7, 12), (40, 33)])
def test_collapse_measures_what_a_loop_over_pairs_does(rows, bits):
    b = np.random.default_rng(rows).random((rows, bits)) < 0.3
    b[:, 0] = True
    b[1] = b[0]
    report = collapse(np.packbits(b, axis=1, bitorder="little"), bits)
    distances = [np.sum(b[i] != b[j]) / bits for i, j in itertools.combinations(range(rows), 2)]
    assert report.mean_distance == pytest.approx(np.mean(distances))
    assert report.distinct == len({tuple(row) for row in b.tolist()}) / rows
    assert report.constant_bits == np.mean([len(set(column)) == 1 for column in b.T.tolist()])
    assert report.balance == pytest.approx(np.mean(np.abs(b.mean(axis=0) - 0.5)))


def test_collapse_tells_dead_codes_from_good_ones():
    rng = np.random.default_rng(0)
    good = rng.integers(0, 256, (500, 4), np.uint8)
    assert not collapse(good, 32).collapsed
    assert collapse(good, 32).mean_distance == pytest.approx(0.5, abs=0.01)
    assert collapse(np.repeat(good[:1], 500, axis=0), 32).collapsed
    assert collapse(np.repeat(good[:1], 20, axis=0), 32).collapsed
    assert not collapse(np.repeat(good[:1], 19, axis=0), 32).collapsed  # of so few nothing is said
    assert collapse(np.repeat(good[:20], 25, axis=0), 32).collapsed  # 4 % distinct codes, no constant bit
    half = good.copy()
    half[:, :2] = 7  # half of the bits say nothing, yet nearly all codes differ
    assert collapse(half, 32).collapsed
    with pytest.raises(DataError, match="at least 2"):
        collapse(good[:1], 32)


def test_importing_codes_and_metrics_brings_neither_faiss_nor_torch():
    loaded = "{'faiss', 'torch', 'h5py'} & set(sys.modules)"
    code = f"import sys, cmrhash.retrieval.codes, cmrhash.retrieval.metrics; print({loaded})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
