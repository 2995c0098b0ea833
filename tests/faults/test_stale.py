"""One thing of a recipe changes, alone: the command stops with the field's name and both values, and touches nothing.
What changes no number is found there, and nothing is computed again.

Beside it the usual rule: skip what already has its name in the .h5.
"""

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
import torchvision
from running import EXTRACT, files, run, write_manifest, write_own
from safetensors.torch import load_file, save_file

from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import pixels
from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.pixels import Crop
from cmrhash.features import captions as extract_texts
from cmrhash.features import images as extract_images
from cmrhash.training.finetune import loop as finetune

SMALL, OTHER = "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"

OWN = [*EXTRACT, "--image-model", SMALL, "--cache", "own"]

GIVEN = [*EXTRACT, "--image-model", SMALL, "--image-weights", "net.pth", "--text-model", "bert", "--dtype", "float32"]

GIVEN += ["--cache", "given"]

READY = ["extract", "--dataset", "features", "--features", "f.npz", "--cache", "ready"]

TUNE = [*EXTRACT, "--image-model", SMALL, "--cache", "tuned", "--finetune", "--method", "triplet", "--epochs", "1"]

TUNE += ["--batch", "4", "--dtype", "float32"]

TRAIN = ["train", "--dataset", "toy", "--epochs", "1", "--batch", "16", "--hidden", "4", "--bits", "8"]

TRAIN += ["--device", "cpu"]

EVAL = ["eval", "--dataset", "toy"]

STALE = 4


