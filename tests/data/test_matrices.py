"""Feature files of others: which array is what, who gets which role, and nothing read but plain numbers in the file."""

from __future__ import annotations

import json
import sys
import tracemalloc
from dataclasses import replace

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cmrhash.config import EvalConfig, ExtractConfig, TrainConfig
from cmrhash.data.catalog import read_dataset
from cmrhash.data.items import ImageTextDataset, Item, check, with_roles
from cmrhash.data.matrices import dataset as matrices
from cmrhash.data.matrices.arrays import list_arrays
from cmrhash.data.matrices.roles import choose, recognise
from cmrhash.encoders import text as text_encoders
from cmrhash.errors import CmrhashError, DataError, StaleError, UsageError
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.features import extract as extract_module
from cmrhash.features import precomputed as extract_ready
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract, refuse_bad
from cmrhash.features.file import read_features
from cmrhash.training.train import train
from cmrhash_cli.main import app

N, TR, CLASSES = 30, 20, 3  # items, of which train, classes


@pytest.fixture(scope="module")
def data():
    """Image, text and label arrays of N items: class centre + noise."""
    rng = np.random.default_rng(0)
    kind = np.arange(N) % CLASSES
    image = rng.standard_normal((CLASSES, 8))[kind] + 0.3 * rng.standard_normal((N, 8))
    text = np.where(rng.random((N, 6)) < 0.5, 0, rng.standard_normal((CLASSES, 6))[kind])
    return {"I": image.astype(np.float32), "T": text.astype(np.float32), "L": np.eye(CLASSES, dtype=np.uint8)[kind]}


def parts_of(data, **rows):
    """{"I_tr": ...} for tr=slice, ..."""
    return {f"{key}_{part}": x[where] for part, where in rows.items() for key, x in data.items()}


def npz(path, arrays):
    np.savez(path, **arrays)
    return path


def matlab5(path, arrays):
    scipy.io.savemat(path, arrays, do_compression=True)
    return path


