"""BERT and RoBERTa in NumPy: word-piece ids -> token vectors.

To import torch and transformers takes a hundred times as long as a sentence does. A directory is read only if every
setting in it is one that this file follows; the caller compares the digest of the weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

OF_ROBERTA = ("roberta", "xlm-roberta", "camembert")  # positions count from behind the id of the padding
FAMILY = ("bert", *OF_ROBERTA)
WIDTHS: dict[str, Any] = {"F32": "<f4", "F16": "<f2"}  # number types of weights that become float32
UNUSED = re.compile(r"(pooler|cls|lm_head|classifier|qa_outputs)\..+|embeddings\.position_ids")
# coefficients of a rational approximation of erf on [-4, 4], highest power first: numerator and denominator
ERF = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
ERF_BELOW = (
    *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03),
    *(-7.37332916720468e-03, -1.42647390514189e-02),
)
LINEAR = (
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
)
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings")


class Unknown(Exception):
    """A setting, or a file, that needs torch."""


@dataclass(frozen=True)
class Bert:
    """A transformer of the kind that FAMILY lists. weights: name in transformers -> float32; padding: None for BERT."""

    weights: Mapping[str, Floats]
    layers: int
    heads: int
    epsilon: float
    activation: str
    padding: int | None

    @classmethod
    def read(cls, folder: Path) -> Bert:
        """Read a directory of transformers; raises Unknown unless this file computes all that its config says."""
        config = _config(folder / "config.json")
        tensors = read_float32(folder / "model.safetensors")
        tensors = {re.sub(r"^(bert|roberta)\.", "", name): tensor for name, tensor in tensors.items()}
        weights = {name: tensor for name, tensor in tensors.items() if not UNUSED.fullmatch(name)}
        layers, padding = config["num_hidden_layers"], None
        if weights.keys() != set(_names(layers)):
            raise Unknown(f"other weights than {config['model_type']} has")
        if config["model_type"] in OF_ROBERTA:
            padding = config["pad_token_id"]
        return cls(
            weights, layers, config["num_attention_heads"], config["layer_norm_eps"], config["hidden_act"], padding
        )

    @property
    def longest(self) -> int:
        """Most word pieces of a text."""
        positions = len(self.weights["embeddings.position_embeddings.weight"])
        return positions if self.padding is None else positions - self.padding - 1

    def __call__(self, ids: NDArray[np.int64]) -> Floats:
        """Word-piece ids (B, T) without padding -> token vectors (B, T, D) float32."""
        of = self.weights
        places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        if self.padding is not None:
            real = ids != self.padding
            places = np.cumsum(real, 1) * real + self.padding
        x = of["embeddings.word_embeddings.weight"][ids] + of["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x + of["embeddings.position_embeddings.weight"][places], "embeddings.LayerNorm")
        for layer in range(self.layers):
            x = self._layer(x, f"encoder.layer.{layer}.")
        return x

    def _layer(self, x: Floats, layer: str) -> Floats:
        attended = self._linear(self._attention(x, layer), layer + "attention.output.dense")
        x = self._norm(attended + x, layer + "attention.output.LayerNorm")
        inner = activate(self._linear(x, layer + "intermediate.dense"), self.activation)
        return self._norm(self._linear(inner, layer + "output.dense") + x, layer + "output.LayerNorm")

    def _attention(self, x: Floats, layer: str) -> Floats:
        """(B, T, D) -> (B, T, D), before the output layer."""
        shape = (*x.shape[:2], self.heads, -1)
        query, key, value = (
            self._linear(x, f"{layer}attention.self.{name}").reshape(shape).transpose(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )  # (B, H, T, D / H)
        scores = query @ key.transpose(0, 1, 3, 2) * np.float32(query.shape[3] ** -0.5)  # (B, H, T, T)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed: Floats = (scores @ value).transpose(0, 2, 1, 3).reshape(x.shape)
        return mixed

    def _linear(self, x: Floats, name: str) -> Floats:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Floats, name: str) -> Floats:
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.epsilon))
        normed: Floats = x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return normed


def linear(x: Floats, weight: Floats, bias: Floats | None) -> Floats:
    """(..., in) by weight (out, in) and bias (out,) -> (..., out)."""
    y: Floats = (x.reshape(-1, x.shape[-1]) @ weight.T).reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def activate(x: Floats, name: str) -> Floats:
    """Apply an activation out of ``sentence.ACTIVATIONS``, in any case."""
    name = name.lower()
    if name == "identity":
        return x
    if name == "tanh":
        return np.tanh(x)
    if name == "relu":
        return np.maximum(x, 0)
    if name == "leakyrelu":
        leaky: Floats = np.maximum(x, np.float32(0.01) * x)
        return leaky
    if name == "gelu":
        share: Floats = np.float32(0.5) * (1 + erf(x * np.float32(0.5**0.5)))
        return np.multiply(x, share)
    sigmoid: Floats = np.reciprocal(1 + np.exp(-np.maximum(x, np.float32(-80))))  # beyond that exp overflows
    return sigmoid if name == "sigmoid" else np.multiply(x, sigmoid)  # silu


def erf(x: Floats) -> Floats:
    """Gauss error function. Source: the rational approximation of Eigen's ``generic_fast_erf_float``."""
    near: Floats = np.clip(x, np.float32(-4), np.float32(4))
    square = near * near
    above, below = np.full_like(near, ERF[0]), np.full_like(near, ERF_BELOW[0])
    for factor in ERF[1:]:
        above = above * square + np.float32(factor)
    for factor in ERF_BELOW[1:]:
        below = below * square + np.float32(factor)
    ratio: Floats = near * above / below
    return ratio


