"""The Flickr readers on small trees, one for every form that the captions go round in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import karpathy, put

from cmrhash.data.items import check, with_roles
from cmrhash.data.readers.flickr import read_flickr8k, read_flickr30k
from cmrhash.data.recognise import recognise
from cmrhash.errors import CmrhashError, DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Karpathy's file and eight photos, one of them missing and one that has no captions."""
    put(tmp_path / "dataset_flickr30k.json", karpathy())
    for n in (0, 1, 2, 3, 4, 5, 6, 99):
        put(tmp_path / "flickr30k-images" / f"{n}.jpg")
    return tmp_path


def test_karpathys_captions_and_split(root: Path) -> None:
    dataset = check(read_flickr30k(root))
    assert (dataset.name, dataset.relevance, dataset.classes) == ("flickr30k", "pairs", ())
    assert [item.id for item in dataset.items] == [str(n) for n in range(8)]
    assert dataset.items[2].texts == {"en": ("A dog, number 2.", "A dög.")}
    assert dataset.items[2].image == "flickr30k-images/2.jpg"
    roles = [{"train"}, {"train"}, {"val"}, {"query", "database"}]
    assert [set(item.splits) for item in dataset.items] == roles * 2
    assert with_roles(dataset, 0) is dataset
    assert dataset.found == {
        "items": 8,
        "images": 7,
        "en texts": 8,
        "photos without captions": 1,
        "items without an image": 1,
    }


@pytest.mark.parametrize("form", ["{split}.{n}.de", "{split}.de.{n}"])
def test_german_captions_are_joined_by_the_photos_name(root: Path, form: str) -> None:
    put(root / "multi30k/train_images.txt", "4.jpg\n0.jpg#2\nother.jpg\n")
    put(root / "multi30k/train.de", "Vier\u0085vier.\r\nNull.\nAndere.\n")
    put(root / "multi30k/test_images.txt", "3.jpg\n")
    for n in (1, 2, 5):
        put(root / "multi30k" / form.format(split="test", n=n), f"Drei {n}." if n != 2 else "\n")
    dataset = check(read_flickr30k(root))
    german = {item.id: item.texts["de"] for item in dataset.items if "de" in item.texts}
    assert german == {"0": ("Null.",), "3": ("Drei 1.", "Drei 5."), "4": ("Vier vier.",)}
    assert dataset.found["de texts"] == 3
    assert dataset.found["items without de text"] == 5
    assert dataset.found["German captions of other photos"] == 1


def test_german_captions_that_do_not_fit_the_photos_are_refused(root: Path) -> None:
    put(root / "multi30k/val_images.txt", "2.jpg\n6.jpg\n")
    put(root / "multi30k/val.de", "Zwei.\n")
    with pytest.raises(DataError, match=r"1 captions for the 2 photos of val_images\.txt: .*val\.de: "):
        read_flickr30k(root)
    (root / "multi30k/val_images.txt").unlink()
    with pytest.raises(DataError, match=r"no file 'val_images\.txt'"):
        read_flickr30k(root)


CAPTIONS = [
    ("flickr30k", "results_20130124.token", "a.jpg#0\tA dog .\na.jpg#1\tA \u2028cat, | here\n\nb.jpg#0\tA tree\n"),
    ("flickr8k", "Flickr8k.token.txt", "a.jpg#0\tA dog .\r\na.jpg#1\tA cat, | here\r\nb.jpg#0\tA tree\r\n"),
    (
        "flickr30k",
        "results.csv",
        "image_name| comment_number| comment\na.jpg| 0| A dog .\na.jpg| 1| A cat, | here\nb.jpg| 4   A tree\n",
    ),
    ("flickr8k", "captions.txt", 'image,caption\na.jpg,A dog .\na.jpg,"A cat, | here"\nb.jpg,A tree\n'),
    ("flickr8k", "captions.txt", "a.png,A dog .\na.png,A cat, | here\nb.png,A tree\n"),
    (
        "flickr30k",
        "captions.txt",
        'image_name,comment_number,comment\na.jpg,0,A dog .\na.jpg, 1,"A cat, | here"\nb.jpg,0,A tree\n',
    ),
    (
        "flickr30k",
        "results.csv",
        '\ufeff"image_name","n","comment"\na.jpg,0,A dog .\na.jpg,1,A cat, | here\nb.jpg,0,A tree',
    ),
    ("flickr8k", "captions.csv", 'comment;image\nA dog .;a.PNG\n"A cat, | here";a.PNG\nA tree;b.png\n'),
]


@pytest.mark.parametrize(("name", "file", "content"), CAPTIONS)
def test_captions_without_a_split(name: str, file: str, content: str, tmp_path: Path) -> None:
    put(tmp_path / file, content)
    dataset = check((read_flickr30k if name == "flickr30k" else read_flickr8k)(tmp_path))
    assert dataset.name == name
    assert {item.id: item.texts["en"] for item in dataset.items} == {
        "a": ("A dog .", "A cat, | here"),
        "b": ("A tree",),
    }
    assert not any(item.splits or item.image for item in dataset.items)


HUB = """raw,sentids,split,filename,img_id
"[""A dog ."", ""A \\""big\\"" cat, here""]","[0, 1]",train,1.jpg,0
"['It is a dog', '']","[2]",restval,2.jpg,1
"[""A tree""]","[3]",val,3.jpg,2
"[""A house""]","[4]",test,4.jpg,3
"[]","[5]",,5.jpg,4
"""


