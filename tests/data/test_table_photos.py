"""Parquet tables that hold the photos themselves: of img2dataset, of the Hugging Face Hub, in several files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmrhash.data import parquet_file
from cmrhash.data.items import ImageTextDataset, check
from cmrhash.data.readers import table
from cmrhash.data.recognise import recognise
from cmrhash.encoders.pixels import BadImage
from cmrhash.errors import DataError
from cmrhash.features.photos import photo_bytes

pyarrow = pytest.importorskip("pyarrow", reason='needs pip install "cmrhash[parquet]"')


def jpeg(n: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), n, np.uint8)).save(out, "JPEG")
    return out.getvalue()


def write(path: Path, rows: list[dict[str, Any]], group: int = 3, **columns: Any) -> None:
    """A Parquet file; columns: those with a type of their own."""
    from pyarrow.parquet import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    inferred = pyarrow.Table.from_pylist(rows)
    schema = pyarrow.schema([(name, columns.get(name, inferred.schema.field(name).type)) for name in rows[0]])
    write_table(pyarrow.Table.from_pylist(rows, schema=schema), path, row_group_size=group)


def img2dataset(path: Path, numbers: range) -> None:
    """A shard of img2dataset, in which every fifth download failed."""
    rows = []
    for n in numbers:
        failed = n % 5 == 4
        about = {"url": f"http://x/{n}", "caption": f"number {n}", "key": f"{n:09d}"}
        about |= {"status": "failed_to_download" if failed else "success", "error_message": "404" if failed else None}
        rows.append({**about, "width": 8, "jpg": None if failed else jpeg(n)})
    write(path, rows)


def hub(path: Path, numbers: range, **more: str) -> None:
    """A file of the Hub: the image is an object, captions are a list."""
    rows = [{"image": {"bytes": jpeg(n), "path": f"{n}.jpg"}, "caption": [f"number {n}", "x"], **more} for n in numbers]
    write(path, rows)


def read(root: Path) -> ImageTextDataset:
    layout = recognise(root)
    assert (layout.dataset, layout.root) == ("table", root)
    return check(table.read(root))


def test_img2dataset(tmp_path: Path) -> None:
    img2dataset(tmp_path / "00000.parquet", range(10))
    img2dataset(tmp_path / "00001.parquet", range(10, 17))
    dataset = read(tmp_path)
    numbers = [n for n in range(17) if n % 5 != 4]
    assert [item.id for item in dataset.items] == [f"{n:09d}" for n in numbers]
    assert [item.texts["en"] for item in dataset.items] == [(f"number {n}",) for n in numbers]
    assert dataset.items[-1].image == "00001.parquet@jpg+6"
    assert [photo_bytes(tmp_path, str(item.image)) for item in dataset.items] == [jpeg(n) for n in numbers]
    assert dataset.found["downloads without success, left out"] == 3


def test_a_status_of_ones_own_leaves_nothing_out(tmp_path: Path) -> None:
    rows = "image,caption,status,error_message\na.jpg,x,draft,\nb.jpg,y,done,\n"
    (tmp_path / "t.csv").write_text(rows)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(jpeg(0))
    assert len(table.read(tmp_path).items) == 2


def test_one_file_of_the_hub(tmp_path: Path) -> None:
    hub(tmp_path / "mine.parquet", range(5))
    dataset = read(tmp_path / "mine.parquet")
    assert [item.image for item in dataset.items] == [f"mine.parquet@image+{n}" for n in range(5)]
    assert dataset.items[2].texts == {"en": ("number 2", "x")}
    assert photo_bytes(tmp_path, "mine.parquet@image+4") == jpeg(4)


def test_files_of_the_hub_in_data_tell_the_splits(tmp_path: Path) -> None:
    hub(tmp_path / "data/train-00000-of-00002.parquet", range(4))
    hub(tmp_path / "data/train-00001-of-00002.parquet", range(4, 8))
    hub(tmp_path / "data/validation-00000-of-00001.parquet", range(8, 10))
    (tmp_path / "README.md").write_text("a card")
    dataset = read(tmp_path)
    assert (dataset.root, len(dataset.items)) == (tmp_path, 10)
    assert [photo_bytes(tmp_path, str(item.image)) for item in dataset.items] == [jpeg(n) for n in range(10)]
    assert [set(item.splits) for item in dataset.items] == [{"train"}] * 8 + [{"query", "database"}] * 2
    without = table.read(tmp_path, ("split=",))
    assert not any(item.splits for item in without.items)


@pytest.mark.parametrize("several", [False, True])
def test_numbers_of_classes_get_their_names(several: bool, tmp_path: Path) -> None:
    label: dict[str, Any] = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    about = {"info": {"features": {"label": {"feature": label, "_type": "List"} if several else label}}}
    rows = {"image": [jpeg(0)] * 3, "label": [[0], [1, 0], []] if several else [0, 1, -1], "caption": ["x"] * 3}
    from pyarrow.parquet import write_table

    found = pyarrow.table(rows).replace_schema_metadata({"huggingface": json.dumps(about)})
    write_table(found, tmp_path / "t.parquet")
    dataset = check(table.read(tmp_path))
    assert dataset.classes == ("cat", "dog")
    assert [item.labels for item in dataset.items] == [(0,), (0, 1) if several else (1,), ()]


@pytest.mark.parametrize("about", ["[]", "{", '{"info": {"features": [1]}}', '{"info": {"features": {"label": 3}}}'])
def test_other_descriptions_of_a_table_are_passed_over(about: str, tmp_path: Path) -> None:
    from pyarrow.parquet import write_table

    rows = pyarrow.table({"image": [jpeg(0)], "label": [7], "caption": ["x"]})
    write_table(rows.replace_schema_metadata({"huggingface": about}), tmp_path / "t.parquet")
    assert check(table.read(tmp_path)).classes == ("7",)


def test_a_column_of_splits_comes_before_the_names_of_files(tmp_path: Path) -> None:
    hub(tmp_path / "data/train-0.parquet", range(4), split="test")
    hub(tmp_path / "data/test-0.parquet", range(4, 8), split="train")
    assert [set(item.splits) for item in read(tmp_path).items[:1]] == [{"train"}]


def test_the_column_of_the_photos_can_be_named(tmp_path: Path) -> None:
    rows = [{"thumb": jpeg(n), "full": jpeg(n + 100), "caption": "x"} for n in range(3)]
    write(tmp_path / "t.parquet", rows)
    assert check(table.read(tmp_path)).items[1].image == "t.parquet@thumb+1"
    dataset = check(table.read(tmp_path, ("image=full",)))
    assert photo_bytes(tmp_path, str(dataset.items[1].image)) == jpeg(101)


def test_cells_without_a_photo(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": {"bytes": content, "path": "x"}, "caption": "x"} for content in (jpeg(0), None, b"")
    ]
    write(tmp_path / "t.parquet", [*rows, {"image": None, "caption": "y"}], group=9)
    items = check(table.read(tmp_path)).items
    assert [item.image for item in items] == ["t.parquet@image+0", None, "t.parquet@image+2", None]
    assert photo_bytes(tmp_path, "t.parquet@image+2") == photo_bytes(tmp_path, "t.parquet@image+1") == b""


def test_texts_that_are_stored_as_binary_values_are_no_photos(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", [{"file": b"a.jpg", "caption": "x"}], file=pyarrow.binary())
    with pytest.raises(DataError, match="column 'file' holds an object"):
        table.read(tmp_path)


def test_files_with_other_columns_are_several_tables(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [{"image": "a.jpg", "caption": "x"}])
    write(tmp_path / "b.parquet", [{"image": "a.jpg", "text": "x"}])
    with pytest.raises(DataError, match=r"2 tables \(a.parquet, b.parquet\)"):
        table.read(tmp_path)


def test_no_successful_download_is_one_line(tmp_path: Path) -> None:
    img2dataset(tmp_path / "t.parquet", range(4, 5))
    with pytest.raises(DataError, match="no column of photos"):  # without a photo nothing tells which column has them
        table.read(tmp_path)
    with pytest.raises(DataError, match="none of the 1 downloads succeeded"):
        table.read(tmp_path, ("image=jpg",))


# ---------------------------------------------------------------------------------------------- reading photos


def test_photos_in_any_order_and_by_any_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(parquet_file, "PHOTOS", 4)
    monkeypatch.setattr(parquet_file, "BATCHES", 2)
    write(tmp_path / "t.parquet", [{"jpg": jpeg(n)} for n in range(90)], group=25)
    order = [int(n) for n in np.random.default_rng(0).permutation(90)] + list(range(90))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: parquet_file.photo(tmp_path / "t.parquet", "jpg", n), order))
    assert found == [jpeg(n) for n in order]


def test_photos_in_order_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "t.parquet", [{"jpg": jpeg(n)} for n in range(90)], group=50)
    read, contents = list[int](), parquet_file._contents
    monkeypatch.setattr(parquet_file, "_contents", lambda batch: (read.append(len(batch)), contents(batch))[1])
    for n in range(90):
        parquet_file.photo(tmp_path / "t.parquet", "jpg", n)
    assert sum(read) == 90


def test_a_table_that_was_replaced_is_opened_again(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", [{"jpg": jpeg(n)} for n in range(3)])
    assert photo_bytes(tmp_path, "t.parquet@jpg+1") == jpeg(1)
    write(tmp_path / "t.parquet", [{"jpg": jpeg(n + 9)} for n in range(2)])
    assert photo_bytes(tmp_path, "t.parquet@jpg+1") == jpeg(10)
    with pytest.raises(BadImage, match="no such row or column"):
        photo_bytes(tmp_path, "t.parquet@jpg+2")


@pytest.mark.parametrize("image", ["t.parquet@jpg+3", "t.parquet@other+0", "gone.parquet@jpg+0", "odd.parquet@jpg+0"])
def test_a_cell_that_is_not_there_is_a_bad_image(image: str, tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", [{"jpg": jpeg(n)} for n in range(3)])
    (tmp_path / "odd.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadImage):
        photo_bytes(tmp_path, image)


@pytest.mark.faults("hostile file")
def test_a_damaged_row_group_is_a_bad_image(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", [{"jpg": jpeg(n)} for n in range(200)], group=100)
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[200:3000] = b"\xff" * 2800
    (tmp_path / "t.parquet").write_bytes(bytes(content))
    with pytest.raises(BadImage):
        photo_bytes(tmp_path, "t.parquet@jpg+60")
    assert photo_bytes(tmp_path, "t.parquet@jpg+150") == jpeg(150)
