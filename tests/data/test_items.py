"""What a data set promises, how roles are drawn, and what becomes of captions and image paths."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrhash.data.items import (
    ImagesBelow,
    ImageTextDataset,
    Item,
    by_pairs,
    check,
    common_missing,
    resolve_image,
    with_relevance,
    with_roles,
)
from cmrhash.errors import DataError, UsageError


def item(name, *splits, **other):
    fields = {"image": f"{name}.jpg", "texts": {"en": ("a dog",)}, "labels": (0,), **other}
    return Item(str(name), splits=frozenset(splits), **fields)


def dataset(items, relevance="labels"):
    return ImageTextDataset("test", Path("/photos"), tuple(items), ("dog", "cat"), relevance)


def rows_of(data, *splits):
    return [row for row, i in enumerate(data.items) if i.splits == set(splits)]


# ---------------------------------------------------------------------------------------------- promises


def test_a_data_set_that_keeps_every_promise_is_returned_as_it_is():
    good = dataset([item("a", "query"), item("b", "train", "database"), item("c", "val", "database"), item("d")])
    assert check(good) is good


@pytest.mark.parametrize(
    ("items", "what", "fix"),
    [
        ([], "the data set has no items", "check `root`"),
        ([item("a"), item("b"), item("a")], r"ids are repeated \(1: a\)", "its own id"),
        ([item("a"), item("b\nc"), item("\ud800")], r"cannot be printed \(2: 'b\\nc', '\\ud800'\)", "printable id"),
        ([item("a", "query", "train")], r"query items are also train or val items \(1: a\)", "keep queries out"),
        ([item("a", "query", "val")], r"query items are also train or val items \(1: a\)", "keep queries out"),
        ([item("b"), item("a", "train", "val")], r"both train and val items \(1: a\)", "keep validation items out"),
        ([item("a", labels=(2,))], r"label outside the list of classes \(1: a\)", "fix the labels"),
        ([item("a", labels=(0, -1))], r"label outside the list of classes \(1: a\)", "fix the labels"),
        ([item("a", "test")], r"other than train, val, query, database \(1: a\)", "fix the splits"),
        ([item(n, "query", "train") for n in range(7)], r"\(7: 0, 1, 2, 3, 4, \.\.\.\)", "keep queries out"),
    ],
)
def test_a_broken_promise_says_what_is_wrong_with_which_items_where_and_what_to_do(items, what, fix):
    with pytest.raises(DataError, match=f"^.*{what}: /photos: .*{fix}"):
        check(dataset(items))


def test_a_query_that_is_also_in_the_database_is_no_broken_promise():
    check(dataset([item("a", "query", "database")], "pairs"))


# ---------------------------------------------------------------------------------------------- roles


@pytest.mark.parametrize("count", [20_000, 19_999])
def test_drawn_roles_have_the_proportions_of_the_protocol(count):
    drawn = check(with_roles(dataset(item(n) for n in range(count)), seed=0))
    assert drawn.count("query") == 2_000
    assert drawn.count("database") == count - 2_000
    assert drawn.count("train") == 9_500
    assert drawn.count("val") == 500
    assert len(rows_of(drawn, "query")) == 2_000
    assert len(rows_of(drawn, "train", "database")) == 9_500
    assert len(rows_of(drawn, "val", "database")) == 500


def test_roles_are_spread_over_the_whole_list():
    drawn = with_roles(dataset(item(n) for n in range(20_000)), seed=0)
    for role, share in (("query", 0.1), ("train", 0.475), ("val", 0.025)):
        first_half = sum(role in i.splits for i in drawn.items[:10_000])
        assert first_half == pytest.approx(share * 10_000, rel=0.2)


def test_the_same_seed_draws_the_same_roles_and_another_seed_others():
    undrawn = dataset(item(n) for n in range(200))
    assert with_roles(undrawn, seed=3) == with_roles(undrawn, seed=3)
    assert with_roles(undrawn, seed=3).items != with_roles(undrawn, seed=4).items
    assert with_roles(undrawn, seed=3).split_seed == 3
    assert not any(i.splits for i in undrawn.items)


def test_drawing_roles_changes_nothing_but_the_roles():
    undrawn = dataset(item(n, labels=(n % 2,)) for n in range(50))
    drawn = with_roles(undrawn, seed=0)
    assert [replace(i, splits=frozenset()) for i in drawn.items] == list(undrawn.items)


@pytest.mark.parametrize("lack", [{"image": None}, {"texts": {}}, {"labels": ()}])
def test_incomplete_items_only_join_the_database(lack):
    items = [item(n, **(lack if n % 2 else {})) for n in range(200)]
    drawn = with_roles(dataset(items), seed=0)
    assert all(i.splits == {"database"} for i in drawn.items[1::2])
    assert drawn.count("query") == 10
    assert drawn.count("train") + drawn.count("val") == 50


def test_with_relevance_by_pairs_the_queries_are_the_database_and_all_others_train():
    items = [item(n, labels=()) for n in range(100)] + [item("x", image=None, labels=())]
    drawn = check(with_roles(dataset(items, "pairs"), seed=0))
    assert len(rows_of(drawn, "query", "database")) == 10
    assert len(rows_of(drawn, "train")) == 86
    assert len(rows_of(drawn, "val")) == 4  # 5 % of 90, halves to the even side
    assert rows_of(drawn) == [100]


@given(counts=st.lists(st.integers(1, 40), min_size=2, max_size=2), seed=st.integers(0, 99))
def test_per_class_takes_a_fifth_of_every_class_as_queries_and_database(counts, seed):
    items = [item(f"{label}-{n}", labels=(label,)) for label, count in enumerate(counts) for n in range(count)]
    drawn = check(with_roles(replace(dataset([*items, item("x", texts={})]), protocol="per-class"), seed))
    tests = [i.labels[0] for i in drawn.items if i.splits == {"query", "database"}]
    assert [tests.count(label) for label in (0, 1)] == [round(count / 5) for count in counts]
    assert drawn.count("query") == drawn.count("database") == len(tests)
    assert drawn.count("train") + drawn.count("val") == len(items) - len(tests)
    assert drawn.items[-1].splits == frozenset()


def test_splits_that_the_data_set_brings_stay_as_they_are():
    brought = dataset([item("a", "query"), item("b", "train", "database"), item("c", "val"), item("d")])
    assert with_roles(brought, seed=0) is brought
    no_training = dataset([item("a", "query"), item("b", "database")])
    assert with_roles(no_training, seed=0) is no_training


def test_a_missing_val_part_is_taken_from_train_and_nothing_else_changes():
    items = [item(f"q{n}", "query") for n in range(10)] + [item(n, "train", "database") for n in range(40)]
    drawn = check(with_roles(dataset(items), seed=5))
    assert drawn.items[:10] == tuple(items[:10])
    assert len(rows_of(drawn, "val", "database")) == 2
    assert len(rows_of(drawn, "train", "database")) == 38
    assert drawn.split_seed == 5
    assert drawn.split == "the data set's own; val drawn from seed 5"


def test_the_split_is_told_in_words():
    assert dataset([item("a", "query")]).split == "the data set's own"
    assert with_roles(dataset(item(n) for n in range(20)), seed=3).split == "drawn from seed 3"


def test_by_pairs_the_query_items_are_the_database():
    brought = dataset([item("a", "query"), item("b", "query"), item("c", "train", "database"), item("d", "database")])
    stored = replace(brought, sha256="of the stored items")
    data = check(by_pairs(stored))
    assert rows_of(data, "query", "database") == [0, 1]
    assert (rows_of(data, "train"), rows_of(data)) == ([2], [3])
    assert (data.relevance, data.sha256) == ("pairs", "of the stored items")
    assert by_pairs(data) == data
    assert stored.relevance == "labels"


def test_by_pairs_queries_that_lie_in_a_larger_database_stay_there():
    brought = dataset([item("a", "query", "database"), item("b", "database"), item("c", "train")])
    assert by_pairs(brought).items == brought.items


def test_a_relevance_is_chosen_by_name():
    labelled = dataset([item("a", "query"), item("b", "train", "database")])
    assert with_relevance(labelled, None) is with_relevance(labelled, "labels") is labelled
    paired = with_relevance(labelled, "pairs")
    assert paired == by_pairs(labelled) == with_relevance(paired, None)
    own = replace(labelled, relevance="pairs")
    assert with_relevance(own, "labels") == labelled
    for lost in (paired, replace(own, classes=())):
        with pytest.raises(UsageError, match="'test' has no labels: leave out `relevance`"):
            with_relevance(lost, "labels")
    with pytest.raises(UsageError, match="unknown relevance 'pair': did you mean pairs"):
        with_relevance(labelled, "pair")


@given(count=st.integers(1, 80), relevance=st.sampled_from(["labels", "pairs"]), seed=st.integers(0, 99))
def test_drawn_roles_keep_every_promise_at_any_size(count, relevance, seed):
    drawn = check(with_roles(dataset((item(n) for n in range(count)), relevance), seed))
    assert all(len(i.splits & {"query", "train", "val"}) <= 1 for i in drawn.items)
    if drawn.count("train") + drawn.count("val") > 1:
        assert drawn.count("train") >= 1
        assert drawn.count("val") >= 1


# ---------------------------------------------------------------------------------------------- facts


def test_languages_are_those_of_any_item_in_order():
    data = dataset(
        [item("a", texts={"en": ("x",)}), item("b", texts={"de": ("x",), "en": ("y",)}), item("c", texts={})]
    )
    assert data.languages == ("de", "en")


def test_only_what_is_missing_at_all_is_counted():
    items = [item("a"), item("b", texts={"en": ("x",), "de": ("y",)}), item("c", texts={"en": ("x",)})]
    assert common_missing(iter(items), ["de", "en"]) == {"items without de text": 2}
    assert common_missing([item("a", labels=())], ["en"]) == {"items without a label": 1}


# ---------------------------------------------------------------------------------------------- image paths


@pytest.mark.parametrize("image", ["../a.jpg", "images/../../a.jpg", "images/../a.jpg", "/etc/passwd", "images\\a.jpg"])
def test_an_image_path_that_could_leave_the_root_is_refused(tmp_path, image):
    with pytest.raises(DataError, match="leaves the data set's folder") as caught:
        resolve_image(tmp_path, image)
    assert str(tmp_path) in str(caught.value)


def test_a_link_out_of_the_root_is_refused_and_one_inside_is_followed(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "secret.jpg"
    root.mkdir()
    outside.write_bytes(b"x")
    (root / "real.jpg").write_bytes(b"x")
    (root / "out.jpg").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    (root / "in.jpg").symlink_to(root / "real.jpg")
    for image in ("out.jpg", "folder/secret.jpg"):
        with pytest.raises(DataError, match=f"'{image}' leaves the data set's folder by a symbolic link: {root}: "):
            resolve_image(root, image)
    assert resolve_image(root, "in.jpg").read_bytes() == b"x"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A data set's folder with links to everywhere, beside one that must not be reached."""
    base = tmp_path_factory.mktemp("tree")
    for name in ("root/a/b", "outside"):
        (base / name).mkdir(parents=True)
    for name in ("root/x.jpg", "root/a/x.jpg", "outside/x.jpg"):
        (base / name).write_bytes(b"x")
    for name, target in {
        "in": "a",
        "out": "../outside",
        "up": "..",
        "root": "/",
        "loop": "loop",
        "here": ".",
        "a/out.jpg": "../../outside/x.jpg",
        "a/up": "../in/../..",
        "hop": "loop/../../outside",
    }.items():
        (base / "root" / name).symlink_to(target)
    return base / "root"


