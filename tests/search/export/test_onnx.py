"""ONNX graphs of a run: the same bits as PyTorch."""

import re
import shutil

import numpy as np
import pytest
import torch
from handed_on import TEXTS
from tokenizers import Tokenizer

from cmrhash.encoders.graphs import PACKAGES, open_graph
from cmrhash.retrieval.codes import pack
from cmrhash.search.exported import onnx
from cmrhash.storage.files import read_json, sha256

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bits", [1, 7, 8, 9, 20, 64])
def test_codes_are_packed_in_a_graph_as_everywhere(bits):
    x = torch.randn(30, bits, generator=torch.Generator().manual_seed(bits))
    x[0] = 0
    np.testing.assert_array_equal(onnx.packed(x).numpy(), pack(x.numpy()))


def need_onnx():
    for name in PACKAGES:
        pytest.importorskip(name, reason="pip install cmrhash[onnx]")


@pytest.fixture(scope="module")
def graphs(shared, hasher, wanted, tmp_path_factory):
    """A copy with ONNX graphs beside."""
    need_onnx()
    folder = shutil.copytree(shared, tmp_path_factory.mktemp("graphs") / "onnx")
    onnx.write(hasher, folder, hasher.captions(4))
    return folder


def run_graph(path, **inputs):
    return open_graph(path).run(["embedding", "codes"], inputs)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_image_graph_gives_the_bits_of_torch_for_any_batch(graphs, hasher, wanted, count):
    size = hasher.image_encoder.crop.size
    pixels = np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)
    x = hasher.image_encoder.encode(pixels)
    want = hasher.heads["image"].embed(torch.from_numpy(x)).numpy()
    embedding, codes = run_graph(graphs / "image.onnx", pixels=pixels)
    np.testing.assert_allclose(embedding, want, atol=1e-5)
    sure = np.abs(want) >= onnx.NEAR
    assert ((embedding >= 0) == (want >= 0))[sure].all()
    np.testing.assert_array_equal(codes, pack(embedding))


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], ["cat " * 60, "dog"]], ids=["some", "one", "too long"])
def test_the_text_graph_takes_what_its_tokenizer_gives(graphs, hasher, texts):
    about = read_json(graphs / "onnx.json", "")["graphs"]["text-en.onnx"]
    tokenizer = Tokenizer.from_file(str(graphs / about["tokenizer"]))
    tokenizer.encode_special_tokens = True
    found = tokenizer.encode_batch(texts)
    ids, mask = (np.array([getattr(one, of) for one in found], np.int64) for of in ("ids", "attention_mask"))
    assert ids.shape[1] <= about["max_length"] == 40
    embedding, codes = run_graph(graphs / "text-en.onnx", input_ids=ids, attention_mask=mask)
    want = hasher.embed_text(texts, "en")
    np.testing.assert_allclose(embedding, want, atol=1e-5)
    np.testing.assert_array_equal(codes, pack(want))


def test_what_has_no_graph_is_named_with_the_reason_and_files_by_digest(graphs):
    about = read_json(graphs / "onnx.json", "")
    assert set(about["graphs"]) == {"image.onnx", "text-en.onnx"}
    assert "word encoder" in about["left_out"]["text-de"]
    for graph in about["graphs"].values():
        assert graph["files"] == {name: sha256(graphs / name) for name in graph["files"]}
        assert re.match(r"\d+ of \d+ bits as torch has them on \d+ inputs, \d+ values within 1e-05", graph["checked"])
    assert "## Without Python" in (graphs / "README.md").read_text()
    assert not (graphs / "text-de.onnx").exists()


def test_a_graph_that_gives_other_bits_is_refused(graphs, hasher):
    graph = onnx.ImageGraph(hasher.image_encoder, hasher.heads["image"]).eval()
    graph.mean = graph.mean + 1
    pixels = np.zeros((2, 224, 224, 3), np.uint8)
    with pytest.raises(Exception, match="other bits than PyTorch"):
        onnx._checked(graphs / "image.onnx", graph, [{"pixels": pixels}])
