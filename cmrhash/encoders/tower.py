"""Towers of transformers models: both of a dual encoder (CLIP, SigLIP, ...), or a vision model (ViT, DINOv2, ...).

Both towers of a dual encoder give features in one space, whose digest is in their recipes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

from cmrhash.config import LAYERS
from cmrhash.encoders import hub, processors
from cmrhash.encoders.config_file import BOTH, SHARE, check_config, refuse_code
from cmrhash.encoders.pixels import Crop, Squash
from cmrhash.encoders.transformer import from_folder, limit_of, quieten, tokenizer_of
from cmrhash.encoders.weights import drawn, refuse_broken, state_digest
from cmrhash.errors import EncoderError
from cmrhash.storage.files import make_folder, write_bytes

DUAL, IMAGE, TEXT = "dual encoder", "image model", "text model"
IMAGE_FILES = ["config.json", "*processor_config.json", "model*.safetensors"]
INDEX = ["model.safetensors.index.json"]  # of weights in several files
SAVED = ("config.json", "model.safetensors", processors.FILES[0])  # files of a saved image tower
SIDES = {IMAGE: ("vision", "visual", "image"), TEXT: ("text",)}  # starts of the names of a tower's parts
PADDED = ("siglip", "siglip2")  # trained on padded texts: the last position is the feature, and no mask is used
AT_END = ("clip", "metaclip_2")  # the feature is that of the end token, whose id is in the config
CLASS_TOKENS = ("cls_token", "class_embedding", "distillation_token")
CLASS_FIRST = ("dinov3_convnext",)  # puts a pooled vector first


class Tower(nn.Module):
    """One tower of a network up to a layer: photos, or word pieces with their mask, -> (B, D) float32.

    side: IMAGE or TEXT; layer: out of LAYERS; a projection is normalised to length 1.
    settings: of the image processor, kept for a saved copy; dim: D, 0 until the first features are computed.
    """

    def __init__(self, network: Any, side: str, layer: str, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.network, self.side, self.layer, self.settings = network, side, layer, settings
        self.dim = 0
        self.masked = network.config.model_type not in PADDED
        own = [name.rpartition(".")[2] for name, _ in network.named_parameters() if "embeddings." in name]
        config = getattr(network.config, "vision_config", network.config)
        # tokens before those of the patches
        registers = int(getattr(config, "num_register_tokens", 0) or 0)
        self.classes = sum(name in own for name in CLASS_TOKENS)
        self.classes += network.config.model_type in CLASS_FIRST
        self.first = self.classes + registers

    @property
    def config(self) -> Any:
        """Configuration of the whole network."""
        return self.network.config

    def forward(
        self, pixel_values: Tensor | None = None, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """(B, 3, S, S) float32 photos, or (B, T) int64 ids and mask -> (B, D) float32."""
        given = {"pixel_values": pixel_values, "input_ids": input_ids}
        given |= {"attention_mask": attention_mask if self.masked else None}
        out = self.reader()(**{name: value for name, value in given.items() if value is not None})
        if self.layer == "projection":
            projected = out if isinstance(out, Tensor) else out.pooler_output  # a tensor before transformers 5
            return nn.functional.normalize(projected.float(), dim=-1)
        if self.layer == "pooled":
            pooled: Tensor = out.pooler_output
            return pooled.float().flatten(1)
        hidden: Tensor = out.last_hidden_state.float()
        if self.layer == "cls":
            return hidden[:, 0]
        if self.side == TEXT:
            assert attention_mask is not None
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * mask).sum(1) / mask.sum(1)
        return hidden.flatten(2).mean(2) if hidden.ndim == 4 else hidden[:, self.first :].mean(1)

    def reader(self) -> Any:
        """What computes the layer: the projection of a dual encoder, its tower alone, or the whole network."""
        name = "image" if self.side == IMAGE else "text"
        if self.layer == "projection":
            return getattr(self.network, f"get_{name}_features")
        return getattr(self.network, "vision_model" if self.side == IMAGE else "text_model", self.network)


def kind_of(folder: Path) -> str:
    """DUAL, IMAGE or TEXT by the model's class, without its weights; "" if transformers knows no such model."""
    found = _model_class(folder)
    if hasattr(found, "get_image_features") and hasattr(found, "get_text_features"):
        return DUAL
    return {"pixel_values": IMAGE, "input_ids": TEXT}.get(getattr(found, "main_input_name", ""), "")


