"""The IAPR TC-12 reader on a small tree with the quirks of the real one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrhash.data.cleaning import clean_text
from cmrhash.data.items import check
from cmrhash.data.readers import iaprtc12
from cmrhash.errors import DataError

ENG, GER = "annotations_complete_eng", "annotations_complete_ger"


def put(path: Path, content: str | bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("cp1252"))


def doc(description: str) -> str:
    return f"<DOC>\n<TITLE>x</TITLE>\n<DESCRIPTION>{description}</DESCRIPTION>\n<NOTES></NOTES>\n</DOC>\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Archives unpacked at different depths; ids 25, 30 complete, the others each lack something."""
    base, labels = tmp_path / "iaprtc12", tmp_path / "saiaprtc12ok" / "benchmark" / "saiapr_tc-12"
    for place in ("00/25", "00/30", "00/112", "01/1000", "01/1001"):
        put(base / "images" / f"{place}.jpg", b"jpeg")
    put(base / "images" / "00" / "Thumbs.db")
    for place in ("00/25", "00/30", "00/112", "01/1000", "02/2000"):
        put(base / ENG / f"{place}.eng", doc(f"a yellow building {place};"))
    put(base / GER / "00/25.ger", doc("ein gelbes Gebäude für die Straße;"))
    put(base / GER / "00/30.ger", "ein Gebäude".join(doc("|").split("|")).encode())
    put(base / GER / "00/112.ger", doc("  \n "))
    put(base / GER / "02/2000.ger", "<DOC><DESCRIPTION>kein\nBild & <b>kein < Ende")
    put(labels / "00" / "labels.txt", "25 1 7\n25 2 120\n25\t3\t7\n\n30 1 120\n")
    put(labels / "02" / "labels.txt", "2000 1 276\n2999 1 5\n")
    put(labels / "00" / "images" / "25.jpg")
    return tmp_path


def test_reads_every_item_that_has_an_image_or_a_text(root: Path) -> None:
    dataset = check(iaprtc12.read(root))
    assert [item.id for item in dataset.items] == ["25", "30", "112", "1000", "1001", "2000"]
    by_id = {item.id: item for item in dataset.items}
    assert by_id["25"].image == "iaprtc12/images/00/25.jpg"
    assert by_id["25"].texts["de"] == ("ein gelbes Gebäude für die Straße;",)
    assert by_id["30"].texts["de"] == ("ein Gebäude",)
    assert by_id["1001"].texts == {}
    assert by_id["2000"].image is None
    assert by_id["2000"].texts["de"] == ("kein Bild & <b>kein < Ende",)
    assert dataset.classes == ("7", "120", "276")
    assert [by_id[i].labels for i in ("25", "30", "112", "2000")] == [(0, 1), (1,), (), (2,)]


def test_a_missing_or_empty_german_text_is_not_replaced_by_the_english_one(root: Path) -> None:
    by_id = {item.id: item for item in iaprtc12.read(root).items}
    assert set(by_id["112"].texts) == {"en"}
    assert set(by_id["1000"].texts) == {"en"}


def test_counts_what_is_there_and_what_is_missing(root: Path) -> None:
    assert iaprtc12.read(root).found == {
        "items": 6,
        "images": 5,
        "en texts": 5,
        "de texts": 3,
        "labelled items": 3,
        "classes": 3,
        "items without en text": 1,
        "items without de text": 3,
        "items without a label": 3,
        "empty de descriptions": 1,
        "files that are none of the data set's": 1,
        "labelled images without image and text": 1,
        "items without an image": 1,
        "labelled items without an image": 1,
    }


def test_wlist_names_the_classes(root: Path) -> None:
    put(root / "saiaprtc12ok/benchmark/wlist.txt", "5 sky\n7 palm tree\n120 sky\n276 wood\n")
    assert iaprtc12.read(root).classes == ("palm tree", "sky", "wood")


def test_two_label_ids_of_one_name_stay_two_classes(root: Path) -> None:
    put(root / "saiaprtc12ok/benchmark/saiapr_tc-12/wlist.txt", "5 sky\n7 wood\n120 sky\n276 wood\n")
    assert iaprtc12.read(root).classes == ("wood (7)", "sky", "wood (276)")


