"""Strings in feature files and beside them: class names, ids, captions."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from matrix_files import N, cells, matlab5, matlab73_strings, npz, parts_of, read, spread

from cmrhash.errors import DataError, UsageError

NAMES = ["cat", "dog", "tree"]
SINGLE = [NAMES[n % 3] for n in range(N)]
SEVERAL = [[NAMES[n % 3], "animal"] if n % 3 < 2 else [NAMES[2]] for n in range(N)]


def hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, x in arrays.items():
            file[name] = x.astype(object) if isinstance(x, np.ndarray) and x.dtype.kind == "U" else x
    return path


@pytest.mark.parametrize("kind", ["npz", "npy", "bytes", "matlab", "matlab cells", "matlab 7.3", "7.3 cells", "hdf5"])
def test_classes_by_name(tmp_path, data, kind):
    features, names = {"image": data["I"], "text": data["T"]}, np.array(SINGLE)
    files = {
        "npz": lambda: [npz(tmp_path / "f.npz", {**features, "labels": names})],
        "npy": lambda: spread(tmp_path, {**features, "labels": names}),
        "bytes": lambda: [npz(tmp_path / "f.npz", {**features, "labels": names.astype("S")})],
        "matlab": lambda: [matlab5(tmp_path / "f.mat", {**features, "labels": names})],
        "matlab cells": lambda: [matlab5(tmp_path / "f.mat", {**features, "labels": cells(SINGLE)})],
        "matlab 7.3": lambda: [matlab73_strings(tmp_path / "f.mat", {"labels": SINGLE}, features)],
        "7.3 cells": lambda: [matlab73_strings(tmp_path / "f.mat", {"labels": [[one] for one in SINGLE]}, features)],
        "hdf5": lambda: [hdf5(tmp_path / "f.h5", {**features, "labels": names})],
    }[kind]()
    dataset = read(*files)
    assert dataset.classes == ("cat", "dog", "tree")
    assert [item.labels for item in dataset.items] == [(n % 3,) for n in range(N)]


@pytest.mark.parametrize("kind", [matlab5, matlab73_strings])
def test_cells_of_several_classes(tmp_path, data, kind):
    features = {"image": data["I"], "text": data["T"]}
    if kind is matlab5:
        file = matlab5(tmp_path / "f.mat", {**features, "labels": cells(SEVERAL)})
    else:
        file = matlab73_strings(tmp_path / "f.mat", {"labels": SEVERAL}, features)
    dataset = read(file)
    assert dataset.classes == ("animal", "cat", "dog", "tree")
    assert [{dataset.classes[n] for n in item.labels} for item in dataset.items] == [set(own) for own in SEVERAL]


def test_cells_of_class_numbers(tmp_path, data):
    numbers = np.empty((N, 1), object)
    for n in range(N):
        numbers[n, 0] = np.array([n % 3, 7])
    dataset = read(matlab5(tmp_path / "f.mat", {"image": data["I"], "text": data["T"], "labels": numbers}))
    assert dataset.classes == ("0", "1", "2", "7")


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_no_class_is_no_class(tmp_path, data):
    names = np.array(["dog ", "dog", "", "-1", "nan", *["cat"] * (N - 5)])
    dataset = read(npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"], "labels": names}))
    assert dataset.classes == ("cat", "dog")
    assert [item.labels for item in dataset.items[:6]] == [(1,), (1,), (), (), (), (0,)]
    numbers = np.array([-1, *[n % 3 for n in range(1, N)]])
    dataset = read(npz(tmp_path / "g.npz", {"image": data["I"], "text": data["T"], "labels": numbers}))
    assert (dataset.classes, dataset.items[0].labels, dataset.items[1].labels) == (("0", "1", "2"), (), (1,))


def test_names_in_parts(tmp_path, data):
    arrays = {"I": data["I"], "T": data["T"], "L": np.array(SINGLE), "ids": np.array([f"p{n}" for n in range(N)])}
    dataset = read(npz(tmp_path / "f.npz", parts_of(arrays, te=slice(20, N), tr=slice(0, 20), db=slice(5, 20))))
    assert [item.id for item in dataset.items] == [f"p{n}" for n in [*range(5, 20), *range(5), *range(20, N)]]
    assert dataset.classes == ("cat", "dog", "tree")


# ---------------------------------------------------------------------------------------------- ids and captions


def lines(path, texts):
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def test_ids_and_captions_of_the_file_itself(tmp_path, data):
    arrays = {"image": data["I"], "ids": np.arange(100, 100 + N).astype(str), "captions": np.array(SINGLE * 2)}
    dataset = read(npz(tmp_path / "f.npz", arrays))
    assert [item.id for item in dataset.items] == [str(n) for n in range(100, 100 + N)]
    assert dataset.items[1].texts == {"en": (SINGLE[2], SINGLE[0])}
    assert dataset.languages == ("en",)
    assert list(dataset.ready) == ["image"]
    german = read(npz(tmp_path / "g.npz", {**arrays, "captions": arrays["ids"]}), maps=("text.de=captions",))
    assert german.languages == ("de",)


def test_ids_and_captions_of_other_files(tmp_path, data):
    file = npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"]})
    ids = lines(tmp_path / "ids.txt", [f"p{n}" for n in range(N)])
    english = lines(tmp_path / "en.txt", [f"first {n // 2}" if n % 2 == 0 else "" for n in range(2 * N)])
    np.save(tmp_path / "de.npy", np.array([f"ein Bild {n}" for n in range(N)]))
    captions = (str(english), f"DE={tmp_path / 'de.npy'}")
    dataset = read(file, ids=ids, captions=captions)
    assert dataset.items[3].id == "p3"
    assert dataset.items[3].texts == {"de": ("ein Bild 3",), "en": ("first 3",)}
    assert dataset.found["de texts"] == N
    np.save(tmp_path / "ids.npy", np.arange(N) + 5)
    assert read(file, ids=tmp_path / "ids.npy").items[0].id == "5"


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
@pytest.mark.parametrize(
    ("ids", "captions", "error", "words"),
    [
        (["a"] * N, [], DataError, r"ids are repeated \(1: a\)"),
        (["a"], [], DataError, r"1 ids for 30 items: .*give an id per item, in the order of the rows"),
        ([], ["a"] * (N + 1), DataError, r"31 captions for 30 items: .*as many captions for each item"),
        ([], [""], DataError, r"1 captions for 30 items"),
    ],
)
def test_lines_that_do_not_fit(tmp_path, data, ids, captions, error, words):
    file = npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"]})
    given = {"ids": lines(tmp_path / "ids.txt", ids)} if ids else {}
    given |= {"captions": (str(lines(tmp_path / "c.txt", captions)),)} if captions else {}
    with pytest.raises(error, match=words):
        read(file, **given)


def test_captions_files_that_cannot_be(tmp_path, data):
    file = npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"]})
    text = lines(tmp_path / "c.txt", SINGLE)
    with pytest.raises(UsageError, match="captions: there are other en captions"):
        read(file, captions=(str(text), f"en={text}"))
    with pytest.raises(DataError, match=r"no such file: .*none.txt: check `captions`"):
        read(file, captions=("none.txt",))
    with pytest.raises(DataError, match=r"2 arrays that may be the ids \(f:image .*f:text"):
        read(file, ids=file)


@pytest.mark.faults("hostile file")
def test_strings_that_are_no_features(tmp_path, data):
    file = npz(tmp_path / "f.npz", {"a": np.array(SINGLE), "text": data["T"]})
    with pytest.raises(DataError, match=r"f:a \(30 text\) cannot be image, which is text"):
        read(file, maps=("image=a",))
    bad = npz(tmp_path / "g.npz", {"image": data["I"], "text": data["T"], "b": data["T"]})
    with pytest.raises(DataError, match=r"array 'b' cannot be read \(not text\)"):
        read(bad, maps=("ids=b",))


@pytest.mark.faults("hostile file")
def test_cells_that_hold_themselves(tmp_path, data):
    file = matlab73_strings(tmp_path / "f.mat", {"labels": SEVERAL}, {"image": data["I"], "text": data["T"]})
    with h5py.File(file, "r+") as h5:
        h5["#refs#/labels0"][0, 0] = h5["#refs#/labels0"].ref
    with pytest.raises(DataError, match="cells that hold cells that hold cells"):
        read(file)
