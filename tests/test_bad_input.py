"""What goes wrong is said in one line, with the exit code of its kind, and leaves every file as it was."""

import contextlib
import hashlib
import json
import os
import re
import resource
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cmrhash.cache import MAGIC, USER_BLOCK
from cmrhash.files import locked, read_json, write_json
from cmrhash_cli.main import main

QUICK = ["--epochs", "2", "--batch", "16", "--hidden", "16", "--bits", "8", "--device", "cpu"]
ENCODERS = ["--image-model", "mobilenet_v3_small", "--image-weights", "random", "--text-model", "random"]
EXTRACT = ["extract", "--dataset", "manifest", "--root", "mine", "--image-batch", "4", "--device", "cpu", *ENCODERS]
USAGE, LOCKED, STALE, DATA, DAMAGED = 2, 3, 4, 5, 6


def write_own(root, count=8, change=None):
    """A small data set of photos and a manifest. change: entries -> entries."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    entries = []
    for n in range(count):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(root / "images" / f"{n}.png")
        texts = {"en": [f"dog {n}"], "de": [f"Hund {n}"]}
        splits = ["query"] if n == 0 else ["database", "val" if n == 1 else "train"]
        entry = {"id": f"i{n}", "image": f"images/{n}.png", "texts": texts, "labels": ["ab"[n % 2]], "splits": splits}
        entries.append(entry)
    write_manifest(root, change(entries) if change else entries)


def write_manifest(root, entries):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(*args):
    """Run a command as the script does; returns its exit code."""
    before, sys.argv = sys.argv, ["cmrhash", *map(str, args)]
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def prepared(make_cache, tmp_path_factory):
    """cache/toy with a trained, scored run; and a data set "mine" that is extracted into another cache."""
    base, before = tmp_path_factory.mktemp("prepared"), os.getcwd()
    make_cache(base / "cache")
    write_own(base / "mine")
    os.chdir(base)
    assert run("train", *QUICK, "-q") == 0
    assert run(*EXTRACT, "--cache", "own", "-q") == 0
    os.chdir(before)
    return base


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    """A copy of it as the current folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    about = tmp_path / "own/manifest/dataset.json"  # it names the folder of the photos, which are copied as well
    write_json(about, {**read_json(about, ""), "root": str((tmp_path / "mine").resolve())})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    """Content of every file but the locks, which name the last process."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")}


@pytest.fixture
def refused(here, capsys):
    """A function that runs a command, which must fail: in one line, with that code, and nothing lost."""

    def check(code, words, *args):
        before = files(here)
        capsys.readouterr()
        assert run(*args, "-q") == code, capsys.readouterr().err
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1, error
        assert re.search(words, error), error
        assert "unforeseen" not in error
        after = files(here)
        assert [str(p) for p, content in before.items() if after.get(p) != content] == []
        return error

    return check


# ---------------------------------------------------------------------------------------------- options

BITS = ["train", *QUICK]


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (r"unknown data set 'nope'.*sample, iaprtc12, .*manifest", ["extract", "--dataset", "nope"]),
        (r"--root DIR", ["extract", "--dataset", "manifest"]),
        (r"no language 'fr'.*de, en", [*EXTRACT, "--lang", "fr"]),
        (
            r"unknown image model 'mobilenet_v3_smal'.*mobilenet_v3_small",
            [*EXTRACT, "--image-model", "mobilenet_v3_smal"],
        ),
        (r"no weights 'nope'", [*EXTRACT, "--image-weights", "nope"]),
        (r"no such weights|no weights", [*EXTRACT, "--image-weights", "nowhere.pth"]),
        (r"cut\.pth.*truncated", [*EXTRACT, "--image-weights", "cut.pth"]),
        (r"'\./nowhere' is not a directory", [*EXTRACT, "--text-model", "./nowhere"]),
        (r"config\.json", [*EXTRACT, "--text-model", "mine"]),
        (r"offline", [*EXTRACT, "--text-model", "bert-base-nowhere", "--offline"]),
        (r"fr=random.*de, en", [*EXTRACT, "--text-model", "fr=random"]),
        (r"device 'nope'", [*EXTRACT, "--device", "nope"]),
        (r"device 'cuda:99'", [*EXTRACT, "--device", "cuda:99"]),
        (r"dtype 'int8'.*bfloat16", [*EXTRACT, "--dtype", "int8"]),
        (r"--pooling max.*mean, cls", [*EXTRACT, "--pooling", "max"]),
        (r"--name \.\./up", [*EXTRACT, "--name", "../up"]),
        (r"--bits 0", [*BITS, "--bits", "0"]),
        (r"--bits -3", [*BITS, "--bits", "-3"]),
        (r"--bits 99999.*1 to 4096", [*BITS, "--bits", "99999"]),
        (r"--lr nan", [*BITS, "--lr", "nan"]),
        (r"--lr inf", [*BITS, "--lr", "inf"]),
        (r"--lr 0", [*BITS, "--lr", "0"]),
        (r"--lr -1", [*BITS, "--lr", "-1"]),
        (r"--epochs 0", [*BITS, "--epochs", "0"]),
        (r"--batch 0", [*BITS, "--batch", "0"]),
        (r"--hidden -1", [*BITS, "--hidden", "-1"]),
        (r"--margin 0", [*BITS, "--margin", "0"]),
        (r"--weight-decay -1", [*BITS, "--weight-decay", "-1"]),
        (r"--dropout 1.5", [*BITS, "--dropout", "1.5"]),
        (r"--dropout nan", [*BITS, "--dropout", "nan"]),
        (r"--input-dropout -0.1", [*BITS, "--input-dropout", "-0.1"]),
        (r"unknown method 'tripet': did you mean triplet", [*BITS, "--method", "tripet"]),
        (r"'fr'.*de, en", [*BITS, "--lang", "fr"]),
        (r"device 'nope'", [*BITS, "--device", "nope"]),
        (r"--encoder image: write image=NAME", [*BITS, "--encoder", "image"]),
        (r"by 'vgg' \(there: toy\)", [*BITS, "--encoder", "image=vgg"]),
        (r"no extracted data set 'nope' \(there: toy\)", ["train", "--dataset", "nope"]),
        (r"no extracted data set.*cmrhash extract", ["train", "--cache", "nowhere"]),
        (r"no extracted data set.*cmrhash extract", ["eval", "--cache", "nowhere"]),
        (r"no such trained run.*cmrhash train", ["eval", "--runs", "nowhere"]),
        (r"no such trained run with 64 bits \(there: triplet-8\)", ["eval", "--bits", "64"]),
        (r"no such trained run \(there: triplet-8\)", ["eval", "--method", "cca"]),
        (r"no such trained run by pairs \(there: triplet-8\).*--relevance labels", ["eval", "--relevance", "pairs"]),
        (r"unknown relevance 'pair': did you mean pairs", ["eval", "--relevance", "pair"]),
        (r"unknown relevance 'label': did you mean labels", [*BITS, "--relevance", "label"]),
        (r"no features for language 'fr' \(there: de, en\)", ["eval", "--lang", "fr"]),
        (r"--direction it2: did you mean .*i2t, t2i, t2t, i2i", ["eval", "--direction", "it2"]),
        (r"unknown metric 'map50'.*map, r@1, r@5, r@10", ["compare", "--metric", "map50"]),
        (r"no features for language 'fr' \(there: de, en\)", ["compare", "--lang", "fr"]),
        (r"no features for language 'fr' \(there: de, en\)", ["compare", "--train-lang", "fr"]),
        (r"a cut at 0", ["eval", "--map-at", "0"]),
        (r"a cut at -1", ["eval", "--at", "-1"]),
        (r"--map-at-rule nope.*min, R, hits, first", ["eval", "--map-at-rule", "nope"]),
        (r"--ties lucky.*expected, optimistic, pessimistic", ["eval", "--ties", "lucky"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_options_that_cannot_be(here, refused, words, args):
    (here / "cut.pth").write_bytes(b"PK\3\4 not all of it")
    refused(USAGE, words, *args)
    assert not (here.parent / "up").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["train", "--bits", "many"],
        ["train", "--seed", "-1"],
        ["train", "--nope"],
        ["eval", "--map-at"],
        ["extract", "--max-bad", "2"],
        ["extract", "--image-batch", "0"],
        ["trian"],
    ],
    ids=" ".join,
)
def test_what_the_parser_refuses(here, capsys, args):
    before = files(here)
    assert run(*args) == USAGE
    error = capsys.readouterr().err
    assert error.splitlines()[-1].lower().startswith("error: ")
    assert "Traceback" not in error
    assert files(here) == before


def test_two_data_sets_and_no_choice(here, refused, make_cache):
    make_cache(here / "cache", "other")
    for command in (BITS, ["eval"]):
        refused(USAGE, "holds other, toy.*--dataset", *command)


# ---------------------------------------------------------------------------------------------- data


def entry(entries, n, **fields):
    return [{**e, **fields} if at == n else e for at, e in enumerate(entries)]


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("no items", lambda e: []),
        ("line 3 is not a manifest entry", lambda e: [*e[:2], '{"id": "x", ', *e[2:]]),
        ("line 1 is not a manifest entry.*not a JSON object", lambda e: ["[1, 2]", *e]),
        ("line 1 .*'id'", lambda e: [{"image": "images/0.png"}, *e]),
        ("line 2 .*'labels'", lambda e: entry(e, 1, labels="dog")),
        ("line 2 .*splits must be out of", lambda e: entry(e, 1, splits=["test"])),
        ("same id.*i1", lambda e: [*e, e[1]]),
        ("query items are also train.*i2", lambda e: entry(e, 2, splits=["query", "train"])),
        ("train and val at once.*i2", lambda e: entry(e, 2, splits=["val", "train"])),
        ("'i3' has no splits", lambda e: entry(e, 3, splits=[])),
        ("leaves the data set's folder", lambda e: entry(e, 0, image="../secret.png")),
        ("leaves the data set's folder", lambda e: entry(e, 0, image="/etc/hostname")),
        ("no item has a caption", lambda e: [{**x, "texts": {"en": ["  "]}} for x in e]),
        ("no item has a caption", lambda e: [{**x, "texts": {}} for x in e]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_manifests_that_cannot_be(here, refused, words, change):
    shutil.rmtree(here / "mine")
    write_own(here / "mine", change=change)
    refused(DATA, words, *EXTRACT)
    assert not (here / "cache" / "manifest").exists()


def test_folders_that_are_no_data_set(here, refused):
    refused(DATA, "no such folder: nowhere", "extract", "--dataset", "manifest", "--root", "nowhere")
    (here / "empty").mkdir()
    refused(DATA, "no manifest.jsonl: empty", "extract", "--dataset", "manifest", "--root", "empty")
    refused(DATA, "empty", "extract", "--dataset", "iaprtc12", "--root", "empty")


def test_broken_photos_are_quarantined_up_to_the_accepted_share(here, refused, capsys):
    (here / "mine/images/2.png").write_bytes(b"no picture")
    (here / "mine/images/3.png").write_bytes((here / "mine/images/4.png").read_bytes()[:300])
    (here / "mine/images/5.png").unlink()
    refused(DATA, "3 of 8 items could not be used, more than --max-bad 0.01.*quarantine", *EXTRACT)
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
    refused(DATA, "0 items to train on", "train", "--dataset", "manifest", *QUICK)


def test_no_query_with_a_relevant_item(here, refused, make_cache):
    make_cache(here / "cache", change=lambda i: replace(i, labels=()) if "query" in i.splits else i)
    assert run(*BITS, "--overwrite", "-q") == 0
    refused(DATA, "no query has a relevant item", "eval")


def test_no_valid_triplet(here, refused, make_cache):
    make_cache(here / "cache", change=lambda i: replace(i, labels=(0,)))
    refused(DATA, "valid triplet", *BITS, "--overwrite")


# ---------------------------------------------------------------------------------------------- stale


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("pooling = mean, asked for cls", ["--pooling", "cls"]),
        ("max_length = 512, asked for 9", ["--max-length", "9"]),
        ("weights_(seed|sha256) = ", ["--seed", "1"]),
        ("dtype = float32, asked for bfloat16", ["--dtype", "bfloat16"]),
    ],
)
def test_features_of_another_recipe(refused, words, args):
    refused(STALE, words, *EXTRACT, "--cache", "own", *args)


def test_a_data_set_that_has_changed(here, refused):
    own = [*EXTRACT, "--cache", "own"]
    kept = (here / "mine/manifest.jsonl").read_text()
    lines = [json.loads(line) for line in kept.splitlines()]
    write_manifest(here / "mine", entry(lines, 3, texts={"en": ["a cat"]}))
    refused(STALE, "'i3' differs", *own)
    write_manifest(here / "mine", lines[:-1])
    refused(STALE, "8 items are extracted, the data set has 7", *own)
    write_manifest(here / "mine", lines)
    shutil.copy(here / "mine/images/1.png", here / "mine/images/2.png")
    refused(STALE, r"1 files or captions changed.*\(i2\)", *own)


def test_a_run_of_another_recipe(refused):
    refused(STALE, "train.lr = .*, asked for 0.1", *BITS, "--lr", "0.1")
    grid = ["compare", "--bits", "8", "--seeds", "1", "--device", "cpu"]
    refused(STALE, r"triplet, 8 bits, seed 0: run was made with .*--runs, or delete it", *grid)


def test_runs_of_other_features_or_items(here, refused, make_cache):
    make_cache(here / "cache", shift="train")
    refused(STALE, "features.image.sha256", *BITS)
    (here / "runs/toy/triplet-8/codes.h5").unlink()
    refused(STALE, "train again", "eval")
    make_cache(here / "cache", change=lambda i: replace(i, labels=(1,)))
    refused(STALE, "items_sha256", *BITS)
    refused(STALE, "other items", "eval")


def newer_sealed(path):
    """The same sealed file, of a later format version, with a digest that fits."""
    content = bytearray(path.read_bytes())
    head = len(MAGIC) + 65
    body = bytes(content[head:USER_BLOCK].rstrip(b"\0")).replace(b'"version":1', b'"version":2')
    block = MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    content[:USER_BLOCK] = block.ljust(USER_BLOCK, b"\0")
    path.write_bytes(content)


def newer_json(path):
    write_json(path, {**read_json(path, ""), "version": 2})


@pytest.mark.parametrize(
    ("name", "renew", "command"),
    [
        ("cache/toy/dataset.json", newer_json, BITS),
        ("cache/toy/dataset.json", newer_json, ["eval"]),
        ("cache/toy/image-toy.h5", newer_sealed, BITS),
        ("runs/toy/triplet-8/config.json", newer_json, BITS),
        ("runs/toy/triplet-8/config.json", newer_json, ["eval"]),
        ("runs/toy/triplet-8/codes.h5", newer_sealed, ["eval"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_a_newer_version(here, refused, name, renew, command):
    renew(here / name)
    refused(STALE, "version 2.*version 1", *command)


# ---------------------------------------------------------------------------------------------- damage


def flip_last(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def flip_first(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 0x80
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


RUN = "runs/toy/triplet-8/"


@pytest.mark.parametrize("harm", [flip_last, flip_first, cut, empty])
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("cache/toy/items.jsonl", BITS),
        ("cache/toy/image-toy.h5", BITS),
        ("cache/toy/text-de-toy.h5", BITS),
        (RUN + "config.json", BITS),
        (RUN + "heads.safetensors", BITS),
        (RUN + "config.json", ["eval"]),
        (RUN + "codes.h5", ["eval"]),
        (RUN + "image.faiss", ["eval"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_damaged_files(here, refused, name, command, harm):
    harm(here / name)
    refused(DAMAGED, re.escape(name.rpartition("/")[2]), *command)


@pytest.mark.parametrize("harm", [flip_first, cut, empty])
def test_a_damaged_account_of_the_data_set(here, refused, harm):
    harm(here / "cache/toy/dataset.json")
    refused(DAMAGED, "dataset.json", *BITS)


@pytest.mark.parametrize("content", ["[]", "{}", '{"version": 1, "items_sha256": 5}', "null"])
def test_an_account_of_the_data_set_that_is_something_else(here, refused, content):
    (here / "cache/toy/dataset.json").write_text(content)
    refused(DAMAGED, r"dataset\.json|items\.jsonl", *BITS)


def test_a_damaged_extraction(here, refused):
    for name in ("image-mobilenet_v3_small-random.h5", "text-de-bert-random.h5", "items.jsonl"):
        path = here / "own/manifest" / name
        kept = path.read_bytes()
        flip_last(path)
        refused(DAMAGED, name, *EXTRACT, "--cache", "own")
        path.write_bytes(kept)


def test_heads_that_are_gone(here, refused):
    (here / RUN / "heads.safetensors").unlink()
    (here / RUN / "codes.h5").unlink()
    refused(DAMAGED, "heads.safetensors.*--overwrite", "eval")
    refused(DAMAGED, "heads.safetensors.*--overwrite", *BITS)


def test_another_process_is_at_it(here, refused):
    with locked(here / RUN / "config.json"):
        refused(LOCKED, f"process {os.getpid()}", *BITS)


@contextlib.contextmanager
def largest_file(size):
    """No file of this process may grow beyond ``size`` bytes: what a full disk looks like from inside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100, 10_000])
def test_no_space_left(here, refused, size):
    for command in (EXTRACT, [*BITS, "--bits", "64", "--dataset", "toy"]):
        with largest_file(size):
            refused(1, "space", *command)
    (here / RUN / "codes.h5").unlink()
    with largest_file(size):
        refused(1, "space", "eval", "--dataset", "toy")
    assert run(*EXTRACT, "-q") == run(*BITS, "--bits", "64", "--dataset", "toy", "-q") == 0
    assert run("eval", "--dataset", "toy", "-q") == 0


def test_a_folder_that_may_not_be_written(here, refused):
    (here / "blocked").write_text("a file where a folder should be")
    refused(1, "blocked", *BITS, "--runs", "blocked")
    refused(1, "blocked", *EXTRACT, "--cache", "blocked")


def test_debug_shows_the_traceback_before_the_line(here, capsys):
    assert run(*BITS, "--bits", "0", "--debug") == USAGE
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("error: --bits 0: ")


def test_what_nobody_foresaw_is_one_line_as_well(here, refused, capsys, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("so\nthere")

    monkeypatch.setattr("cmrhash.evaluate.evaluate", fail)
    assert run("eval") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: unforeseen ZeroDivisionError: so there: ")
    assert error.count("\n") == 1
