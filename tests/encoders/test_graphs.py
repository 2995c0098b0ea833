"""ONNX graphs of encoders' networks: the features of PyTorch, for any batch."""

from __future__ import annotations

import mutated_files
import numpy as np
import pytest
import torch
from small_models import write_bert

from cmrhash.encoders import graphs, image, text
from cmrhash.errors import EncoderError

onnx = pytest.importorskip("onnx", reason="pip install cmrhash[onnx]")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def packages():
    for name in graphs.PACKAGES:
        pytest.importorskip(name, reason="pip install cmrhash[onnx]")


def near(found, wanted):
    return np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_captions_of_any_length_and_number(tmp_path):
    """By either pooling, for it is no part of the graph."""
    write_bert(tmp_path)
    content = graphs.network_graph(text.load(str(tmp_path), pooling="mean", dtype="float32"))
    captions = ["dog", "cat 1 2 3", "dog cat tree house " * 8, "tree"]
    for pooling in ("mean", "cls"):
        encoder = text.load(str(tmp_path), pooling=pooling, dtype="float32")
        other = graphs.on_onnx(encoder, lambda: content)
        assert near(other.encode(captions), encoder.encode(captions))
        assert near(other.encode(captions[:1]), encoder.encode(captions[:1]))


def test_a_graph_that_gives_other_features_is_refused(monkeypatch):
    encoder = image.load("squeezenet1_1", "random")
    monkeypatch.setattr(graphs, "NEAR", -1.0)
    with pytest.raises(EncoderError, match="gives other features: use `runtime='torch'`"):
        graphs.network_graph(encoder)


def test_a_network_that_cannot_be_exported_is_refused_by_name():
    encoder = image.load("squeezenet1_1", "random")
    honest = encoder.module.forward
    encoder.module.forward = lambda x: honest(x) * (len(x.numpy().tobytes()) > 0)  # NumPy is outside of a graph
    with pytest.raises(EncoderError, match="squeezenet1_1-random has no ONNX graph"):
        graphs.network_graph(encoder)


# ---------------------------------------------------------------------------------------------- graphs of strangers


def small_graph(*nodes, initializers=(), functions=()):
    """Content of a graph (b, 3, 4) -> (b, 4)."""
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    weights = onnx.numpy_helper.from_array(np.ones((12, 4), np.float32), "w")
    shape = onnx.numpy_helper.from_array(np.array([0, -1], np.int64), "s")
    make = onnx.helper.make_node
    own = [make("Reshape", ["input_0", "s"], ["flat"]), make("MatMul", ["flat", "w"], ["features"]), *nodes]
    ends = [value("input_0", kind, ["b", 3, 4])], [value("features", kind, ["b", 4])]
    graph = onnx.helper.make_graph(own, "toy", *ends, [weights, shape, *initializers])
    opsets = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions).SerializeToString()


def used(content):
    with torch.inference_mode():
        return graphs.OnnxNetwork(lambda: content)(torch.zeros(2, 3, 4))


@pytest.mark.faults("changed bytes in a foreign file")
def test_changed_bytes_of_a_graph_are_used_or_refused_in_one_line(faults, capfd):
    whole = small_graph()
    assert used(whole).shape == (2, 4)
    for number in range(100):
        faults.tried += 1
        try:
            used(mutated_files.mutated([whole], number))
        except EncoderError as error:
            assert "\n" not in str(error)
        faults.survived += 1
    assert capfd.readouterr().out == ""


def test_a_graph_with_loops_or_data_elsewhere_is_refused():
    elsewhere = onnx.numpy_helper.from_array(np.ones(4, np.float32), "far")
    elsewhere.ClearField("raw_data")
    elsewhere.data_location = onnx.TensorProto.EXTERNAL
    elsewhere.external_data.add(key="location", value="/etc/passwd")
    branch = onnx.helper.make_graph([], "branch", [], [])
    node = onnx.helper.make_node("If", ["flat"], ["x"], then_branch=branch, else_branch=branch)
    ids = [onnx.helper.make_opsetid("", 18)]
    function = onnx.helper.make_function("own", "f", ["flat"], ["x"], [node], ids)
    for content, words in (
        (small_graph(node), "graphs within the graph"),
        (small_graph(functions=[function]), "graphs within the graph"),
        (small_graph(initializers=[elsewhere]), "data in other files"),
        (small_graph(onnx.helper.make_node("Constant", [], ["x"], value=elsewhere)), "data in other files"),
    ):
        with pytest.raises(EncoderError, match=words):
            used(content)
