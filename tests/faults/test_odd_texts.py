"""Annotation files and captions of every odd kind: each is read as what it says or missing, and no other changes.

The measure is a clean data set that says the same in plain UTF-8, or lacks what cannot be read: its feature file must
have the same bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cmrhash.config import ExtractConfig
from cmrhash.data.readers import iaprtc12
from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.image import ImageEncoder
from cmrhash.features.extract import extract
from cmrhash.features.file import read_features

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def small_models():
    """A small BERT; and an image encoder that does not look, for there are no photos."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        patch.setattr(text_encoders, "TINY", tiny)
        patch.setattr(ImageEncoder, "encode", lambda self, pixels: np.zeros((len(pixels), self.dim), np.float32))
        yield


def extracted(root, dataset, name):
    """The report of its extraction into the folder beside it."""
    models = {"image_model": "shufflenet_v2_x0_5", "image_weights": "random", "text_models": ("random",)}
    where = {"dataset": dataset, "root": root, "name": name, "cache": root.parent / "cache"}
    return extract(ExtractConfig(**where, **models, device="cpu"))


def missing(report, lang):
    """The ids that are quarantined for want of a text, after the account of that language was found to add up."""
    (file,) = [file for file in report.files if file.view.short == lang]
    assert file.ok + len(file.quarantine) == file.items
    assert {entry["code"] for entry in file.quarantine} <= {"no-text"}
    return [entry["id"] for entry in file.quarantine]


# ---------------------------------------------------------------------------------------------- annotation files

TEXT = "ein großes Gebäude – „schön“;"
LATIN = "ein großes Gebäude;"


def doc(description=TEXT, before=""):
    return f"{before}<DOC>\n<DOCNO>1</DOCNO>\n<DESCRIPTION>{description}</DESCRIPTION>\n<NOTES></NOTES>\n</DOC>\n"


def declared(encoding):
    return f'<?xml version="1.0" encoding="{encoding}"?>\n'


BOMB = '<!DOCTYPE d [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {b} "{10 * f"&{a};"}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
SPY = '<!DOCTYPE d [<!ENTITY j SYSTEM "file:///etc/hostname">]>\n'

# name -> (bytes, or what makes the file at a path; the text that is in it, None if there is none)
ANNOTATIONS = {
    "cp1252": (doc().encode("cp1252"), TEXT),
    "latin-1": (doc(LATIN).encode("latin-1"), LATIN),
    "utf-8": (doc().encode(), TEXT),
    "utf-8 with a mark": (doc().encode("utf-8-sig"), TEXT),
    "utf-16": (doc().encode("utf-16"), TEXT),
    "utf-16, big end first": (b"\xfe\xff" + doc().encode("utf-16-be"), TEXT),
    "utf-16 without a mark": (doc().encode("utf-16-le"), TEXT),
    "utf-16 without a mark, big end first": (doc().encode("utf-16-be"), TEXT),
    "declared utf-8": (doc(before=declared("UTF-8")).encode(), TEXT),
    "declared latin-1": (doc(LATIN, declared("ISO-8859-1")).encode("latin-1"), LATIN),
    "declared latin-1, in truth cp1252": (doc(before=declared("ISO-8859-1")).encode("cp1252"), TEXT),
    "declared cp1252": (doc(before=declared("windows-1252")).encode("cp1252"), TEXT),
    "declared latin-2": (doc("źródło 'ä'", declared("iso-8859-2")).encode("iso-8859-2"), "źródło 'ä'"),
    "declared koi8": (doc("дом", declared("KOI8-R")).encode("koi8-r"), "дом"),
    "declared utf-8, in truth cp1252": (doc(before=declared("utf-8")).encode("cp1252"), TEXT),
    "declared nonsense": (doc(before=declared("windows-99")).encode("cp1252"), TEXT),
    "a byte that is no cp1252": (b"<DESCRIPTION>\x81\xe4</DESCRIPTION>", "ä"),
    "windows lines": (doc("eins\r\n zwei").replace("\n", "\r\n").encode(), "eins zwei"),
    "ampersand": (doc("Fisch & Brot").encode(), "Fisch & Brot"),
    "less-than": (doc("1 < 2 und <b>fett").encode(), "1 < 2 und <b>fett"),
    "entities": (doc("caf&eacute; &#228; &amp; &quot;").encode(), 'café ä & "'),
    "numbers of no letter": (doc("a &#xD800; &#99999999; b").encode(), "a \ufffd \ufffd b"),
    "nul": (doc("a\0b").encode(), "a b"),
    "control characters": (doc("a\x1b[0m\x0cb").encode(), "a [0m b"),
    "emoji": (doc("ein Hund 🐕").encode(), "ein Hund 🐕"),
    "right to left": (doc("שלום עולם").encode(), "שלום עולם"),
    "letters with loose marks": (doc("Ko\u0308ln").encode(), "Köln"),
    "long": (doc("Hund " * 100_000).encode(), " ".join(["Hund"] * 100_000)),
    "special tokens": (doc("[SEP] [MASK] Hund").encode(), "[SEP] [MASK] Hund"),
    "two documents": ((doc("eins") + doc("zwei")).encode(), "eins"),
    "two descriptions": (b"<DOC><DESCRIPTION>a</DESCRIPTION><DESCRIPTION>b</DESCRIPTION></DOC>", "a"),
    "no end": (b"<DOC><DESCRIPTION>ein Hund", "ein Hund"),
    "no end of the description": (b"<DOC><DESCRIPTION>ein Hund <NOTES>n</NOTES></DOC>", "ein Hund"),
    "no document": (b"<DESCRIPTION> a </DESCRIPTION>", "a"),
    "small tags": (b"<doc><description> a </description></doc>", "a"),
    "entity bomb": (doc("Hund &j;", BOMB + "]>\n").encode(), "Hund &j;"),
    "entity of another file": (doc("Hund &j;", SPY).encode(), "Hund &j;"),
    "empty file": (b"", None),
    "a mark alone": (b"\xff\xfe", None),
    "zeros": (bytes(100), None),
    "blank": (doc("  \n\t ").encode(), None),
    "empty description": (doc("").encode(), None),
    "nothing but controls": (doc("\0\x07").encode(), None),
    "no description": (b"<DOC><NOTES>a</NOTES></DOC>", None),
    "plain text": (b"ein Hund", None),
    "missing": (lambda _: None, None),
    "folder": (Path.mkdir, None),
    "fifo": (os.mkfifo, None),
    "dangling": (lambda path: path.symlink_to("nowhere"), None),
    "loop": (lambda path: path.symlink_to(path.name), None),
}
ENGLISH, GERMAN = ("annotations_complete_eng", "eng"), ("annotations_complete_ger", "ger")


