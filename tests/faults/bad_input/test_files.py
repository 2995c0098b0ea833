"""Stale and damaged files are refused in one line, with the exit code of their kind; no file changes."""

import hashlib
import os
import re
from dataclasses import replace

import pytest
from exit_codes import BITS, DAMAGED, DATA, LOCKED, STALE, USAGE
from running import EXTRACT, run

from cmrhash.errors import EncoderError
from cmrhash.storage.files import locked, read_json, write_json
from cmrhash.storage.sealed import MAGIC, USER_BLOCK

# ---------------------------------------------------------------------------------------------- stale


@pytest.mark.slow
@pytest.mark.faults("stale: one field of the recipe")
def test_a_run_of_another_recipe_in_a_table(refused):
    grid = ["compare", "--bits", "8", "--seeds", "1", "--device", "cpu"]
    refused(STALE, r"triplet, 8 bits, seed 0: run was made with .*--runs, or delete it", *grid)


@pytest.mark.faults("stale: one field of the recipe")
def test_runs_of_other_items(here, refused, make_cache):
    make_cache(here / "cache", change=lambda i: replace(i, labels=(1,)))
    refused(STALE, "the collection changed since this run was trained", *BITS)


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


@pytest.mark.slow
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
    refused(DATA, "no such folder: ./blocked", *EXTRACT, "--root", "blocked")


def test_debug_shows_the_traceback_before_the_line(here, capsys):
    assert run(*BITS, "--bits", "0", "--debug") == USAGE
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("error: --bits: 0 ")


def test_what_nobody_foresaw_is_one_line_as_well(here, refused, capsys, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("so\nthere")

    monkeypatch.setattr("cmrhash.evaluation.evaluate.evaluate", fail)
    assert run("eval") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: unexpected ZeroDivisionError: so there: ")
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
    refused(code, r"error: torch \d\S+ and torchvision \d\S+ do not match: install both together\n", "eval")