def tiny_crop(size):
    return lambda _: Crop(size, 32, "BILINEAR", (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(autouse=True, scope="module")
def small_models():
    with pytest.MonkeyPatch.context() as patch:
        tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        patch.setattr(text_encoders, "TINY", tiny)
        patch.setattr(image_encoders, "_crop", tiny_crop(36))
        yield


def write_weights(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.save(torchvision.models.get_model(SMALL, weights=None).state_dict(), "net.pth")


def write_bert(corpus):
    encoder = text_encoders.load("random", corpus=corpus)
    encoder.tokenizer.save_pretrained("bert")
    encoder.module.save_pretrained("bert")


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


def entries(change):
    """A change of the manifest: entries -> entries."""

    def apply(here, _):
        lines = (here / "mine/manifest.jsonl").read_text().splitlines()
        write_manifest(here / "mine", change([json.loads(line) for line in lines]))

    return apply


def edit(n, **fields):
    return entries(lambda e: [{**old, **fields} if at == n else old for at, old in enumerate(e)])


def every(**fields):
    return entries(lambda e: [{**old, **fields} for old in e])


def photo(here, _):
    shutil.copy(here / "mine/images/1.png", here / "mine/images/2.png")


def no_photo(here, _):
    (here / "mine/images/2.png").unlink()


def renamed(view, old, new):
    def apply(here, _):
        (here / "own/manifest" / f"{view}-{old}.h5").rename(here / "own/manifest" / f"{view}-{new}.h5")

    return apply


def patched(module, name, value):
    return lambda _, monkeypatch: monkeypatch.setattr(module, name, value)


def weights(*_):
    write_weights(1)


def text_weights(*_):
    state = load_file("bert/model.safetensors")
    state["embeddings.word_embeddings.weight"][5] += 1
    save_file(state, "bert/model.safetensors", {"format": "pt"})


def vocabulary(here, _):
    path = here / "bert/tokenizer.json"
    path.write_text(path.read_text().replace('"dog"', '"fog"'))


def lower_case(here, _):
    path = here / "bert/tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false'))


def ready_features(*_):
    with np.load("f.npz") as arrays:
        np.savez("f.npz", image=arrays["image"] + 1, text=arrays["text"])


def run_called(name):
    def apply(here, _):
        (here / "runs/toy/triplet-8").rename(here / "runs/toy" / name)

    return apply


def nothing(*_):
    pass


NUMBER = r"[-\d.e]+"

HEX = r"[0-9a-f]{12}"
# what: the change, the command, and the words with the field and both values
CHANGES = {
    "a photo": (photo, OWN, rf"1 files .*changed.* \(i2: i2 was made with source = {HEX}, is {HEX}\).*image-"),
    "a photo that is gone": (no_photo, OWN, rf"1 files .*changed.* source = {HEX}, is 0{{12}}\).*image-"),
    "a caption": (
        edit(3, texts={"en": ["a cat"], "de": ["Hund 3"]}),
        OWN,
        r"'i3' was made with texts\.en = \['dog 3'\], asked for \['a cat'\]",
    ),
    "another language's caption": (
        edit(3, texts={"en": ["dog 3"], "de": ["Katze"]}),
        OWN,
        r"'i3' was made with texts\.de = \['Hund 3'\], asked for \['Katze'\]",
    ),
    "a language that is gone": (
        edit(3, texts={"en": ["dog 3"]}),
        OWN,
        r"'i3' was made with texts\.de = \['Hund 3'\], asked for nothing",
    ),
    "one more caption": (
        edit(3, texts={"en": ["dog 3", "a dog"], "de": ["Hund 3"]}),
        OWN,
        r"'i3' was made with texts\.en = \['dog 3'\], asked for \['dog 3', 'a dog'\]",
    ),
    "a label": (edit(3, labels=["a"]), OWN, r"'i3' was made with labels = \['b'\], asked for \['a'\]"),
    "a role": (edit(3, splits=["database"]), OWN, r"made with splits = .*'train'.*, asked for \['database'\]"),
    "another file for a photo": (edit(3, image="images/4.png"), OWN, r"image = images/3\.png, asked for images/4\.png"),
    "the order of the items": (
        entries(lambda e: [e[1], e[0], *e[2:]]),
        OWN,
        r"made with id = i0, asked for i1",
    ),
    "an item more": (
        entries(lambda e: [*e, {**e[1], "id": "new"}]),
        OWN,
        "8 items are extracted, the data set has 9",
    ),
    "an item less": (entries(lambda e: e[:-1]), OWN, "8 items are extracted, the data set has 7"),
    "the classes": (every(labels=["c"]), OWN, r"classes = \['a', 'b'\], asked for \['c'\]"),
    "relevance": (every(labels=[]), OWN, "relevance = labels, asked for pairs"),
    "roles to be drawn": (every(splits=[]), OWN, "split_seed = None, asked for 0"),
    "the seed of weights": (nothing, [*OWN, "--seed", "1"], rf"weights_sha256 = {HEX}, asked for {HEX}"),
    "image weights": (weights, GIVEN, rf"weights_sha256 = {HEX}, asked for {HEX}: .*image-"),
    "image model": (
        renamed("image", f"{SMALL}-random", f"{OTHER}-random"),
        [*OWN, "--image-model", OTHER],
        f"encoder = {SMALL}, asked for {OTHER}",
    ),
    "resize": (patched(image_encoders, "_crop", tiny_crop(40)), OWN, r"crop\.resize = 36, asked for 40"),
    "rules for odd photos": (patched(pixels, "RULES", "other"), OWN, r"crop\.rules = pillow; .*, asked for other"),
    "compute type": (nothing, [*OWN, "--dtype", "bfloat16"], "dtype = float32, asked for bfloat16"),
    "text weights": (text_weights, GIVEN, rf"weights_sha256 = {HEX}, asked for {HEX}: .*text-de"),
    "text model": (
        renamed("text-de", "bert-random", "bow2912"),
        [*OWN, "--text-model", "bow"],
        "encoder = bert-random, asked for bow",
    ),
    "vocabulary": (vocabulary, GIVEN, rf"tokenizer_sha256 = {HEX}, asked for {HEX}"),
    "how words are cut": (lower_case, GIVEN, rf"tokenizer_sha256 = {HEX}, asked for {HEX}"),
    "longest caption": (nothing, [*OWN, "--max-length", "9"], "max_length = 512, asked for 9"),
    "pooling": (nothing, [*OWN, "--pooling", "cls"], "pooling = mean, asked for cls"),
    "ready-made features": (ready_features, READY, rf"weights_sha256 = {HEX}, asked for {HEX}: .*image-f\.h5"),
    "code of image features": (patched(extract_images, "CODE", 2), OWN, "code = 1, asked for 2: .*image-"),
    "code of text features": (patched(extract_texts, "CODE", 2), OWN, "code = 1, asked for 2: .*text-"),
    "a file of the other language": (
        lambda here, _: shutil.copy(
            here / "own/manifest/text-en-bert-random.h5", here / "own/manifest/text-de-bert-random.h5"
        ),
        OWN,
        "lang = en, asked for de",
    ),
    "hidden width": (nothing, [*TRAIN, "--hidden", "8"], r"train\.hidden = 4, asked for 8"),
    "margin": (nothing, [*TRAIN, "--margin", "0.5"], rf"train\.margin = {NUMBER}, asked for 0\.5"),
    "learning rate": (nothing, [*TRAIN, "--lr", "0.1"], rf"train\.lr = {NUMBER}, asked for 0\.1"),
    "epochs": (nothing, [*TRAIN, "--epochs", "2"], r"train\.epochs = 1, asked for 2"),
    "batch": (nothing, [*TRAIN, "--batch", "8"], r"train\.batch = 16, asked for 8"),
    "weight decay": (nothing, [*TRAIN, "--weight-decay", "0.5"], rf"train\.weight_decay = {NUMBER}, asked for 0\.5"),
    "dropout": (nothing, [*TRAIN, "--dropout", "0.5"], rf"train\.dropout = {NUMBER}, asked for 0\.5"),
    "input dropout": (nothing, [*TRAIN, "--input-dropout", "0.5"], rf"input_dropout = {NUMBER}, asked for 0\.5"),
    "first caption": (nothing, [*TRAIN, "--first-caption", "1"], rf"first_caption = {NUMBER}, asked for 1"),
    "method": (
        run_called("contrastive-8"),
        [*TRAIN, "--method", "contrastive"],
        r"train\.method = triplet, asked for contrastive",
    ),
    "seed of the training": (run_called("triplet-8-seed3"), [*TRAIN, "--seed", "3"], r"train\.seed = 0, asked for 3"),
    "bits": (
        run_called("triplet-16"),
        ["16" if word == "8" else word for word in TRAIN],
        r"train\.bits = 8, asked for 16",
    ),
    "languages": (
        run_called("triplet-8-en"),
        [*TRAIN, "--lang", "en"],
        r"langs = \['de', 'en'\], asked for \['en'\]",
    ),
    "relevance of the training": (
        run_called("triplet-8-pairs"),
        [*TRAIN, "--relevance", "pairs"],
        "relevance = labels, asked for pairs",
    ),
    "rate of the fine-tuning": (nothing, [*TUNE, "--lr", "0.01"], rf"finetune\.lr = {NUMBER}, asked for 0\.01"),
    "rate of its image encoder": (nothing, [*TUNE, "--image-lr", "0.1"], r"finetune\.image_lr = None, asked for 0\.1"),
    "its epochs": (nothing, [*TUNE, "--epochs", "2"], r"finetune\.epochs = 1, asked for 2"),
    "its method": (nothing, [*TUNE, "--method", "supcon"], r"finetune\.method = triplet, asked for supcon"),
    "a photo that it saw": (photo, TUNE, rf"photos_sha256 = {HEX}, asked for {HEX}"),
    "its code": (patched(finetune, "CODE", 2), TUNE, "code = 1, asked for 2"),
}


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


@pytest.mark.faults("stale: one field of the recipe")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (TRAIN, rf"features\.image\.sha256 = {HEX}, asked for {HEX}"),
        (EVAL, r"image-toy\.h5 was extracted again since this run was trained"),
    ],
)
def test_runs_of_other_features(here, make_cache, capsys, command, words):
    make_cache(here / "cache", count=40, shift="train")
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
