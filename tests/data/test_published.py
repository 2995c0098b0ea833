"""Published splits against the scripts that made them, written here as the authors' code draws, on the same rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trees import draw_photo, put, write_coco, write_mirflickr, write_nuswide

from cmrhash.config import PROTOCOLS, ExtractConfig
from cmrhash.data import published
from cmrhash.data.catalog import finished, read_dataset
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.errors import DataError, UsageError

# ---------------------------------------------------------------------------------------------- the authors' scripts


def torchcmh(count, query_num, train_num, seed):
    np.random.seed(seed)
    random_index = np.random.permutation(count)
    return random_index[:query_num], random_index[query_num : query_num + train_num], random_index[query_num:]


def qinlab(count, query_num=5000, train_num=10000, seed=1814):
    np.random.seed(seed=seed)
    random_index = np.random.permutation(range(count))
    return random_index[:query_num], random_index[query_num : query_num + train_num], random_index[query_num:]


def ucch(count, test_size):
    rows = np.arange(count)
    return rows[-test_size::], rows[0:-test_size], rows[0:-test_size]


def djsrh(labels, test_num, train_num, first_test, first_train, wanted, seed):
    """labels: (N, C) 0/1. Its code has no seed; a seed is given here so that the draw can be compared."""
    np.random.seed(seed)
    first = True
    for label in range(labels.shape[1]):
        index = np.where(labels[:, label] == 1)[0]
        index = index[np.random.permutation(index.shape[0])]
        if first:
            test_index, train_index = index[:first_test], index[first_test : first_test + first_train]
            first = False
        else:
            drawn = {*train_index, *test_index}
            ind = np.array([i for i in index if i not in drawn], int)
            test_index = np.concatenate((test_index, ind[:test_num]))
            train_index = np.concatenate((train_index, ind[test_num : test_num + train_num]))
    test = set(test_index)
    database_index = np.array([i for i in range(labels.shape[0]) if i not in test])
    if train_index.shape[0] < wanted:
        train = set(train_index)
        pick = np.array([i for i in database_index if i not in train])
        pick = pick[np.random.permutation(pick.shape[0])]
        train_index = np.concatenate((train_index, pick[: wanted - train_index.shape[0]]))
    return test_index, train_index, database_index


# ---------------------------------------------------------------------------------------------- comparison


def toy(count, name="features", classes=24, seed=0, **lacks):
    """Items of which each has one to three labels; lacks: fields that every fifth item has instead."""
    rng = np.random.default_rng(seed)
    names = tuple(f"c{n:02}" for n in range(classes))
    items = []
    for n in range(count):
        labels = tuple(sorted(set(rng.integers(0, classes, rng.integers(1, 4)).tolist())))
        item = Item(str(n), f"{n}.jpg", {"en": ("a dog",)}, labels)
        items.append(replace(item, **lacks) if n % 5 == 4 else item)
    return ImageTextDataset(name, Path("/photos"), tuple(items), names)


def drawn(dataset, protocol, query=None, train=None, seed=0):
    config = ExtractConfig(protocol=protocol, query_items=query, train_items=train, seed=seed, name="mine")
    return finished(dataset, config)


def agrees(dataset, parts, rows=None):
    """Compare roles with query, train and database row numbers; rows: those that the authors' numbers count."""
    rows = np.arange(len(dataset.items)) if rows is None else np.asarray(rows)
    query, train, database = (set(rows[part].tolist()) for part in parts)
    has = {role: {n for n, i in enumerate(dataset.items) if role in i.splits} for role in ("query", "train", "val")}
    assert has["query"] == query
    assert has["train"] | has["val"] == train
    assert {n for n, i in enumerate(dataset.items) if "database" in i.splits} == database
    assert len(has["val"]) == max(round(0.05 * len(train)), 1)
    assert not has["train"] & has["val"]


@pytest.mark.parametrize(
    ("count", "query", "train", "seed"),
    [(20_015, 2000, 10_000, 6), (190_421, 2100, 10_500, 7), (122_218, 5000, 10_000, 8), (20_000, 2000, 10_000, 8)],
)
def test_dcmh_is_the_permutation_of_torchcmh_over_the_rows_of_the_file(count, query, train, seed):
    item = Item("", None, {}, (0,))
    features = ImageTextDataset("features", Path("/f"), tuple(replace(item, id=str(n)) for n in range(count)), ("1",))
    agrees(made := drawn(features, "dcmh"), torchcmh(count, query, train, seed))
    words = f"protocol dcmh ({query} query and {train} train items, permutation of seed {seed})"
    assert made.split == f"{words}; val drawn from seed 0"


