"""ONNX graphs of encoders' networks: the features of PyTorch, for any batch."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import write_bert

from cmrhash.encoders import graphs, image, text
from cmrhash.errors import EncoderError

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def packages():
    for name in graphs.PACKAGES:
        pytest.importorskip(name, reason="pip install cmrhash[onnx]")


def near(found, wanted):
    return np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_captions_of_any_length_and_number(tmp_path, pooling):
    write_bert(tmp_path)
    encoder = text.load(str(tmp_path), pooling=pooling, dtype="float32")
    content = graphs.network_graph(encoder)
    other = graphs.on_onnx(encoder, lambda: content)
    captions = ["dog", "cat 1 2 3", "dog cat tree house " * 8, "tree"]
    assert near(other.encode(captions), encoder.encode(captions))
    assert near(other.encode(captions[:1]), encoder.encode(captions[:1]))


def test_a_graph_that_gives_other_features_is_refused(monkeypatch):
    encoder = image.load("shufflenet_v2_x0_5", "random")
    monkeypatch.setattr(graphs, "NEAR", -1.0)
    with pytest.raises(EncoderError, match="gives other features: use `runtime='torch'`"):
        graphs.network_graph(encoder)


def test_a_network_that_cannot_be_exported_is_refused_by_name():
    encoder = image.load("shufflenet_v2_x0_5", "random")
    honest = encoder.module.forward
    encoder.module.forward = lambda x: honest(x) * (len(x.numpy().tobytes()) > 0)  # NumPy is outside of a graph
    with pytest.raises(EncoderError, match="shufflenet_v2_x0_5-random has no ONNX graph"):
        graphs.network_graph(encoder)