def _model_class(folder: Path) -> Any:
    quieten()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found: Any = transformers.MODEL_MAPPING[type(config)]
    except Exception:  # each layer of the library raises its own types; the caller names the model
        return None
    return found[0] if isinstance(found, tuple) else found


def locate(model: str, offline: bool = False, both: bool = False) -> Path:
    """Directory of an image model: an existing one, the hub's local cache, or a download. both: of a dual encoder."""
    fix = f'give `image_model="DIR"` with {", ".join(SAVED)}, or the name of a torchvision classifier'
    fix = 'give `model="DIR"`, the directory of a dual encoder' if both else fix
    return hub.locate(model, IMAGE_FILES, offline, "vision model", fix, optional=INDEX)


def refuse_single(model: str, offline: bool = False) -> None:
    """Raise EncoderError for a model that is no dual encoder, before its weights are read."""
    folder = locate(model, offline, both=True)
    refuse_code(check_config(folder), folder)
    if (kind := kind_of(folder)) != DUAL:
        fix = f"give it as `{kind.split()[0]}_model`, or a dual encoder here" if kind else "give a CLIP, a SigLIP, ..."
        raise EncoderError(f"{_named(folder)} is no {DUAL}", folder, fix, option="model")


def image_tower(folder: Path, layer: str | None = None) -> tuple[Tower, Crop | Squash, dict[str, Any]]:
    """Image tower of a directory, the preparation of photos, and its part of the recipe.

    layer: out of LAYERS; None: the projection of a dual encoder, else the pooled output, else the class token.
    Raises EncoderError for another kind of model, for missing tensors or files, and for a layer that it lacks.
    """
    refuse_code(check_config(folder), folder)
    kind = kind_of(folder)
    if kind not in (DUAL, IMAGE):
        raise EncoderError(f"{_named(folder)} is no {IMAGE}{_advice(kind)}", folder, "give an image model")
    crop, settings = processors.preparation(folder), processors.read_settings(folder)
    network, recipe = _network(folder, IMAGE, kind == DUAL)
    chosen = layer or ("projection" if kind == DUAL else "pooled")
    photo = {"pixel_values": torch.zeros(1, 3, crop.size, crop.size)}
    tower = _tower(network, IMAGE, chosen, kind, photo, folder, settings, fallback=None if layer else "cls")
    if kind == IMAGE and tower.layer in ("cls", "mean") and getattr(network, "pooler", None) is not None:
        network.pooler = None  # unused
    tower.dim = _probed(tower, photo, folder).shape[1]
    return tower, crop, _recipe(tower, recipe)


def text_tower(folder: Path, layer: str | None = None) -> tuple[Any, Tower, int, int | None, dict[str, Any]]:
    """Text tower of a dual encoder: tokenizer, tower, longest text, length of padded texts, part of the recipe.

    Raises EncoderError as ``image_tower`` does, and for a tokenizer of another model.
    """
    refuse_code(check_config(folder), folder)
    tokenizer = tokenizer_of(folder)
    network, recipe = _network(folder, TEXT, dual=True)
    config = network.config.text_config
    _refuse_other_tokenizer(tokenizer, network.config, folder)
    length = limit_of(tokenizer, config)
    padded = int(config.max_position_embeddings) if network.config.model_type in PADDED else None
    ids = torch.tensor([tokenizer("a")["input_ids"]])
    words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    tower = _tower(network, TEXT, layer or "projection", DUAL, words, folder)
    tower.dim = _probed(tower, words, folder).shape[1]
    return tokenizer, tower, length, padded, _recipe(tower, recipe) | ({"padded_to": padded} if padded else {})


def save(module: Tower, state: dict[str, Tensor], folder: Path) -> None:
    """Write an image tower as a directory that ``image_tower`` opens. state: tensors of its network."""
    make_folder(folder)
    module.config.save_pretrained(folder)
    write_bytes(folder / SAVED[1], safetensors.torch.save(state, {"format": "pt"}))
    write_bytes(folder / SAVED[2], json.dumps(module.settings, indent=2).encode())


