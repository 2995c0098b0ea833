"""Fine-tuning of the last blocks alone."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch import nn
from tuning import QUICK, config

from cmrhash.config import FinetuneConfig
from cmrhash.encoders.sentence import BEHIND
from cmrhash.errors import StaleError, UsageError
from cmrhash.training.finetune.blocks import blocks_of, train_last
from cmrhash.training.finetune.extract import extract_tuned
from cmrhash.training.finetune.loop import tuning_method


class Stages(nn.Module):
    """As a ResNet: a stem, series beside each other, and a last layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.relu = nn.Sequential(nn.ReLU())
        self.layer1 = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.layer2 = nn.Sequential(nn.Linear(2, 2))
        self.head = nn.Sequential(nn.Linear(2, 2))


class Layers(nn.Module):
    """As a transformer: embeddings, one list of layers further down, a pooler, and layers behind it."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(3, 2)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.pooler = nn.Linear(2, 2)
        self.add_module(BEHIND, nn.Sequential(nn.Linear(2, 2)))


def trained(network):
    return sorted({name.rpartition(".")[0] for name, p in network.named_parameters() if p.requires_grad})


def test_blocks_are_the_stages_or_the_layers():
    stages, layers = Stages(), Layers()
    assert blocks_of(stages) == [stages.layer1, stages.layer2]
    assert blocks_of(layers) == list(layers.encoder.layer)
    assert blocks_of(nn.Linear(2, 2)) == []


def test_the_last_blocks_and_what_follows_are_trained():
    stages, layers = Stages(), Layers()
    train_last(stages, 1)
    assert trained(stages) == ["head.0", "layer2.0"]
    train_last(layers, 2)
    assert trained(layers) == ["encoder.layer.1", "encoder.layer.2", "pooler", f"{BEHIND}.0"]
    train_last(layers, None)
    assert all(p.requires_grad for p in layers.parameters())


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(UsageError, match="a network of 2 blocks has no last 3: choose 1 to 2"):
        train_last(Stages(), 3)
    with pytest.raises(UsageError, match="a network without blocks has no last 1: leave it out"):
        train_last(nn.Linear(2, 2), 1)
    with pytest.raises(UsageError, match="0 is out of range"):
        tuning_method(FinetuneConfig(unfreeze=0))


def tensors(tuned):
    """Parameters of the image encoder and of the text encoder."""
    found = [safetensors.torch.load_file(tuned.folder / name) for name in set(tuned.weights.values())]
    return {name: t for state in found for name, t in state.items() if "running" not in name and "tracked" not in name}


@pytest.mark.slow
def test_weights_before_the_last_block_stay(source, finished, tmp_path):
    last = replace(QUICK, unfreeze=1, epochs=1)
    tuned = extract_tuned(config(source, tmp_path / "tuned"), last).tuned
    assert tuned.recipe["finetune"]["unfreeze"] == 1
    assert "unfreeze" not in finished.tuned.recipe["finetune"]
    slower = extract_tuned(config(source, tmp_path / "slower"), replace(last, lr=1e-3)).tuned
    first, other, whole = map(tensors, (tuned, slower, finished.tuned))
    changed = {name for name, t in first.items() if not torch.equal(t, other[name])}
    assert {name.split(".")[0] for name in changed if "encoder" not in name and "pooler" not in name} == {"conv5"}
    assert {name for name in changed if ".layer." in name} == {name for name in first if ".layer.1." in name}
    assert not torch.equal(first["conv1.0.weight"], whole["conv1.0.weight"])
    with pytest.raises(StaleError, match="unfreeze"):
        extract_tuned(config(source, tmp_path / "tuned"), replace(last, unfreeze=None))
