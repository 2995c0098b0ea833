"""Benchmarks of extraction: photos through ResNet18, captions through BERT-base.

Random weights suffice: the work is the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from cmrhash.bench import Case, Path, pieces
from cmrhash.compute.device import choose_dtype
from cmrhash.config import ONNX, RANDOM, TORCH, ExtractConfig
from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.graphs import Network, lacking, network_graph, on_onnx
from cmrhash.encoders.pixels import decode
from cmrhash.features.file import read_features
from cmrhash.features.images import extract_images
from cmrhash.features.shards import Shard

PHOTOS, BATCH = 64, 32
CAPTIONS = 128
WORDS = 12, 30  # words per caption, mean and maximum, as in IAPR TC-12 and Flickr
CPU = torch.device("cpu")
DTYPE = str(choose_dtype("auto", CPU, untrained=False)).removeprefix("torch.")  # the dtype that trained weights get


@contextmanager
def _images(runtime: str = TORCH) -> Iterator[Case]:
    """The naive way uses PIL and the transforms of torchvision, in float32."""
    torch.set_num_threads(1)
    encoder = _on(runtime, image_encoders.load("resnet18", RANDOM, dtype=DTYPE))
    plain = image_encoders.load("resnet18", RANDOM).module.to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as folder:
        root = File(folder)
        items = tuple(Item(str(n), f"{n}.jpg", {}, (), frozenset()) for n in range(PHOTOS))
        for n, item in enumerate(items):
            _photo(n).save(root / str(item.image), quality=90)
        dataset = ImageTextDataset("bench", root, items, (), "pairs")
        config = ExtractConfig(overwrite=True, image_batch=BATCH)
        steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
        prepare = transforms.Compose([*steps, transforms.Normalize(encoder.crop.mean, encoder.crop.std)])
        pixels = np.stack([encoder.crop(decode((root / str(i.image)).read_bytes())) for i in items])

        def naive() -> NDArray[np.float32]:
            found = []
            with torch.no_grad():
                for rows in pieces(PHOTOS, BATCH):
                    batch = [prepare(Image.open(root / str(item.image)).convert("RGB")) for item in items[rows]]
                    found.append(plain(torch.stack(batch)).numpy())
            return _sums(found)

        def ours() -> NDArray[np.float32]:
            done = extract_images(dataset, encoder, root, config, Shard(), lambda *_: None)
            return _sums([read_features(done.target.path).x])

        def limit() -> None:
            for rows in pieces(PHOTOS, BATCH):
                encoder.encode(pixels[rows])

        yield Case(naive, ours, limit, tolerance=0.05)


def _photo(seed: int) -> Image.Image:
    """480 x 360 pixels of smooth colour with grain; as a JPEG about 50 KB, like IAPR TC-12's photos."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((480, 360), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 12, (360, 480, 1))
    return Image.fromarray(np.clip(np.asarray(rough) + grain, 0, 255).astype(np.uint8))


@contextmanager
def _texts(naive_batch: int, pad_to: int | None, share: float, runtime: str = TORCH) -> Iterator[Case]:
    """Captions: tokens and encoding.

    naive_batch, pad_to: batch size and padding of common scripts, which keep the order of the captions; pad_to None
    pads to the longest caption of the batch.
    """
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.poisson(WORDS[0], CAPTIONS), 3, WORDS[1])
    vocabulary = [f"w{n}" for n in range(200)]
    captions = [" ".join(rng.choice(vocabulary, length)) for length in lengths]
    small = text_encoders.load(RANDOM, dtype=DTYPE, corpus=captions * 2)
    config: Any = transformers.BertConfig(vocab_size=len(small.tokenizer))
    module: Any = transformers.BertModel(config)
    plain = replace(small, module=module.eval(), dim=config.hidden_size)
    encoder = _on(runtime, plain)
    asked = captions[: round(share * CAPTIONS)]

    def naive() -> NDArray[np.float32]:
        found = []
        with torch.no_grad():
            for rows in pieces(len(asked), naive_batch):
                how = {"padding": "max_length" if pad_to else True, "max_length": pad_to or 512, "truncation": True}
                batch = encoder.tokenizer(asked[rows], return_tensors="pt", **how)
                mask = batch["attention_mask"]
                hidden = plain.module(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
                found.append(((hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)).numpy())
        return _sums(found)

    pieces_of_mean = encoder.pieces(captions)
    width = round(np.mean([len(p) for p in pieces_of_mean]))
    even = [[5] * width] * (encoder.token_budget // width)

    @torch.inference_mode()
    def limit() -> None:
        for _ in range(round(CAPTIONS / len(even))):
            encoder.forward(even)

    yield Case(naive, lambda: _sums([encoder.encode(captions)]), limit, share, tolerance=0.02)


def _on(runtime: str, encoder: Network) -> Network:
    if runtime == TORCH:
        return encoder
    content = network_graph(encoder)
    return on_onnx(encoder, lambda: content)


def _sums(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """One number per photo or caption."""
    out: NDArray[np.float32] = np.abs(np.concatenate(parts)).sum(1)
    return out


BERT = f"{CAPTIONS} captions of {WORDS[0]} words through BERT-base"
RESNET = f"{PHOTOS} photos of 480 x 360 pixels through ResNet18"
PATHS = {
    "images": Path(
        f"{RESNET}; against PIL, torchvision's transforms, float32",
        "the encoder's forward passes alone",
        2.3,
        _images,
    ),
    "texts-512": Path(
        f"{BERT}; against padding to 512, float32",
        "forward passes of the same word pieces without any padding",
        20,
        lambda: _texts(4, 512, 1 / 32),
    ),
    "texts": Path(
        f"{BERT}; against padding to the longest of 32, float32",
        "forward passes of the same word pieces without any padding",
        2.5,
        lambda: _texts(32, None, 1.0),
    ),
}
if not lacking():
    PATHS |= {
        "images-onnx": Path(
            f"{RESNET} by ONNX Runtime; against PIL, torchvision's transforms, float32",
            "the encoder's forward passes alone",
            1.2,
            lambda: _images(ONNX),
        ),
        "texts-onnx": Path(
            f"{BERT} by ONNX Runtime; against padding to the longest of 32, float32",
            "forward passes of the same word pieces without any padding",
            1.5,
            lambda: _texts(32, None, 1.0, ONNX),
        ),
    }
