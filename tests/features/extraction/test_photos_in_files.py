"""Photos inside tars and Parquet tables: the same features as of files, resumed, compared and shown in place."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from extracting import SMALL, contents, draw
from trees import put, tar_of

from cmrhash.config import ExtractConfig, VerifyConfig
from cmrhash.data import manifest
from cmrhash.data.items import ImageTextDataset, resolve_image
from cmrhash.data.photo_files import find_photo
from cmrhash.data.readers import webdataset
from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import pixels
from cmrhash.encoders.pixels import BadImage
from cmrhash.errors import DataError
from cmrhash.features.extract import Extraction, extract
from cmrhash.features.file import read_features
from cmrhash.features.photos import photo_bytes
from cmrhash.maintenance.verify import verify
from cmrhash.show.html.thumbnails import Thumbnails
from cmrhash.training.finetune.task import Photos

COUNT = 9  # more than two blocks of the module's small ones
SHARDS = {"00000": range(5), "00001": range(5, COUNT)}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same photos and captions in every layout; photo 6 is broken."""
    pyarrow = pytest.importorskip("pyarrow", reason='needs pip install "cmrhash[parquet]"')
    from pyarrow.parquet import write_table

    base = tmp_path_factory.mktemp("layouts")
    rows = []
    for shard, numbers in SHARDS.items():
        members: dict[str, str | bytes] = {}
        for n in numbers:
            key = f"{shard}{n:04d}"
            draw(base, n, n)
            photo, about = (base / f"{n}.jpg").read_bytes(), json.dumps({"caption": f"number {n}"})
            photo = photo[:50] if n == 6 else photo
            members |= {f"{key}.jpg": photo, f"{key}.txt": f"number {n}", f"{key}.json": about}
            rows.append({"id": key, "image": {"bytes": photo, "path": None}, "caption": f"number {n}"})
        for name, content in members.items():
            put(base / f"files/{shard}/{name}", content)
            if not name.endswith(".json"):
                put(base / f"folder/{shard}/{name}", content)
        put(base / f"tars/{shard}.tar", tar_of(members))
    (base / "table").mkdir()
    write_table(pyarrow.Table.from_pylist(rows), base / "table/data.parquet", row_group_size=4)
    return base


