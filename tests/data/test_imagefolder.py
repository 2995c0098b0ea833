"""The reader of Hugging Face's imagefolder on small trees, one for every form that it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trees import put

from cmrhash.data.items import ImageTextDataset, Item, check, with_relevance, with_roles
from cmrhash.data.readers import imagefolder
from cmrhash.errors import DataError


def photos(root: Path, *names: str) -> Path:
    for name in names:
        put(root / name)
    return root


def by_id(dataset: ImageTextDataset) -> dict[str, Item]:
    return {item.id: item for item in check(dataset).items}


def labels(dataset: ImageTextDataset) -> dict[str, list[str]]:
    return {item.id: [dataset.classes[n] for n in item.labels] for item in dataset.items}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A table at the root, with the quirks of tables that people write."""
    photos(tmp_path, "a.jpg", "sub/b.PNG", "sub/c.jpg", "lone.jpg", ".cache/x.jpg")
    rows = [
        "\ufefffile_name,text,text_de,label,width",
        'a.jpg,"A dog,\nrunning.",Ein Hund., dog ,640',
        "a.jpg,The same dog.,,dog,640",
        "sub\\b.png,A cat.,,NaN,",
        './sub/c.jpeg," ",,"[""cat"", ""tree "", -1]",',
        "gone.jpg,A ghost.",
        "",
    ]
    put(tmp_path / "metadata.csv", "\r\n".join(rows))
    return tmp_path


def test_rows_give_captions_and_labels(root: Path) -> None:
    dataset = imagefolder.read(root)
    items = by_id(dataset)
    assert list(items) == ["a", "gone", "lone", "sub/b", "sub/c"]
    assert items["a"].texts == {"en": ("A dog, running.", "The same dog."), "de": ("Ein Hund.",)}
    assert (items["sub/b"].image, items["sub/b"].texts) == ("sub/b.PNG", {"en": ("A cat.",)})
    assert (items["sub/c"].image, items["sub/c"].texts) == ("sub/c.jpg", {})
    assert (items["gone"].image, items["gone"].texts) == (None, {"en": ("A ghost.",)})
    assert labels(dataset) == {"a": ["dog"], "gone": [], "lone": [], "sub/b": [], "sub/c": ["cat", "tree"]}


def test_counts_what_is_there_and_what_is_missing(root: Path) -> None:
    assert imagefolder.read(root).found == {
        "items": 5,
        "images": 4,
        "de texts": 1,
        "en texts": 3,
        "labelled items": 2,
        "classes": 3,
        "items without de text": 4,
        "items without en text": 2,
        "items without a label": 3,
        'columns not used (width; `maps=("ROLE=COLUMN",)` uses one)': 1,
        "photos without a row": 1,
        "items without an image": 1,
    }


