"""What a fine-tuning leaves behind."""

import json

from safetensors.torch import load_file
from tuning import SMALL

from cmrhash.training import runs

IMAGE, EN, DE = f"image-{SMALL}-random", "text-en-bert-random", "text-de-bert-random"


def contents(folder):
    """Path -> bytes of all that counts in a folder of the cache."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def history(report):
    return [json.loads(line) for line in (report.tuned.folder / runs.HISTORY).read_text().splitlines()]


def image_weights(report):
    return load_file(report.tuned.folder / "image.safetensors")
