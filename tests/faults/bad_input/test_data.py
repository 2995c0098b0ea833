"""Data sets that cannot be are refused in one line, with the exit code of their kind; no file changes."""

import json
import shutil
from dataclasses import replace

import pytest
from exit_codes import BITS, DATA, STALE, USAGE
from running import EXTRACT, QUICK, files, run, write_own


def entry(entries, n, **fields):
    return [{**e, **fields} if at == n else e for at, e in enumerate(entries)]


@pytest.mark.slow
@pytest.mark.faults("bad labels, codes, features, Faiss calls")
@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("no items", lambda e: []),
        ("line 3 is not a manifest entry", lambda e: [*e[:2], '{"id": "x", ', *e[2:]]),
        ("line 1 is not a manifest entry.*not a JSON object", lambda e: ["[1, 2]", *e]),
        ("line 1 is not a manifest entry .key 'id' is repeated", lambda e: ['{"id": "x", "id": "y"}', *e]),
        ("line 1 .*'id'", lambda e: [{"image": "images/0.png"}, *e]),
        ("line 2 .*'labels'", lambda e: entry(e, 1, labels="dog")),
        ("line 2 .*splits must be among", lambda e: entry(e, 1, splits=["test"])),
        ("ids are repeated.*i1", lambda e: [*e, e[1]]),
        ("query items are also train.*i2", lambda e: entry(e, 2, splits=["query", "train"])),
        ("both train and val items.*i2", lambda e: entry(e, 2, splits=["val", "train"])),
        ("'i3' has no splits", lambda e: entry(e, 3, splits=[])),
        ("leaves the data set's folder", lambda e: entry(e, 0, image="../secret.png")),
        ("leaves the data set's folder", lambda e: entry(e, 0, image="/etc/hostname")),
        ("no item has a photo or a caption", lambda e: [{**x, "image": None, "texts": {"en": ["  "]}} for x in e]),
        ("no item has a photo or a caption", lambda e: [{**x, "image": None, "texts": {}} for x in e]),
        (
            r"0 query items \(the data set's own; 7 of 7 .*: give other splits, .* --query and --train",
            lambda e: e[1:],
        ),
        (r"1 train item \(the data set's own; 3 of 3 items have photo, caption and label\): \./mine", lambda e: e[:3]),
        (r"0 query .* \(drawn from seed 0; 3 of 3 .*: add items", lambda e: [{**x, "splits": []} for x in e[:3]]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_manifests_that_cannot_be(here, refused, words, change):
    shutil.rmtree(here / "mine")
    write_own(here / "mine", change=change)
    refused(DATA, words, *EXTRACT)
    assert not (here / "cache" / "manifest").exists()


@pytest.mark.slow
@pytest.mark.faults("bad command line")
def test_another_choice_of_items_is_refused_for_an_extracted_data_set(here, refused):
    for choice in (["--query", "last:2"], ["--protocol", "clip", "--query", "2", "--train", "4"]):
        words = "'manifest' was made with splits = the data set's own, but .*--overwrite, or another --name"
        refused(STALE, words, *EXTRACT, "--cache", "own", *choice)
    (here / "rows.txt").write_text("0\n9\n")
    refused(DATA, "entry 2 of --query, '9', is no item: rows.txt", *EXTRACT, "--query", "rows.txt")


@pytest.mark.faults("bad command line")
def test_folders_that_are_no_data_set(here, refused):
    refused(DATA, "no such folder: ./nowhere", "extract", "--dataset", "manifest", "--root", "nowhere")
    (here / "empty").mkdir()
    refused(DATA, "no manifest.jsonl: ./empty", "extract", "--dataset", "manifest", "--root", "empty")
    refused(DATA, "empty", "extract", "--dataset", "iaprtc12", "--root", "empty")


@pytest.mark.slow
def test_broken_photos_are_quarantined_up_to_the_accepted_share(here, refused, capsys):
    (here / "mine/images/2.png").write_bytes(b"no picture")
    (here / "mine/images/3.png").write_bytes((here / "mine/images/4.png").read_bytes()[:300])
    (here / "mine/images/5.png").unlink()
    refused(DATA, "3 of 8 items could not be used, more than --max-bad 0.01.*quarantine", *EXTRACT, leaves=True)
    folder = here / "cache/manifest"
    bad = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert {b["id"]: b["code"] for b in bad} == {"i2": "not-an-image", "i3": "corrupt", "i5": "missing"}
    kept = files(folder)
    assert len([path for path in kept if path.suffix == ".h5"]) == 3  # what is good is kept
    refused(DATA, "3 of 8", *EXTRACT, "--max-bad", "0.3")
    assert run(*EXTRACT, "--max-bad", "0.4", "-q") == 0
    assert files(folder) == kept


def test_no_photo_at_all(here, refused):
    shutil.rmtree(here / "mine")
    write_own(here / "mine", change=lambda e: [{**x, "image": None} for x in e])
    assert run(*EXTRACT, "-q") == 0  # nothing is broken: there are none
    lacking = r"no image features \(there: none\).*: no item has a photo: give the photos"
    refused(USAGE, lacking, "train", "--dataset", "manifest", *QUICK)


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_no_query_with_a_relevant_item(here, refused, make_cache):
    make_cache(here / "cache", change=lambda i: replace(i, labels=()) if "query" in i.splits else i)
    assert run(*BITS, "--overwrite", "-q") == 0
    refused(DATA, "no query has a relevant item", "eval")


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_no_valid_triplet(here, refused, make_cache):
    make_cache(here / "cache", change=lambda i: replace(i, labels=(0,)))
    refused(DATA, "valid triplet", *BITS, "--overwrite")