def test_clip_has_one_seed_for_every_data_set():
    agrees(made := drawn(toy(24_581), "clip"), qinlab(24_581))
    assert "permutation of seed 1814" in made.split
    agrees(drawn(toy(60, "pascal"), "clip", "7", "20"), qinlab(60, 7, 20))


@pytest.mark.parametrize(("count", "size"), [(20_015, 2000), (186_577, 2100), (122_218, 5000), (20_000, 2000)])
def test_ucch_takes_the_last_rows_of_the_file(count, size):
    agrees(made := drawn(toy(count, classes=3), "ucch"), ucch(count, size))
    assert made.split.startswith(f"protocol ucch (the last {size} items are query, all others train); val")


def bits(dataset):
    labels = np.zeros((len(dataset.items), len(dataset.classes)), int)
    for n, item in enumerate(dataset.items):
        labels[n, list(item.labels)] = 1
    return labels


@pytest.mark.parametrize("seed", [0, 3])
def test_unsup_draws_class_by_class_as_djsrh_does_for_mirflickr(seed):
    data = toy(20_015, seed=seed)
    agrees(made := drawn(data, "unsup", seed=seed), djsrh(bits(data), 80, 200, 160, 400, 5000, seed))
    assert made.split.startswith("protocol unsup (2000 query and 5000 train items, drawn by class from seed")


def test_unsup_of_small_classes_fills_train_up_and_of_other_data_takes_equal_shares():
    data = toy(200, "manifest", classes=7)  # 40 queries: 5 a class, and what is left over by the first
    agrees(drawn(data, "unsup", "40", "120"), djsrh(bits(data), 5, 17, 10, 18, 120, 0))


def test_unsup_of_wikipedia_takes_its_lists_and_searches_the_train_items():
    splits = [{"train"}] * 20 + [{"query", "database"}] * 9 + [frozenset()]
    items = [replace(i, splits=frozenset(s)) for i, s in zip(toy(30).items, splits, strict=True)]
    made = drawn(replace(toy(30, "wikipedia"), items=tuple(items)), "unsup")
    agrees(made, (range(20, 29), range(20), range(20)))
    with pytest.raises(UsageError, match=r"query_items: protocol 'unsup' takes the data set's own lists"):
        drawn(replace(toy(30, "wikipedia"), items=tuple(items)), "unsup", "3")


# ---------------------------------------------------------------------------------------------- rows of the archives


def read(root, dataset, protocol, query, train, **more):
    sizes = {"query_items": query, "train_items": train}
    return read_dataset(ExtractConfig(dataset=dataset, root=root, protocol=protocol, **sizes, **more))


def test_mirflickr_counts_labels_and_common_tags_and_clip_sorts_numbers_as_strings(tmp_path):
    write_mirflickr(tmp_path)
    put(tmp_path / "mirflickr/doc/common_tags.txt", "dog 30\ncat 20\n")
    put(tmp_path / "mirflickr/meta/tags/tags4.txt", "")  # has labels
    draw_photo(tmp_path / "mirflickr/im33.jpg", 33)  # has none
    put(tmp_path / "mirflickr/meta/tags/tags33.txt", "dog\n")
    (tmp_path / "mirflickr/im9.jpg").unlink()  # keeps its role
    common = [n - 1 for n in range(1, 33) if n % 4 in (0, 1) and n != 4]
    agrees(read(tmp_path, "mirflickr", "dcmh", "3", "8"), torchcmh(15, 3, 8, 6), common)
    agrees(read(tmp_path, "mirflickr", "ucch", "3", None), ucch(15, 3), common)
    strings = [int(key) - 1 for key in sorted(map(str, range(1, 33)))]
    agrees(read(tmp_path, "mirflickr", "clip", "5", "9"), qinlab(32, 5, 9), strings)
    (tmp_path / "mirflickr/doc/common_tags.txt").unlink()  # then nikon, which more than 20 photos have
    agrees(read(tmp_path, "mirflickr", "dcmh", "3", "8"), torchcmh(31, 3, 8, 6), [n for n in range(32) if n != 3])