def test_bad_labels_are_listed_with_file_and_line(root: Path) -> None:
    lines = ["25 1 277", "25 1 0", "25 1 sky", "25 1", "x 1 7", "25 1 -3", "25 1 8"]
    put(root / "saiaprtc12ok/benchmark/saiapr_tc-12/01/labels.txt", "\n".join(lines))
    with pytest.raises(DataError) as caught:
        iaprtc12.read(root)
    message = str(caught.value)
    assert message.startswith("6 label lines are not 'image region label' with a label id 1 to 276: ")
    for line in range(1, 6):
        assert f"saiapr_tc-12/01/labels.txt:{line} '{lines[line - 1]}'" in message
    assert "labels.txt:6" not in message
    assert "\n" not in message


def test_a_label_that_wlist_does_not_name_is_refused(root: Path) -> None:
    put(root / "saiaprtc12ok/benchmark/wlist.txt", "5 sky\n7 palm\n276 wood\n")
    with pytest.raises(DataError, match=r"2 label lines .* id one of wlist.txt: .*labels.txt:2 '25 2 120'"):
        iaprtc12.read(root)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (["images"], "no folder 'images' with folders 00, 01, ... in it"),
        ([ENG, GER], f"no annotations found (looked for '{ENG}/NN/ID.eng' or '{GER}/NN/ID.ger')"),
    ],
)
def test_missing_folders_are_named(root: Path, gone: list[str], message: str) -> None:
    for name in gone:
        (root / "iaprtc12" / name).rename(root / "iaprtc12" / f"{name}-elsewhere")
    with pytest.raises(DataError) as caught:
        iaprtc12.read(root)
    assert str(caught.value).startswith(f"{message}: {root}: unpack")


def test_labels_are_needed(root: Path) -> None:
    (root / "saiaprtc12ok/benchmark/saiapr_tc-12/00/labels.txt").unlink()
    (root / "saiaprtc12ok/benchmark/saiapr_tc-12/02/labels.txt").unlink()
    with pytest.raises(DataError, match=r"no labels\.txt: .*saiapr_tc-12: unpack"):
        iaprtc12.read(root)
    (root / "saiaprtc12ok").rename(root.parent / "elsewhere")
    with pytest.raises(DataError, match="no folder 'saiapr_tc-12'"):
        iaprtc12.read(root)


def test_no_such_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        iaprtc12.read(tmp_path / "nowhere")


def test_an_id_in_two_folders_is_refused(root: Path) -> None:
    put(root / "iaprtc12/images/01/25.jpg")
    with pytest.raises(DataError, match=r"two files for image 25: .*00/25\.jpg and .*01/25\.jpg"):
        iaprtc12.read(root)


def test_images_linked_from_outside_the_root_are_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "images"
    (root / "iaprtc12/images").rename(outside)
    (root / "iaprtc12/images").symlink_to(outside)
    with pytest.raises(DataError, match="leaves the data set's folder"):
        iaprtc12.read(root)


def test_another_folder_named_images_is_passed_over(root: Path) -> None:
    put(root / "images" / "logo.png")
    assert iaprtc12.read(root).found["images"] == 5


pieces = st.sampled_from([b"<DESCRIPTION>", b"</DESCRIPTION>", b"&#xD800;", b"&#99999999;", b"\xff\xfe", b"<", b" "])


@given(st.lists(st.one_of(pieces, st.binary(max_size=20)), max_size=8).map(b"".join))
def test_parse_takes_any_bytes(raw: bytes) -> None:
    text = iaprtc12.parse(raw)
    assert clean_text(text) == text
    text.encode()  # no lone surrogates


def test_parse_is_quick_on_a_long_run_of_openings() -> None:
    start = time.process_time()
    iaprtc12.parse(b"<DESCRIPTION>" + b"<  " * 100_000 + b"<" + b" " * 100_000)
    assert time.process_time() - start < 2
