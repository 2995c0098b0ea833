"""Both towers of a model of the library open_clip, whose projections lie in one space.

The tokenizer and the preparation of photos are those that open_clip says.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from cmrhash.compute.device import choose_dtype, send
from cmrhash.encoders import hub, open_clip_files, packages, sentence
from cmrhash.encoders.config_file import refuse_too_large
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.open_clip_files import IMAGE, TEXT
from cmrhash.encoders.pixels import MAX_SIDE, Crop, Squash, odd_colours
from cmrhash.encoders.text import CPU_TOKENS, GPU_TOKENS, TextEncoder
from cmrhash.encoders.weights import load_state, read_state, refuse_broken, state_digest
from cmrhash.errors import EncoderError, UsageError, did_you_mean

LAYER = "projection"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # of a model on the hub, the first that is there
UNUSED = ("visual", "text_decoder", "logit_scale", "logit_bias")  # by the text tower
QUICK = "quick_gelu"
HUB = "hf-hub:"  # open_clip's own sign for a model of the hub
OPTIONAL = ("*token*.json", "vocab*", "merges.txt", "*.model", "config.json")  # files of a model of the hub


class OpenClipTower(nn.Module):
    """One tower of a network: photos or word pieces -> (B, D) float32 of length 1.

    settings: content of its open_clip_config.json, for a copy.
    """

    def __init__(self, network: Any, side: str, settings: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.side, self.settings = network, side, settings

    def forward(
        self, pixel_values: Tensor | None = None, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """(B, 3, S, S) float32 photos or (B, T) int64 ids -> (B, D) float32; the ids tell what is padding."""
        network = self.network
        found = network.encode_image(pixel_values) if self.side == IMAGE else network.encode_text(input_ids)
        return nn.functional.normalize(found.float(), dim=-1)


@dataclass(repr=False)
class OpenClipText(TextEncoder):
    """Captions -> projections; every caption is padded to the full length, as open_clip does."""

    def pieces(self, captions: Sequence[str]) -> list[list[int]]:
        """Word-piece ids of each caption with its padding."""
        ids: list[list[int]] = self.tokenizer(list(captions)).tolist() if captions else []
        return ids

    def tokenizer_file(self) -> Any:
        """Likewise; it cleans texts as open_clip does, but for HTML and broken encodings."""
        from cmrhash.encoders.open_clip_tokens import as_file

        return as_file(self.tokenizer)

    def unknown_share(self, captions: Sequence[str]) -> float:
        """0: the vocabularies are of bytes, or of many languages."""
        return 0.0

    def forward(self, pieces: list[list[int]]) -> Tensor:
        """Word-piece ids of B captions, all of one length -> (B, D) float32 on the device, differentiable."""
        ids = send(torch.tensor(pieces), self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out: Tensor = self.module(input_ids=ids)
        return out


def image_encoder(
    model: str, weights: str, layer: str | None, device: torch.device, dtype: str, offline: bool
) -> ImageEncoder:
    """The image tower of a model as ``_named`` takes it; raises EncoderError, and UsageError without open_clip."""
    if weights != "default":
        fix = f"leave it out, or name a file as PRETRAINED of {packages.OPEN_CLIP}ARCH/PRETRAINED"
        raise EncoderError(f"weights '{weights}' do not go with {model}", None, fix, option="image_weights")
    network, named = _network(model, layer, offline, IMAGE)
    crop = _preparation(network, model)
    tower, recipe = _tower(network, IMAGE, named)
    tower.to(device)
    compute = choose_dtype(dtype, device, False)
    recipe |= {"crop": crop.recipe(), "dtype": str(compute).removeprefix("torch.")}
    with torch.inference_mode():
        dim = tower(torch.zeros(1, 3, crop.size, crop.size, device=device)).shape[1]
    return ImageEncoder(named.name, dim, recipe, named.source, crop, tower, device, compute, torch.contiguous_format)


def text_encoder(
    model: str,
    layer: str | None,
    limits: tuple[int, int | None],
    device: torch.device,
    dtype: str,
    offline: bool,
) -> OpenClipText:
    """The text tower of a model as ``_named`` takes it. limits: word pieces per caption, and per forward pass.

    Raises as ``image_encoder`` does, and UsageError for fewer word pieces than open_clip's.
    """
    network, named = _network(model, layer, offline, TEXT)
    tokenizer = _tokenizer(named)
    tower, recipe = _tower(network, TEXT, named)
    tower.to(device)
    ids = tokenizer(["a"]).to(device)
    length = int(ids.shape[1])
    if limits[0] < length:
        what = f"texts of {model} have {length} word pieces, not {limits[0]}"
        raise UsageError(what, None, "leave it out", option="max_length")
    compute = choose_dtype(dtype, device, False)
    recipe |= {"tokenizer_sha256": _digest(tokenizer), "max_length": length}
    recipe["dtype"] = str(compute).removeprefix("torch.")
    with torch.inference_mode():
        dim = tower(input_ids=ids).shape[1]
    budget = limits[1] or (GPU_TOKENS if device.type == "cuda" else CPU_TOKENS)
    rest = (tokenizer, tower, device, compute, "", length, budget, length)
    return OpenClipText(named.name, dim, recipe, named.source, *rest)


# ---------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class _Named:
    """A model as it was named. library: open_clip; pretrained: a tag or a file; config: of the architecture.

    folder: a directory in place of a tag or a file; tower: IMAGE or TEXT if it has one tower alone; repository: id of
    the model of the hub that the directory holds.
    """

    library: Any
    model: str
    architecture: str
    pretrained: str
    config: dict[str, Any]
    offline: bool
    folder: Path | None = None
    tower: str | None = None
    repository: str = ""

    @property
    def file(self) -> Path | None:
        """The file of weights that was named; None: a tag was."""
        path = Path(self.pretrained).expanduser()
        return path if "/" in self.pretrained or path.is_file() else None

    @property
    def source(self) -> str:
        """What opens the same model again, from any folder."""
        if self.repository:
            return f"{packages.OPEN_CLIP}{HUB}{self.repository}"
        if self.folder:
            return f"{packages.OPEN_CLIP}{self.folder.resolve()}"
        return f"{packages.OPEN_CLIP}{self.architecture}/{self.file.resolve() if self.file else self.pretrained}"

    @property
    def name(self) -> str:
        """Name of the encoder in file names."""
        if self.folder:
            named = self.repository.replace("/", "--") or self.folder.resolve().name
            return re.sub(r"[^\w.-]", "-", f"open_clip-{named}")
        named = self.file.stem if self.file else self.pretrained
        return re.sub(r"[^\w.-]", "-", f"open_clip-{self.architecture}-{named}")


def _named(model: str, offline: bool) -> _Named:
    """What a name means: "open_clip:ARCH/TAG", "open_clip:ARCH/FILE", "open_clip:DIR" or "open_clip:hf-hub:ID"."""
    place = model.removeprefix(packages.OPEN_CLIP)
    repository = place.removeprefix(HUB) if place.startswith(HUB) else ""
    if folder := _downloaded(repository, offline) if repository else open_clip_files.folder_of(place):
        content = open_clip_files.read(folder)
        architecture = str(content.get("architecture", open_clip_files.FOLDER))
        rest = (content["model_cfg"], offline, folder, content.get("tower"), repository)
        return _Named(packages.load(model), model, architecture, "", *rest)
    architecture, _, pretrained = place.partition("/")
    if not architecture or not pretrained:
        fix = f"give {packages.OPEN_CLIP}ARCH/PRETRAINED, for example {packages.OPEN_CLIP}ViT-B-32/laion2b_s34b_b79k"
        raise UsageError(f"'{model}' names no weights", None, fix)
    library = packages.load(model)
    config = library.get_model_config(architecture)
    if config is None:
        near = did_you_mean(architecture, library.list_models()) or "see open_clip.list_models()"
        raise EncoderError(f"open_clip has no architecture '{architecture}'", None, near)
    named = _Named(library, model, architecture, pretrained, config, offline)
    if named.file is None and not library.get_pretrained_cfg(architecture, pretrained):
        tags = library.list_pretrained_tags_by_model(architecture)
        near = did_you_mean(pretrained, tags) or f"for example {tags[0]}" if tags else "open_clip has none of its own"
        what = f"'{pretrained}' is no file and no weights of {architecture}"
        raise EncoderError(what, None, f"give a file, or a tag of open_clip ({near})")
    if named.file is not None and not named.file.is_file():
        raise EncoderError("no such weights file", named.file, "check the path")
    return named


def _downloaded(repository: str, offline: bool) -> Path:
    """Directory of a model of the hub: its config, its weights, and a tokenizer if it has one."""
    fix = f"give {packages.OPEN_CLIP}DIR, a directory with its files"
    hub.locate(repository, (open_clip_files.CONFIG,), offline, "open_clip model", fix, optional=OPTIONAL)
    return hub.locate_file(repository, FILES, offline, "open_clip model", fix).parent


def _network(model: str, layer: str | None, offline: bool, side: str) -> tuple[Any, _Named]:
    """A network with its weights, which every tensor comes from; of a copy of one tower that tower alone."""
    named = _named(model, offline)
    if layer not in (None, LAYER):
        raise EncoderError(f"{model} has no layer '{layer}'", None, f"choose {LAYER}", option="layer")
    if named.folder:
        return _of_folder(named, named.folder, side), named
    _of_transformers(named, "hf_model_name", ["config.json"])
    tag = {} if named.file else named.library.get_pretrained_cfg(named.architecture, named.pretrained)
    if named.config.get(QUICK) and tag and not tag.get(QUICK):
        fix = f"give {packages.OPEN_CLIP}{named.architecture.removesuffix('-quickgelu')}/{named.pretrained}"
        raise EncoderError(f"the weights of {model} were trained with another activation", None, fix)
    path = named.file or _fetched(named, tag)
    refuse_too_large([path], path)
    settings = {key: tag[key] for key in ("mean", "std", "interpolation", "resize_mode") if tag.get(key)}
    with _refusing(model, path):
        network = named.library.create_model(
            named.architecture,
            pretrained=str(path),
            force_quick_gelu=bool(tag.get(QUICK)),
            force_preprocess_cfg=settings,
        )
    refuse_broken(network, path)
    return network.eval(), replace(named, config=named.config | ({QUICK: True} if tag.get(QUICK) else {}))


def _of_folder(named: _Named, folder: Path, side: str) -> Any:
    """The network of a directory of open_clip; of a copy of one tower without the other one."""
    if named.tower not in (None, side):
        what = f"the {named.tower} tower of a model, given as {'an' if side == IMAGE else 'a'} {side} model"
        raise EncoderError(what, folder, f"give it as `{named.tower}_model`")
    files = list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))
    refuse_too_large(files, folder)
    if named.tower is None:
        _of_transformers(named, open_clip_files.OF_TRANSFORMERS, ["config.json"])
        if not files:
            raise EncoderError("a directory of open_clip without weights", folder, "get it again")
        with _refusing(named.model, folder):
            network = named.library.create_model(f"local-dir:{folder}")
        refuse_broken(network, folder)
        return network.eval()
    with _refusing(named.model, folder):
        network = open_clip_files.network(named.library, folder, open_clip_files.read(folder))
    _drop_other(network, side)
    path = folder / open_clip_files.WEIGHTS
    load_state(network, read_state(path), named.model, path)
    return network.eval()


def _drop_other(network: Any, side: str) -> None:
    """Remove what the other tower, or the comparison of both, uses."""
    for name in [name for name, _ in network.named_children()] + [*network._parameters, *network._buffers]:
        if (name != "visual") if side == IMAGE else (name in UNUSED):
            delattr(network, name)


def _fetched(named: _Named, tag: dict[str, Any]) -> Path:
    """File of a tag: of the hub's local cache, or downloaded."""
    fix = f"give {packages.OPEN_CLIP}{named.architecture}/FILE"
    if tag.get("hf_hub"):
        repository, _, file = tag["hf_hub"].rpartition("/")
        return hub.locate_file(repository, (file,) if file else FILES, named.offline, "open_clip model", fix)
    if named.offline or hub.is_offline():
        raise EncoderError(f"the weights of {named.model} are not on the hub, and offline mode is on", None, fix)
    with _refusing(named.model, None):
        return Path(named.library.download_pretrained(tag))


