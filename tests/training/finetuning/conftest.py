"""Small models, a handful of small photos, and a fine-tuning of them that the tests share."""

import shutil

import pytest
from tuning import COUNT, QUICK, config, draw, entry, write

from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.pixels import Crop
from cmrhash.features.extract import extract
from cmrhash.training.finetune.extract import extract_tuned


@pytest.fixture(autouse=True, scope="module")
def small_models_and_crops():
    with pytest.MonkeyPatch.context() as patch:
        tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        patch.setattr(text_encoders, "TINY", tiny)
        patch.setattr(image_encoders, "_crop", lambda _: Crop(32, 32, "BILINEAR", (0.5,) * 3, (0.25,) * 3))
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
def frozen(small_models_and_crops, source, tmp_path_factory):
    """The report of an extraction without fine-tuning."""
    return extract(config(source, tmp_path_factory.mktemp("frozen")))


@pytest.fixture(scope="module")
def finished(small_models_and_crops, source, tmp_path_factory):
    """The report of the quick fine-tuning; its cache is not to be touched."""
    return extract_tuned(config(source, tmp_path_factory.mktemp("finished")), QUICK)


@pytest.fixture
def made(finished, tmp_path):
    """A copy of its cache, to be changed."""
    return shutil.copytree(finished.folder.parent, tmp_path / "cache")
