"""Feature files of others: who gets which role."""

from __future__ import annotations

import numpy as np
import pytest
from matrix_files import TR, N, matlab5, matlab73, npz, other, parts_of, read

from cmrhash.data.items import with_roles
from cmrhash.data.matrices import dataset as matrices
from cmrhash.data.matrices.over import lay_over
from cmrhash.errors import DataError, UsageError


def roles(dataset):
    return [set(item.splits) for item in dataset.items]


def count(dataset):
    return [dataset.count(role) for role in ("query", "database", "train", "val")]


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


@pytest.mark.faults("name that two systems read differently")
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
    with pytest.raises(
        DataError, match=r"row numbers run from .* for 30 items: .*whole numbers from 0 to 29 or from 1 to 30"
    ):
        read(file)


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_queries_that_are_trained_on_are_refused(tmp_path, data):
    file = npz(tmp_path / "f.npz", whole(data, query_idx=QUERY, train_idx=REST - 1))
    with pytest.raises(DataError, match=r"query items are also train or val items \(1: 4\)"):
        read(file)


def test_row_numbers_beside_parts_are_passed_over(tmp_path, data):
    arrays = parts_of(data, te=slice(TR, N), tr=slice(0, TR))
    dataset = read(npz(tmp_path / "f.npz", {**arrays, "query_idx": QUERY}))
    assert count(dataset) == [10, 20, 19, 1]
    assert sum("passed over" in what for what in dataset.found) == 1


# ---------------------------------------------------------------------------------------------- over other items


def test_parts_follow_the_order_of_the_items_with_their_role(tmp_path, data):
    dataset = other([{"query", "database"} if n % 3 == 0 else {"train"} for n in range(N)])
    arrays = {"I_te": data["I"][::3], "I_tr": data["I"][np.arange(N) % 3 > 0], "LAll": data["L"][:2]}
    over = with_roles(lay_over(dataset, [npz(tmp_path / "f.npz", arrays)], ()), seed=0)
    assert np.array_equal(over.ready["image"].x, data["I"])
    assert list(over.ready) == ["image"]
    assert over.count("val") == 1
    assert [item.labels for item in over.items] == [(0,)] * N


@pytest.mark.parametrize("whole_database", [True, False])
def test_a_database_part_is_all_of_it_or_what_train_leaves(tmp_path, data, whole_database):
    dataset = other([{"query"}] * 4 + [{"train", "database"}] * 6 + [{"val", "database"}] * 2 + [{"database"}] * 18)
    rows = slice(4, N) if whole_database else slice(12, N)
    file = npz(tmp_path / "f.npz", {"I_db": data["I"][rows], "I_te": data["I"][:4], "I_tr": data["I"][4:12]})
    assert np.array_equal(lay_over(dataset, [file], ()).ready["image"].x, data["I"])


def test_all_items_at_once_follow_their_order(tmp_path, data):
    dataset = other([set()] * N)
    file = npz(tmp_path / "f.npz", {"image": data["I"].T, "feat": data["T"], "labels": [1], "label": [2]})
    over = lay_over(dataset, [file], ("text.de=feat",))
    assert np.array_equal(over.ready["image"].x, data["I"])
    assert np.array_equal(over.ready["text-de"].x, data["T"])
    assert over.languages == ("de", "en")


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
@pytest.mark.parametrize(
    ("roles_of", "keys", "maps", "words"),
    [
        (
            [{"train"}] * 20 + [{"query"}] * 10,
            "I_tr",
            (),
            r"image features are missing for 10 items \(i20, i21, i22, .*: map its query part, too",
        ),
        ([{"train"}] * 19 + [{"query"}] * 11, "I_tr", (), r"I_tr \(20 x 8 float32\) does not have 19 items"),
        ([set()] * N, "I_tr", (), r"image features are in parts \(train\), but data set 'mine' has no splits"),
        ([set()] * (N + 1), "IAll", (), r"IAll \(30 x 8 float32\) does not have 31 items"),
        (
            [set()] * N,
            "IAll",
            ("labels=IAll",),
            r"'labels=IAll' does not fit `dataset=.mine.`: .* labels and splits are those",
        ),
        ([set()] * N, "IAll", ("query=IAll",), r"'query=IAll' does not fit `dataset=.mine.`"),
        ([set()] * N, "A", (), r"no array has a name known for features.*image=ARRAY.*; there are f:A"),
    ],
)
def test_what_does_not_fit_the_items(tmp_path, data, roles_of, keys, maps, words):
    file = npz(tmp_path / "f.npz", {key: data["I"][:20] if key == "I_tr" else data["I"] for key in keys.split()})
    with pytest.raises((UsageError, DataError), match=words):
        lay_over(other(roles_of), [file], maps)