def _tokenizer(named: _Named) -> Any:
    if not named.folder:
        _of_transformers(named, "hf_tokenizer_name", sentence.TOKENIZER, sentence.OPTIONAL)
    of_hub = bool(named.config["text_cfg"].get("hf_tokenizer_name"))
    place = f"local-dir:{named.folder}" if named.folder else named.architecture
    with _refusing(named.model, None):
        return named.library.get_tokenizer(place, **({"trust_remote_code": False} if of_hub else {}))


def _of_transformers(named: _Named, field: str, patterns: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Have the files of a model of the hub that an architecture is built of, or refuse at once."""
    if other := named.config["text_cfg"].get(field):
        fix = "give another architecture"
        hub.locate(other, patterns, named.offline, f"part of {named.model}", fix, optional=optional)


def _tower(network: Any, side: str, named: _Named) -> tuple[OpenClipTower, dict[str, Any]]:
    """One tower of a network, which loses the other one, and its part of the recipe."""
    if named.folder and named.tower:
        space, settings = {}, open_clip_files.read(named.folder)
    else:
        space = {"space": state_digest(network)}
        settings = {
            "architecture": named.architecture,
            "tower": side,
            "model_cfg": open_clip_files.alone(named.config, side),
            "preprocess_cfg": dict(network.visual.preprocess_cfg),
        }
    _drop_other(network, side)
    tower = OpenClipTower(network, side, settings).eval()
    return tower, {
        "encoder": f"{packages.OPEN_CLIP}{named.architecture}",
        "layer": LAYER,
        "weights": "trained",
        "weights_sha256": state_digest(tower),
        "normalised": True,
        **space,
    }


def _preparation(network: Any, model: str) -> Crop | Squash:
    """The preparation that open_clip makes for a network; raises EncoderError for one that is no crop or squash."""
    config = network.visual.preprocess_cfg
    size, how, mode = config["size"], config["interpolation"].upper(), config["resize_mode"]
    sides = [size, size] if isinstance(size, int) else list(size)
    mean, std = (tuple(map(float, config[name])) for name in ("mean", "std"))
    colours = odd_colours(mean, std)
    odd = {
        f"a size of {sides}": len(set(sides)) != 1 or not 0 < sides[0] <= MAX_SIDE,
        f"the interpolation '{how.lower()}'": how not in Image.Resampling.__members__,
        f"the resize mode '{mode}'": mode not in ("shortest", "squash"),
        colours: bool(colours),
    }
    if what := [name for name, is_so in odd.items() if is_so]:
        fix = "choose a model whose photos are resized to one square"
        raise EncoderError(f"photos for {model} cannot be prepared ({what[0]})", None, fix)
    kind = Squash if mode == "squash" else Crop
    return kind(sides[0], sides[0], how, mean, std)


def _digest(tokenizer: Any) -> str:
    """sha256 of a tokenizer's vocabulary and settings."""
    inner = getattr(tokenizer, "tokenizer", None)
    words = inner.backend_tokenizer.to_str() if inner is not None else sorted(tokenizer.encoder.items())
    clean = getattr(getattr(tokenizer, "clean_fn", None), "__name__", "")
    content = [type(tokenizer).__name__, tokenizer.context_length, clean, words]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def _refusing(model: str, where: Path | None) -> Iterator[None]:
    """Silence open_clip, and turn its errors into an EncoderError."""
    import logging
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # each layer of the library raises its own types
        reason = " ".join(str(error).split())[:160]
        fix = "give the architecture of the file, or get it again" if where else "see the reason"
        raise EncoderError(f"open_clip cannot load {model} ({reason})", where, fix) from None
    finally:
        logging.disable(before)
