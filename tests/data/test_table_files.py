"""Files of tables in every format and encoding, and the photos that they name."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import put, write_table

from cmrhash.config import ExtractConfig
from cmrhash.data import parquet_file
from cmrhash.data.catalog import read_dataset
from cmrhash.data.items import ImageTextDataset, check, with_roles
from cmrhash.data.readers import table
from cmrhash.data.tables import open_table
from cmrhash.errors import CmrhashError, DataError, UsageError

ROWS = [
    {"image": "a.jpg", "caption": 'A "big" dog;\nit runs, | fast', "label": "dog"},
    {"image": "b.jpg", "caption": "Ein Käfer\u2028x", "label": "bug"},
]


def written(rows: list[dict[str, str]], delimiter: str = ",", end: str = "\n") -> str:
    """Rows as CSV with every field quoted."""
    fields = [list(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(delimiter.join('"' + f.replace('"', '""') + '"' for f in row) + end for row in fields)


def read(root: Path, content: str | bytes, *photos: str, name: str = "data.csv") -> ImageTextDataset:
    put(root / name, content)
    for photo in photos or ("a.jpg", "b.jpg"):
        put(root / photo)
    return check(table.read(root / name))


def expected(root: Path) -> ImageTextDataset:
    return read(root, written(ROWS))


# ---------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", ", "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_and_quoted_newlines(tmp_path: Path, delimiter: str, end: str) -> None:
    dataset = read(tmp_path, written(ROWS, delimiter, end))
    assert dataset == expected(tmp_path)
    assert dataset.items[0].texts == {"en": ('A "big" dog; it runs, | fast',)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
def test_encodings_with_a_mark_and_utf8(tmp_path: Path, encoding: str, name: str) -> None:
    content = written(ROWS) if name == "data.csv" else "\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS)
    assert read(tmp_path, content.encode(encoding), name=name).items == expected(tmp_path).items


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.jsonl"])
def test_another_encoding_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"^line 3 is not UTF-8: .*: save the table as UTF-8$"):
        read(tmp_path, b"image,caption\n" * 2 + b"a.jpg,K\xe4fer\n" if "j" not in name else b"\n\n\xe4", name=name)


def test_a_cut_utf16_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is not UTF-16"):
        read(tmp_path, written(ROWS).encode("utf-16")[:-1])


def test_columns_of_json_lines_may_come_late_and_lack(tmp_path: Path) -> None:
    rows = ['{"image": "a.jpg", "text": "x"}', "", '{"label": "cat", "image": "b.jpg"}']
    dataset = read(tmp_path, "\n".join(rows), name="data.ndjson")
    assert [(item.id, item.labels, bool(item.texts)) for item in dataset.items] == [
        ("a.jpg", (), True),
        ("b.jpg", (0,), False),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", r"line 2 cannot be read \(no JSON object\)"),
        ('{"image": "a.jpg", "image": "b.jpg"}', r"line 2 cannot be read \(key 'image' is repeated in an object\)"),
        ("{", "line 2 cannot be read"),
        ('{"image": ["a.jpg"]}', "line 2: column 'image' holds a list"),
        ('{"text": {"en": "x"}}', "line 2: column 'text' holds an object"),
    ],
)
def test_json_lines_that_cannot_be_used_are_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, '{"image": "a.jpg", "text": "x"}\n' + line, name="data.jsonl")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason='needs pip install "cmrhash[parquet]"')
    from pyarrow.parquet import write_table as write

    rows = [{"image": row["image"], "captions": [row["caption"]], "label": [row["label"]], "n": 1} for row in ROWS]
    write(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet", row_group_size=1)
    dataset = read(tmp_path, (tmp_path / "data.parquet").read_bytes(), name="data.parquet")
    assert dataset.items == expected(tmp_path).items
    with pytest.raises(DataError, match="^unreadable"):
        read(tmp_path, b"PAR1", name="data.parquet")


def test_parquet_without_pyarrow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r'^Parquet needs pyarrow, .*: pip install "cmrhash\[parquet\]"$'):
        parquet_file.columns(tmp_path / "data.parquet")


def test_bare_delimiters_in_a_last_column_of_captions_belong_to_it(tmp_path: Path) -> None:
    dataset = read(tmp_path, "image,caption\na.jpg,A dog, running\nb.jpg,A cat,,\n")
    assert [item.texts["en"] for item in dataset.items] == [("A dog, running",), ("A cat",)]


def test_surplus_fields_elsewhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3 has 4 fields, the table has 3 columns: .*fields that contain ','"):
        read(tmp_path, 'image,caption,label\n"a.jpg","x","y"\na.jpg,A dog, running,dog\n')


def test_an_open_quote_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3 opens a quote that is never closed"):
        read(tmp_path, 'image,caption\na.jpg,x\nb.jpg,"y\nc.jpg,z\n')
    with pytest.raises(DataError, match="line 2 opens a quote that is never closed"):
        read(tmp_path, 'image,caption\na.jpg,"x' + "y.jpg,z\n" * 40_000)


def test_a_field_that_is_too_long_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2 .*or has a field of over 131,072 characters"):
        read(tmp_path, f'image,caption\na.jpg,"{"word " * 40_000}"\n')


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "odd", ["[1if 1else 2]", "['\\d', 1]x]", "[" + "-" * 100_000 + "1]", "[f()]", "[__import__('os')]"]
)
def test_a_text_in_brackets_that_is_no_list_is_a_caption(tmp_path: Path, odd: str) -> None:
    assert read(tmp_path, f'image,caption\na.jpg,"{odd}"\n').items[0].texts == {"en": (odd,)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the table has no columns"),
        ("image,caption\n", "the table has no rows"),
        ("image,caption\n , \n", "the table has no rows"),
        ("image,caption\na.jpg,\n", "no row has a caption in column caption"),
        ("image,caption\n,x\n", "no row names a photo in column image"),
    ],
)
def test_tables_without_usable_rows_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"^{message}: .*data\.csv: "):
        read(tmp_path, content)


def test_rows_are_read_as_a_stream(tmp_path: Path) -> None:
    put(tmp_path / "data.csv", b"image,caption\n" + b"a.jpg,x\n" * 100_000 + b"a.jpg,\xff\n")
    rows = open_table(tmp_path / "data.csv").rows([1, 0], False)
    assert [next(rows), next(rows)] == [(2, ["x", "a.jpg"]), (3, ["x", "a.jpg"])]
    with pytest.raises(DataError, match="line 100002 is not UTF-8"):
        list(rows)


@given(st.sampled_from(["data.csv", "data.tsv", "data.jsonl"]), st.booleans(), st.binary())
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, header: bool, raw: bytes
) -> None:
    start = (b'{"image": "a.jpg", "text": "x"}\n' if "j" in name else b"image,text\na.jpg,x\n") * header
    try:
        with_roles(read(tmp_path_factory.mktemp("any"), start + raw, name=name), 0)
    except CmrhashError as error:
        assert "\n" not in str(error)


# ---------------------------------------------------------------------------------------------- where it lies


def test_the_root_is_a_table_or_a_folder_with_one(tmp_path: Path) -> None:
    write_table(tmp_path)
    put(tmp_path / "._captions.csv", b"\0")
    by_file, by_folder = (
        read_dataset(ExtractConfig(dataset="table", root=root, maps=("id=filename",)))
        for root in (tmp_path / "captions.csv", tmp_path)
    )
    assert by_file.items == by_folder.items
    assert by_file.root == by_folder.root == tmp_path
    with pytest.raises(DataError, match="no such folder"):
        read_dataset(ExtractConfig(dataset="table", root=tmp_path / "none"))
    with pytest.raises(DataError, match="no such folder"):
        read_dataset(ExtractConfig(dataset="manifest", root=tmp_path / "captions.csv"))


def test_several_tables_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no table"):
        table.read(tmp_path)
    put(tmp_path / "a.csv", "x")
    put(tmp_path / "b.JSONL", "x")
    with pytest.raises(DataError, match=r"2 tables \(a\.csv, b\.JSONL\): .*give the file of the table with `root`"):
        table.read(tmp_path)


# ---------------------------------------------------------------------------------------------- photos


def image(root: Path, written: str, *photos: str) -> str | None:
    """Where the photo of one row is found; b.jpg is another row's."""
    dataset = read(root, f'image,text\n"{written}",x\nb.jpg,y\n', *photos, "b.jpg")
    assert all(item.image is None or (root / item.image).is_file() for item in dataset.items)
    return dataset.items[0].image