def read_float32(path: Path) -> dict[str, Floats]:
    """Tensors of a .safetensors file as float32; raises Unknown for other number types and for unreadable files.

    The file is read once into one buffer, of which the tensors are parts: the library's reader takes twice the memory.
    """
    try:
        data = np.fromfile(path, np.uint8)
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:start].tobytes())
        header.pop("__metadata__", None)
        tensors = {}
        for name, of in header.items():
            begin, end = of["data_offsets"]
            if of["dtype"] not in WIDTHS:
                if UNUSED.fullmatch(name.removeprefix("bert.").removeprefix("roberta.")):
                    continue
                raise Unknown(f"weights of the type {of['dtype']}")
            values: NDArray[Any] = data[start + begin : start + end].view(WIDTHS[of["dtype"]]).reshape(of["shape"])
            tensors[name] = values.astype(np.float32, copy=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise Unknown(f"{path.name} cannot be read here ({error})") from None
    return tensors


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
        known = (
            config["model_type"] in FAMILY
            and config["hidden_act"] in ("gelu", "relu")
            and config.get("position_embedding_type", "absolute") == "absolute"
            and not (config.get("is_decoder") or config.get("add_cross_attention"))
            and not any(key.startswith("_attn_implementation") for key in config)
            and config["hidden_size"] % config["num_attention_heads"] == 0
            and isinstance(config["num_hidden_layers"], int)
            and isinstance(config["layer_norm_eps"], float)
            and (config["model_type"] == "bert" or isinstance(config["pad_token_id"], int))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise Unknown(f"no known config.json ({error})") from None
    if not known:
        raise Unknown("config.json has settings that need torch")
    return dict(config)


def _names(layers: int) -> Iterator[str]:
    """Names of all weights of a model in transformers."""
    yield from (f"embeddings.{name}.weight" for name in EMBEDDINGS)
    blocks = ["embeddings.LayerNorm"]
    blocks += [f"encoder.layer.{layer}.{name}" for layer in range(layers) for name in (*LINEAR, *NORMS)]
    yield from (f"{block}.{part}" for block in blocks for part in ("weight", "bias"))
