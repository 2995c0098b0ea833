"""Feature files of others: which array is what, and files of every format."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_files import CLASSES, N, matlab5, matlab73, npz, read, safetensors, spread
from scipy.sparse import coo_matrix, csc_matrix, csr_matrix

from cmrhash.data.matrices.arrays import list_arrays
from cmrhash.data.matrices.roles import choose, recognise
from cmrhash.errors import CmrhashError, DataError, UsageError

# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("names", "slot"),
    [
        ("IAll XAll images image img I_all image_features VAll visual", ("image", "")),
        ("YAll TAll texts text txt tags", ("text-en", "")),
        ("LAll labels label lab", ("labels", "")),
        ("I_tr XTrain images_train train_x image.train_x", ("image", "train")),
        ("T_te YTest q_txt text_query testY query_text TxtTest TagQuery", ("text-en", "query")),
        ("I_tra ImgTrain", ("image", "train")),
        ("VDatabase ImgDataBase", ("image", "database")),
        ("VTest", ("image", "query")),
        ("LabTrain labelTrain", ("labels", "train")),
        ("L_db r_l LDatabase databaseL L_retrieval label_ret", ("labels", "database")),
        ("I_val XVal val_img", ("image", "val")),
        ("param.indexQuery query_idx test_ids q_index", ("index", "query")),
        ("indexRetrieval indexDatabase idx_db", ("index", "database")),
        ("I x Y train query FAll T_tfidf_tr model im", None),
    ],
)
def test_known_names(names, slot):
    for name in names.split():
        assert recognise(name) == recognise(name.upper()) == slot, name


def test_raw_pixels_step_back_behind_features(tmp_path, data):
    file = npz(tmp_path / "a.npz", {"IAll": np.zeros((N, 3, 2, 2)), "XAll": data["I"], "YAll": data["T"]})
    assert choose(list_arrays(file), ())["image", ""].name == "XAll"
    only = npz(tmp_path / "b.npz", {"IAll": np.zeros((N, 3, 2, 2)), "YAll": data["T"]})
    with pytest.raises(DataError, match=r"b:IAll \(30 x 3 x 2 x 2 float64\) has 4 axes.*encode raw images first"):
        read(only)


@pytest.mark.parametrize(
    ("arrays", "maps", "words"),
    [
        ("A B", (), r"no array has a name known for image.*image=ARRAY.*; there are f:A \(30 x 8 float32\), f:B"),
        ("IAll B", (), r"no array has a name known for text.*text=ARRAY.*; there are f:IAll"),
        ("IAll images YAll", (), r"images and IAll may each be image.*--map image=ARRAY|IAll and images may each be"),
        ("IAll I_tr YAll", (), r"arrays for parts of image and for all of it: choose one with `maps=..image"),
        ("I_tr I_te T_tr", (), r"image has train, query, but text has train"),
        ("IAll YAll L_tr", (), r"image has one array of all items, but labels has train"),
        ("I_tr T_tr", (), r"the files have train but no query part"),
        ("IAll YAll", ("image=IAl",), r"maps: 'image=IAl' \(no such array\): did you mean IAll\? there are f:IAll"),
        ("IAll YAll", ("picture=IAll",), r"cannot parse 'picture=IAll': write image, text"),
        ("IAll YAll", ("image.first=IAll",), r"cannot parse 'image.first=IAll': write"),
        ("IAll YAll", ("text.a.b=YAll",), r"cannot parse 'text.a.b=YAll': write"),
        ("IAll YAll", ("text.../x=YAll",), r"write image"),
        ("IAll YAll", ("image",), r"cannot parse 'image': write"),
        ("IAll YAll", ("image=IAll", "image=YAll"), r"maps: 'image=YAll' maps image a second time"),
    ],
)
def test_what_cannot_be_told_apart_is_said_with_the_way_out(tmp_path, data, arrays, maps, words):
    file = npz(tmp_path / "f.npz", dict.fromkeys(arrays.split(), data["I"]))
    with pytest.raises(UsageError, match=words) as caught:
        read(file, maps=maps)
    assert "\n" not in str(caught.value)


def test_a_map_wins_over_known_names_and_may_name_the_file(tmp_path, data):
    one = npz(tmp_path / "one.npz", {"X": data["I"], "YAll": data["I"], "tfidf": data["T"]})
    two = npz(tmp_path / "two.npz", {"X": data["T"], "classes": data["L"]})
    dataset = read(one, two, maps=("image=one:X", "text.de=two:X", "text=tfidf", "label=classes"))
    assert dataset.ready["text-de"].x.tolist() == dataset.ready["text-en"].x.tolist() == data["T"].tolist()
    assert dataset.languages == ("de", "en")
    assert dataset.ready["text-de"].name == "two"
    with pytest.raises(UsageError, match=r"maps: 'image=X' \(in several files, write FILE:ARRAY\)"):
        read(one, two, maps=("image=X", "text=tfidf"))


# ---------------------------------------------------------------------------------------------- formats


def hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, x in arrays.items():
            file[f"made/{name}"] = x
    return path


def save_npz(path, matrix):
    scipy.sparse.save_npz(path, matrix)
    return path


FORMATS = {
    "npz": lambda folder, a: [npz(folder / "f.npz", a)],
    "npz packed": lambda folder, a: np.savez_compressed(folder / "f.npz", **a) or [folder / "f.npz"],
    "npy": spread,
    "matlab 5": lambda folder, a: [matlab5(folder / "f.mat", {k: x.astype(float) for k, x in a.items()})],
    "matlab 4": lambda folder, a: scipy.io.savemat(folder / "f.mat", a, format="4") or [folder / "f.mat"],
    "matlab 5 sparse": lambda folder, a: [
        matlab5(folder / "f.mat", {k: scipy.sparse.csc_matrix(x.astype(float)) for k, x in a.items()})
    ],
    "matlab 7.3": lambda folder, a: [matlab73(folder / "f.mat", a)],
    "matlab 7.3 packed": lambda folder, a: [matlab73(folder / "f.mat", a, compression="gzip", shuffle=True)],
    "matlab 7.3 sparse": lambda folder, a: [
        matlab73(folder / "f.mat", {k: scipy.sparse.csc_matrix(x) for k, x in a.items()})
    ],
    "npz sparse": lambda folder, a: [
        save_npz(folder / f"{k}.npz", kind(x))
        for (k, x), kind in zip(a.items(), (csr_matrix, csc_matrix, coo_matrix), strict=True)
    ],
    "safetensors": lambda folder, a: [safetensors(folder / "f.safetensors", a)],
    "axes of length 1": lambda folder, a: [npz(folder / "f.npz", {k: x[:, None, :, None] for k, x in a.items()})],
    "hdf5": lambda folder, a: [hdf5(folder / "f.h5", a)],
    "items are columns": lambda folder, a: [npz(folder / "f.npz", {k: x.T for k, x in a.items()})],
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_brings_the_same(tmp_path, data, kind):
    files = FORMATS[kind](tmp_path, {"IAll": data["I"], "YAll": data["T"], "LAll": data["L"]})
    dataset = read(*files)
    assert np.array_equal(dataset.ready["image"].x, data["I"])
    assert np.array_equal(dataset.ready["text-en"].x, data["T"])
    assert [item.labels for item in dataset.items] == [(n % CLASSES,) for n in range(N)]
    assert dataset.found.get("arrays turned, for their items were columns", 0) == 3 * (kind == "items are columns")
    assert (dataset.found["items"], dataset.found["classes"]) == (N, CLASSES)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.arange(N) % 3, ("0", "1", "2")),
        ((np.arange(N) % 3 * 10.0 + 5)[:, None], ("5", "15", "25")),
        ((np.arange(N) % 3)[None] + 1, ("1", "2", "3")),
        (2 * np.eye(3)[np.arange(N) % 3] - 1, ("1", "2", "3")),
        (np.eye(3, dtype=bool)[np.arange(N) % 3], ("1", "2", "3")),
    ],
    ids=["ids", "column of ids", "row of ids", "-1 and 1", "bool"],
)
def test_labels(tmp_path, data, labels, classes):
    dataset = read(npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"], "label": labels}))
    assert dataset.classes == classes
    assert [item.labels for item in dataset.items] == [(n % 3,) for n in range(N)]


@pytest.mark.parametrize("nothing", [-1, np.nan])
def test_an_item_without_a_class_id(tmp_path, data, nothing):
    labels = np.where(np.arange(N) % 3 == 0, nothing, np.arange(N) % 3)
    dataset = read(npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"], "label": labels}))
    assert dataset.classes == ("1", "2")
    assert [item.labels for item in dataset.items] == [[(), (0,), (1,)][n % 3] for n in range(N)]


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
@pytest.mark.parametrize("labels", [np.full((N, 3), 0.5), np.full((N, 1), 0.5), np.full(N, np.nan), np.eye(N) * 2])
def test_labels_that_are_none(tmp_path, data, labels):
    with pytest.raises(DataError, match=r"f:label .* is not an array of labels \(.*labels are 0/1 or -1/1"):
        read(npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"], "label": labels}))


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_arrays_of_different_numbers_of_items(tmp_path, data):
    file = npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"][:-1]})
    with pytest.raises(DataError, match=r"differ in their number of items: f:image \(30 x 8.*f:text \(29 x 6"):
        read(file)


# ---------------------------------------------------------------------------------------------- odd files


@pytest.mark.faults("hostile file")
def test_groups_that_hold_each_other_are_walked_once(tmp_path):
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["a/x"] = np.zeros((2, 2))
        file["a/b/y"] = np.zeros((2, 2))
        for n in range(20):
            file[f"a/b/{n}"] = file["a"]
            file[f"a/{n}"] = file["/"]
    assert sorted(array.name for array in list_arrays(path)) == ["a.b.y", "a.x"]


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ir": [0, 9]}, "a place outside 3 x 2"),
        ({"ir": [0]}, "values in .* rows"),
        ({"jc": [0, 2, 1]}, "do not follow each other"),
        ({"jc": [0, 1, 1 << 60]}, "do not follow each other"),
        ({"jc": [1, 1, 2]}, "do not follow each other"),
    ],
)
def test_a_sparse_matrix_that_is_none(tmp_path, change, words):
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        node = file.create_group("image")
        node.attrs["MATLAB_sparse"] = np.uint64(3)
        for part, value in ({"data": [1.0, 2.0], "ir": [0, 1], "jc": [0, 1, 2]} | change).items():
            node[part] = np.array(value)
    (array,) = list_arrays(path)
    assert array.shape == (3, 2)
    with pytest.raises(DataError, match=words):
        array.read()


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("kind", [matlab5, matlab73])
def test_a_sparse_matrix_is_not_written_out_beyond_reason(tmp_path, kind):
    bomb = scipy.sparse.csc_matrix(([1.0], ([5], [0])), shape=(1 << 29, 2))
    path = kind(tmp_path / "f.mat", {"image": bomb, "text": np.ones((3, 2))})
    with pytest.raises(DataError, match=r"image \(536870912 x 2 sparse, declares more than the file holds\)"):
        read(path)


@pytest.mark.parametrize(
    "start",
    [b"", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"MATLAB 5.0 MAT-file", b"\x40" + bytes(7) + b"{"],
)
@settings(max_examples=25, deadline=None)
@given(raw=st.binary(max_size=300), suffix=st.sampled_from([".mat", ".bin", ".safetensors"]))
def test_any_bytes_are_listed_or_refused_in_one_line(start, raw, suffix, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / f"f{suffix}"
    path.write_bytes(start + raw)
    try:
        for array in list_arrays(path):
            if not array.refused:
                array.read()
    except CmrhashError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["npz", "npy", "matlab 5", "matlab 7.3"])
def test_a_file_that_is_cut_short(tmp_path, data, kind, cut):
    (file, *_) = FORMATS[kind](tmp_path, {"IAll": data["I"], "YAll": data["T"]})
    content = file.read_bytes()
    file.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(CmrhashError) as caught:
        read(*([file] if kind != "npy" else tmp_path.glob("*.npy")))
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
