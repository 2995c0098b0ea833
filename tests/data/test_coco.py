"""The reader of MS COCO on a small tree with the quirks of the real archives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import coco_json, put, write_coco

from cmrhash.data.items import check, with_relevance, with_roles
from cmrhash.data.readers import coco
from cmrhash.errors import CmrhashError, DataError, UsageError

CATEGORIES = {18: "dog", 1: "person", 90: "toothbrush ", 44: "-1"}
TRAIN, VAL = {100: "COCO_train2014_100.jpg", 9: "COCO_train2014_9.jpg"}, {30: "COCO_val2014_30.jpg", 7: "gone.jpg"}


def caption(number: int, text: str) -> dict[str, Any]:
    return {"image_id": number, "caption": text}


def thing(number: int, category: int) -> dict[str, Any]:
    outline = {"counts": [1, 2], "size": [3, 4]}
    return {"image_id": number, "category_id": category, "segmentation": outline, "iscrowd": 1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images of 2014, one without photo, one without object, one without caption."""
    first = [caption(9, f" Nine\u2028{k}.\n") for k in (4, 0, 3, 1, 2)]
    first[2:2] = [caption(100, "A h\u00fctte."), caption(9, " "), caption(55, "Nobody's."), caption(55, "Nobody's.")]
    put(tmp_path / "annotations/captions_train2014.json", coco_json(TRAIN, first, {}))
    put(tmp_path / "annotations/captions_val2014.json", "\ufeff" + coco_json(VAL, [caption(7, "Seven.")], {}))
    seen = [thing(9, 90), thing(9, 1), thing(9, 90), thing(100, 18), thing(100, 44), thing(100, 91), thing(56, 1)]
    put(tmp_path / "annotations/instances_train2014.json", coco_json(TRAIN, seen, CATEGORIES))
    put(tmp_path / "annotations/instances_val2014.json", coco_json(VAL, [thing(30, 1)], CATEGORIES))
    put(tmp_path / "annotations/person_keypoints_val2014.json", "no JSON")
    for name in ("train2014/COCO_train2014_100.JPG", "train2014/COCO_train2014_9.jpg", "train2014/Thumbs.db"):
        put(tmp_path / name)
    put(tmp_path / "val2014/COCO_val2014_30.jpg")
    put(tmp_path / "val2014/COCO_val2014_31.jpg")
    return tmp_path


def test_items_are_the_images_of_both_splits_by_ascending_id(root: Path) -> None:
    dataset = check(coco.read(root))
    assert (dataset.name, dataset.relevance, dataset.protocol) == ("coco", "labels", "database")
    assert [(item.id, item.image) for item in dataset.items] == [
        ("7", None),
        ("9", "train2014/COCO_train2014_9.jpg"),
        ("30", "val2014/COCO_val2014_30.jpg"),
        ("100", "train2014/COCO_train2014_100.JPG"),
    ]
    assert not any(item.splits for item in dataset.items)


def test_all_captions_stay_in_order(root: Path) -> None:
    texts = {item.id: item.texts for item in coco.read(root).items}
    assert texts["9"] == {"en": ("Nine 4.", "Nine 0.", "Nine 3.", "Nine 1.", "Nine 2.")}
    assert (texts["30"], texts["100"]) == ({}, {"en": ("A hütte.",)})


def test_labels_are_categories_ordered_by_number(root: Path) -> None:
    dataset = coco.read(root)
    assert dataset.classes == ("person", "dog", "toothbrush")
    assert {item.id: item.labels for item in dataset.items} == {"7": (), "9": (0, 2), "30": (0,), "100": (1,)}


def test_counts_what_is_there_and_what_is_missing(root: Path) -> None:
    assert coco.read(root).found == {
        "items": 4,
        "images": 3,
        "en texts": 3,
        "labelled items": 3,
        "classes": 3,
        "items without en text": 1,
        "items without a label": 1,
        "files that are none of the data set's": 1,
        "captions of unknown images": 2,
        "objects of unknown images": 1,
        "photos without an entry": 1,
        "labels of unknown categories": 1,
        "items without an image": 1,
    }


def test_roles_are_drawn_over_train_and_val(tmp_path: Path) -> None:
    write_coco(tmp_path)
    drawn = check(with_roles(coco.read(tmp_path), seed=0))
    assert [drawn.count(role) for role in ("query", "database", "train", "val")] == [3, 29, 15, 1]
    assert len(drawn.items[0].texts["en"]) == 5


@pytest.mark.parametrize("name", ["captions_val2014.json", "instances_val2014.json", "instances_train2014.json"])
def test_a_file_of_one_split_may_be_missing(root: Path, name: str) -> None:
    (root / "annotations" / name).unlink()
    dataset = check(coco.read(root))
    assert dataset.found[f"missing file {name}"] == 1
    assert [item.id for item in dataset.items] == ["7", "9", "30", "100"]
    assert [bool(item.texts) for item in dataset.items] == [name != "captions_val2014.json", True, False, True]


