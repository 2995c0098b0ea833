"""What goes wrong is said in one line, with the exit code of its kind, and leaves every file as it was."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace

import pytest
from running import EXTRACT, QUICK, files, run, write_own

from cmrhash.errors import EncoderError
from cmrhash.storage.files import locked, read_json, write_json
from cmrhash.storage.sealed import MAGIC, USER_BLOCK

USAGE, LOCKED, STALE, DATA, DAMAGED = 2, 3, 4, 5, 6


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

HUGE = "9" * 20  # beyond 64 bits

EMPTY = [  # what an unset variable of the shell leaves behind
    (r"unknown data set ''", ["extract"], "--dataset"),
    (r"--name : use letters", EXTRACT, "--name"),
    (r"no language ''", EXTRACT, "--lang"),
    (r"unknown image model ''", EXTRACT, "--image-model"),
    (r"no such weights", EXTRACT, "--image-weights"),
    (r"--text-model without a model", EXTRACT, "--text-model"),
    (r"dtype ''", EXTRACT, "--dtype"),
    (r"no extracted data set ''", BITS, "--dataset"),
    (r"no features for language ''", BITS, "--lang"),
    (r"unknown method ''", BITS, "--method"),
    (r"unknown relevance ''", BITS, "--relevance"),
    (r"device ''", BITS, "--device"),
    (r"no extracted data set: \.", BITS, "--cache"),
    (r"unknown relevance ''", ["eval"], "--relevance"),
    (r"--ties : choose", ["eval"], "--ties"),
    (r"--direction : choose", ["eval"], "--direction"),
    (r"--map-at-rule : choose", ["eval"], "--map-at-rule"),
    (r"unknown method ''", ["eval"], "--method"),
    (r"unknown metric ''", ["compare"], "--metric"),
]


@pytest.mark.faults("bad command line")
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
        (r"unknown method 'tripel': did you mean triplet\?", ["eval", "--method", "tripel"]),
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
        (r"--bits 9{20}.*1 to 4096", [*BITS, "--bits", HUGE]),
        (r"--seed 9{20}.*0 to 4294967295", [*BITS, "--seed", HUGE]),
        (r"--seed 9{20}.*0 to 4294967295", [*EXTRACT, "--seed", HUGE]),
        (r"--hidden 9{20}.*0 to 65536", [*BITS, "--hidden", HUGE]),
        (r"--first-caption nan.*0 to 1", [*BITS, "--first-caption", "nan"]),
        (r"unknown alignment 'mdm': did you mean mmd", [*BITS, "--method", "acmr", "--alignment", "mdm"]),
        (r"--alignment with --method triplet", [*BITS, "--alignment", "mmd"]),
        (r"--encoder =: write", [*BITS, "--encoder", "="]),
        (r"in 64 bits, got 9{20}", ["eval", "--map-at", HUGE]),
        (r"in 64 bits, got 9{20}", ["eval", "--at", HUGE]),
        (r"with 9{20} bits", ["eval", "--bits", HUGE]),
        (r"no trained run|no such trained run", ["eval", "--seed", HUGE]),
        (r"--seeds 0", ["compare", "--seeds", "0"]),
        (r"--bits 0", ["compare", "--bits", "0"]),
        (r"--epochs 0", ["compare", "--epochs", "0"]),
        (r"unknown method 'tripel': did you mean triplet", ["compare", "--method", "tripel"]),
        (r"unknown path 'eval': did you mean evaluation", ["bench", "--path", "eval"]),
        (r"'\.\.' \(there: toy\)", ["eval", "--dataset", ".."]),
        (r"'toy/\.\./toy' \(there: toy\)", ["eval", "--dataset", "toy/../toy"]),
        (r"'\\udcff' \(there: toy\)", ["eval", "--dataset", "\udcff"]),
        (r"--name \\udcff: use letters", [*EXTRACT, "--name", "\udcff"]),
        (r"name too long", [*EXTRACT, "--name", "x" * 300]),
        (r"name too long", [*EXTRACT, "--text-model", "x" * 5000]),
        (r"'\\udcff' is neither a directory", [*EXTRACT, "--text-model", "\udcff"]),
        (r"no such weights file: mine", [*EXTRACT, "--image-weights", "mine"]),
        (r"needs its files: give --features", ["extract", "--dataset", "features"]),
        (r"--map x: give the file", [*EXTRACT, "--map", "x"]),
        (r"--lr without --finetune", [*EXTRACT, "--lr", "0.1"]),
        (r"--epochs 0", [*EXTRACT, "--finetune", "--epochs", "0"]),
        (r"--method cca has no loss", [*EXTRACT, "--finetune", "--method", "cca"]),
        *((words, [*command, option, ""]) for words, command, option in EMPTY),
    ],
    ids=lambda value: ascii(" ".join(value[-2:]))[:40] if isinstance(value, list) else "",
)
def test_options_that_cannot_be(here, refused, words, args):
    (here / "cut.pth").write_bytes(b"PK\3\4 not all of it")
    refused(USAGE, words, *args)
    assert not (here.parent / "up").exists()


@pytest.mark.faults("bad command line")
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
        [""],
        ["\udcff"],
        ["eval", "toy"],
        ["train", "--bits"],
        ["train", "--bits", ""],
        ["train", "--bits", "3.5"],
        ["train", "--epochs", "\udcff"],
        ["extract", "--image-batch", HUGE],
        ["extract", "--max-bad", "nan"],
        ["extract", "--root", "a\0b"],
    ],
    ids=lambda args: ascii(" ".join(args)),
)
def test_what_the_parser_refuses(here, capsys, args):
    before = files(here)
    assert run(*args) == USAGE
    error = capsys.readouterr().err
    assert error.splitlines()[-1].lower().startswith("error: ")
    assert "Traceback" not in error
    assert files(here) == before


@pytest.mark.faults("bad command line")
@pytest.mark.parametrize("given", [["--bits", "16,32"], ["--bits=16,32"]])
def test_numbers_joined_by_commas_are_told_apart(here, refused, given):
    refused(USAGE, "'--bits'.*: repeat the option: --bits 16 --bits 32: see ", "train", *given)
    assert "repeat" not in refused(USAGE, "'--epochs'", "train", "--epochs", "1,2")


@pytest.mark.faults("bad command line")
def test_two_data_sets_and_no_choice(here, refused, make_cache):
    make_cache(here / "cache", "other")
    for command in (BITS, ["eval"]):
        refused(USAGE, "holds other, toy.*--dataset", *command)


# ---------------------------------------------------------------------------------------------- data


def entry(entries, n, **fields):
    return [{**e, **fields} if at == n else e for at, e in enumerate(entries)]


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
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


@pytest.mark.faults("bad command line")
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
    lacking = r"0 items to train on \(of 6 train items 6 have no usable image\).*: complete them"
    refused(DATA, lacking, "train", "--dataset", "manifest", *QUICK)


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_no_query_with_a_relevant_item(here, refused, make_cache):
    make_cache(here / "cache", change=lambda i: replace(i, labels=()) if "query" in i.splits else i)
    assert run(*BITS, "--overwrite", "-q") == 0
    refused(DATA, "no query has a relevant item", "eval")


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_no_valid_triplet(here, refused, make_cache):
    make_cache(here / "cache", change=lambda i: replace(i, labels=(0,)))
    refused(DATA, "valid triplet", *BITS, "--overwrite")


# ---------------------------------------------------------------------------------------------- stale


@pytest.mark.faults("stale: one field of the recipe")
def test_a_run_of_another_recipe_in_a_table(refused):
    grid = ["compare", "--bits", "8", "--seeds", "1", "--device", "cpu"]
    refused(STALE, r"triplet, 8 bits, seed 0: run was made with .*--runs, or delete it", *grid)


@pytest.mark.faults("stale: one field of the recipe")
def test_runs_of_other_items(here, refused, make_cache):
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


@pytest.mark.faults("stale: one field of the recipe")
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


HARMS = [
    pytest.param(harm, marks=pytest.mark.faults(row))
    for harm, row in ((flip_last, "flipped bit"), (flip_first, "flipped bit"), (cut, "cut short"), (empty, "cut short"))
]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("cache/toy/items.jsonl", BITS),
        ("cache/toy/dataset.json", BITS),
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


@pytest.mark.faults("bad command line")
def test_a_folder_that_may_not_be_written(here, refused):
    (here / "blocked").write_text("a file where a folder should be")
    refused(USAGE, "blocked", *BITS, "--runs", "blocked")
    refused(USAGE, "blocked", *EXTRACT, "--cache", "blocked")
    refused(USAGE, "blocked", "eval", "--trec", "blocked")
    refused(USAGE, "no such trained run.*blocked", "eval", "--runs", "blocked")
    refused(USAGE, "no extracted data set.*blocked", "eval", "--cache", "blocked")
    refused(DATA, "no such folder: blocked", *EXTRACT, "--root", "blocked")


def test_debug_shows_the_traceback_before_the_line(here, capsys):
    assert run(*BITS, "--bits", "0", "--debug") == USAGE
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("error: --bits 0: ")


def test_what_nobody_foresaw_is_one_line_as_well(here, refused, capsys, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("so\nthere")

    monkeypatch.setattr("cmrhash.evaluation.evaluate.evaluate", fail)
    assert run("eval") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: unforeseen ZeroDivisionError: so there: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("passed_on", [False, True])
def test_torch_and_torchvision_that_do_not_fit_are_named(here, refused, monkeypatch, passed_on):
    def fail(*_):
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError:
            if passed_on:
                raise EncoderError("cannot load the text model", "bert", "give a directory") from None
            raise

    monkeypatch.setattr("cmrhash.evaluation.evaluate.evaluate", fail)
    code = EncoderError.exit_code if passed_on else 1
    refused(code, r"error: torch \d\S+ and torchvision \d\S+ do not fit together: install both together\n", "eval")
