"""Transformers read from a directory: model, tokenizer and settings, without running code from there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from cmrhash.encoders.config_file import check_config
from cmrhash.encoders.sentence import PARTS
from cmrhash.encoders.weights import refuse_too_large
from cmrhash.errors import EncoderError

SHARE = 0.9  # of a model's vocabulary that its tokenizer has at least
OFFSET = ("altclip_text_model",)  # an XLM-RoBERTa


def from_folder(
    folder: Path, kind: str, attention: str = "sdpa", auto: Any = transformers.AutoModel
) -> tuple[Any, Any]:
    """Model of a directory in float32, and the report on its tensors; raises EncoderError. kind: for the message."""
    refuse_too_large(folder.glob("model*.safetensors"), folder)
    _refuse_more_than_weights(folder)
    with _refusing(folder, kind):
        return auto.from_pretrained(  # type: ignore[no-any-return]
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,  # None would prompt in the terminal
            output_loading_info=True,
            attn_implementation=attention,
            dtype=torch.float32,
        )


def _refuse_more_than_weights(folder: Path) -> None:
    """Raise EncoderError for a config.json that asks for more layers or larger ones than the weights can fill."""
    tensors = numbers = 0
    for path in folder.glob("model*.safetensors"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            tensors += file.read(min(length, path.stat().st_size)).count(b"data_offsets")
        numbers += path.stat().st_size
    for name, value in _sizes(check_config(folder)):
        most, unit = (tensors, "tensors") if "layer" in name else (numbers, "bytes")
        if numbers and value > most:
            what = f"config.json says {name} {value}, but the weights have {most} {unit}"
            raise EncoderError(what, folder, "get config.json and the weights of one model")


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Names and values of the settings, also of towers, that decide how large the model is."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _sizes(value)
        elif isinstance(value, int) and re.search(r"layers|_size$|_dim$|^d_|^n_|^dim$|position_embeddings|heads", name):
            yield name, value


def tokenizer_of(folder: Path) -> Any:
    """Tokenizer of a directory; raises EncoderError for one that is empty or lacks tokenizer.json."""
    settings = {"local_files_only": True, "trust_remote_code": False}
    fast: Any = transformers.PreTrainedTokenizerFast
    with _refusing(folder, "text model"):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, use_fast=True, **settings)
        except ImportError:  # SigLIP's class needs sentencepiece, its tokenizer.json does not
            tokenizer = None
        if not getattr(tokenizer, "is_fast", False) and (folder / "tokenizer.json").is_file():
            tokenizer = fast.from_pretrained(folder, **settings)
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        raise EncoderError("no tokenizer.json", folder, f"give a directory with {PARTS}")
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # transformers silently creates an empty one
        raise EncoderError("the tokenizer has no vocabulary", folder, f"give a directory with {PARTS}")
    return tokenizer


def quieten() -> None:
    """Silence the warnings and the progress bars of transformers."""
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextlib.contextmanager
def _refusing(folder: Path, kind: str) -> Iterator[None]:
    """Quieten transformers, and turn its errors into an EncoderError."""
    quieten()
    try:
        yield
    except Exception as error:  # each layer of the libraries raises its own types
        reason = " ".join(str(error).split())[:160]
        fix = f"give a directory with {PARTS}"
        raise EncoderError(f"cannot load the {kind} ({reason})", folder, fix) from None


def limit_of(tokenizer: Any, config: Any) -> int:
    """Longest input in word pieces; tokenizers without a limit report 1e30."""
    positions = getattr(config, "max_position_embeddings", None) or -1
    if positions < 1:  # relative positions: no limit in the model
        return int(tokenizer.model_max_length)
    if config.model_type in ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", *OFFSET):
        positions -= 2  # their positions start at 2
    return int(min(tokenizer.model_max_length, positions))
