"""Heads without torch give the embeddings of torch's."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cmrhash.data.view import View
from cmrhash.training.heads import Head
from cmrhash.training.numpy_heads import read_heads

VIEWS = [View.IMAGE, View.text("de"), View.text("de-at")]


@pytest.fixture
def saved(tmp_path):
    """A function that saves heads of a shape and returns them with the path of their file."""

    def save(**shape):
        torch.manual_seed(0)
        heads = torch.nn.ModuleDict({view: Head(7, 5, **shape) for view in VIEWS})
        for head in heads.values():
            head.standardise(torch.randn(50, 7) * 3 + 2)
        save_file(heads.state_dict(), tmp_path / "heads.safetensors")
        return heads, tmp_path / "heads.safetensors"

    return save


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("bounded", [True, False])
def test_embeddings_are_those_of_torch(saved, hidden, bounded):
    shape = {"hidden": hidden, "bounded": bounded}
    heads, path = saved(**shape)
    found = read_heads(path, VIEWS, shape)
    assert list(found) == VIEWS
    x = np.random.default_rng(0).standard_normal((30, 7), np.float32) * 4
    for view, head in found.items():
        expected = heads[view].embed(torch.from_numpy(x)).numpy()
        assert head.embed(x).dtype == np.float32
        np.testing.assert_allclose(head.embed(x), expected, rtol=1e-5, atol=1e-5)


def test_other_heads_are_left_to_torch(saved, tmp_path):
    _, path = saved(hidden=6)
    assert read_heads(path, VIEWS, {"hidden": 6, "bounded": True, "network": "mine"}) == {}
    assert read_heads(path, VIEWS, {"hidden": 0, "bounded": True}) == {}
    assert read_heads(path, [*VIEWS, View.text("fr")], {"hidden": 6, "bounded": True}) == {}
    path.write_bytes(path.read_bytes()[:-9])
    assert read_heads(path, VIEWS, {"hidden": 6, "bounded": True}) == {}
    assert read_heads(tmp_path / "none", VIEWS, {"hidden": 6, "bounded": True}) == {}