def extracted(layouts: Path, layout: str, cache: Path, **changes: object) -> Extraction:
    """Extraction of a layout under one name."""
    dataset = {"folder": "folder", "table": "table"}.get(layout, "webdataset")
    settings = ExtractConfig(dataset=dataset, root=layouts / layout, cache=cache, name="mine", image_batch=4)
    settings = replace(settings, image_model=SMALL, image_weights="random", text_models=("random",))
    return extract(replace(settings, **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tars(layouts: Path, small_blocks_and_models: None, tmp_path_factory: pytest.TempPathFactory) -> Extraction:
    """The extraction of the tars; its cache is not to be touched."""
    return extracted(layouts, "tars", tmp_path_factory.mktemp("tars"))


@pytest.mark.parametrize("layout", ["folder", "files", "table"])
def test_every_layout_gives_the_same_features(layout: str, layouts: Path, tars: Extraction, tmp_path: Path) -> None:
    other = extracted(layouts, layout, tmp_path)
    assert [file.path.name for file in other.files] == [file.path.name for file in tars.files]
    for ours, theirs in zip(tars.files, other.files, strict=True):
        a, b = read_features(ours.path), read_features(theirs.path)
        for name in ("x", "item", "valid", "source"):
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes()
    assert read_features(tars.files[0].path).valid.tolist() == [n != 6 for n in range(COUNT)]


def test_the_reason_of_a_broken_photo_names_its_place(tars: Extraction, layouts: Path) -> None:
    [line] = map(json.loads, (tars.folder / manifest.QUARANTINE).read_text(encoding="utf-8").splitlines())
    image = tars.dataset.items[6].image
    assert (line["id"], line["path"]) == ("000010006", str(layouts / "tars" / str(image)))


def test_a_second_call_finds_all_and_an_interrupted_one_resumes(
    layouts: Path, tars: Extraction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmrhash.features import images

    opened, read = list[int](), images.bytes_of

    def stop(photo: object) -> bytes:
        if len(opened) == 6:
            raise KeyboardInterrupt
        opened.append(1)
        return read(photo)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(images, "bytes_of", stop)
        with pytest.raises(KeyboardInterrupt):
            extracted(layouts, "tars", tmp_path)
    report = extracted(layouts, "tars", tmp_path)
    assert [file.fresh for file in report.files] == [True, True]
    assert contents(report.folder) == contents(tars.folder)
    assert not any(file.fresh for file in extracted(layouts, "tars", tmp_path).files)


def test_the_stored_items_are_those_of_the_reader(tars: Extraction) -> None:
    assert manifest.load(tars.folder).items == tars.dataset.items
    assert manifest.read(tars.folder).items == tars.dataset.items


def test_a_manifest_may_name_parts_of_tars(layouts: Path, tmp_path: Path) -> None:
    image = webdataset.read(layouts / "tars").items[2].image
    (tmp_path / "00000.tar").write_bytes((layouts / "tars/00000.tar").read_bytes())
    lines = [{"id": "a", "image": image, "texts": {"en": ["x"]}}, {"id": "b", "image": "gone.tar@0+9"}]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    dataset = manifest.read(tmp_path)
    assert (dataset.items[0].image, dataset.found["photos not found (gone.tar@0+9)"]) == (image, 1)


def change(path: Path, photo: bytes) -> None:
    """Change the last byte of a photo inside a file."""
    other = photo[:-1] + b"\0"
    if path.suffix == ".tar":
        path.write_bytes(path.read_bytes().replace(photo, other))
        return
    from pyarrow import Table
    from pyarrow.parquet import read_table, write_table

    rows = read_table(path).to_pylist()
    [row] = [row for row in rows if row["image"]["bytes"] == photo]
    row["image"]["bytes"] = other
    write_table(Table.from_pylist(rows), path)


@pytest.mark.parametrize(("name", "layout"), [("00001.tar", "tars"), ("data.parquet", "table")])
def test_changed_and_missing_photos_are_found(name: str, layout: str, layouts: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mine"
    (copy / layout).mkdir(parents=True)
    for path in (layouts / layout).iterdir():
        (copy / layout / path.name).write_bytes(path.read_bytes())
    report = extracted(copy, layout, tmp_path / "cache")
    image = str(report.dataset.items[5].image)
    change(copy / layout / name, photo_bytes(copy / layout, image))
    done = list(verify(VerifyConfig(), tmp_path / "cache", tmp_path / "runs"))
    assert [one.words for one in done if one.status == "stale"] == ["1 photos changed (000010005)"]
    before = (path := report.files[0].path).read_bytes()
    assert extracted(copy, layout, tmp_path / "cache").files[0].fresh
    assert path.read_bytes() != before
    assert not [one for one in verify(VerifyConfig(), tmp_path / "cache", tmp_path / "runs") if one.status == "stale"]
    (copy / layout / name).unlink()
    done = list(verify(VerifyConfig(), tmp_path / "cache", tmp_path / "runs"))
    gone = "4 photos gone (000010005, 000010006, 000010007, ...)" if layout == "tars" else "9 photos gone"
    assert [one.words[: len(gone)] for one in done if one.status == "stale"] == [gone]
    (copy / layout / name).write_bytes((layouts / layout / name).read_bytes())
    assert extracted(copy, layout, tmp_path / "cache").files[0].fresh
    assert path.read_bytes() == before


def test_the_page_shows_photos_out_of_tars(tars: Extraction, layouts: Path) -> None:
    thumbs, plain = Thumbnails(layouts / "tars"), Thumbnails(layouts / "folder")
    for item, path in zip(tars.dataset.items, sorted((layouts / "folder").glob("*/*.jpg")), strict=True):
        assert thumbs.of(item.image) == plain.of(path.relative_to(layouts / "folder").as_posix())
    assert thumbs.counts == (COUNT - 1, 1)


def test_fine_tuning_sees_the_same_pixels(tars: Extraction, layouts: Path) -> None:
    encoder = image_encoders.load(SMALL, "random")
    rows = np.array([0, 2, 7, 8])
    with ThreadPoolExecutor(2) as pool:

        def seen(dataset: ImageTextDataset) -> tuple[str, bytes]:
            photos = Photos(dataset, rows, encoder, pool)
            assert photos.look(lambda *_: None).all()
            return photos.digest(), next(photos.batches([rows])).tobytes()

        files = tuple(replace(i, image=f"{i.id[:5]}/{i.id}.jpg") for i in tars.dataset.items)
        assert seen(tars.dataset) == seen(replace(tars.dataset, root=layouts / "folder", items=files))


# ---------------------------------------------------------------------------------------------- single photos


def test_a_slice_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "x.tar", b"0123456789")
    assert photo_bytes(tmp_path, "x.tar@2+3") == b"234"
    assert photo_bytes(tmp_path, "x.tar@7+3") == b"789"
    monkeypatch.setattr(pixels, "MAX_BYTES", 8)
    for image, code in {
        "x.tar@8+3": "outside",
        "x.tar@99999999999999999+1": "outside",
        "x.tar@0+9": "too-large",
        "x.tar@0+999999999999999999": "too-large",
        "x.tar@0+9999999999999999999": "missing",  # too long for a number: a file of that name
        "y.tar@0+1": "missing",
        "x.tar@-1+2": "missing",
        "x.TAR@1+1": "missing",
    }.items():
        with pytest.raises(BadImage) as caught:
            photo_bytes(tmp_path, image)
        assert (image, caught.value.code) == (image, code)


@pytest.mark.parametrize("name", ["x.tar@2+3", "x.parquet@jpg+3"])
def test_a_file_of_such_a_name_is_a_file(name: str, tmp_path: Path) -> None:
    put(tmp_path / "x.tar", b"0123456789")
    put(tmp_path / name, b"a file")
    assert photo_bytes(tmp_path, name) == b"a file"
    assert find_photo(tmp_path, name).part is None


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("image", ["../x.tar@0+1", "/x.tar@0+1", "link.tar@0+1", "a/../../x.parquet@a+1"])
def test_a_part_of_a_file_outside_the_root_is_refused(image: str, tmp_path: Path) -> None:
    put(tmp_path / "x.tar", b"0123456789")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link.tar").symlink_to(tmp_path / "x.tar")
    with pytest.raises(DataError, match="leaves the data set's folder"):
        photo_bytes(tmp_path / "root", image)


def test_a_plain_photo_is_a_file_below_the_root(tmp_path: Path) -> None:
    put(tmp_path / "a/1.jpg", b"x")
    assert find_photo(tmp_path, "a/1.jpg").path == resolve_image(tmp_path, "a/1.jpg")
    assert photo_bytes(tmp_path, "a/1.jpg") == b"x"
