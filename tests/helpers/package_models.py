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


def of_transformers(bert):
    """A configuration whose text tower is a model of transformers, with its tokenizer. bert: its directory."""
    words = {"hf_model_name": str(bert), "hf_tokenizer_name": str(bert), "hf_proj_type": "mlp"}
    words |= {"hf_pooler_type": "mean_pooler", "context_length": 12, "tokenizer_kwargs": {"clean": "canonicalize"}}
    return CONFIG | {"text_cfg": words}


def of_coca():
    """A configuration of a CoCa."""
    image = CONFIG["vision_cfg"] | {"output_tokens": True}
    words = CONFIG["text_cfg"] | {"embed_cls": True, "output_tokens": True}
    decoder = {"width": 32, "context_length": 16, "vocab_size": 49408, "layers": 1, "heads": 2}
    decoder |= {"mlp_ratio": 2, "dim_head": 16, "n_queries": 4, "attn_pooler_heads": 2}
    return CONFIG | {"vision_cfg": image, "text_cfg": words, "multimodal_cfg": decoder, "custom_text": True}


def need(package):
    """Skip the test unless the package is installed."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f'needs pip install "cmrhash[{package.replace("_", "-")}]"')
    return __import__(package)


def write_timm(path, name="test_resnet", classes=7):
    """The weights of timm's model of that name, with a classifier of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        state = need("timm").create_model(name, pretrained=False, num_classes=classes).state_dict()
        torch.save(
            {key: x + 0.01 * torch.randn_like(x) if x.is_floating_point() else x for key, x in state.items()}, path
        )


def write_open_clip(path, name="tiny", seed=3, content=CONFIG):
    """A very small CLIP of open_clip, whose architecture the library knows by that name from now on.

    content: of its configuration.
    """
    open_clip = need("open_clip")
    config = path.parent / f"{name}.json"
    config.write_text(json.dumps(content))
    open_clip.add_model_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.nan_to_num_(0, 0, 0).clamp_(-5, 5)  # a decoder of CoCa is left as its memory was
                parameter += 0.05 * torch.randn_like(parameter)
    torch.save(model.state_dict(), path)
    return f"open_clip:{name}/{path}"


def write_open_clip_folder(folder, **preparation):
    """A directory as open_clip saves it, of a very small CLIP. preparation: of photos, as open_clip names it."""
    from safetensors.torch import save_file

    folder.mkdir()
    write_open_clip(folder / "net.pt")
    save_file(torch.load(folder / "net.pt"), folder / "open_clip_model.safetensors")
    (folder / "net.pt").unlink()
    content = {"model_cfg": CONFIG, "preprocess_cfg": preparation}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
