"""Commands that extract, tune and train, and changes of one thing each that make their results stale."""

from __future__ import annotations

import json
import shutil

import numpy as np
import torch
import torchvision
from running import EXTRACT, write_manifest
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


def tiny_crop(size):
    return lambda _: Crop(size, 32, "BILINEAR", (0.5,) * 3, (0.25,) * 3)


def write_weights(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.save(torchvision.models.get_model(SMALL, weights=None).state_dict(), "net.pth")


def write_bert(corpus):
    encoder = text_encoders.load("random", corpus=corpus)
    encoder.tokenizer.save_pretrained("bert")
    encoder.module.save_pretrained("bert")


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
# what: a change of the items, photos or captions, and what ``extract`` says of it
UPDATES = {
    "a photo": (photo, None),
    "a caption": (edit(3, texts={"en": ["a cat"], "de": ["Hund 3"]}), "1 changed (i3), 7 as before"),
    "a language that is gone": (edit(3, texts={"en": ["dog 3"]}), "1 changed (i3), 7 as before"),
    "one more caption": (edit(3, texts={"en": ["dog 3", "a dog"], "de": ["Hund 3"]}), "1 changed (i3), 7 as before"),
    "a label": (edit(3, labels=["a"]), "1 changed (i3), 7 as before"),
    "a role": (edit(3, splits=["database"]), "1 changed (i3), 7 as before"),
    "another file for a photo": (edit(3, image="images/4.png"), "1 changed (i3), 7 as before"),
    "the order of the items": (entries(lambda e: [e[1], e[0], *e[2:]]), None),
    "items more": (
        entries(lambda e: [{**e[1], "id": "first"}, *e, {**e[2], "id": "last", "texts": {"en": ["a fox"]}}]),
        "2 new (first, last), 8 as before",
    ),
    "an item less": (entries(lambda e: e[:-1]), "1 gone (i7), 7 as before"),
    "the classes": (every(labels=["c"]), "8 changed (i0, i1, i2, i3, i4, ...), 0 as before"),
    "more, less and changed": (
        entries(lambda e: [{**e[4], "id": "new"}, *e[:4], {**e[5], "texts": {"de": ["Katze"]}}, *e[6:]]),
        "1 new (new), 1 gone (i4), 1 changed (i5), 6 as before",
    ),
}
# what: the change, the command, and the words with the field and both values
CHANGES = {
    "a photo that is gone": (no_photo, OWN, r"1 photos were there at the extraction and are gone \(i2\): .*image-"),
    "most items gone": (entries(lambda e: e[:3]), OWN, r"5 of 8 extracted items are gone \(i3, .*another --name"),
    "all queries gone": (entries(lambda e: e[1:]), OWN, "all query items are gone"),
    "relevance": (every(labels=[]), OWN, "relevance = labels, but this call has pairs"),
    "roles to be drawn": (every(splits=[]), OWN, "split_seed = None, but this call has 0"),
    "the seed of weights": (nothing, [*OWN, "--seed", "1"], rf"weights_sha256 = {HEX}, but this call has {HEX}"),
    "image weights": (weights, GIVEN, rf"weights_sha256 = {HEX}, but this call has {HEX}: .*image-"),
    "image model": (
        renamed("image", f"{SMALL}-random", f"{OTHER}-random"),
        [*OWN, "--image-model", OTHER],
        f"encoder = {SMALL}, but this call has {OTHER}",
    ),
    "resize": (patched(image_encoders, "_crop", tiny_crop(40)), OWN, r"crop\.resize = 36, but this call has 40"),
    "rules for odd photos": (
        patched(pixels, "RULES", "other"),
        OWN,
        r"crop\.rules = pillow; .*, but this call has other",
    ),
    "compute type": (nothing, [*OWN, "--dtype", "bfloat16"], "dtype = float32, but this call has bfloat16"),
    "text weights": (text_weights, GIVEN, rf"weights_sha256 = {HEX}, but this call has {HEX}: .*text-de"),
    "text model": (
        renamed("text-de", "bert-random", "bow2912"),
        [*OWN, "--text-model", "bow"],
        "encoder = bert-random, but this call has bow",
    ),
    "vocabulary": (vocabulary, GIVEN, rf"tokenizer_sha256 = {HEX}, but this call has {HEX}"),
    "how words are cut": (lower_case, GIVEN, rf"tokenizer_sha256 = {HEX}, but this call has {HEX}"),
    "longest caption": (nothing, [*OWN, "--max-length", "9"], "max_length = 512, but this call has 9"),
    "pooling": (nothing, [*OWN, "--pooling", "cls"], "pooling = mean, but this call has cls"),
    "ready-made features": (ready_features, READY, rf"weights_sha256 = {HEX}, but this call has {HEX}: .*image-f\.h5"),
    "code of image features": (patched(extract_images, "CODE", 2), OWN, "code = 1, but this call has 2: .*image-"),
    "code of text features": (patched(extract_texts, "CODE", 2), OWN, "code = 1, but this call has 2: .*text-"),
    "a file of the other language": (
        lambda here, _: shutil.copy(
            here / "own/manifest/text-en-bert-random.h5", here / "own/manifest/text-de-bert-random.h5"
        ),
        OWN,
        "lang = en, but this call has de",
    ),
    "hidden width": (nothing, [*TRAIN, "--hidden", "8"], r"train\.hidden = 4, but this call has 8"),
    "margin": (nothing, [*TRAIN, "--margin", "0.5"], rf"train\.margin = {NUMBER}, but this call has 0\.5"),
    "learning rate": (nothing, [*TRAIN, "--lr", "0.1"], rf"train\.lr = {NUMBER}, but this call has 0\.1"),
    "epochs": (nothing, [*TRAIN, "--epochs", "2"], r"train\.epochs = 1, but this call has 2"),
    "batch": (nothing, [*TRAIN, "--batch", "8"], r"train\.batch = 16, but this call has 8"),
    "weight decay": (
        nothing,
        [*TRAIN, "--weight-decay", "0.5"],
        rf"train\.weight_decay = {NUMBER}, but this call has 0\.5",
    ),
    "dropout": (nothing, [*TRAIN, "--dropout", "0.5"], rf"train\.dropout = {NUMBER}, but this call has 0\.5"),
    "input dropout": (
        nothing,
        [*TRAIN, "--input-dropout", "0.5"],
        rf"input_dropout = {NUMBER}, but this call has 0\.5",
    ),
    "first caption": (nothing, [*TRAIN, "--first-caption", "1"], rf"first_caption = {NUMBER}, but this call has 1"),
    "method": (
        run_called("contrastive-8"),
        [*TRAIN, "--method", "contrastive"],
        r"train\.method = triplet, but this call has contrastive",
    ),
    "seed of the training": (
        run_called("triplet-8-seed3"),
        [*TRAIN, "--seed", "3"],
        r"train\.seed = 0, but this call has 3",
    ),
    "bits": (
        run_called("triplet-16"),
        ["16" if word == "8" else word for word in TRAIN],
        r"train\.bits = 8, but this call has 16",
    ),
    "languages": (
        run_called("triplet-8-en"),
        [*TRAIN, "--lang", "en"],
        r"langs = \['de', 'en'\], but this call has \['en'\]",
    ),
    "relevance of the training": (
        run_called("triplet-8-pairs"),
        [*TRAIN, "--relevance", "pairs"],
        "relevance = labels, but this call has pairs",
    ),
    "rate of the fine-tuning": (nothing, [*TUNE, "--lr", "0.01"], rf"finetune\.lr = {NUMBER}, but this call has 0\.01"),
    "rate of its image encoder": (
        nothing,
        [*TUNE, "--image-lr", "0.1"],
        r"finetune\.image_lr = None, but this call has 0\.1",
    ),
    "its epochs": (nothing, [*TUNE, "--epochs", "2"], r"finetune\.epochs = 1, but this call has 2"),
    "its method": (nothing, [*TUNE, "--method", "supcon"], r"finetune\.method = triplet, but this call has supcon"),
    "a photo that it saw": (photo, TUNE, rf"photos_sha256 = {HEX}, but this call has {HEX}"),
    "its code": (patched(finetune, "CODE", 2), TUNE, "code = 1, but this call has 2"),
}