def test_captions_alone_give_pair_relevance(root: Path) -> None:
    for path in (root / "annotations").glob("instances_*"):
        path.unlink()
    dataset = check(coco.read(root))
    assert (dataset.relevance, dataset.classes) == ("pairs", ())
    assert "items without a label" not in dataset.found


def test_photos_may_be_missing(root: Path) -> None:
    (root / "train2014").rename(root / "elsewhere")
    assert coco.read(root).found["items without an image"] == 3


def test_captions_are_needed(root: Path) -> None:
    looked = "'captions_train2014.json' or 'captions_val2014.json'"
    for path in (root / "annotations").glob("captions_*"):
        path.unlink()
    with pytest.raises(DataError, match=rf"^no file {looked}: .*annotations: "):
        coco.read(root)
    (root / "annotations").rename(root / "elsewhere")
    with pytest.raises(DataError, match=rf"^no file {looked} or 'captions_train2017.json' or"):
        coco.read(root)


def test_captions_files_without_a_caption_are_refused(root: Path) -> None:
    put(root / "annotations/captions_train2014.json", coco_json(TRAIN, [], {}))
    put(root / "annotations/captions_val2014.json", coco_json(VAL, [], {}))
    with pytest.raises(DataError, match=r"^no captions in captions_\*2014\.json: "):
        coco.read(root)


def test_two_years_are_refused(root: Path) -> None:
    put(root / "annotations/instances_val2017.json", "")
    with pytest.raises(DataError, match=r"^annotation files of 2014 and 2017: .*: keep the files of one year"):
        coco.read(root)


WHOLE = coco_json(TRAIN, [caption(9, "Nine.")], {})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", r"the file ends too early"),
        (WHOLE[:-9], r"line 1 column"),
        ('{"images":' + "[" * 100_000, r"(recursion|overflow)"),
        ("[]", r"'{' is expected, found '\['"),
        ('{"images": [1]}', r"no list of objects 'images'"),
        ('{"images": []}', r"no list of objects 'annotations'"),
        (WHOLE.replace('"license": 3', '"id": 3'), r"key 'id' is repeated in an object"),
        (WHOLE.replace('"license": 3', '"id": 9, "id": 9', 1), r"key 'id' is repeated in an object"),
        (WHOLE.replace('"id": 100', '"id": "100"'), r"""'id' must be a whole number, found "100\""""),
        (WHOLE.replace('"id": 100', '"id": true'), r"'id' must be a whole number, found true"),
        (WHOLE.replace('"id": 100', '"id": NaN'), r"'id' must be a whole number, found NaN"),
        (WHOLE.replace('"caption"', '"text"'), r"'caption' must be a string, found null"),
        (WHOLE.replace('"id": 100', '"id": 9'), r"image 9 has two photos, 'train2014/COCO_train2014_100' and"),
    ],
)
def test_another_json_is_refused_with_its_reason(root: Path, content: str, reason: str) -> None:
    put(root / "annotations/captions_train2014.json", content)
    with pytest.raises(DataError, match=rf"^not COCO's JSON \(.*{reason}.*\): .*captions_train2014\.json: ") as caught:
        coco.read(root)
    assert "\n" not in str(caught.value)


def test_an_image_of_both_splits_is_refused(root: Path) -> None:
    put(root / "annotations/captions_val2014.json", coco_json({9: TRAIN[9]}, [], {}))
    with pytest.raises(DataError, match=r"image 9 has two photos, 'train2014/.*' and 'val2014/.*captions_val2014"):
        coco.read(root)


def test_a_category_of_two_names_is_refused(root: Path) -> None:
    put(root / "annotations/instances_val2014.json", coco_json(VAL, [], {18: "cat"}))
    with pytest.raises(DataError, match=r"category 18 is 'cat' here and 'dog' before"):
        coco.read(root)