@pytest.mark.parametrize(
    ("written", "photo"),
    [
        ("x/a.jpg", "x/a.jpg"),
        ("./x//a.jpg", "x/a.jpg"),
        ("a.jpg", "images/a.jpg"),
        ("a.jpg", "Images/a.jpg"),
        ("x/a.jpg", "photos/x/a.jpg"),
        (r"x\a.jpg", "img/x/a.jpg"),
    ],
)
def test_photos_lie_where_the_table_says_or_in_a_usual_folder(tmp_path: Path, written: str, photo: str) -> None:
    assert image(tmp_path, written, photo) == photo
    assert "photos found by a similar name or in another folder" not in table.read(tmp_path).found


@pytest.mark.parametrize(
    ("written", "photo"),
    [
        ("X/A.JPG", "x/a.jpg"),
        (unicodedata.normalize("NFC", "k\u00e4fer.jpg"), unicodedata.normalize("NFD", "k\u00e4fer.jpg")),
        (unicodedata.normalize("NFD", "K\u00e4fer.jpg"), unicodedata.normalize("NFC", "images/k\u00e4fer.jpg")),
        ("a.jpg", "images/a.png"),
        ("a", "images/a.jpg"),
    ],
)
def test_photos_are_found_by_a_similar_name(tmp_path: Path, written: str, photo: str) -> None:
    assert image(tmp_path, written, photo) == photo
    assert table.read(tmp_path).found["photos found by a similar name or in another folder"] == 1


