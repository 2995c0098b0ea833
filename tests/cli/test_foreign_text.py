"""Text of others never controls a terminal, a page or a file: readers clean every field, printers escape the rest."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrhash.data import in_memory, manifest
from cmrhash.data.cleaning import is_printable, shown, shown_json
from cmrhash.data.items import check
from cmrhash.data.readers import folder, imagefolder, table
from cmrhash.errors import CmrhashError, DataError
from cmrhash.search.exported.card import _plain
from cmrhash.show.html.document import esc
from cmrhash_cli import output

KIND = "odd stream or foreign text"
CONTROLS = [*map(chr, [*range(9), *range(11, 32), *range(127, 160)]), "\u061c", "\u200e", "\u200f"]
CONTROLS += [*map(chr, range(0x2028, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\ufeff", "\ud800", "\udfff"]
BAD = re.compile("[" + "".join(map(re.escape, CONTROLS)) + "]")
FIELDS = ("id", "image", "caption", "label", "language", "split")


# ---------------------------------------------------------------------------------------------- printers


def printed(capsys):
    out = capsys.readouterr()
    return out.out + out.err


PRINTERS = {
    "table": lambda text, capsys: output.print_table(text, [text], [[text]], text) or printed(capsys),
    "note": lambda text, capsys: output.note(text) or printed(capsys),
    "line": lambda text, capsys: output.print_line(text) or printed(capsys),
    "JSON": lambda text, capsys: output.print_json({text: [text]}) or printed(capsys),
    "JSON lines": lambda text, _: output.json_text({"a": text}),
    "progress": lambda text, capsys: output._Lines()(text, 1, 1, text) or printed(capsys),
    "HTML": lambda text, _: esc(text),
    "card": lambda text, _: _plain(text),
}


@pytest.mark.faults(KIND)
@pytest.mark.parametrize("printer", PRINTERS)
def test_no_printer_lets_a_control_character_through(printer, capsys, faults):
    for control in CONTROLS:
        text = PRINTERS[printer](f"a{control}[31mb", capsys)
        faults.tried += 1
        faults.survived += not BAD.search(text) and "b" in text and bool(text.encode())


@pytest.mark.faults(KIND)
@pytest.mark.parametrize("control", ["\x1b", "\x00", "\u202e", "\ud800", "\x9b"])
def test_an_error_is_escaped(control, capsys):
    with pytest.raises(SystemExit):
        output._fail(str(DataError(f"a{control}b", f"dir/{control}", "so")), 5, False)
    err = capsys.readouterr().err
    assert not BAD.search(err)
    assert err.count("\n") == 1


@given(st.text())
def test_ordinary_text_is_shown_as_it_is(text):
    assert (shown(text) == text) == (not BAD.search(text))
    assert json.loads(shown_json(json.dumps(text, ensure_ascii=False))) == text


# ---------------------------------------------------------------------------------------------- readers


class NoName(Exception):
    """No file system has a file of such a name."""


def rows(field, text):
    """Two items, of which the first has that text in a field."""
    made = []
    for n in range(2):
        row = {
            "id": f"i{n}",
            "image": f"{n}.jpg",
            "caption": "a dog",
            "label": "dog",
            "language": "en",
            "split": "train",
        }
        made.append(row | ({field: f"{row[field]}{text}"} if not n else {}))
    return made


def photos(root, field, text):
    for n in range(2):
        (root / f"{n}.jpg").write_bytes(b"")


def as_manifest(root, field, text):
    entries = [
        {"id": r["id"], "image": r["image"], "texts": {r["language"]: [r["caption"]]}, "labels": [r["label"]]}
        | {"splits": [r["split"]]}
        for r in rows(field, text)
    ]
    (root / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return manifest.read(root)


def as_table(root, field, text):
    (root / "t.jsonl").write_text("\n".join(map(json.dumps, rows(field, text))))
    return table.read(root)


def as_imagefolder(root, field, text):
    entries = [{"file_name": r["image"], "text": r["caption"], "label": r["label"]} for r in rows(field, text)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return imagefolder.read(root)


def as_folder(root, field, text):
    for n, row in enumerate(rows(field, text)):
        path = root / (f"{n}.{row['language']}.txt" if field == "language" else f"{n}.txt")
        try:
            path.write_text(row["caption"], encoding="utf-8", errors="surrogatepass")
        except (OSError, ValueError):
            raise NoName from None
    try:
        return folder.read(root)
    finally:
        for path in root.glob("*.txt"):
            path.unlink()


def in_lists(root, field, text):
    r = rows(field, text)
    return in_memory.dataset(
        [root / one["image"] for one in r],
        {r[0]["language"]: [one["caption"] for one in r]},
        [one["label"] for one in r],
        ids=[one["id"] for one in r],
    )


READERS = {"manifest": as_manifest, "table": as_table, "imagefolder": as_imagefolder, "folder": as_folder}
READERS["lists"] = in_lists


def fields_of(dataset):
    yield from (item.id for item in dataset.items)
    yield from dataset.classes
    yield from dataset.languages
    yield from (text for item in dataset.items for texts in item.texts.values() for text in texts)


@pytest.mark.faults(KIND)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("reader", READERS)
def test_no_field_of_a_reader_keeps_a_control_character(reader, field, tmp_path, faults):
    photos(tmp_path, field, "")
    for control in CONTROLS:
        try:
            read = check(READERS[reader](tmp_path, field, f"{control}x"))
        except NoName:
            continue
        except CmrhashError:
            fine = True
        else:
            fine = all(is_printable(text) for text in fields_of(read))
        faults.tried += 1
        faults.survived += fine