def matlab73(path, arrays, **options):
    """As MATLAB does it: axes in reverse, a class an array, a header before the HDF5 signature, sparse as groups."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, x in arrays.items():
            if scipy.sparse.issparse(x):
                node = file.create_group(name)
                node.attrs["MATLAB_sparse"] = np.uint64(x.shape[0])
                node["data"], node["ir"], node["jc"] = x.data, x.indices.astype("u8"), x.indptr.astype("u8")
            else:
                node = file.create_dataset(name, data=np.atleast_2d(x).T, **options)
            node.attrs["MATLAB_class"] = np.bytes_("double")
        file.create_group("#refs#")["a"] = [1.0]
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(512))
    return path


def read(*files, maps=(), seed=0):
    return check(with_roles(matrices.read(files, maps), seed))


def roles(dataset):
    return [set(item.splits) for item in dataset.items]


def count(dataset):
    return [dataset.count(role) for role in ("query", "database", "train", "val")]


# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("names", "slot"),
    [
        ("IAll XAll images image img I_all image_features", ("image", "")),
        ("YAll TAll texts text txt tags", ("text-en", "")),
        ("LAll labels label lab", ("labels", "")),
        ("I_tr XTrain images_train train_x image.train_x", ("image", "train")),
        ("T_te YTest q_txt text_query testY query_text", ("text-en", "query")),
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
    with pytest.raises(DataError, match=r"b:IAll \(30 x 3 x 2 x 2 float64\) has 4 axes.*raw images must be encoded"):
        read(only)


@pytest.mark.parametrize(
    ("arrays", "maps", "words"),
    [
        ("A B", (), r"no array is known to be the image.*--map image=ARRAY; there are f:A \(30 x 8 float32\), f:B"),
        ("IAll B", (), r"no array is known to be the text.*--map text=ARRAY; there are f:IAll"),
        ("IAll images YAll", (), r"images and IAll may each be image.*--map image=ARRAY|IAll and images may each be"),
        ("IAll I_tr YAll", (), r"arrays for parts of image and for all of it: say which with --map image"),
        ("I_tr I_te T_tr", (), r"image has train query, but text has train"),
        ("IAll YAll L_tr", (), r"image has all items at once, but labels has train"),
        ("I_tr T_tr", (), r"the files have train but no query part"),
        ("IAll YAll", ("image=IAl",), r"--map image=IAl \(no such array\): did you mean IAll\? there are f:IAll"),
        ("IAll YAll", ("picture=IAll",), r"--map picture=IAll: write image, text"),
        ("IAll YAll", ("image.first=IAll",), r"--map image\.first=IAll: write"),
        ("IAll YAll", ("text.a.b=YAll",), r"--map text\.a\.b=YAll: write"),
        ("IAll YAll", ("text.../x=YAll",), r"write image"),
        ("IAll YAll", ("image",), r"--map image: write"),
        ("IAll YAll", ("image=IAll", "image=YAll"), r"--map image=YAll: image was given before"),
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
    with pytest.raises(UsageError, match=r"--map image=X \(stands in several files, write FILE:ARRAY\)"):
        read(one, two, maps=("image=X", "text=tfidf"))


# ---------------------------------------------------------------------------------------------- formats


def spread(folder, arrays):
    files = [folder / f"{name}.npy" for name in arrays]
    for file, x in zip(files, arrays.values(), strict=True):
        np.save(file, x)
    return files


def hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, x in arrays.items():
            file[f"made/{name}"] = x
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


def test_scipy_is_asked_for_by_name(tmp_path, data, monkeypatch):
    file = matlab5(tmp_path / "f.mat", {"IAll": data["I"], "YAll": data["T"]})
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UsageError, match=r'scipy, which is not installed: .*f\.mat: pip install "cmrhash\[mat\]"'):
        read(file)


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


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
@pytest.mark.parametrize("labels", [np.full((N, 3), 0.5), np.full((N, 1), 0.5), np.full(N, np.nan), np.eye(N) * 2])
def test_labels_that_are_none(tmp_path, data, labels):
    with pytest.raises(DataError, match=r"f:label .* holds other values \(.*labels are 0/1 or -1/1"):
        read(npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"], "label": labels}))


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_arrays_of_different_numbers_of_items(tmp_path, data):
    file = npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"][:-1]})
    with pytest.raises(DataError, match=r"different numbers of items: f:image \(30 x 8.*f:text \(29 x 6"):
        read(file)


# ---------------------------------------------------------------------------------------------- roles


def test_without_a_word_about_splits_they_are_drawn_from_the_seed(tmp_path, data):
    file = npz(tmp_path / "f.npz", {"IAll": data["I"], "YAll": data["T"], "LAll": data["L"]})
    assert count(read(file)) == [3, 27, 14, 1]
    assert roles(read(file)) == roles(read(file)) != roles(read(file, seed=1))
    assert read(file).split_seed == 0


def test_without_labels_relevance_is_by_pairs(tmp_path, data):
    dataset = read(npz(tmp_path / "f.npz", {"IAll": data["I"], "YAll": data["T"]}))
    assert (dataset.relevance, dataset.classes) == ("pairs", ())
    assert count(dataset) == [3, 3, 26, 1]


def test_train_and_query_parts_follow_the_hashing_custom(tmp_path, data):
    dataset = read(npz(tmp_path / "f.npz", parts_of(data, te=slice(TR, N), tr=slice(0, TR))))
    assert roles(dataset)[TR:] == [{"query"}] * (N - TR)
    assert all(own in ({"train", "database"}, {"val", "database"}) for own in roles(dataset)[:TR])
    assert count(dataset) == [10, 20, 19, 1]
    assert dataset.found["rows taken as database, which the files do not name"] == TR
    assert np.array_equal(dataset.ready["image"].x, data["I"])


def test_query_parts_without_labels_search_themselves(tmp_path, data):
    data = {key: data[key] for key in "IT"}
    dataset = read(npz(tmp_path / "f.npz", parts_of(data, te=slice(TR, N), tr=slice(0, TR))))
    assert roles(dataset)[TR:] == [{"query", "database"}] * (N - TR)
    assert count(dataset) == [10, 10, 19, 1]


def test_a_database_without_train_is_trained_on(tmp_path, data):
    arrays = {
        f"{part}_{name}": data[key][rows]
        for part, rows in (("q", slice(TR, N)), ("r", slice(0, TR)))
        for key, name in (("I", "img"), ("T", "txt"), ("L", "l"))
    }
    dataset = read(npz(tmp_path / "f.npz", arrays))
    assert count(dataset) == [10, 20, 19, 1]
    assert dataset.found["rows taken as train, which the files do not name"] == TR


def test_train_rows_that_stand_in_the_database_are_the_same_items(tmp_path, data):
    doubled = {key: np.concatenate([x[:12], x[:1]]) for key, x in data.items()}  # the first row twice
    train = {key: np.concatenate([x[[0, 0, 5]], x[20:22]]) for key, x in data.items()}  # and two that are not there
    query = {key: x[22:] for key, x in data.items()}
    arrays = {f"{k}_{p}": d[k] for p, d in (("db", doubled), ("tr", train), ("te", query)) for k in data}
    dataset = matrices.read([npz(tmp_path / "f.npz", arrays)], ())
    expected = [{"database"} for _ in range(13)] + [{"train"}] * 2 + [{"query"}] * 8
    for row in (0, 5, 12):
        expected[row] = {"database", "train"}
    assert roles(dataset) == expected
    assert dataset.found["train and val rows that stand in the database too"] == 3
    assert np.array_equal(dataset.ready["text-en"].x, data["T"][[*range(12), 0, *range(20, N)]])


def test_a_val_part_is_taken_as_it_is(tmp_path, data):
    file = npz(tmp_path / "f.npz", parts_of(data, val=slice(0, 5), tr=slice(5, TR), te=slice(TR, N)))
    dataset = read(file)
    assert count(dataset) == [10, 20, 15, 5]
    assert dataset.split_seed is None


def whole(data, **more):
    return {"IAll": data["I"], "YAll": data["T"], "LAll": data["L"], **more}


QUERY, TRAIN, REST = np.arange(5), np.arange(10, 20), np.arange(5, N)


@pytest.mark.parametrize(
    ("more", "kind", "base"),
    [
        ({"indexQuery": QUERY, "indexTrain": TRAIN, "indexRetrieval": REST}, npz, "0"),
        ({"param": {"indexQuery": QUERY + 1, "indexTrain": TRAIN + 1, "indexRetrieval": REST + 1.0}}, matlab5, "1"),
        ({"query_idx": QUERY + 1, "train_idx": TRAIN + 1, "retrieval_idx": REST + 1}, matlab73, "1"),
        ({"query_idx": QUERY, "train_idx": TRAIN}, npz, "0"),
        ({"query_idx": QUERY + 1, "train_idx": TRAIN + 1}, matlab5, "1"),
        ({"query_idx": np.arange(N) < 5, "train_idx": (np.arange(N) // 10 == 1) * 1.0}, npz, ""),
    ],
    ids=["from 0", "MATLAB's struct", "MATLAB 7.3", "no retrieval", "no retrieval, MATLAB's", "masks"],
)
def test_row_numbers(tmp_path, data, more, kind, base):
    file = kind(tmp_path / ("f.npz" if kind is npz else "f.mat"), whole(data, **more))
    dataset = matrices.read([file], ())
    assert roles(dataset)[:5] == [{"query"}] * 5
    assert roles(dataset)[10:20] == [{"train", "database"}] * 10
    assert roles(dataset)[5:10] + roles(dataset)[20:] == [{"database"}] * 15
    assert any(what == f"row numbers counted from {base}" for what in dataset.found) == bool(base)


def test_row_numbers_by_map(tmp_path, data):
    file = npz(tmp_path / "f.npz", whole(data, asked=QUERY, learnt=TRAIN))
    dataset = matrices.read([file], ("query=asked", "train=learnt"))
    assert (dataset.count("query"), dataset.count("train")) == (5, 10)


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
@pytest.mark.parametrize("wrong", [[-1, 3], [0, N], [1, N + 1], [0.5, 2], [np.nan, 2], [np.inf]])
def test_row_numbers_that_are_none(tmp_path, data, wrong):
    file = npz(tmp_path / "f.npz", whole(data, query_idx=np.array(wrong)))
    with pytest.raises(DataError, match=r"row numbers from .* for 30 items: .*whole, 0 to 29 or 1 to 30"):
        read(file)


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_queries_that_are_trained_on_are_refused(tmp_path, data):
    file = npz(tmp_path / "f.npz", whole(data, query_idx=QUERY, train_idx=REST - 1))
    with pytest.raises(DataError, match=r"query items are also train or val \(1: 4\)"):
        read(file)


def test_row_numbers_beside_parts_are_passed_over(tmp_path, data):
    arrays = parts_of(data, te=slice(TR, N), tr=slice(0, TR))
    dataset = read(npz(tmp_path / "f.npz", {**arrays, "query_idx": QUERY}))
    assert count(dataset) == [10, 20, 19, 1]
    assert sum("passed over" in what for what in dataset.found) == 1


# ---------------------------------------------------------------------------------------------- over other items


def other(roles_of, languages=("en",)):
    items = tuple(
        Item(f"i{n}", None, dict.fromkeys(languages, (f"text {n}",)), (0,), frozenset(own))
        for n, own in enumerate(roles_of)
    )
    return ImageTextDataset("mine", None, items, ("a",))


def test_parts_follow_the_order_of_the_items_with_their_role(tmp_path, data):
    dataset = other([{"query", "database"} if n % 3 == 0 else {"train"} for n in range(N)])
    arrays = {"I_te": data["I"][::3], "I_tr": data["I"][np.arange(N) % 3 > 0], "LAll": data["L"][:2]}
    over = with_roles(matrices.lay_over(dataset, [npz(tmp_path / "f.npz", arrays)], ()), seed=0)
    assert np.array_equal(over.ready["image"].x, data["I"])
    assert list(over.ready) == ["image"]
    assert over.count("val") == 1
    assert [item.labels for item in over.items] == [(0,)] * N


@pytest.mark.parametrize("whole_database", [True, False])
def test_a_database_part_is_all_of_it_or_what_train_leaves(tmp_path, data, whole_database):
    dataset = other([{"query"}] * 4 + [{"train", "database"}] * 6 + [{"val", "database"}] * 2 + [{"database"}] * 18)
    rows = slice(4, N) if whole_database else slice(12, N)
    file = npz(tmp_path / "f.npz", {"I_db": data["I"][rows], "I_te": data["I"][:4], "I_tr": data["I"][4:12]})
    assert np.array_equal(matrices.lay_over(dataset, [file], ()).ready["image"].x, data["I"])


def test_all_items_at_once_follow_their_order(tmp_path, data):
    dataset = other([set()] * N)
    file = npz(tmp_path / "f.npz", {"image": data["I"].T, "feat": data["T"], "labels": [1], "label": [2]})
    over = matrices.lay_over(dataset, [file], ("text.de=feat",))
    assert np.array_equal(over.ready["image"].x, data["I"])
    assert np.array_equal(over.ready["text-de"].x, data["T"])
    assert over.languages == ("de", "en")


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
@pytest.mark.parametrize(
    ("roles_of", "keys", "maps", "words"),
    [
        ([{"train"}] * 20 + [{"query"}] * 10, "I_tr", (), r"image features for none of 10 items \(i20, i21, i22"),
        ([{"train"}] * 19 + [{"query"}] * 11, "I_tr", (), r"I_tr \(20 x 8 float32\) is not of 19 items"),
        ([set()] * N, "I_tr", (), r"image features in parts \(train\), but data set 'mine' has none yet"),
        ([set()] * (N + 1), "IAll", (), r"IAll \(30 x 8 float32\) is not of 31 items"),
        ([set()] * N, "IAll", ("labels=IAll",), r"--map labels=IAll with --dataset mine: labels and parts are those"),
        ([set()] * N, "IAll", ("query=IAll",), r"--map query=IAll with --dataset mine"),
        ([set()] * N, "A", (), r"no array is known to be features.*--map image=ARRAY; there are f:A"),
    ],
)
def test_what_does_not_fit_the_items(tmp_path, data, roles_of, keys, maps, words):
    file = npz(tmp_path / "f.npz", {key: data["I"][:20] if key == "I_tr" else data["I"] for key in keys.split()})
    with pytest.raises((UsageError, DataError), match=words):
        matrices.lay_over(other(roles_of), [file], maps)


# ---------------------------------------------------------------------------------------------- into the cache


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(extract_ready, "READY_BLOCK", 8)


@pytest.fixture
def no_encoder(monkeypatch):
    def load(*_, **__):
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(extract_module.image_encoders, "load", load)
    monkeypatch.setattr(extract_module.text_encoders, "load", load)


def asked(tmp_path, *files, **more):
    return replace(ExtractConfig(dataset="features", features=files, cache=tmp_path / "cache"), **more)


def test_from_files_to_figures_without_an_encoder(tmp_path, data, no_encoder):
    file = matlab5(tmp_path / "bag of words.mat", parts_of(data, te=slice(TR, N), tr=slice(0, TR)))
    report = extract(asked(tmp_path, file))
    names = ["image-bag_of_words.h5", "text-en-bag_of_words.h5"]
    assert [f.path.name for f in report.files] == names
    assert [(f.items, f.rows, f.ok, f.fresh) for f in report.files] == [(N, N, N, True)] * 2
    assert not report.untrained
    made = read_features(report.files[1].path)
    assert np.array_equal(made.x, data["T"])
    assert made.recipe["weights"] == "ready"
    assert (made.recipe["kind"], made.recipe["lang"], made.recipe["encoder"]) == ("text", "en", "bag_of_words")
    before = [f.path.read_bytes() for f in report.files]
    assert [f.fresh for f in extract(asked(tmp_path, file)).files] == [False, False]
    assert [f.path.read_bytes() for f in report.files] == before
    data = ExtractedDataset.open(tmp_path / "cache", None)
    train(TrainConfig(bits=4, method="cca", device="cpu"), data, tmp_path / "runs")
    rows = evaluate(EvalConfig(), data, tmp_path / "runs").rows
    assert [(row["lang"], row["queries"], row["database"]) for row in rows] == [("en", 10, 20)] * 2
    assert all(row["map_real"] > 0.6 > row["chance"] for row in rows)


def test_the_same_numbers_have_the_same_digest_whatever_their_type(tmp_path, data, no_encoder):
    one = npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"]})
    digest = [f["weights_sha256"] for f in recipes(extract(asked(tmp_path, one)))]
    other = matlab73(tmp_path / "f.mat", {"image": data["I"].astype(float), "text": data["T"].astype(float)})
    report = extract(asked(tmp_path, other))
    assert [f["weights_sha256"] for f in recipes(report)] == digest
    assert not any(f.fresh for f in report.files)


def recipes(report):
    return [read_features(f.path).recipe for f in report.files]


def test_other_features_under_the_same_name_are_refused(tmp_path, data, no_encoder):
    file = npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"]})
    extract(asked(tmp_path, file))
    npz(file, {"image": data["I"] + 1, "text": data["T"]})
    with pytest.raises(StaleError, match=r"image-f\.h5: .*overwrite|weights_sha256"):
        extract(asked(tmp_path, file))
    assert [f.fresh for f in extract(asked(tmp_path, file, overwrite=True)).files] == [True, True]


def test_an_unfinished_file_goes_on_to_the_same_bytes(tmp_path, data, no_encoder, monkeypatch):
    file = npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"]})
    done = extract(asked(tmp_path, file)).files[0].path
    stop = iter([None, None, KeyboardInterrupt()])

    def progress(*_):
        if signal := next(stop):
            raise signal

    with pytest.raises(KeyboardInterrupt):
        extract(asked(tmp_path, file, cache=tmp_path / "other"), progress)
    part = tmp_path / "other/features/image-f.h5.part"
    assert part.exists()
    again = extract(asked(tmp_path, file, cache=tmp_path / "other")).files[0].path
    assert again.read_bytes() == done.read_bytes()


@pytest.mark.parametrize("changes", [{}, {"shard": "1/2"}])
def test_no_matrix_is_ever_in_memory_as_a_whole(tmp_path, no_encoder, monkeypatch, changes):
    monkeypatch.setattr(extract_ready, "READY_BLOCK", 256)
    x = np.random.default_rng(0).standard_normal((8000, 1024), np.float32)
    files = spread(tmp_path, {"image": x, "text": x})
    size = x.nbytes
    del x
    for fresh in (True, False):
        tracemalloc.start()
        report = extract(asked(tmp_path, *files, maps=("image=image:image", "text=text:text"), **changes))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [f.fresh for f in report.files] == [fresh] * 2
        assert peak < size / 2


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_rows_that_float32_cannot_hold_are_quarantined(tmp_path, data, no_encoder, bad):
    image = data["I"].astype(float)
    image[3, 2] = bad
    report = extract(asked(tmp_path, npz(tmp_path / "f.npz", {"image": image, "text": data["T"]})))
    assert [(f.ok, f.bad) for f in report.files] == [(N - 1, 1), (N, 0)]
    made = read_features(report.files[0].path)
    assert made.valid.tolist() == [n != 3 for n in range(N)]
    assert not made.x[3].any()
    line = json.loads((report.folder / "quarantine.jsonl").read_text())
    assert (line["id"], line["stage"], line["code"]) == ("3", "image", "non-finite")
    with pytest.raises(DataError, match="1 of 30 items could not be used"):
        refuse_bad(report, 0.01)


def test_views_that_the_file_does_not_bring_are_encoded(tmp_path, data, manifest_root, monkeypatch):
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    monkeypatch.setattr(text_encoders, "TINY", tiny)
    monkeypatch.setattr(extract_module.image_encoders, "load", None)
    file = tmp_path / "image.npy"
    np.save(file, np.random.default_rng(0).standard_normal((40, 5)))
    config = asked(tmp_path, file, dataset="manifest", root=manifest_root, text_models=("random",), name="mixed")
    report = extract(config)
    assert [f.path.name for f in report.files] == ["image-image.h5", "text-de-bert-random.h5", "text-en-bert-random.h5"]
    assert report.untrained
    data = ExtractedDataset.open(tmp_path / "cache", "mixed")
    run, _ = train(TrainConfig(bits=5, method="cca", device="cpu"), data, tmp_path / "runs")
    assert list(run.langs) == ["de", "en"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": ()}, "data set 'features' needs its files: give --features FILE"),
        ({"text_models": ("en=bert-base-uncased",)}, "the en texts have ready-made features: leave it out"),
        ({"langs": ("de",)}, "the data set has no language 'de'"),
        ({"maps": ("text.de=texts",), "text_models": ("de=own", "en=own")}, "the languages are de"),
    ],
)
def test_options_that_contradict_the_files(tmp_path, data, changes, words, no_encoder):
    file = npz(tmp_path / "f.npz", {"image": data["I"], "texts": data["T"]})
    with pytest.raises(UsageError, match=words):
        extract(asked(tmp_path, file, **changes))


def test_own_features_must_be_there(tmp_path, manifest_root, data):
    config = ExtractConfig("manifest", manifest_root, cache=tmp_path, image_weights="random", text_models=("own",))
    with pytest.raises(UsageError, match="the data set brings no de features of its own"):
        extract(config)
    with pytest.raises(UsageError, match="--map image=x: give the file of that array with --features"):
        read_dataset(replace(config, maps=("image=x",)))


def test_the_command(tmp_path, data, no_encoder):
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    npz(one, {"a": data["I"], "b": data["T"]})
    npz(two, {"c": data["L"]})
    args = ["--map", "image=a", "--map", "text.de=b", "--map", "labels=two:c", "--cache", tmp_path, "--json", "-q"]
    args = ["extract", "--dataset", "features", "--features", one, "--features", two, *args]
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert (shown["items"], shown["classes"], len(shown["files"])) == (N, CLASSES, 2)
    assert (tmp_path / "features/text-de-one.h5").exists()


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
    "start", [b"", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"MATLAB 5.0 MAT-file"]
)
@settings(max_examples=25, deadline=None)
@given(raw=st.binary(max_size=300), suffix=st.sampled_from([".mat", ".bin"]))
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
