""""""

from __future__ import annotations

import json
import locale
import os
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from running import files, run, write_own
from stale_changes import (
    CHANGES,
    EVAL,
    GIVEN,
    HEX,
    OWN,
    READY,
    TRAIN,
    TUNE,
    UPDATES,
    nothing,
    tiny_crop,
    write_bert,
    write_weights,
)

from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import text as text_encoders
from cmrhash.storage.sealed import read_manifest

pytestmark = pytest.mark.slow

STALE = 4


@pytest.fixture(autouse=True, scope="module")
def small_models():
    with pytest.MonkeyPatch.context() as patch:
        tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        patch.setattr(text_encoders, "TINY", tiny)
        patch.setattr(image_encoders, "_crop", tiny_crop(36))
        yield


@pytest.fixture(scope="module")
def prepared(small_models, make_cache, tmp_path_factory):
    """A data set extracted in four ways, one of them tuned, and a trained and scored run of another one."""
    base, before = tmp_path_factory.mktemp("prepared"), os.getcwd()
    make_cache(base / "cache", count=40)
    write_own(base / "mine")
    os.chdir(base)
    write_weights(0)
    write_bert(["dog cat Hund Katze"] * 2)
    rng = np.random.default_rng(0)
    np.savez("f.npz", image=rng.standard_normal((30, 5)), text=rng.standard_normal((30, 4)))
    for command in (OWN, GIVEN, READY, TUNE, TRAIN, [*EVAL, "--relevance", "labels"]):
        assert run(*command, "-q") == 0
    os.chdir(before)
    return base


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder):
    """All but the account of the data set: it names the folder of the photos, which has moved."""
    return {path: content for path, content in files(folder).items() if path.name != "dataset.json"}


# ---------------------------------------------------------------------------------------------- what changes numbers


@pytest.mark.faults("stale: one field of the recipe")
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_one_thing_is_refused_by_its_name_and_both_values(here, monkeypatch, capsys, what):
    change, command, words = CHANGES[what]
    change(here, monkeypatch)
    before = contents(here)
    assert run(*command, "-q") == STALE, capsys.readouterr().err
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error), error
    assert contents(here) == before


@pytest.mark.faults("data set changed since its extraction")
@pytest.mark.parametrize("what", UPDATES)
def test_a_changed_data_set_is_extracted_as_if_anew(here, monkeypatch, capsys, what):
    change, words = UPDATES[what]
    change(here, monkeypatch)
    for command in (OWN, GIVEN):
        capsys.readouterr()
        assert run(*command) == 0, capsys.readouterr().err
        said = capsys.readouterr().err
        assert (f"since the last extraction: {words}" in said) if words else ("since the last" not in said)
        folder = command[command.index("--cache") + 1]
        assert run(*command, "--cache", "anew", "-q") == 0
        assert sorted(map(os.path.basename, files(here / folder))) == sorted(
            map(os.path.basename, files(here / "anew"))
        )
        for path in (here / "anew/manifest").glob("*.h5"):
            made, anew = (read_manifest(one) for one in (here / folder / "manifest" / path.name, path))
            same = ("recipe", "payload_sha256", "rows", "ok")
            assert [made[key] for key in same] == [anew[key] for key in same], path.name
        items = [(here / one / "manifest/items.jsonl").read_bytes() for one in (folder, "anew")]
        assert items[0] == items[1]
        shutil.rmtree(here / "anew")
        capsys.readouterr()
        assert run(*command) == 0
        assert "since the last extraction" not in capsys.readouterr().err


@pytest.mark.faults("stale: one field of the recipe")
@pytest.mark.parametrize(
    ("change", "command", "words"),
    [
        ({"shift": "train"}, TRAIN, rf"features\.image\.sha256 = {HEX}, but this call has {HEX}"),
        ({"weights": "other"}, EVAL, r"image-toy\.h5 was extracted again in another way since this run was made"),
    ],
)
def test_runs_of_other_features(here, make_cache, capsys, change, command, words):
    make_cache(here / "cache", count=40, **change)
    before = contents(here)
    assert run(*command, "-q") == STALE
    assert re.search(words, capsys.readouterr().err)
    assert contents(here) == before


# ---------------------------------------------------------------------------------------------- what does not


def moved(here, monkeypatch):
    there = here.with_name(here.name + " moved")
    shutil.move(here, there)
    monkeypatch.chdir(there)


def touched(here, _):
    for path in here.rglob("*"):
        os.utime(path, (1, 1))


def another_folder(here, monkeypatch):
    monkeypatch.chdir(here / "mine")


def other_threads(*_):
    torch.set_num_threads(2)


def other_locale(*_):
    for name in ("de_DE.UTF-8", "C.UTF-8", "C"):
        try:
            locale.setlocale(locale.LC_ALL, name)
            return
        except locale.Error:
            continue


def other_files_there(here, _):
    (here / "own/manifest/notes.txt").write_text("mine")
    (here / "mine/images/more.png").write_bytes(b"not of the data set")


def rewritten_manifest(here, _):
    lines = (here / "mine/manifest.jsonl").read_text().splitlines()
    turned = [dict(reversed(json.loads(line).items())) for line in lines]
    content = "\r\n".join(
        json.dumps(entry, ensure_ascii=True, indent=None, separators=(" , ", " : ")) for entry in turned
    )
    (here / "mine/manifest.jsonl").write_bytes(b"\xef\xbb\xbf" + content.encode() + b"\r\n\r\n")


def moved_weights(here, _):
    shutil.copy(here / "net.pth", here / "mine/other.pth")