def _tower(
    network: Any,
    side: str,
    layer: str,
    kind: str,
    example: dict[str, Tensor],
    folder: Path,
    settings: dict[str, Any] | None = None,
    fallback: str | None = None,
) -> Tower:
    """A tower whose layer is there; raises EncoderError otherwise. fallback: layer in place of a missing pooled one."""
    tower = Tower(network, side, layer, settings).eval()
    if kind == DUAL and layer == "projection":
        return tower
    reader = Tower(network, side, "pooled").reader()
    has = {"projection": kind == DUAL, "pooled": False, "cls": False, "mean": False}
    if kind != DUAL or reader is not network:
        with torch.inference_mode(), _refusing(folder):
            pooled = getattr(reader(**example), "pooler_output", None) is not None
        has |= {"pooled": pooled, "cls": tower.classes > 0 or side == TEXT, "mean": True}
    if not has[layer] and fallback and has[fallback]:
        tower.layer = layer = fallback
    if not has[layer]:
        fix = f"choose {' or '.join(name for name in LAYERS if has[name])}"
        raise EncoderError(f"{network.config.model_type} has no layer '{layer}'", folder, fix, option="layer")
    return tower


def _probed(tower: Tower, example: dict[str, Tensor], folder: Path) -> Tensor:
    """Features of an example: shows that the files of a directory fit each other."""
    with torch.inference_mode(), _refusing(folder):
        features: Tensor = tower(**example)
    if features.ndim != 2:
        raise EncoderError(f"features of shape {tuple(features.shape[1:])}", folder, "choose another layer")
    return features


@contextlib.contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turn an error of a network's forward pass into an EncoderError."""
    try:
        yield
    except Exception as error:  # shapes, positions and indexes raise their own types
        reason = " ".join(str(error).split())[:160]
        what = f"the model does not take what its files say ({reason})"
        raise EncoderError(what, folder, "give a directory whose files are of one model") from None


def _network(folder: Path, side: str, dual: bool) -> tuple[Any, dict[str, Any]]:
    """The network with the parts of one side, and the digests that go into the recipe."""
    found = _model_class(folder)
    how = "sdpa" if getattr(found, "_supports_sdpa", False) else "eager"
    with drawn(0):  # missing tensors
        network, report = from_folder(folder, side, how)
    missing = set(report["missing_keys"])
    space = {} if missing or not dual else {"space": state_digest(network)}
    if dual:
        _drop_other(network, side)
    elif any(name.startswith("pooler.") for name in missing):
        network.pooler = None  # not in the file: random
    lacking = sorted(missing & set(network.state_dict()))
    if lacking:
        what = f"the weights lack {len(lacking)} tensors of the {side} ({', '.join(lacking[:3])})"
        raise EncoderError(what, folder, "the file is truncated or of another model: get it again")
    refuse_broken(network, folder)
    return network.eval(), space


def _drop_other(network: Any, side: str) -> None:
    """Remove the parts that only the other tower, or the comparison of both, uses."""
    other = SIDES[TEXT if side == IMAGE else IMAGE]
    for name in [name for name, _ in network.named_children() if name.startswith(other)]:
        delattr(network, name)
    for name in list(network._parameters):  # scale and bias of the similarity
        delattr(network, name)


def _recipe(tower: Tower, space: dict[str, Any]) -> dict[str, Any]:
    projected = tower.layer == "projection"
    return {
        "encoder": tower.config.model_type,
        "layer": tower.layer,
        "weights": "trained",
        "weights_sha256": state_digest(tower),
        "normalised": projected,
        **(space if projected else {}),
    }


def _refuse_other_tokenizer(tokenizer: Any, config: Any, folder: Path) -> None:
    """Raise EncoderError unless a tokenizer's vocabulary and end token are those of the text tower."""
    size, end = int(config.text_config.vocab_size), getattr(config.text_config, "eos_token_id", None)
    own = len(tokenizer)
    last = tokenizer("a")["input_ids"][-1]
    # configs from before 2023 say 2, and the end token is the one with the largest id
    fits = config.model_type not in AT_END or last == (own - 1 if end == 2 else end)
    if not SHARE * size <= own <= size or not fits:
        raise EncoderError(f"tokenizer ({own} word pieces) and model ({size}) do not match", folder, BOTH)


def _named(folder: Path) -> str:
    return f"'{json.loads((folder / 'config.json').read_bytes()).get('model_type', folder.name)}'"


def _advice(kind: str) -> str:
    return " but a text model" if kind == TEXT else ""
