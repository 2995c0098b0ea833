"""A small data set, and caches that it was extracted into."""

from __future__ import annotations

import shutil

import pytest
from extracting import BLOCK, COUNT, config, draw, entry, write

from cmrhash.encoders import text as text_encoders
from cmrhash.features import captions as extract_texts
from cmrhash.features import images as extract_images
from cmrhash.features.extract import extract


@pytest.fixture(autouse=True, scope="module")
def small_blocks_and_models():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_images, "IMAGE_BLOCK", BLOCK)
        patch.setattr(extract_texts, "TEXT_BLOCK", BLOCK)
        tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        patch.setattr(text_encoders, "TINY", tiny)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The data set that is not to be touched."""
    root = tmp_path_factory.mktemp("source")
    for n in range(COUNT):
        draw(root, n, n)
    write(root, [entry(n) for n in range(COUNT)])
    return root


@pytest.fixture
def mine(source, tmp_path):
    """A copy of the data set, to be changed."""
    return shutil.copytree(source, tmp_path / "mine")


@pytest.fixture(scope="module")
def clean(small_blocks_and_models, source, tmp_path_factory):
    """The report of an undisturbed extraction of the data set; its cache is not to be touched."""
    return extract(config(source, tmp_path_factory.mktemp("cache")))


@pytest.fixture
def made(clean, tmp_path):
    """A copy of that cache, to be changed."""
    return shutil.copytree(clean.folder.parent, tmp_path / "cache")