HARMLESS = {
    "moved": (moved, {}),
    "touched": (touched, {}),
    "called from elsewhere": (another_folder, {"mine": "../mine", "net.pth": "../net.pth", "bert": "../bert"}),
    "an absolute path": (nothing, {"mine": "{here}/mine", "own": "{here}/own", "bert": "{here}/bert"}),
    "two threads": (other_threads, {}),
    "another locale": (other_locale, {}),
    "other files beside it": (other_files_there, {}),
    "the same manifest written otherwise": (rewritten_manifest, {}),
    "weights from another place": (moved_weights, {"net.pth": "mine/other.pth"}),
}
SAME = [OWN, GIVEN, TUNE, TRAIN]


def found(command, capsys):
    """Whether each thing that a command is about was there already."""
    capsys.readouterr()
    assert run(*command, "-q", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    if command[0] == "train":
        return [not one["trained"] for one in told]
    tuning = [not told["finetuned"]["fresh"]] if told["finetuned"] else []
    return tuning + [not file["fresh"] for file in told["files"]]


@pytest.fixture
def as_before():
    """Threads, locale and umask as they were, after the test."""
    threads, words = torch.get_num_threads(), locale.setlocale(locale.LC_ALL)
    umask = os.umask(0o022)
    os.umask(umask)
    yield
    torch.set_num_threads(threads)
    locale.setlocale(locale.LC_ALL, words)
    os.umask(umask)


@pytest.mark.faults("not stale: moved, touched, elsewhere")
@pytest.mark.parametrize("what", [*HARMLESS, "another umask"])
def test_what_changes_no_number_is_found_there(here, as_before, monkeypatch, capsys, faults, what):
    change, paths = HARMLESS.get(what, (lambda *_: os.umask(0o077), {}))
    before = {path.relative_to(here): content for path, content in contents(here).items() if path.suffix == ".h5"}
    change(here, monkeypatch)
    root = here if here.exists() else here.with_name(here.name + " moved")
    up = "../" if what == "called from elsewhere" else ""
    for command in SAME:
        faults.tried += 1
        asked = [paths.get(word, word).format(here=root) for word in command]
        if command is TRAIN:
            asked += ["--cache", f"{up}cache", "--runs", f"{up}runs"]
        elif up:
            asked[asked.index("--cache", 3) + 1] = up + command[-1 if command is not TUNE else command.index("tuned")]
        faults.survived += all(found(asked, capsys))
    now = {path.relative_to(root): content for path, content in contents(root).items() if path.suffix == ".h5"}
    assert now == before


@pytest.mark.faults("not stale: moved, touched, elsewhere")
def test_another_process_with_another_hash_seed_and_locale_finds_it_there(here, faults):
    """The order of sets and the encoding of the system: nothing of the recipe may hang on them."""
    code = f"""
import sys
from cmrhash.encoders import image, text
from cmrhash.encoders.pixels import Crop
text.TINY = {text_encoders.TINY!r}
image._crop = lambda _: Crop(36, 32, "BILINEAR", (0.5,) * 3, (0.25,) * 3)
from cmrhash_cli.main import main
for sys.argv[1:] in ({TUNE!r}, {GIVEN!r}, {TRAIN!r}):
    sys.argv += ["-q", "--json"]
    try:
        main()
    except SystemExit as end:
        assert not end.code
"""
    before = contents(here)
    more = {"LC_ALL": "C", "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fresh = re.findall(r'"(?:fresh|trained)": (true|false)', done.stdout)
    faults.tried += 3
    faults.survived += 3 * (fresh == ["false"] * 8)  # a tuning, twice three files, a run
    assert contents(here) == before


# ---------------------------------------------------------------------------------------------- the naive way


def skip_what_is_there(path, photos, model):
    """As hloc's extract_features does it: a group a photo, and no second look at one that is there."""
    with h5py.File(path, "a") as file:
        for name, photo in photos.items():
            if name not in file:
                file[f"{name}/x"] = model(photo)


NAIVE = {
    "a photo": ({"1": 5.0}, None),
    "a photo that is gone": ({"1": None}, None),
    "an item more": ({"new": 3.0}, None),
    "image weights": ({}, lambda x: x * 3),
    "image model": ({}, lambda x: x**2),
    "resize": ({}, lambda x: (x * 2)[::2]),
    "compute type": ({}, lambda x: (x * 2).astype(np.float16)),
    "rules for odd photos": ({}, lambda x: x * 2 + 1),
}


@pytest.mark.faults("stale: one field of the recipe")
def test_what_the_naive_way_does_not_notice(tmp_path, faults):
    for what, (change, model) in NAIVE.items():
        path = tmp_path / f"{what}.h5"
        photos = {str(n): np.full(8, n + 1.0) for n in range(4)}
        skip_what_is_there(path, photos, lambda x: x * 2)
        photos |= {name: np.full(8, value) for name, value in change.items() if value is not None}
        photos = {name: x for name, x in photos.items() if change.get(name, 0) is not None}
        skip_what_is_there(path, photos, model or (lambda x: x * 2))
        expected = {name: (model or (lambda x: x * 2))(x) for name, x in photos.items()}
        with h5py.File(path, "r") as file:
            right = set(file) == set(expected) and all(
                np.array_equal(file[n]["x"][...], x) for n, x in expected.items()
            )
        faults.naive_tried += 1
        faults.naive_survived += right
    faults.tried = faults.survived = 1
    assert faults.naive_survived < faults.naive_tried