def write_annotations(root, contents):
    """IAPR TC-12 with these German files, an ordinary one behind each; all have an English one and none a photo."""
    for name in ("images/00", "saiapr_tc-12/00", *(f"{folder}/00" for folder, _ in (ENGLISH, GERMAN))):
        (root / name).mkdir(parents=True)
    (root / "saiapr_tc-12/00/labels.txt").write_text("".join(f"{n} 1 {1 + n % 5}\n" for n in range(1, 400)))
    for n, content in enumerate(contents):
        for number, put in ((2 * n + 1, content), (2 * n + 2, doc(f"ein Hund mit {n} Katzen").encode())):
            (root / ENGLISH[0] / f"00/{number}.eng").write_bytes(doc(f"english {number}").encode())
            path = root / GERMAN[0] / f"00/{number}.ger"
            path.write_bytes(put) if isinstance(put, bytes) else put(path)
    return root


READ_XML = """
import json, signal, sys
from xml.etree import ElementTree

def late(*_):
    raise TimeoutError

signal.signal(signal.SIGALRM, late)
texts = []
for path in sys.argv[1:]:
    try:
        signal.setitimer(signal.ITIMER_REAL, 1)
        try:
            texts.append(ElementTree.parse(path).getroot().find("DESCRIPTION").text or "")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Exception:
        texts.append(None)
print(json.dumps(texts))
"""


def read_naively(paths):
    """The description of each file as ElementTree has it, None if it raises or waits."""
    done = subprocess.run(
        [sys.executable, "-c", READ_XML, *map(str, paths)], capture_output=True, check=True, timeout=60
    )
    return [text if text is None else " ".join(text.split()) for text in json.loads(done.stdout)]


