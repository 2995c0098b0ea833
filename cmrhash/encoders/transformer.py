"""Transformers read from a directory: model, tokenizer and settings, without running code from there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from cmrhash.encoders.config_file import check_sizes
from cmrhash.encoders.sentence import PARTS
from cmrhash.errors import EncoderError

OFFSET = ("altclip_text_model",)  # an XLM-RoBERTa


def from_folder(
    folder: Path, kind: str, attention: str = "sdpa", auto: Any = transformers.AutoModel
) -> tuple[Any, Any]:
    """Model of a directory in float32, and the report on its tensors; raises EncoderError.

    kind: for the message. attention: its implementation; "eager" in place of "sdpa" for a class that lacks it,
    never that of a config.json, which may name foreign code.
    """
    check_sizes(folder)
    with _refusing(folder, kind):
        load = partial(
            auto.from_pretrained,
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,  # None would prompt in the terminal
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            dtype=torch.float32,
        )
        try:
            model, report = load(attn_implementation=attention)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model, report = load(attn_implementation="eager")
    for name, found, wanted in sorted(report["mismatched_keys"]):
        what = f"the {kind} has another shape for {name} ({tuple(wanted)}) than the weights ({tuple(found)})"
        raise EncoderError(what, folder, "get config.json and the weights of one model")
    return model, report


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
