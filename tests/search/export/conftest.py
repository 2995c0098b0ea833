"""A small evaluated run with its encoders, and the folder that is handed on."""

import shutil
from types import SimpleNamespace

import pytest
from handed_on import TEXTS, TRAIN
from small_models import write_bert, write_image_weights

from cmrhash.config import EvalConfig, ExtractConfig
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract
from cmrhash.search.hasher import Hasher
from cmrhash.training.train import train


@pytest.fixture(scope="session")
def made(make_manifest, tmp_path_factory):
    """Photos, encoders in files, cache and an evaluated run: English by a BERT, German by its words."""
    base = tmp_path_factory.mktemp("export")
    root = make_manifest(base / "mine", 40)
    write_image_weights(base / "small.pth", "squeezenet1_1")
    write_bert(base / "bert")
    config = ExtractConfig(
        dataset="manifest",
        root=root,
        cache=base / "cache",
        device="cpu",
        dtype="float32",
        image_model="squeezenet1_1",
        image_weights=str(base / "small.pth"),
        text_models=(str(base / "bert"), "de=bow"),
    )
    extract(config)
    data = ExtractedDataset.open(base / "cache", None)
    train(TRAIN, data, base / "runs")
    evaluate(EvalConfig(), data, base / "runs")
    return base


@pytest.fixture(scope="session")
def hasher(made):
    return Hasher.load(made / "runs/manifest/triplet-20", made / "cache", device="cpu")


@pytest.fixture(scope="session")
def wanted(made, hasher):
    """Photos in memory and what the run itself makes of them and of sentences."""
    photos = [(made / f"mine/images/{n}.jpg").read_bytes() for n in range(5)]
    texts = {lang: hasher.embed_text(TEXTS, lang) for lang in ("en", "de")}
    return SimpleNamespace(photos=photos, image=hasher.embed_image(photos), **texts)


@pytest.fixture(scope="session")
def shared(hasher, wanted, tmp_path_factory):
    """Exported with everything in it, after the hasher had been used."""
    folder = tmp_path_factory.mktemp("shared") / "full"
    hasher.save_pretrained(folder, with_encoders=True)
    return folder


@pytest.fixture
def copy(shared, tmp_path):
    """One that can be changed."""
    return shutil.copytree(shared, tmp_path / "copy")
