"""Query and train items that the user chooses, and data sets whose splits leave nothing to train on or to ask."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import WRITERS, write_manifest, write_pascal, write_table

from cmrhash.config import ExtractConfig
from cmrhash.data.catalog import finished, read_dataset
from cmrhash.data.changes import renewed
from cmrhash.data.items import ImageTextDataset, Item, check, with_roles
from cmrhash.data.manifest import keep, load
from cmrhash.data.manifest import read as read_manifest
from cmrhash.data.splits import refuse_empty
from cmrhash.errors import DataError, StaleError, UsageError

SIZES = {"dataset": "manifest", "name": "mine"}


def item(name, *splits, **other):
    fields = {"image": f"{name}.jpg", "texts": {"en": ("a dog",)}, "labels": (0,), **other}
    return Item(str(name), splits=frozenset(splits), **fields)


def dataset(items, relevance="labels", **more):
    return ImageTextDataset("test", Path("/photos"), tuple(items), ("dog", "cat"), relevance, **more)


def chosen(data, query=None, train=None, seed=0):
    return finished(data, ExtractConfig(query_items=query, train_items=train, seed=seed))


def rows(data, *roles):
    return [n for n, i in enumerate(data.items) if i.splits & set(roles)]


# ---------------------------------------------------------------------------------------------- numbers and places


def test_first_and_last_are_in_the_order_of_the_data_set():
    made = chosen(dataset(item(n) for n in range(40)), "last:10", "first:20")
    assert rows(made, "query") == list(range(30, 40))
    assert rows(made, "train", "val") == list(range(20))
    assert rows(made, "database") == list(range(30))
    assert len(rows(made, "val")) == 1
    assert made.split == "query last:10, train first:20; val drawn from seed 0"
    made = chosen(dataset(item(n) for n in range(40)), "first:10", "last:5")
    assert (rows(made, "query"), rows(made, "train", "val")) == (list(range(10)), list(range(35, 40)))
    assert rows(chosen(dataset(item(n) for n in range(40)), "first:10", "first:5"), "train", "val") == list(
        range(10, 15)
    )


def test_what_is_not_given_is_drawn_from_the_seed():
    data = dataset(item(n) for n in range(40))
    made = chosen(data, "last:10", seed=3)
    assert len(rows(made, "train", "val")) == 20  # half of the complete items, as without --query
    assert max(rows(made, "train", "val")) < 30
    assert made.split == "query last:10; the rest drawn from seed 3"
    assert made == chosen(data, "last:10", seed=3) != chosen(data, "last:10", seed=4)
    made = chosen(data, "7", "9", seed=3)
    assert [len(rows(made, *roles)) for roles in (["query"], ["train", "val"], ["database"])] == [7, 9, 33]
    assert made.split == "query 7, train 9; the rest drawn from seed 3"
    made = chosen(data, train="30")
    assert rows(made, "query") == rows(with_roles(data, 0), "query")
    assert len(rows(made, "train", "val")) == 30


def test_by_pairs_and_by_class_the_queries_are_the_database_and_all_others_train():
    pairs = dataset((item(n, labels=()) for n in range(20)), "pairs")
    by_class = dataset((item(n) for n in range(20)), protocol="per-class")
    own = dataset(item(n, *({"query", "database"} if n < 5 else {"train"})) for n in range(20))
    for data in (pairs, by_class, own):
        made = chosen(data, "last:4")
        assert rows(made, "query") == rows(made, "database") == [16, 17, 18, 19]
        assert rows(made, "train", "val") == list(range(16))
        assert made.split == "query last:4; val drawn from seed 0"
        assert rows(chosen(data, "last:4", "first:6"), "train", "val") == list(range(6))


def test_train_alone_keeps_the_queries_of_the_data_set():
    data = dataset(item(n, *({"query"} if n % 4 == 0 else {"database", "train"})) for n in range(20))
    made = chosen(data, train="first:6")
    assert rows(made, "query") == [0, 4, 8, 12, 16]
    assert rows(made, "train", "val") == [1, 2, 3, 5, 6, 7]
    assert rows(made, "database") == [n for n in range(20) if n % 4]
    assert made.split == "train first:6; val drawn from seed 0"


def test_numbers_count_complete_items_and_the_others_join_the_database():
    items = [item(n, **({"texts": {}} if n % 2 else {})) for n in range(20)]
    made = chosen(dataset(items), "last:3", "first:4")
    assert rows(made, "query") == [14, 16, 18]
    assert rows(made, "train", "val") == [0, 2, 4, 6]
    assert len(rows(made, "database")) == 17
    features = replace(dataset(item(n, labels=(0,) if n else ()) for n in range(20)), name="features")
    assert rows(chosen(features, "first:2"), "query") == [0, 1]  # a row of the authors' file counts as it is


@given(
    count=st.integers(2, 60),
    query=st.sampled_from(["first:", "last:", ""]),
    train=st.sampled_from(["first:", "last:", "", None]),
    relevance=st.sampled_from(["labels", "pairs"]),
    numbers=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    seed=st.integers(0, 9),
)
def test_chosen_roles_keep_every_promise(count, query, train, relevance, numbers, seed):
    if sum(numbers) > count:
        return
    asked = None if train is None else f"{train}{numbers[1]}"
    made = check(chosen(dataset((item(n) for n in range(count)), relevance), f"{query}{numbers[0]}", asked, seed))
    assert made.count("query") == numbers[0]
    assert train is None or made.count("train") + made.count("val") == numbers[1]


# ---------------------------------------------------------------------------------------------- files


def ids_of(data, *roles):
    return [data.items[row].id for row in rows(data, *roles)]


@pytest.mark.parametrize("lines", ["i3\n\n i5 \r\ni7", "3\n5\n7\n", "\ufeff3\n5\n7"])
def test_a_file_has_ids_or_row_numbers_from_0(tmp_path, lines):
    (tmp_path / "rows.txt").write_text(lines, encoding="utf-8")
    made = chosen(dataset(item(f"i{n}") for n in range(20)), str(tmp_path / "rows.txt"), "first:2")
    assert ids_of(made, "query") == ["i3", "i5", "i7"]
    assert ids_of(made, "train", "val") == ["i0", "i1"]
    digest = hashlib.sha256((tmp_path / "rows.txt").read_bytes()).hexdigest()[:8]
    assert made.split == f"query rows.txt ({digest}), train first:2; val drawn from seed 0"


def test_numbers_that_are_ids_are_ids_in_a_text_and_rows_in_an_array(tmp_path):
    data = dataset(item(str(n + 1)) for n in range(20))
    (tmp_path / "q.txt").write_text("1\n2\n20\n")
    np.save(tmp_path / "q.npy", np.array([0, 1, 19]))
    np.save(tmp_path / "mask.npy", np.isin(np.arange(20), [0, 1, 19]))
    np.save(tmp_path / "ids.npy", np.array(["1", "2", "20"]))
    for name in ("q.txt", "q.npy", "mask.npy", "ids.npy"):
        assert rows(chosen(data, str(tmp_path / name)), "query") == [0, 1, 19]


def test_query_and_train_from_files(tmp_path):
    train = random.Random(0).sample(range(30), 12)
    np.save(tmp_path / "q.npy", np.arange(30, 40))
    np.save(tmp_path / "t.npy", np.array(train))
    made = chosen(dataset(item(n) for n in range(40)), str(tmp_path / "q.npy"), str(tmp_path / "t.npy"))
    assert rows(made, "train", "val") == sorted(train)
    assert re.fullmatch(r"query q\.npy \(\w{8}\), train t\.npy \(\w{8}\); val drawn from seed 0", made.split)


BAD_FILES = {
    "out.txt": (
        "3\n20\n",
        r"entry 2 of `query_items`, '20', is no item: .*, or row numbers from 0 to 19",
    ),
    "below.txt": ("-1\n", r"entry 1 of `query_items`, '-1', is no item"),
    "unknown.txt": ("i3\ni99\n", r"entry 2 of `query_items`, 'i99', is no item"),
    "mixed.txt": ("i3\n4\n", r"entry 2 of `query_items`, '4', is no item"),
    "twice.txt": ("i3\ni4\ni3\n", r"item 'i3' is repeated: .*: name every item once"),
    "empty.txt": (" \n\n", r"the file names no item"),
    "far.npy": (np.array([3, 20]), r"entry 2 of `query_items`, '20', is no item"),
    "negative.npy": (np.array([-1]), r"entry 1 of `query_items`, '-1', is no item"),
    "short.npy": (np.ones(19, bool), r"an array of bool with 19 entries: .*: give whole numbers, ids, or a mask of 20"),
    "halves.npy": (np.array([0.5]), r"an array of float64 with 1 entries"),
    "none.npy": (np.zeros(20, bool), r"the file names no item"),
    "objects.npy": (np.array([None]), r"not an array \(Object arrays cannot be loaded"),
    "text.npy": ("3\n", r"not an array"),
}


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line(tmp_path, name):
    content, words = BAD_FILES[name]
    path = tmp_path / name
    path.write_text(content) if isinstance(content, str) else np.save(path, content, allow_pickle=True)
    with pytest.raises(DataError, match=words) as caught:
        chosen(dataset(item(f"i{n}") for n in range(20)), str(path))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "train", "words"),
    [
        ("0", None, r"query_items: '0' names no item: give a number from 1"),
        ("first:0", None, r"query_items: 'first:0' names no item"),
        ("middle:3", None, r"query_items: 'middle:3' is neither a number of items nor a file: give a number, first:N"),
        ("-3", None, r"query_items: '-3' is neither a number of items nor a file"),
        ("5", "none.txt", r"train_items: 'none.txt' is neither"),
        ("last:21", None, r"query_items: 21 items of 20 complete items: /photos: give a smaller number"),
        ("15", "6", r"train_items: 6 items of 5 complete items"),
    ],
)
def test_a_bad_choice_is_one_line(query, train, words):
    with pytest.raises(UsageError, match=words) as caught:
        chosen(dataset(item(n) for n in range(20)), query, train)
    assert "\n" not in str(caught.value)


def test_an_item_that_is_both_query_and_train_is_named(tmp_path):
    (tmp_path / "t.txt").write_text("i2\ni19\n")
    with pytest.raises(UsageError, match=r"train_items: item 'i19' is both query and train"):
        chosen(dataset(item(f"i{n}") for n in range(20)), "last:1", str(tmp_path / "t.txt"))


# ---------------------------------------------------------------------------------------------- every reader, the cache


@pytest.mark.parametrize("name", WRITERS)
def test_every_reader_takes_chosen_splits(tmp_path, name):
    WRITERS[name](tmp_path / "data")
    config = ExtractConfig(dataset=name, root=tmp_path / "data", query_items="last:4", train_items="first:9")
    made = refuse_empty(read_dataset(config))
    assert rows(made, "query") == [28, 29, 30, 31]
    assert rows(made, "train", "val") == list(range(9))


def test_the_choice_is_kept_in_the_cache_and_another_one_is_refused(tmp_path):
    root = write_manifest(tmp_path / "data")
    config = ExtractConfig(**SIZES, root=root, query_items="last:4")
    made, folder = read_dataset(config), tmp_path / "cache" / "mine"
    keep(made, folder)
    assert json.loads((folder / "dataset.json").read_text())["chosen"] == "query last:4"
    assert load(folder).split == made.split == "query last:4; the rest drawn from seed 0"
    assert not renewed(made, folder)[1]
    assert read_manifest(folder).split == made.split
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for change, asked in (
        ({"query_items": None}, "the data set's own"),
        ({"query_items": "first:4"}, "query first:4; the rest drawn from seed 0"),
        ({"query_items": "6", "train_items": "9", "protocol": "dcmh"}, r"protocol dcmh \(6 query and 9 train items"),
    ):
        other = read_dataset(replace(config, **change))
        words = rf"'mine' was made with splits = query last:4; .* but this call has {asked}.*overwrite=True.*name"
        with pytest.raises(StaleError, match=words) as caught:
            renewed(other, folder)
        assert "\n" not in str(caught.value)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    keep(renewed(other, folder, overwrite=True)[0], folder)
    assert load(folder).chosen.startswith("protocol dcmh")


def test_another_choice_of_the_same_items_is_stored_too(tmp_path):
    config = ExtractConfig(
        **SIZES, root=write_manifest(tmp_path / "data"), query_items="first:4", train_items="first:9"
    )
    (tmp_path / "rows.txt").write_text("".join(f"{n}\n" for n in range(4)))
    keep(read_dataset(config), tmp_path / "mine")
    made = read_dataset(replace(config, query_items=str(tmp_path / "rows.txt")))
    keep(renewed(made, tmp_path / "mine", overwrite=True)[0], tmp_path / "mine")
    assert load(tmp_path / "mine").chosen.startswith("query rows.txt (")


@pytest.mark.parametrize("choice", [{"query_items": "last:4"}, {"protocol": "ucch", "query_items": "4"}])
def test_of_a_changed_data_set_chosen_splits_stay_and_new_items_join_the_database(tmp_path, choice):
    config = ExtractConfig(**SIZES, root=write_manifest(tmp_path / "data"), **choice)
    made = read_dataset(config)
    keep(made, tmp_path / "mine")
    write_manifest(tmp_path / "data", count=34)
    merged, changes = renewed(read_dataset(config), tmp_path / "mine")
    assert (changes.new, changes.changed, changes.gone) == (("i32", "i33"), (), ())
    assert merged.items[:32] == made.items
    assert [item.splits for item in merged.items[32:]] == [{"database"}] * 2
    assert merged.split == f"{made.split}; 2 items added since"
    keep(merged, tmp_path / "mine")
    assert load(tmp_path / "mine").split == merged.split


def test_a_file_with_other_rows_is_another_choice(tmp_path):
    (tmp_path / "rows.txt").write_text("0\n1\n")
    config = ExtractConfig(**SIZES, root=write_manifest(tmp_path / "data"), query_items=str(tmp_path / "rows.txt"))
    keep(read_dataset(config), tmp_path / "mine")
    (tmp_path / "rows.txt").write_text("0\n2\n")
    with pytest.raises(
        StaleError, match=r"splits = query rows\.txt \(\w{8}\); .* but this call has query rows\.txt \("
    ):
        renewed(read_dataset(config), tmp_path / "mine")


def test_without_a_choice_the_cache_is_as_before(tmp_path):
    root = write_manifest(tmp_path / "data", splits=False)
    made, folder = read_dataset(ExtractConfig(**SIZES, root=root)), tmp_path / "mine"
    keep(made, folder)
    assert "chosen" not in json.loads((folder / "dataset.json").read_text())
    assert load(folder).split == "drawn from seed 0"
    asked = read_dataset(ExtractConfig(**SIZES, root=root, query_items="last:4"))
    with pytest.raises(StaleError, match=r"was made with splits = drawn from seed 0, but this call has query last:4;"):
        renewed(asked, folder)


# ---------------------------------------------------------------------------------------------- nothing to ask


ENOUGH = [item("q", "query"), item("a", "train", "database"), item("b", "train", "database")]


@pytest.mark.parametrize(
    "data",
    [
        dataset(ENOUGH),
        dataset([item("q", "query", labels=()), *ENOUGH[1:]], "pairs"),  # by pairs the queries are the database
        dataset([item(n, "database", image=None) for n in range(3)]),  # captions alone
        dataset([item(n, "database", texts={}) for n in range(3)]),  # photos alone
        dataset([item(n, image=None, texts={}) for n in range(3)]),
        dataset([item(n, "database") for n in range(3)]),  # all to be searched, by its own splits
    ],
)
def test_a_data_set_with_queries_and_training_or_with_one_view_is_taken(data):
    assert refuse_empty(data) is data


@pytest.mark.parametrize(
    ("items", "relevance", "words"),
    [
        (ENOUGH[1:], "labels", r"0 query items \(the data set's own; 2 of 2 items have photo, caption and label\)"),
        (ENOUGH[:2], "labels", r"1 train item \(the data set's own; .*give other splits, or leave them out to have"),
        (ENOUGH[:1], "pairs", r"0 train items \(the data set's own; 1 of 1 items have photo, caption\)"),
        ([ENOUGH[0], item("a", "train"), item("b", "train")], "labels", r"^0 database items \("),
        ([item("a", image=None), item("b", texts={})], "pairs", r"0 query items and 0 train items .*0 of 2 items have"),
    ],
)
def test_a_data_set_that_cannot_be_trained_or_asked_is_refused(items, relevance, words):
    with pytest.raises(DataError, match=words) as caught:
        refuse_empty(dataset(items, relevance))
    assert "choose items with `query_items` and `train_items`" in str(caught.value)


@pytest.mark.parametrize("count", range(1, 12))
def test_of_few_items_a_draw_is_refused_until_it_gives_a_query(count):
    data = chosen(dataset(item(n) for n in range(count)))
    if count >= 6:
        assert refuse_empty(data) is data
        return
    with pytest.raises(DataError, match=rf"\(drawn from seed 0; {count} of {count} items .*\): /photos: add items or"):
        refuse_empty(data)


@pytest.mark.parametrize("write", [write_manifest, write_pascal, write_table])
def test_the_small_trees_are_enough(tmp_path, write):
    write(tmp_path)
    name = {write_manifest: "manifest", write_pascal: "pascal", write_table: "table"}[write]
    refuse_empty(read_dataset(ExtractConfig(dataset=name, root=tmp_path)))