def test_a_name_that_fits_several_files_finds_none(tmp_path: Path) -> None:
    assert image(tmp_path, "A.jpg", "a.JPG", "a.Jpg") is None
    assert table.read(tmp_path).found["photos not found (A.jpg)"] == 1


def test_as_written_comes_first(tmp_path: Path) -> None:
    assert image(tmp_path, "a.jpg", "images/a.jpg", "A.jpg", "a.jpg") == "a.jpg"
    (tmp_path / "a.jpg").unlink()
    assert image(tmp_path, "a.jpg", "images/a.jpg", "A.jpg") == "images/a.jpg"


def test_a_whole_path_below_the_folder_is_found(tmp_path: Path) -> None:
    assert image(tmp_path, str(tmp_path / "x/a.jpg"), "x/a.jpg") == "x/a.jpg"


def test_no_photo_at_all_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the 1 photos in column image .*'dog_01\.jpg'.*dog-01"):
        read(tmp_path, "image,text\ndog_01.jpg,x\n", "images/dog-01.jpg")


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("written", ["../out.jpg", "/etc/hostname", "link.jpg", "dir/out.jpg", "linked.jpg", "out.jpg"])
def test_paths_and_links_that_leave_the_folder_are_refused(tmp_path: Path, written: str) -> None:
    root = tmp_path / "root"
    put(tmp_path / "out.jpg")
    root.mkdir()
    (root / "link.jpg").symlink_to("../out.jpg")
    (root / "dir").symlink_to(tmp_path)
    (root / "images").mkdir()
    (root / "images/linked.jpg").symlink_to("../../out.jpg")
    (root / "photos").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leaves the data set's folder"):
        image(root, written)
