"""Search of some items only: conditions on their fields, and a radius."""

import json
import sys

import numpy as np
import pytest
from small_searches import photo

from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.errors import UsageError
from cmrhash.search import finder
from cmrhash.search.filters import matching
from cmrhash.search.hasher import Hasher


@pytest.fixture
def dataset(tmp_path):
    rows = [  # id, image, captions, labels, splits
        ("a", "x/1.jpg", {"de": ("Hund",)}, (0,), {"train", "database"}),
        ("b", "x/2.jpg", {"en": ("dog",)}, (0, 1), {"query"}),
        ("c", "y/3.jpg", {"de": ("Baum",), "en": ("tree",)}, (2,), {"database"}),
        ("d", None, {"de": ("nichts",), "en": ()}, (), frozenset()),
    ]
    items = tuple(Item(*row[:4], frozenset(row[4])) for row in rows)
    return ImageTextDataset("toy", tmp_path, items, ("dog", "cat or fox", "tree"))


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ([], "abcd"),
        (["label=dog"], "ab"),
        (["label=dog", "split=train"], "a"),
        (["label!=dog"], "cd"),
        (["label=tree or split=query"], "bc"),
        (["label=tree or split=query", "label!=dog"], "c"),
        (["label=cat or fox"], "b"),
        (["label = cat or fox or label = tree"], "bc"),
        (["label=*o*"], "ab"),
        (["label=dog and not split=query"], "a"),
        (["not label=dog and not label=tree or lang=en and label=dog"], "bd"),
        (["not label!=dog"], "ab"),
        (["image=x/*"], "ab"),
        (["image!=*.jpg"], "d"),
        (["lang=en"], "bc"),
        (["lang=en", "lang!=de"], "b"),
        (["id=[ac]"], "ac"),
        (["id=a or id=d"], "ad"),
    ],
)
def test_items_meet_conditions(dataset, where, ids):
    kept = matching(dataset, where)
    assert kept.dtype == np.bool_
    assert "".join(item.id for item, is_kept in zip(dataset.items, kept, strict=True) if is_kept) == ids


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (["dog"], "where: 'dog' is no condition: write FIELD=VALUE"),
        (["label="], "'label=' is no condition"),
        (["=dog"], "'=dog' is no condition"),
        (["lable=dog"], "no field 'lable': did you mean label. choose one of id, image, label, split, lang"),
        (["label=dgo"], "no item has label=dgo: .*: did you mean dog. choose one of cat or fox, dog, tree"),
        (["label=z*"], r"no item has label=z\*"),
        (["split=test"], "no item has split=test"),
        (["lang=fr"], "no item has lang=fr"),
        (["id=zzz"], "no item has id=zzz"),
        (["label=dog", "label=tree"], "no item has label=dog and label=tree"),
    ],
)
def test_what_no_item_meets_is_refused_in_one_line(dataset, where, words):
    with pytest.raises(UsageError) as refused:
        matching(dataset, where)
    text = str(refused.value)
    assert "\n" not in text
    import re

    assert re.search(words.replace(": .*: ", ": .*"), text), text


# ---------------------------------------------------------------------------------------------- in a search


@pytest.mark.parametrize("rank", ["hamming", "asymmetric", "rerank"])
def test_a_search_of_some_items_is_the_whole_search_without_the_others(hasher, rank):
    label = hasher.dataset.classes[0]
    whole = hasher.search("Katze 5", lang="de", to="both", k=200, rank=rank)
    for where, holds in (
        (f"label={label}", lambda hit: label in hit.labels),
        ([f"label!={label}", "split=train"], lambda hit: label not in hit.labels and in_train(hasher, hit)),
    ):
        wanted = [(hit.id, hit.score, hit.modality) for hit in whole if holds(hit)]
        found = hasher.search("Katze 5", lang="de", to="both", k=200, rank=rank, where=where)
        assert [(hit.id, hit.score, hit.modality) for hit in found] == wanted
        assert 0 < len(wanted) < len(whole)
        few = hasher.search("Katze 5", lang="de", to="both", k=3, rank=rank, where=where)
        assert [(hit.id, hit.score, hit.modality) for hit in few] == wanted[:3]