def test_a_table_per_split_and_its_roles(tmp_path: Path) -> None:
    for split in ("Train", "validation", "test"):
        photos(tmp_path, *(f"{split}/{n}.jpg" for n in range(3)))
        lines = [{"file_name": f"{n}.jpg", "captions": [f"{split} {n}", "more"], "label": n % 2} for n in range(3)]
        put(tmp_path / split / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    photos(tmp_path, "stray.jpg")
    dataset = with_roles(imagefolder.read(tmp_path), seed=0)
    items = by_id(dataset)
    assert items["Train/1"].splits == {"train", "database"}
    assert items["validation/1"].splits == {"val", "database"}
    assert items["test/1"].splits == {"query"}
    assert items["test/1"].texts == {"en": ("test 1", "more")}
    assert (dataset.classes, dataset.split) == (("0", "1"), "the data set's own")
    assert (items["stray"].splits, dataset.found["items outside the split folders"]) == (set(), 1)


def test_without_test_validation_is_query(tmp_path: Path) -> None:
    photos(tmp_path, *(f"data/train/{kind}/{n}.jpg" for kind in "xy" for n in range(4)), "data/val/x/9.jpg")
    dataset = with_roles(imagefolder.read(tmp_path), seed=0)
    assert [dataset.count(role) for role in ("query", "database", "train", "val")] == [1, 8, 7, 1]
    assert dataset.classes == ("x", "y")


@pytest.mark.parametrize("folders", [("train",), ("test",), ("test", "validation"), ("x",)])
def test_folders_that_make_no_split_leave_the_roles_to_the_seed(folders: tuple[str, ...], tmp_path: Path) -> None:
    photos(tmp_path, *(f"{folder}/{n}.jpg" for folder in folders for n in range(3)))
    assert not any(item.splits for item in imagefolder.read(tmp_path).items)


def test_class_folders_are_labels_only_without_a_table(tmp_path: Path) -> None:
    photos(tmp_path, "train/dog/1.jpg", "train/big/cat /2.jpg", "test/dog/3.jpg", "test/-1/4.jpg", "train/5.jpg")
    dataset = imagefolder.read(tmp_path)
    assert labels(dataset) == {
        "test/-1/4": [],
        "test/dog/3": ["dog"],
        "train/5": [],
        "train/big/cat /2": ["cat"],
        "train/dog/1": ["dog"],
    }
    put(tmp_path / "metadata.csv", "file_name,text\ntrain/dog/1.jpg,A dog.\n")
    dataset = imagefolder.read(tmp_path)
    assert (dataset.relevance, dataset.classes, dataset.found["photos without a row"]) == ("pairs", (), 4)


def test_one_folder_for_all_is_no_class(tmp_path: Path) -> None:
    dataset = imagefolder.read(photos(tmp_path, "train/images/1.jpg", "test/images/2.jpg"))
    assert (dataset.relevance, dataset.classes) == ("pairs", ())


def test_pair_relevance_makes_the_queries_the_database(tmp_path: Path) -> None:
    photos(tmp_path, "train/1.jpg", "train/2.jpg", "test/3.jpg")
    put(tmp_path / "metadata.csv", "file_name,text\ntrain/1.jpg,a\ntrain/2.jpg,b\ntest/3.jpg,c\n")
    dataset = with_relevance(with_roles(imagefolder.read(tmp_path), seed=0), None)
    assert by_id(dataset)["test/3"].splits == {"query", "database"}
    assert [dataset.count(role) for role in ("database", "train", "val")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("header", "texts"),
    [
        ("caption_0,caption_1", {"en": ("x", "y")}),
        ("text.de,Caption", {"de": ("x",), "en": ("y",)}),
        ("description,text", {"en": ("y",)}),
        ("text_de_1,text_de_2", {"de": ("x", "y")}),
        ("sentence,text_id", {"en": ("x",)}),
        ("context,text_len", {}),
    ],
)
def test_columns_of_captions(header: str, texts: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
    put(photos(tmp_path, "a.jpg") / "metadata.csv", f"file_name,{header}\na.jpg,x,y\n")
    [item] = imagefolder.read(tmp_path).items
    assert item.texts == texts


def test_doubled_stems_keep_their_rows_apart(tmp_path: Path) -> None:
    put(photos(tmp_path, "a.jpg", "a.png") / "metadata.csv", "file_name,text\na.jpg,one\na.gif,none\n")
    items = by_id(imagefolder.read(tmp_path))
    assert items["a.jpg"].texts == {"en": ("one",)}
    assert items["a.png"].texts == {"en": ("none",)}  # the only photo of that stem that has no row


def test_several_photos_in_question_are_none(tmp_path: Path) -> None:
    put(photos(tmp_path, "a.jpg", "a.png", "b.jpg") / "metadata.csv", "file_name,text\nb.jpg,one\na.gif,none\n")
    items = by_id(imagefolder.read(tmp_path))
    assert {name: item.image for name, item in items.items()} == {
        "a.gif": None,
        "a.jpg": "a.jpg",
        "a.png": "a.png",
        "b": "b.jpg",
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["metadata.csv", "Metadata.JSONL"])
def test_encodings(name: str, encoding: str, tmp_path: Path) -> None:
    row = '{"file_name": "a.jpg", "text": "Grün"}' if "J" in name else "file_name,text\r\na.jpg,Grün\r\n"
    put(photos(tmp_path, "a.jpg") / name, row, encoding)
    [item] = imagefolder.read(tmp_path).items
    assert item.texts == {"en": ("Grün",)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "csv",
            "filename,text\na.jpg,x\n",
            r"no column file_name .*filename, text.*did you mean filename\?",
        ),
        ("csv", "", "the table has no columns"),
        ("csv", "file_name,text\n", "the table has no rows"),
        ("jsonl", "", "the table has no columns"),
        (
            "csv",
            "file_name,text\na.jpg,x, y\n",
            "line 2 has 3 fields, the table has 2 columns.*put quotes around fields",
        ),
        ("csv", 'file_name,text\na.jpg,"x\n', "line 2 opens a quote that is never closed"),
        ("csv", b"file_name,text\na.jpg,caf\xe9\n", "line 2 is not UTF-8.*save the table as UTF-8"),
        ("csv", b"\xff\xfefil", "not UTF-16"),
        ("csv", "file_name,text\n ,x\n", "line 2 holds no path of a photo in file_name"),
        ("csv", "file_name,text\n../a.jpg,x\n", "leaves the data set's folder"),
        ("csv", "file_name,text\n/a.jpg,x\n", "leaves the data set's folder"),
        ("csv", "file_name,text\nz/a.jpg,x\n", r"none of the 1 photos of file_name exists, such as z/a\.jpg"),
        ("jsonl", '{"file": "a.jpg"}', r"no column file_name"),
        ("jsonl", '{"file_name": "a.jpg"}\n{"text": "x"}', "line 2 holds no path of a photo in file_name"),
        ("jsonl", '{"file_name": "a.jpg"}\n[1]', "line 2 cannot be read .no JSON object"),
        ("jsonl", '{"file_name": "a.jpg", "text": "a", "text": "b"}', "line 1 cannot be read .key 'text' is repeated"),
        ("jsonl", '{"file_name": "a.jpg", "text": {"a": 5}}', "line 1 holds an object"),
        ("jsonl", '{"file_name": ["a.jpg"]}', "line 1 holds a list"),
        ("jsonl", '{"file_name": "a.jpg", "label": {"a": 1}}', "line 1 holds an object"),
        ("jsonl", "[" * 100_000, "line 1 cannot be read"),
    ],
)
def test_bad_tables_are_one_line(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    put(photos(tmp_path, "a.jpg") / f"metadata.{name}", content)
    with pytest.raises(DataError, match=message) as caught:
        imagefolder.read(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason='needs pip install "cmrhash[parquet]"')
    from pyarrow import parquet

    columns = {"file_name": ["a.jpg", "b.jpg"], "text_de": ["Ein Hund.", None], "labels": [["dog", "-1"], []]}
    parquet.write_table(pyarrow.table(columns), photos(tmp_path, "a.jpg", "b.jpg") / "metadata.parquet")
    dataset = imagefolder.read(tmp_path)
    assert [item.texts for item in dataset.items] == [{"de": ("Ein Hund.",)}, {}]
    assert labels(dataset) == {"a": ["dog"], "b": []}


def test_two_tables_in_one_folder_are_refused(root: Path) -> None:
    put(root / "metadata.jsonl", '{"file_name": "a.jpg"}')
    with pytest.raises(DataError, match=r"two tables in one folder.*remove one of them"):
        imagefolder.read(root)


def test_a_table_without_photos_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "metadata.csv", "file_name,text\na.jpg,x\n")
    with pytest.raises(DataError, match="no photo"):
        imagefolder.read(tmp_path)


@pytest.mark.faults("hostile file")
def test_a_link_out_of_the_root_is_left_out_and_refused_in_a_table(tmp_path: Path) -> None:
    put(photos(tmp_path / "root", "a.jpg") / "metadata.csv", "file_name,text\na.jpg,x\n")
    put(tmp_path / "b.jpg")
    (tmp_path / "root/b.jpg").symlink_to(tmp_path / "b.jpg")
    assert [item.id for item in imagefolder.read(tmp_path / "root").items] == ["a"]
    put(tmp_path / "root/metadata.csv", "file_name,text\nb.jpg,x\n")
    with pytest.raises(DataError, match="leaves the data set's folder by a symbolic link: .*: use `follow_links=True`"):
        imagefolder.read(tmp_path / "root")
