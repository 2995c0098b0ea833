"""A data set of ten photos, and what its extraction leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
from PIL import Image

from cmrhash.config import ExtractConfig
from cmrhash.encoders import text as text_encoders

SMALL = "shufflenet_v2_x0_5"  # the quickest of torchvision's classifiers
COUNT, BLOCK = 10, 4
IMAGES, EN, DE = f"image-{SMALL}-random.h5", "text-en-bert-random.h5", "text-de-bert-random.h5"
WORDS = {"en": ["dog", "cat"], "de": ["Hund", "Katze"]}


def entry(n):
    texts = {lang: [f"{words[n % 2]} {n}", f"{words[n % 2]} {words[0]}"] for lang, words in WORDS.items()}
    if n == 3:
        del texts["de"]
    splits = ["query"] if n < 2 else ["database", "val" if n == 2 else "train"]
    return {"id": f"i{n}", "image": f"{n}.jpg", "texts": texts, "labels": [WORDS["en"][n % 2]], "splits": splits}


def write(root, entries):
    lines = [json.dumps(e, ensure_ascii=False) for e in entries]
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw(root, n, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(root / f"{n}.jpg")


def config(root, cache, /, **changes):
    settings = ExtractConfig(
        dataset="manifest",
        root=root,
        cache=cache,
        image_model=SMALL,
        image_weights="random",
        text_models=("random",),
        image_batch=4,
    )
    return replace(settings, **changes)


def contents(folder):
    """Name -> bytes of all that counts in a folder of the cache."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def quarantine(report):
    lines = (report.folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return [(e["id"], e["stage"], e["code"]) for e in map(json.loads, lines)]


def save_bert(folder):
    encoder = text_encoders.load("random", corpus=["dog cat Hund Katze"] * 2)
    encoder.tokenizer.save_pretrained(folder)
    encoder.module.save_pretrained(folder)
    return folder
