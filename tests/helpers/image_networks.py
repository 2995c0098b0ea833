"""Networks and photos for the tests of image encoders."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torchvision
from PIL import Image

from cmrhash.encoders import image as image_encoders

SMALL = "shufflenet_v2_x0_5"  # the quickest of torchvision's classifiers


def photos(count, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [(40, 32), (32, 40), (300, 200), (64, 64), (20, 90)]
    return [
        Image.fromarray(rng.integers(0, 256, (*sizes[n % len(sizes)][::-1], 3)).astype(np.uint8)) for n in range(count)
    ]


def network(name=SMALL, seed=3, **options):
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return torchvision.models.get_model(name, weights=None, **options).eval()


def load(path, model=SMALL, **options):
    return image_encoders.load(model, str(path), dtype="float32", **options)
