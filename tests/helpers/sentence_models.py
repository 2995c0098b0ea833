"""A directory of sentence-transformers made of a plain one, and a slow reading of it by the definitions."""

from __future__ import annotations

import json

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

OLD = "sentence_transformers.models"
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling",
    "Dense": "sentence_transformers.base.modules.dense",
    "Normalize": "sentence_transformers.base.modules.normalize",
}
FLAGS = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
MODES = dict(zip(("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken"), FLAGS, strict=True))
TANH = "torch.nn.modules.activation.Tanh"


def write_json(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_json(path, **fields):
    write_json(path, {**(json.loads(path.read_bytes()) if path.exists() else {}), **fields})


def make_sentence(folder, pooling="mean", layers=(), *, width=32, new=False, longest=None, **prompts):
    """Add modules.json and the rest to a transformer's directory.

    layers: sizes (in, out, activation) of a Dense, or "Normalize"; new: as version 6 writes it.
    """
    modes = pooling.split("+")
    kinds = ["Transformer", "Pooling", *("Normalize" if layer == "Normalize" else "Dense" for layer in layers)]
    places = ["", *(f"{n}_{kind}" for n, kind in enumerate(kinds) if n)]
    paths = [f"{NEW[kind]}.{kind}" if new else f"{OLD}.{kind}" for kind in kinds]
    modules = [{"idx": n, "name": str(n), "path": places[n], "type": paths[n]} for n in range(len(kinds))]
    write_json(folder / "modules.json", modules)
    config = {"word_embedding_dimension": width, **{f"pooling_mode_{flag}": m in modes for m, flag in MODES.items()}}
    if new:
        listed = [mode.replace("_len", "_len_tokens") for mode in modes]
        config = {"embedding_dimension": width, "pooling_mode": listed if len(listed) > 1 else listed[0]}
    write_json(folder / "1_Pooling/config.json", config)
    for n, layer in enumerate(layers):
        if layer != "Normalize":
            inputs, outputs, activation = layer
            sizes = {"in_features": inputs, "out_features": outputs, "bias": True, "activation_function": activation}
            write_json(folder / places[n + 2] / "config.json", sizes)
            rng = torch.Generator().manual_seed(n)
            weight, bias = torch.randn(outputs, inputs, generator=rng) / 6, torch.randn(outputs, generator=rng)
            state = {"linear.weight": weight, "linear.bias": bias}
            save_file(state, folder / places[n + 2] / "model.safetensors")
    if longest:
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    if prompts:
        write_json(folder / "config_sentence_transformers.json", prompts)
    return folder


def pooled(tokens, mode, first):
    """(T, D) token vectors, without padding; first: how many of them are a prompt that does not count."""
    kept = range(first, len(tokens))
    if mode == "cls":
        return tokens[first]
    if mode == "lasttoken":
        return tokens[-1]
    if mode == "max":
        return np.max([tokens[n] for n in kept], 0)
    weights = [n + 1.0 if mode == "weightedmean" else 1.0 for n in kept]
    total = sum(w * tokens[n] for w, n in zip(weights, kept, strict=True))
    return total / (np.sqrt(len(weights)) if mode == "mean_sqrt_len" else sum(weights))


def slow(folder, texts, pooling, layers=(), prompt="", first=0, longest=10**9):
    """The vectors that the directory means: one text at a time, in float64 behind the transformer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        ids = tokenizer(prompt + text, return_tensors="pt", truncation=True, max_length=min(longest, 48))
        with torch.no_grad():
            tokens = model(**ids).last_hidden_state[0].double().numpy()
        x = np.concatenate([pooled(tokens, mode, first) for mode in pooling.split("+")])
        for n, layer in enumerate(layers):
            if layer == "Normalize":
                x = x / np.sqrt((x**2).sum())
            else:
                state = load_file(folder / f"{n + 2}_Dense/model.safetensors")
                x = state["linear.weight"].double().numpy() @ x + state["linear.bias"].double().numpy()
                x = np.tanh(x) if layer[2].endswith("Tanh") else x
        rows.append(x)
    return np.stack(rows)
