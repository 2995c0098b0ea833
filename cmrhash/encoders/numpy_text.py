"""Text encoder without torch and transformers, for a few texts: the same features as ``text.TextEncoder``.

It opens only encoders of a recipe whose digests of weights and tokenizer equal those of the directory; any other case
is left to ``text.load``, which also finds the words for what is wrong. It computes in float32: features of a recipe in
half precision differ from its own by the rounding of that recipe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import RANDOM
from cmrhash.encoders import hub, sentence, tokens
from cmrhash.encoders.numpy_bert import Bert, Floats, Unknown, activate, linear, read_float32
from cmrhash.encoders.sentence import BEHIND, POOLING, Layout
from cmrhash.errors import CmrhashError

BATCH = 512  # word pieces per forward pass: fits a CPU's caches


@dataclass(frozen=True)
class Step:
    """A layer behind the pooling. label: name in the recipe; weight (out, in), bias (out,): of a Dense."""

    label: str
    weight: Floats | None = None
    bias: Floats | None = None

    def __call__(self, x: Floats) -> Floats:
        """(B, D) -> (B, D')."""
        kind, _, which = self.label.partition(" ")
        if self.weight is not None:
            return activate(linear(x, self.weight, self.bias), which)
        if kind == "Truncate":
            return x[:, : int(which)]
        length = np.sqrt((x * x).sum(1, keepdims=True))
        unit: Floats = x / np.maximum(length, np.float32(1e-12))
        return unit


@dataclass
class NumpyTextEncoder:
    """Captions -> features. recipe: of the features that it agrees with; skip: word pieces the pooling leaves out."""

    name: str
    recipe: Mapping[str, Any]
    tokenizer: Any
    network: Bert
    layers: Sequence[Step]
    prompt: str = ""
    skip: int = 0

    def __repr__(self) -> str:
        return f"NumpyTextEncoder({self.name!r})"

    def encode(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """N captions -> (N, D) float32, in the order of the captions.

        Captions of equal length go together, so that nothing is padded.
        """
        found = self.tokenizer.encode_batch([self.prompt + caption for caption in captions])
        pieces = [each.ids for each in found]
        by_length: dict[int, list[int]] = {}
        for row, ids in enumerate(pieces):
            by_length.setdefault(len(ids), []).append(row)
        out: list[Floats] = [np.empty(0, np.float32)] * len(pieces)
        for length, rows in by_length.items():
            size = max(1, BATCH // max(length, 1))
            for at in range(0, len(rows), size):
                some = rows[at : at + size]
                for row, features in zip(some, self._features([pieces[row] for row in some]), strict=True):
                    out[row] = features
        return np.stack(out)

    def _features(self, pieces: list[list[int]]) -> Floats:
        """Ids of B texts of one length -> (B, dim)."""
        x = pooled(self.network(np.array(pieces, np.int64)), self.recipe["pooling"], self.skip)
        for layer in self.layers:
            x = layer(x)
        return x


def pooled(hidden: Floats, pooling: str, skip: int = 0) -> Floats:
    """Token vectors (B, T, D) without padding -> (B, D x modes), as ``pooling.pool``."""
    kept = hidden[:, skip:]
    count = kept.shape[1]
    weight = np.arange(skip + 1, skip + count + 1, dtype=np.float32)
    parts = []
    for mode in pooling.split("+"):
        if mode == "max":
            parts.append(kept.max(1))
        elif mode in ("cls", "lasttoken"):
            parts.append(kept[:, 0 if mode == "cls" else -1])
        elif mode == "weightedmean":
            parts.append((kept * weight[:, None]).sum(1) / weight.sum())
        else:
            parts.append(kept.sum(1) / np.float32(count if mode == "mean" else count**0.5))
    return np.concatenate(parts, 1)


def open_like(recipe: Mapping[str, Any], source: str) -> NumpyTextEncoder | None:
    """The encoder of a recipe, None where torch is needed. source: directory, or id whose files are on this machine."""
    if RANDOM in (source, recipe["weights"]) or "pooling" not in recipe:
        return None
    folder = _folder(source)
    try:
        return None if folder is None else _opened(recipe, folder)
    except (Unknown, CmrhashError):
        return None


def _folder(source: str) -> Path | None:
    folder = Path(source).expanduser()
    try:
        return folder if folder.is_dir() else hub.cached(source, sentence.FILES, None)
    except (CmrhashError, OSError):
        return None


def _opened(recipe: Mapping[str, Any], folder: Path) -> NumpyTextEncoder:
    layout = sentence.read(folder).of(recipe)
    model = layout.folder / layout.transformer
    tokenizer = _tokenizer(recipe, model)
    network = Bert.read(model)
    modes = recipe["pooling"].split("+")
    if recipe["max_length"] > network.longest or set(modes) - set(POOLING):
        raise Unknown("another length or pooling")
    width = network.weights["embeddings.word_embeddings.weight"].shape[1] * len(modes)
    layers = _layers(layout, width)
    if [layer.label for layer in layers] != recipe.get("modules", []):
        raise Unknown("other layers")
    if _digest(network, layers) != recipe["weights_sha256"]:
        raise Unknown("other weights")
    prompt = recipe.get("prompt", "")
    skip = _prompt_pieces(tokenizer, prompt) if recipe.get("include_prompt") is False else 0
    return NumpyTextEncoder(folder.name, recipe, tokenizer, network, layers, prompt, skip)


def _tokenizer(recipe: Mapping[str, Any], folder: Path) -> Any:
    """Tokenizer of a directory with the recipe's digest, set as ``TextEncoder.pieces`` sets it."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer_config.json"
    try:
        settings = json.loads(path.read_bytes()) if path.exists() else {}
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if recipe.get("lower_case"):
            tokens.lower_case(tokenizer)
        if tokens.digest(tokenizer) != recipe["tokenizer_sha256"]:
            tokenizer.add_special_tokens(_special(settings))  # as transformers does
        sides = {settings.get("truncation_side", "right"), (tokenizer.truncation or {}).get("direction", "right")}
    except Exception as error:  # the library raises plain exceptions
        raise Unknown(f"no readable tokenizer ({error})") from None
    if tokens.digest(tokenizer) != recipe["tokenizer_sha256"] or sides != {"right"}:
        raise Unknown("another tokenizer")
    tokenizer.no_padding()
    tokenizer.enable_truncation(recipe["max_length"])
    tokenizer.encode_special_tokens = True  # "[SEP]" within a caption is plain text
    return tokenizer


def _special(settings: Mapping[str, Any]) -> list[str]:
    """Special tokens that tokenizer_config.json names."""
    named = [value for name, value in settings.items() if name.endswith("_token") and value]
    return [value["content"] if isinstance(value, dict) else value for value in named if not isinstance(value, bool)]


def _prompt_pieces(tokenizer: Any, prompt: str) -> int:
    """Word pieces of a prompt, without the token at the end."""
    special: list[int] = tokenizer.encode(prompt).special_tokens_mask
    return len(special) - special[-1]


def _layers(layout: Layout, width: int) -> list[Step]:
    """Layers behind the pooling. width: features that the pooling gives."""
    found = []
    for kind, place in layout.layers:
        path = layout.folder / place
        if kind == "Dense":
            of = sentence.read_dense(path, width)
            state = read_float32(of.weights)
            names = {"linear.weight": (of.outputs, width), **({"linear.bias": (of.outputs,)} if of.bias else {})}
            if {name: tensor.shape for name, tensor in state.items()} != names:
                raise Unknown("other names or shapes")
            found.append(Step(f"Dense {of.activation}", state["linear.weight"], state.get("linear.bias")))
            width = of.outputs
        else:
            if (path / "config.json").is_file():
                sentence.refuse_other_values(path / "config.json")
            found.append(Step("Normalize"))
    return [*found, Step(f"Truncate {layout.truncate}")] if layout.truncate else found


def _digest(network: Bert, layers: Sequence[Step]) -> str:
    """The digest of ``weights.state_digest``."""
    state = dict(network.weights)
    for at, layer in enumerate(layers):
        for name, tensor in (("weight", layer.weight), ("bias", layer.bias)):
            if tensor is not None:
                state[f"{BEHIND}.{at}.linear.{name}"] = tensor
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} torch.float32 {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()