def test_coco_of_clip_is_train_before_val(tmp_path):
    write_coco(tmp_path)  # 0 to 7 are val
    agrees(read(tmp_path, "coco", "clip", "5", "9"), qinlab(32, 5, 9), [*range(8, 32), *range(8)])
    agrees(read(tmp_path, "coco", "dcmh", "5", "9"), torchcmh(32, 5, 9, 8))


def test_nuswide_keeps_the_concepts_of_the_papers(tmp_path):
    write_nuswide(tmp_path)  # dog, cat, tree, house: tree is one of the 21
    with pytest.raises(DataError, match=r"no labels of concept 'animal': .*: unpack the labels of all concepts"):
        read(tmp_path, "nuswide", "dcmh", "2", "4")
    for at, name in enumerate(published.TOP_21):
        if name != "tree":
            labels = "".join("01"[name == "sky" and n % 8 == 1] + "\n" for n in range(32))
            put(tmp_path / f"Groundtruth/AllLabels/Labels_{name}.txt", labels)
        assert published.TOP_21.index(name) == at
    trees, skies = [n for n in range(32) if n % 4 == 2], [n for n in range(32) if n % 8 == 1]
    made = read(tmp_path, "nuswide", "dcmh", "3", "5")
    agrees(made, torchcmh(12, 3, 5, 7), sorted(trees + skies))
    assert made.classes == published.TOP_21
    assert {made.classes[label] for item in made.items for label in item.labels} == {"tree", "sky"}
    made = read(tmp_path, "nuswide", "ucch", "2", None)
    agrees(made, ucch(4, 2), skies)
    assert made.classes == published.TOP_10
    assert len(published.TOP_21) == 21


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("data", "protocol", "numbers", "words"),
    [
        (
            toy(60, "pascal"),
            "dcmh",
            (),
            r"'dcmh' has no published numbers for data set 'pascal' \(60 items",
        ),
        (toy(60, "pascal"), "clip", ("5",), r"give `query_items=N` and `train_items=N`; published are mirflickr, nus"),
        (toy(60, "pascal"), "ucch", (), r"give `query_items=N`; published are mirflickr, nuswide, coco, iaprtc12"),
        (toy(60, "coco"), "dcmh", (), r"takes 5000 query and 10000 train items, but only 60 items can be either"),
        (toy(60), "ucch", ("60",), r"takes 60 query and other train items, but only 60 items"),
        (toy(60), "ucch", ("5", "9"), r"train_items: protocol 'ucch' trains on all items but the queries"),
        (toy(60), "dcmi", (), r"protocol: unknown protocol 'dcmi': did you mean dcmh"),
        (
            toy(60),
            "dcmh",
            ("last:5", "9"),
            r"query_items: protocol 'dcmh' chooses the items itself: give a",
        ),
        (
            replace(toy(60), relevance="pairs", classes=()),
            "clip",
            ("5", "9"),
            r"'clip' scores by labels, but data set 'features'",
        ),
    ],
)
def test_a_protocol_that_does_not_fit_is_one_line(data, protocol, numbers, words):
    with pytest.raises((UsageError, DataError), match=words) as caught:
        drawn(data, protocol, *numbers)
    assert "\n" not in str(caught.value)


def test_of_other_data_sets_items_with_label_and_text_count():
    data = toy(60, "manifest", texts={}, image=None)
    agrees(drawn(data, "dcmh", "6", "20", seed=4), torchcmh(48, 6, 20, 4), [n for n in range(60) if n % 5 != 4])
    agrees(drawn(data, "clip", "6", "20", seed=4), qinlab(60, 6, 20))
    data = toy(60, "manifest", labels=(), image=None)
    agrees(drawn(data, "clip", "6", "20"), qinlab(48, 6, 20), [n for n in range(60) if n % 5 != 4])


def test_a_list_of_as_many_items_as_the_authors_have_counts_as_it_is():
    agrees(drawn(toy(24_581, "table", labels=(), texts={}), "clip"), qinlab(24_581))


def test_every_protocol_has_its_numbers():
    assert set(published.PUBLISHED) == set(published.CONCEPTS) == set(PROTOCOLS)