@pytest.mark.faults("broken or odd text")
def test_odd_annotation_files(tmp_path, faults):
    odd = write_annotations(tmp_path / "odd", [put for put, _ in ANNOTATIONS.values()])
    plain = [doc(text.replace("&", "&amp;")).encode() if text else lambda _: None for _, text in ANNOTATIONS.values()]
    clean = write_annotations(tmp_path / "clean", plain)
    items = {item.id: item for item in iaprtc12.read(odd).items}
    for n, (name, (_, text)) in enumerate(ANNOTATIONS.items()):
        assert items[str(2 * n + 1)].texts.get("de") == (text and (text,)), name
    assert all(item.texts["en"] == (f"english {ident}",) for ident, item in items.items())
    reports = [extracted(root, "iaprtc12", root.name) for root in (odd, clean)]
    none = [str(2 * n + 1) for n, (_, text) in enumerate(ANNOTATIONS.values()) if text is None]
    for lang, ids in (("de", none), ("en", [])):
        assert [missing(report, lang) for report in reports] == [ids, ids]
        one, other = (report.folder / f"text-{lang}-bert-random.h5" for report in reports)
        assert one.read_bytes() == other.read_bytes()
        assert read_features(one).valid.all()
    faults.tried = faults.survived = faults.naive_tried = len(ANNOTATIONS)
    naive = read_naively(odd / GERMAN[0] / f"00/{2 * n + 1}.ger" for n in range(len(ANNOTATIONS)))
    assert naive[2] == TEXT  # it does read XML
    faults.naive_survived = sum(
        found == (text or "") for found, (_, text) in zip(naive, ANNOTATIONS.values(), strict=True)
    )


# ---------------------------------------------------------------------------------------------- captions

# the JSON of a caption -> what is kept of it, None for nothing
CAPTIONS = {
    '""': None,
    '" \\t\\u00a0\\u2028"': None,
    "[]": None,
    "null": None,
    '["", "a dog"]': "a dog",
    '"a\\u0000dog"': "a dog",
    '"\\u0000"': None,
    '"a dog \\ud83d\\udc15"': "a dog 🐕",
    '"\\ud83d dog"': "dog",  # half of an emoji
    '"\\udcff"': None,
    '"\\u202eשלום עולם"': "שלום עולם",
    '"a\\u001b[0m dog"': "a [0m dog",
    '"Ko\\u0308ln"': "Köln",
    '"[SEP] [MASK] dog [PAD]"': "[SEP] [MASK] dog [PAD]",
    '"<b>a</b> &amp; b"': "<b>a</b> &amp; b",
    '"NaN"': "NaN",
    '"?!"': "?!",
    '"' + "dog " * 100_000 + '"': " ".join(["dog"] * 100_000),
    '"' + "d" * 100_000 + '"': "d" * 100_000,
    '"狗"': "狗",
}


def write_captions(root, captions):
    """A manifest with these captions (as JSON), an ordinary one behind each."""
    root.mkdir()
    lines = []
    for n, caption in enumerate(captions):
        for name, value in ((f"odd-{n}", caption), (f"good-{n}", f'"a dog and {n} cats"')):
            lines.append(f'{{"id": "{name}", "texts": {{"en": {value}}}, "splits": ["database"]}}\n')
    (root / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    return root


def tokenized_naively(encoder, caption):
    """Whether tokenizer and model take a caption as it is, and see in it no more than its words."""
    try:
        ids = encoder.tokenizer(caption)["input_ids"]
        with torch.inference_mode():
            out = encoder.module(input_ids=torch.tensor([ids])).last_hidden_state
    except Exception:
        return False
    return ids == encoder.pieces([caption])[0] and bool(torch.isfinite(out).all())


@pytest.mark.faults("broken or odd text")
def test_odd_captions(tmp_path, faults):
    odd = write_captions(tmp_path / "odd", CAPTIONS)
    clean = write_captions(tmp_path / "clean", [json.dumps(text) for text in CAPTIONS.values()])
    one, other = (extracted(root, "manifest", root.name) for root in (odd, clean))
    kept = {item.id: item.texts.get("en") for item in one.dataset.items}
    for n, (caption, text) in enumerate(CAPTIONS.items()):
        assert kept[f"odd-{n}"] == (text and (text,)), caption[:40]
    assert missing(one, "en") == missing(other, "en") == [f"odd-{n}" for n, t in enumerate(CAPTIONS.values()) if not t]
    assert (one.folder / "text-en-bert-random.h5").read_bytes() == (
        other.folder / "text-en-bert-random.h5"
    ).read_bytes()
    faults.tried = faults.survived = faults.naive_tried = len(CAPTIONS)
    encoder = text_encoders.load("random", corpus=["a dog and a cat", "a dog and two cats"])
    assert tokenized_naively(encoder, "a dog and 3 cats")
    faults.naive_survived = sum(tokenized_naively(encoder, json.loads(caption)) for caption in CAPTIONS)
