"""Changes of a data set since its extraction, on drawn and on own splits."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrhash.data.additions import merged, without
from cmrhash.data.changes import Changes, renewed
from cmrhash.data.description import BROUGHT, LATER
from cmrhash.data.items import ImageTextDataset, Item, with_roles
from cmrhash.data.manifest import keep, load, read_about
from cmrhash.errors import StaleError
from cmrhash.storage.files import write_json

COUNT = 40


def item(n, **fields):
    return replace(Item(f"i{n}", f"{n}.jpg", {"en": (f"caption {n}",)}, (n % 2,)), **fields)


def dataset(numbers=range(COUNT), relevance="labels", seed=0, **changed):
    """changed: "i3" -> fields of that item."""
    items = tuple(item(n, **changed.get(f"i{n}", {})) for n in numbers)
    plain = ImageTextDataset("mine", Path("nowhere"), items, ("a", "b"), relevance)
    return with_roles(plain, seed)


def splits(data):
    return {one.id: one.splits for one in data.items}


@pytest.mark.parametrize("relevance", ["labels", "pairs"])
@given(gone=st.sets(st.integers(0, COUNT - 1), max_size=5), new=st.integers(0, 5), moved=st.randoms())
def test_items_keep_their_drawn_splits_wherever_they_stand(tmp_path_factory, relevance, gone, new, moved):
    folder = tmp_path_factory.mktemp("kept")
    before = dataset(relevance=relevance)
    keep(before, folder)
    numbers = [n for n in range(COUNT + new) if n not in gone]
    moved.shuffle(numbers)
    now, changes = renewed(dataset(numbers, relevance), folder)
    assert [one.id for one in now.items] == [f"i{n}" for n in numbers]
    rest = frozenset({"database"} if relevance == "labels" else ())
    assert splits(now) == {f"i{n}": splits(before).get(f"i{n}", rest) for n in numbers}
    assert set(changes.new) == {f"i{n}" for n in range(COUNT, COUNT + new)}
    assert set(changes.gone) == {f"i{n}" for n in gone}
    assert (changes.changed, changes.same) == ((), COUNT - len(gone))
    assert now.added == new
    assert load(folder).items == before.items  # nothing is written yet
    keep(now, folder)
    again, none = renewed(dataset(numbers, relevance), folder)
    assert (again.items, again.added, none) == (now.items, new, Changes(same=len(numbers)))
    assert load(folder).items == now.items
    assert load(folder).split == "drawn from seed 0" + (f"; {new} items added since" if new else "")


def test_photos_alone_stay_the_database(tmp_path):
    bare = {f"i{n}": {"texts": {}, "labels": ()} for n in range(COUNT + 3)}
    keep(dataset(range(COUNT), "pairs", **bare), tmp_path)
    now, changes = renewed(dataset(range(COUNT + 3), "pairs", **bare), tmp_path)
    assert {one.splits for one in now.items} == {frozenset({"database"})}
    assert len(changes.new) == 3


def test_changed_items_are_named_and_keep_their_splits(tmp_path):
    before = dataset()
    keep(before, tmp_path)
    now, changes = renewed(
        dataset(i3={"texts": {"en": ("other",)}}, i5={"image": "x.jpg"}, i7={"labels": (0, 1)}), tmp_path
    )
    assert changes == Changes((), (), ("i3", "i5", "i7"), COUNT - 3)
    assert splits(now) == splits(before)
    assert str(changes) == f"3 changed (i3, i5, i7), {COUNT - 3} as before"


def test_own_splits_are_taken_as_they_are_now(tmp_path):
    own = {f"i{n}": {"splits": frozenset({"query"} if n < 5 else {"train", "database"})} for n in range(COUNT + 1)}
    before = dataset(**own)
    assert before.val_drawn
    keep(before, tmp_path)
    vals = {one.id for one in before.items if "val" in one.splits}
    moved = min(vals)
    now, changes = renewed(dataset(range(COUNT + 1), **{**own, moved: {"splits": frozenset({"database"})}}), tmp_path)
    assert {one.id for one in now.items if "val" in one.splits} == vals - {moved}
    assert splits(now)[moved] == {"database"}
    assert changes == Changes((f"i{COUNT}",), (), (moved,), COUNT - 1)
    assert now.added == 0


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (range(15), rf"25 of {COUNT} extracted items are gone \(i15, i16, i17, i18, i19, \.\.\.\).*another `name`"),
        (range(100, 140), f"{COUNT} of {COUNT} extracted items are gone"),
    ],
)
def test_a_data_set_of_which_most_is_gone_is_another_one(tmp_path, numbers, words):
    keep(dataset(), tmp_path)
    with pytest.raises(StaleError, match=words):
        renewed(dataset(numbers), tmp_path)
    assert renewed(dataset(numbers), tmp_path, overwrite=True)[1] == Changes()


def test_photos_that_are_gone_are_refused(tmp_path):
    keep(dataset(), tmp_path)
    with pytest.raises(StaleError, match=r"the photos of 2 items were there at the extraction and are gone \(i3, i5\)"):
        renewed(dataset(i3={"image": None}, i5={"image": None}), tmp_path)


def test_another_seed_and_no_query_left_are_refused(tmp_path):
    before = dataset()
    keep(before, tmp_path)
    with pytest.raises(StaleError, match="split_seed = 0, but this call has 1"):
        renewed(dataset(seed=1), tmp_path)
    queries = {one.id for one in before.items if "query" in one.splits}
    with pytest.raises(StaleError, match="all query items are gone"):
        renewed(dataset([n for n in range(COUNT) if f"i{n}" not in queries]), tmp_path)


# ---------------------------------------------------------------------------------------------- items that add brought


def grown(folder, *more):
    """The stored data set after ``add`` of these items."""
    stored = load(folder)
    items = tuple(item(n, splits=frozenset({"database"})) for n in more)
    keep(merged(stored, replace(stored, items=items, split_seed=None))[0], folder)


def test_brought_items_stay_or_go_as_the_caller_says(tmp_path):
    keep(dataset(), tmp_path)
    grown(tmp_path, 50, 51)
    before = load(tmp_path)
    words = r"2 items that `add` brought \(i50, i51\) would go, because nowhere.*keep them with `added=\"keep\"`"
    for overwrite in (False, True):
        with pytest.raises(StaleError, match=words):
            renewed(dataset(), tmp_path, overwrite)
    kept, changes = renewed(dataset(), tmp_path, added="keep")
    assert changes == Changes(same=COUNT + 2)
    assert (kept.items, kept.added, kept.brought) == (before.items, 2, {"i50", "i51"})
    kept, changes = renewed(dataset(range(COUNT + 1)), tmp_path, added="keep")
    assert changes == Changes((f"i{COUNT}",), (), (), COUNT + 2)
    assert (kept.added, kept.brought) == (3, {"i50", "i51"})
    keep(kept, tmp_path)
    assert load(tmp_path).brought == {"i50", "i51"}
    left, changes = renewed(dataset(range(COUNT + 1)), tmp_path, added="drop")
    assert changes.gone == ("i50", "i51")
    assert (left.added, left.brought, left.later) == (1, frozenset(), {f"i{COUNT}"})


def test_brought_items_that_the_data_set_has_by_now_are_its_own(tmp_path):
    keep(dataset(), tmp_path)
    grown(tmp_path, COUNT)
    now, changes = renewed(dataset(range(COUNT + 1)), tmp_path)
    assert (changes, now.brought, now.added) == (Changes(same=COUNT + 1), frozenset(), 1)


def test_removed_items_no_longer_count_as_added_since_the_drawing(tmp_path):
    keep(dataset(), tmp_path)
    grown(tmp_path, 50, 51, 52)
    keep(without(load(tmp_path), {"i51", "i3"}), tmp_path)
    assert load(tmp_path).split == "drawn from seed 0; 2 items added since"
    assert load(tmp_path).later == {"i50", "i52"}
    now, _ = renewed(dataset(range(COUNT + 3)), tmp_path, added="drop")
    assert now.added == 4  # i3 and three more


def test_a_collection_without_the_record_is_renewed_as_before(tmp_path):
    keep(dataset(), tmp_path)
    grown(tmp_path, 50, 51)
    about = read_about(tmp_path)
    write_json(tmp_path / "dataset.json", {key: about[key] for key in about if key not in (LATER, BROUGHT)})
    assert load(tmp_path).added == 2
    now, changes = renewed(dataset(), tmp_path)
    assert (changes.gone, now.added) == (("i50", "i51"), 2)


def test_a_damaged_folder_is_overwritten(tmp_path):
    keep(dataset(), tmp_path)
    grown(tmp_path, 50)
    (tmp_path / "items.jsonl").write_text("")
    assert renewed(dataset(), tmp_path, overwrite=True)[0] == dataset()