def test_the_hubs_table_has_lists_of_captions_and_karpathys_split(tmp_path: Path) -> None:
    put(tmp_path / "flickr_annotations_30k.csv", HUB)
    dataset = check(read_flickr30k(tmp_path))
    assert {item.id: item.texts.get("en") for item in dataset.items} == {
        "1": ("A dog .", 'A "big" cat, here'),
        "2": ("It is a dog",),
        "3": ("A tree",),
        "4": ("A house",),
        "5": None,
    }
    roles = [{"train"}, {"train"}, {"val"}, {"query", "database"}, set()]
    assert [set(item.splits) for item in dataset.items] == roles
    assert recognise(tmp_path).dataset == "flickr30k"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("restval", "rest", r"line 3 gives the split 'rest': .*: use train, restval, val, test"),
        ("2.jpg", "", "line 3 names no photo"),
        ("filename", "name of it", "no column of photos"),
        ("raw", "words", "no column of texts"),
        ("raw", "raw_de", "no column of photos or of English captions"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    put(tmp_path / "flickr_annotations_30k.csv", HUB.replace(old, new))
    with pytest.raises(DataError, match=message):
        read_flickr30k(tmp_path)


@pytest.mark.parametrize("folder", ["Images", "IMAGES", "flicker8k_dataset", "Flickr8k_Dataset"])
def test_photos_lie_in_a_folder_of_that_name_in_any_case(tmp_path: Path, folder: str) -> None:
    put(tmp_path / "captions.txt", "image,caption\na.jpg,A dog\n")
    put(tmp_path / folder / "a.jpg")
    assert read_flickr8k(tmp_path).items[0].image == f"{folder}/a.jpg"


def test_photos_of_another_form_stand_where_there_is_no_jpeg(tmp_path: Path) -> None:
    put(tmp_path / "captions.txt", "image,caption\na.png,A dog\nb.jpg,A cat\nc.jpg,A tree\n")
    for name in ("a.png", "b.JPG", "b.png", "c.webp", "d.png", "notes.md"):
        put(tmp_path / "images" / name)
    dataset = read_flickr8k(tmp_path)
    assert [item.image for item in dataset.items] == ["images/a.png", "images/b.JPG", "images/c.webp"]
    assert dataset.found["files that are none of the data set's"] == 3


def test_captions_txt_beside_the_photos_of_flickr30k_is_its_own(tmp_path: Path) -> None:
    put(tmp_path / "captions.txt", "image_name,comment_number,comment\n1.jpg,0,A dog\n")
    assert recognise(tmp_path).dataset == "flickr8k"
    put(tmp_path / "flickr30k_images/1.jpg")
    assert recognise(tmp_path).dataset == "flickr30k"


def test_roles_are_drawn_where_there_is_no_split(tmp_path: Path) -> None:
    put(tmp_path / "Flickr8k.token.txt", "".join(f"{n}.jpg#0\tA dog {n}\n" for n in range(20)))
    for n in range(20):
        put(tmp_path / "Flicker8k_Dataset" / f"{n}.jpg")
    drawn = check(with_roles(read_flickr8k(tmp_path), seed=0))
    assert [drawn.count(role) for role in ("query", "database", "train", "val")] == [2, 2, 17, 1]


@pytest.mark.parametrize(
    ("text", "caption"), [('"a ""b"" c"', 'a "b" c'), ('"a" and "b"', '"a" and "b"'), ('"', '"'), ("", None)]
)
def test_quotes_of_the_file_are_no_part_of_the_caption(text: str, caption: str | None, tmp_path: Path) -> None:
    put(tmp_path / "captions.txt", f"image,caption\na.jpg,{text}\n")
    assert read_flickr8k(tmp_path).items[0].texts == ({} if caption is None else {"en": (caption,)})


def test_a_line_that_is_no_caption_is_named(tmp_path: Path) -> None:
    put(tmp_path / "Flickr8k.token.txt", "a.jpg#0\tA dog\na.jpg A cat\n")
    with pytest.raises(DataError, match=r"line 2 is not a photo's name and a caption: 'a\.jpg A cat'"):
        read_flickr8k(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"images": [1]}',
        '{"images": 3}',
        "[" * 100_000,
        karpathy().replace("restval", "rest"),
        '{"images": [], "images": []}',
    ],
)
def test_another_json_is_refused_in_one_line(root: Path, content: str) -> None:
    put(root / "dataset_flickr30k.json", content)
    with pytest.raises(DataError, match="not the JSON of Karpathy's splits") as caught:
        read_flickr30k(root)
    assert "\n" not in str(caught.value)


def test_a_photo_that_stands_there_twice_is_refused(root: Path) -> None:
    put(root / "dataset_flickr30k.json", karpathy().replace('"5.jpg"', '"4.jpg"'))
    with pytest.raises(DataError, match="1 photos are repeated"):
        read_flickr30k(root)


FILES = [
    "dataset_flickr30k.json",
    "results_20130124.token",
    "results.csv",
    "captions.txt",
    "flickr_annotations_30k.csv",
    "multi30k/val.de",
    "multi30k/val_images.txt",
]
pieces = st.sampled_from([b"a.jpg#0\t", b"a.jpg| 0| ", b"\n", b'{"images":[]}', b"\xff\xfe", b"\xed\xa0\x80"])


@given(st.sampled_from(FILES), st.lists(st.one_of(pieces, st.binary(max_size=9)), max_size=9).map(b"".join))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str, raw: bytes) -> None:
    root = tmp_path_factory.mktemp("any")
    if name.startswith("multi30k"):
        put(root / "dataset_flickr30k.json", karpathy())
        put(root / "multi30k/val_images.txt", "2.jpg\n")
        put(root / "multi30k/val.de", "Zwei\n")
    put(root / name, raw)
    try:
        check(with_roles(read_flickr30k(root), 0))
    except CmrhashError as error:
        assert "\n" not in str(error)
