"""A small data set and quick settings to fine-tune on, for tests in this process and in others."""

import json
from dataclasses import replace

import numpy as np
from PIL import Image

from cmrhash.config import ExtractConfig, FinetuneConfig

SMALL = "shufflenet_v2_x0_5"  # the quickest of torchvision's classifiers
COUNT = 24  # items: 4 query, 4 val, 16 train
STEPS = 4  # of an epoch
QUICK = FinetuneConfig(method="triplet", bits=16, epochs=2, batch=4, lr=3e-3)
WORDS = {"en": ["red", "green"], "de": ["rot", "grün"]}


def entry(n):
    texts = {lang: [f"{words[n % 2]} {n % 3}", f"{words[n % 2]}"] for lang, words in WORDS.items()}
    splits = ["query"] if n < 4 else ["database", "val" if n < 8 else "train"]
    return {"id": f"i{n}", "image": f"{n}.png", "texts": texts, "labels": [WORDS["en"][n % 2]], "splits": splits}


def write(root, entries):
    (root / "manifest.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")


def draw(root, n, seed):
    """Noise with a little more of red or of green."""
    pixels = np.random.default_rng(seed).integers(0, 200, (32, 40, 3))
    pixels[..., n % 2] += 40
    Image.fromarray(pixels.astype(np.uint8)).save(root / f"{n}.png")


def config(root, cache, /, **changes):
    settings = ExtractConfig(
        dataset="manifest",
        root=root,
        cache=cache,
        image_model=SMALL,
        image_weights="random",
        text_models=("random",),
        device="cpu",
        dtype="float32",
    )
    return replace(settings, **changes)


def stop_at(step, error):
    def progress(what, done, total, note=""):
        if what == "fine-tuning" and done == step:
            raise error

    return progress
