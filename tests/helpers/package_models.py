"""Small untrained models of timm and open_clip in files, and the names that open them."""

from __future__ import annotations

import importlib.util
import json
import os

import pytest
import torch

TIMM = "timm:test_resnet"
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def need(package):
    """Skip the test unless the package is installed."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f'needs pip install "cmrhash[{package}]"')
    return __import__(package)


def write_timm(path, name="test_resnet", classes=7):
    """The weights of timm's model of that name, with a classifier of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        state = need("timm").create_model(name, pretrained=False, num_classes=classes).state_dict()
        torch.save(
            {key: x + 0.01 * torch.randn_like(x) if x.is_floating_point() else x for key, x in state.items()}, path
        )


def write_open_clip(path, name="tiny", seed=3):
    """A very small CLIP of open_clip, whose architecture the library knows by that name from now on."""
    open_clip = need("open_clip")
    config = path.parent / f"{name}.json"
    config.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    torch.save(model.state_dict(), path)
    return f"open_clip:{name}/{path}"