def test_categories_of_one_name_are_one_class(root: Path) -> None:
    same = CATEGORIES | {44: "dog "}
    for split, photos in (("train", TRAIN), ("val", VAL)):
        seen = [thing(100, 44), thing(100, 18)] if split == "train" else []
        put(root / f"annotations/instances_{split}2014.json", coco_json(photos, seen, same))
    dataset = check(coco.read(root))
    assert (dataset.classes, dataset.items[-1].labels) == (("person", "dog", "toothbrush"), (1,))


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "a\\b.jpg"])
def test_names_that_leave_the_folder_are_refused(root: Path, name: str) -> None:
    put(root / "annotations/captions_train2014.json", coco_json({100: name}, [], {}))
    with pytest.raises(DataError, match="leaves the data set's folder"):
        coco.read(root)


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("name", ["val2014/COCO_val2014_30.jpg", "val2014", "annotations"])
def test_links_out_of_the_root_are_refused(root: Path, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("outside") / "moved"
    (root / name).rename(moved)
    (root / name).symlink_to(moved)
    with pytest.raises(DataError, match="leaves the data set's folder by a symbolic link"):
        coco.read(root)


def test_outlines_of_objects_are_dropped_while_parsing() -> None:
    whole = json.loads(coco_json(TRAIN, [thing(9, 1)], CATEGORIES), object_pairs_hook=coco._used)
    assert whole["annotations"] == [{"image_id": 9, "category_id": 1, "id": 0}]


# ---------------------------------------------------------------------------------------------- Karpathy's split


def karpathy_json(*photos: tuple[str, str]) -> str:
    """Karpathy's file: names and splits of photos, each with two captions."""
    images = [
        {
            "filepath": name[5:13],
            "filename": name,
            "cocoid": int(name[-7:-4]),
            "split": split,
            "sentences": [{"tokens": ["a"], "raw": f"{name[-7:-4]}, {k}.\n", "sentid": k} for k in range(2)],
        }
        for name, split in photos
    ]
    return json.dumps({"dataset": "coco", "images": images})


PHOTOS = (
    ("COCO_val2014_000000000030.jpg", "restval"),
    ("COCO_val2014_000000000007.jpg", "test"),
    ("COCO_train2014_000000000009.jpg", "train"),
    ("COCO_train2014_000000000100.jpg", "val"),
)


@pytest.mark.parametrize("place", ["dataset_coco.json", "annotations/dataset_coco.json"])
def test_karpathys_split_is_for_instance_retrieval_and_keeps_the_labels(root: Path, place: str) -> None:
    for name, _ in PHOTOS:
        put(root / name.split("_")[1] / name)
    put(root / place, karpathy_json(*PHOTOS))
    dataset = check(coco.read(root))
    assert dataset.relevance == "pairs"
    assert [(item.id, set(item.splits)) for item in dataset.items] == [
        ("7", {"query", "database"}),
        ("9", {"train"}),
        ("30", {"train"}),
        ("100", {"val"}),
    ]
    assert dataset.items[0].texts == {"en": ("007, 0.", "007, 1.")}
    assert dataset.items[0].image == "val2014/COCO_val2014_000000000007.jpg"
    assert with_roles(dataset, 0) is dataset
    labels = check(with_relevance(dataset, "labels"))
    assert (labels.relevance, labels.classes) == ("labels", ("person", "dog", "toothbrush"))
    assert [item.labels for item in labels.items if item.labels]
    for path in (root / "annotations").glob("instances_*"):
        path.unlink()
    with pytest.raises(UsageError, match="'coco' has no labels"):
        with_relevance(coco.read(root), "labels")


def test_karpathys_split_finds_photos_of_2017_and_of_one_folder_by_number(tmp_path: Path) -> None:
    put(tmp_path / "dataset_coco.json", karpathy_json(*PHOTOS))
    put(tmp_path / "val2017/000000000030.jpg")
    put(tmp_path / "images/COCO_val2014_000000000007.jpg")
    put(tmp_path / "images/000000000555.jpg")
    dataset = coco.read(tmp_path)
    assert [item.image for item in dataset.items] == [
        "images/COCO_val2014_000000000007.jpg",
        None,
        "val2017/000000000030.jpg",
        None,
    ]
    assert dataset.found == {
        "items": 4,
        "images": 2,
        "en texts": 4,
        "photos without an entry": 1,
        "items without an image": 2,
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (karpathy_json(*PHOTOS, PHOTOS[0]), "1 photos are repeated: .*dataset_coco.json: keep one entry"),
        (karpathy_json(*PHOTOS).replace("000000000030.jpg", "thirty.jpg"), r"photo 'COCO_val2014_thirty\.jpg' has no"),
        ('{"images": []}', "the data set has no items"),
        ('{"images": 1, "images": []}', r"Karpathy's splits \(ValueError: key 'images' is repeated"),
        ("{}", r"not the JSON of Karpathy's splits \(KeyError"),
    ],
)
def test_another_json_of_karpathy_is_refused(tmp_path: Path, content: str, words: str) -> None:
    put(tmp_path / "dataset_coco.json", content)
    with pytest.raises(DataError, match=words) as caught:
        check(coco.read(tmp_path))
    assert "\n" not in str(caught.value)


PHOTO = b'{"id":1,"file_name":"a.jpg"}'
pieces = st.sampled_from([b'{"images":[', b'],"annotations":[', b"]}", PHOTO, b"\xff\xfe", b"1"])


@given(st.lists(st.one_of(pieces, st.binary(max_size=9)), max_size=9).map(b"".join))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    root = tmp_path_factory.mktemp("any")
    put(root / "annotations/captions_val2014.json", coco_json(VAL, [caption(7, "Seven.")], {}))
    put(root / "annotations/captions_train2014.json", raw)
    try:
        check(with_roles(coco.read(root), 0))
    except CmrhashError as error:
        assert "\n" not in str(error)