STEP = st.sampled_from([*"a b in out up root loop here hop x.jpg out.jpg .. . ~ /".split(), "", "\\", "\0", "..\\"])
PATH = st.lists(STEP | st.text(st.characters(exclude_categories=()), max_size=3), max_size=6).map("/".join)


@given(PATH)
@settings(max_examples=500, deadline=None)
def test_no_string_leads_out_of_the_root(tree, image):
    try:
        path = resolve_image(tree, image)
    except DataError as error:
        assert "\n" not in str(error)
        return
    real = os.path.realpath(path)
    assert real == os.path.realpath(tree) or real.startswith(os.path.realpath(tree) + os.sep)
    with contextlib.suppress(OSError, ValueError):
        assert path.stat().st_ino != (tree.parent / "outside" / "x.jpg").stat().st_ino


def test_a_root_that_is_itself_a_link_is_fine(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert resolve_image(tmp_path / "link", "a/b.jpg") == tmp_path / "link" / "a" / "b.jpg"


def test_a_link_that_points_at_itself_leads_nowhere(tmp_path):
    """One broken photo: no reason to refuse the others."""
    os.symlink(tmp_path / "loop.jpg", tmp_path / "loop.jpg")
    assert resolve_image(tmp_path, "loop.jpg") == tmp_path / "loop.jpg"
    os.symlink(tmp_path / "loop.jpg" / ".." / ".." / "x", tmp_path / "out.jpg")
    with pytest.raises(DataError, match=r"out\.jpg"):
        resolve_image(tmp_path, "out.jpg")


@pytest.mark.faults("hostile file")
def test_many_images_are_checked_as_single_ones(tmp_path):
    """Of a folder that is a link out of the root, one photo that links back in passes and its neighbour does not."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "in", outside):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(b"")
    (root / "there").symlink_to(outside)
    (outside / "back.jpg").symlink_to(root / "in/a.jpg")
    (root / "in/out.jpg").symlink_to(outside / "a.jpg")
    (root / "in/loop.jpg").symlink_to("loop.jpg")
    good = ["in/a.jpg", "in/b.jpg", "there/back.jpg", "c.jpg", "in/loop.jpg", "./in/a.jpg", "in//a.jpg", "in/.", ""]
    bad = ["there/a.jpg", "/in/a.jpg", "/a.jpg", "in/out.jpg", "../root/in/a.jpg", "in/..", "in\\a.jpg", "a\0.jpg"]
    below = ImagesBelow(root)
    refused = pytest.raises(DataError, match="leaves the data set's folder")
    for image in (good + bad) * 2 + (bad + good) * 2:
        for resolve in (below.check, lambda image: resolve_image(root, image)):
            with refused if image in bad else contextlib.nullcontext():
                assert Path(resolve(image)) == root / image