def in_train(hasher, hit):
    return "train" in hasher.item(hit.id).splits


@pytest.mark.parametrize("radius", [0, 3, 6, 99])
@pytest.mark.parametrize("rank", ["hamming", "rerank:2", "asymmetric"])
def test_a_radius_gives_all_within_it_and_no_other(hasher, radius, rank):
    whole = hasher.search("dog 4", lang="en", k=200, rank=rank.partition(":")[0])
    wanted = [(hit.id, hit.score, hit.distance) for hit in whole if hit.distance <= radius]
    found = hasher.search("dog 4", lang="en", radius=radius, rank=rank)
    assert [(hit.id, hit.score, hit.distance) for hit in found] == wanted
    few = hasher.search("dog 4", lang="en", radius=radius, k=2, rank=rank)
    assert [(hit.id, hit.score, hit.distance) for hit in few] == wanted[:2]


def test_photos_by_features_and_items_can_be_narrowed_too(made, hasher):
    label = hasher.dataset.classes[0]
    for found in (
        hasher.search(photo(made, 3), rank="features", where=f"label={label}", k=40),
        hasher.search_item("i3", to="image", where=f"label={label}", k=40),
    ):
        assert {hit.id for hit in found} == {i.id for i in hasher.dataset.items if 0 in i.labels}
    within = hasher.search_item("i3", rank="features", radius=4)
    assert within
    assert all(hit.distance <= 4 for hit in within)


def test_indexes_of_some_items_are_kept_a_few_at_a_time(made):
    hasher = Hasher.load(made / "runs/manifest/triplet-16", made / "cache", device="cpu")
    code = hasher.views["image"].codes.packed[0]
    for n in range(finder.KEPT + 5):
        assert [hit.id for hit in hasher.search(code, where=f"id=i{n}")] == [f"i{n}"]
    assert len(hasher._finder._narrow) == finder.KEPT


def test_a_store_takes_conditions_and_a_radius(made, hasher, tmp_path):
    from cmrhash.search.publish import deploy
    from cmrhash.search.stores import open_store

    deploy(hasher.run, hasher.dataset, hasher.views, open_store(f"faiss:{tmp_path}"))
    stored = Hasher.load(made / "runs/manifest/triplet-16", made / "cache", store=f"faiss:{tmp_path}")
    assert stored.search_item("i3", where="split=train") == hasher.search_item("i3", where="split=train")
    for how in ({"radius": 6}, {"radius": 6, "k": 2}, {"radius": 0}, {"radius": 99, "where": "split=train"}):
        for rank in ("hamming", "rerank", "asymmetric"):
            assert stored.search_item("i3", rank=rank, **how) == hasher.search_item("i3", rank=rank, **how)
    with pytest.raises(UsageError, match="radius must be a whole number"):
        stored.search_item("i3", radius=-1)


@pytest.mark.parametrize("radius", [-1, True, 2.5, "3"])
def test_a_radius_is_a_whole_number(hasher, radius):
    with pytest.raises(UsageError, match="radius: radius must be a whole number of at least 0"):
        hasher.search_item("i3", radius=radius)


def test_the_command_takes_conditions_and_a_radius(made, hasher, monkeypatch, capsys):
    from cmrhash_cli.main import main

    monkeypatch.chdir(made)

    def command(*args):
        monkeypatch.setattr(sys, "argv", ["cmrhash", "search", "--id", "i3", *args, "--json"])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    label = hasher.dataset.classes[0]
    where = ("--where", f"label={label}", "--where", "split=train or split=val")
    results = json.loads(command(*where, "--to", "image", "--k", "50")[1])["results"]
    wanted = [i.id for i in hasher.dataset.items if 0 in i.labels and i.splits & {"train", "val"}]
    assert sorted(hit["id"] for hit in results) == sorted(wanted)
    assert len(json.loads(command("--to", "image")[1])["results"]) == 10
    within = json.loads(command("--to", "image", "--radius", "16")[1])["results"]
    assert len(within) == 40
    code, out, err = command("--where", "lable=x")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: --where: no field 'lable'")
