"""Text encoders: BERT-like transformers from a directory or the hub, or untrained.

Models are always loaded from an existing directory, so that loading never waits for the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from cmrhash.compute.device import choose_dtype, send
from cmrhash.config import RANDOM
from cmrhash.encoders import hub
from cmrhash.encoders.weights import state_digest
from cmrhash.errors import EncoderError, UsageError

PARTS = "config.json, model.safetensors and tokenizer.json"
FILES = ["*.json", "*.txt", "*.model", "model*.safetensors"]
POOLING = ("mean", "cls")
CPU_TOKENS, GPU_TOKENS = (
    512,
    32768,
)  # word pieces per forward pass: fits a CPU's caches, fills a GPU
# Size of the untrained BERT, the sample's default encoder; small enough for any machine.
TINY: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
OFFSET = ("altclip_text_model",)  # an XLM-RoBERTa
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass
class TextEncoder:
    """Captions -> features.

    name: used in file names; dim: features per caption; recipe: all settings that change the features;
    source: value of ``model`` with which `load` returns the same encoder.
    """

    name: str
    dim: int
    recipe: dict[str, Any]
    source: str
    tokenizer: Any
    module: torch.nn.Module
    device: torch.device
    dtype: torch.dtype
    pooling: str
    max_length: int
    token_budget: int
    padded_to: int | None = None  # word pieces of every padded caption; None: as many as the longest of a batch has

    def __repr__(self) -> str:
        return f"TextEncoder({self.name!r}, {self.dim} features, {self.device.type})"

    @torch.inference_mode()
    def encode(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """N captions -> (N, D) float32, in the order of the captions.

        Captions are batched by length, at most ``token_budget`` word pieces with padding each, which keeps the padding
        small.
        """
        pieces = self.pieces(captions)
        out = np.empty((len(captions), self.dim), np.float32)  # (N, D)
        for rows in _batches([self.padded_to or len(p) for p in pieces], self.token_budget):
            out[rows] = self.forward([pieces[row] for row in rows]).cpu().numpy()
        return out

    def pieces(self, captions: Sequence[str]) -> list[list[int]]:
        """Word-piece ids of each caption; "[SEP]" within a caption is plain text."""
        if not captions:
            return []
        with _keeping_settings(self.tokenizer.backend_tokenizer):
            encoded = self.tokenizer(
                list(captions), truncation=True, max_length=self.max_length, split_special_tokens=True
            )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def unknown_share(self, captions: Sequence[str]) -> float:
        """Share of unknown word pieces; high if model and language do not match."""
        unknown = self.tokenizer.unk_token_id
        if unknown in (self.tokenizer.eos_token_id, None):  # byte-level vocabularies know every word
            return 0.0
        ids = [i for piece in self.pieces(captions) for i in piece]
        return sum(1 for i in ids if i == unknown) / max(len(ids), 1)

    def forward(self, pieces: list[list[int]]) -> torch.Tensor:
        """Word-piece ids of B captions -> (B, D) float32 on the device, differentiable."""
        width = -(-max(map(len, pieces)) // 8) * 8  # multiples of 8 suit the matrix units
        width = self.padded_to or min(width, max(self.max_length, max(map(len, pieces))))
        ids = torch.full((len(pieces), width), self.tokenizer.pad_token_id or 0)  # (B, T)
        mask = torch.zeros((len(pieces), width), dtype=torch.long)  # (B, T)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece)] = torch.tensor(piece)
            mask[row, : len(piece)] = 1
        ids, mask = send(ids, self.device), send(mask, self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = self.module(input_ids=ids, attention_mask=mask)
        if isinstance(out, torch.Tensor):  # of a tower: (B, D)
            return out
        hidden = out.last_hidden_state.float()  # (B, T, D)
        if self.pooling == "cls":
            return hidden[:, 0]  # type: ignore[no-any-return]
        return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _keeping_settings(backend: Any) -> Iterator[None]:
    """Restore the tokenizer's truncation and padding, which every call overwrites.

    Digests and saved copies must have the settings of the original file.
    """
    truncation, padding = backend.truncation, backend.padding
    yield
    if truncation:
        backend.enable_truncation(**truncation)
    else:
        backend.no_truncation()
    if padding:
        backend.enable_padding(**padding)


def _batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group rows of similar length so that each padded batch stays within the budget.

    A batch has at least one row.
    """
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    batches: list[list[int]] = []
    for row in order:  # the current row is the longest of its batch
        if not batches or (len(batches[-1]) + 1) * lengths[row] > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def load(
    model: str,
    *,
    pooling: str | None = None,
    max_length: int = 512,
    token_budget: int | None = None,
    device: torch.device | None = None,
    dtype: str = "auto",
    seed: int = 0,
    offline: bool = False,
    corpus: Sequence[str] = (),
    layer: str | None = None,
) -> TextEncoder:
    """A BERT-like model, or the text tower of a dual encoder, as an encoder.

    model: a directory, an id of the hub, or "random": a small untrained BERT, drawn from ``seed``, with the vocabulary
    of ``corpus``. pooling: "mean" over the word pieces, or "cls"; None: the mean.
    layer: of a dual encoder, out of LAYERS; None: the projection.
    token_budget: word pieces per forward pass, padding included; None: chosen by device.
    Raises EncoderError for a model that is unavailable or lacks weights, UsageError for an unknown pooling.
    """
    folder = None if model == RANDOM else locate(model, offline)
    if folder is not None and _is_dual(folder):
        limits = (max_length, token_budget)
        return _of_dual(model, folder, layer, pooling, limits, device or torch.device("cpu"), dtype)
    pooling = _known_pooling(pooling)
    device = device or torch.device("cpu")
    untrained = model == RANDOM
    if folder is None:
        tokenizer, module = _untrained(corpus, seed)
        name, source = "bert-random", RANDOM
    else:
        tokenizer, module = _pretrained(folder)
        name, source = hub.name_and_source(model, folder)
    compute = choose_dtype(dtype, device, untrained)
    limit = limit_of(tokenizer, module.config)
    recipe = {
        "encoder": name if untrained else module.config.model_type,
        "weights": RANDOM if untrained else "trained",
        "weights_sha256": state_digest(module),
        "tokenizer_sha256": _digest(tokenizer),
        "pooling": pooling,
        "max_length": min(max_length, limit),
        "dtype": str(compute).removeprefix("torch."),
    }
    if untrained:
        recipe["weights_seed"] = seed
    dim, length = module.config.hidden_size, min(max_length, limit)
    module = module.eval().to(device)
    budget = token_budget or (GPU_TOKENS if device.type == "cuda" else CPU_TOKENS)
    return TextEncoder(name, dim, recipe, source, tokenizer, module, device, compute, pooling, length, budget)


def _known_pooling(pooling: str | None) -> str:
    """The pooling, by default the first; raises UsageError for an unknown one."""
    if pooling is not None and pooling not in POOLING:
        raise UsageError(f"unknown pooling '{pooling}'", None, f"choose one of {', '.join(POOLING)}", option="pooling")
    return pooling or POOLING[0]


def _is_dual(folder: Path) -> bool:
    """Whether a directory has a dual encoder; raises EncoderError if it has an image model."""
    if not (folder / "config.json").is_file():
        return False
    from cmrhash.encoders import tower

    check_config(folder)
    kind = tower.kind_of(folder)
    if kind == tower.IMAGE:
        raise EncoderError(
            "an image model, given as a text model", folder, 'give `image_model="DIR"`, and a text model here'
        )
    return kind == tower.DUAL


def _of_dual(
    model: str,
    folder: Path,
    layer: str | None,
    pooling: str | None,
    limits: tuple[int, int | None],
    device: torch.device,
    dtype: str,
) -> TextEncoder:
    """The text tower of a dual encoder. limits: word pieces per caption, and per forward pass."""
    from cmrhash.encoders import tower

    if pooling is not None:
        what = f"the text tower of a dual encoder has no pooling '{pooling}'"
        raise UsageError(what, None, "leave it out, or choose a `layer`", option="pooling")
    tokenizer, module, longest, padded, recipe = tower.text_tower(folder, layer)
    name, source = hub.name_and_source(model, folder)
    compute, length = choose_dtype(dtype, device, False), min(limits[0], longest)
    recipe |= {"tokenizer_sha256": _digest(tokenizer), "max_length": length}
    recipe["dtype"] = str(compute).removeprefix("torch.")
    budget = limits[1] or (GPU_TOKENS if device.type == "cuda" else CPU_TOKENS)
    module = module.to(device)
    return TextEncoder(name, module.dim, recipe, source, tokenizer, module, device, compute, "", length, budget, padded)


def _digest(tokenizer: Any) -> str:
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def locate(model: str, offline: bool = False) -> Path:
    """Directory of a text model: an existing one, the hub's local cache, or a download."""
    others = "bow, word2vec or a file of word vectors"
    fix = f'give `text_models=("[LANG=]DIR",)` with {PARTS}, or random for a dry run, or {others}'
    return hub.locate(model, FILES, offline, "text model", fix)


def _pretrained(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and model of a directory; every weight except a pooler's must be in the file."""
    check_config(folder)
    tokenizer = tokenizer_of(folder)
    module, report = from_folder(folder, "text model")
    if getattr(module, "pooler", None) is not None:
        module.pooler = None  # unused, and random if the file has none
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler"))
    if missing or report["mismatched_keys"]:
        what = f"the weights lack {len(missing)} tensors ({', '.join(missing[:3])})"
        raise EncoderError(what, folder, "the file is truncated or of another model: get it again")
    if not all(torch.isfinite(p).all() for p in module.parameters()):
        raise EncoderError("the weights contain NaN or infinity", folder, "get the file again")
    if len(tokenizer) > module.config.vocab_size:
        raise EncoderError("tokenizer and model do not match", folder, "give a directory with both of the same model")
    return tokenizer, module


def from_folder(folder: Path, kind: str, attention: str = "sdpa") -> tuple[Any, Any]:
    """Model of a directory in float32, and the report on its tensors; raises EncoderError. kind: for the message."""
    with _refusing(folder, kind):
        return transformers.AutoModel.from_pretrained(  # type: ignore[no-any-return]
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,  # None would prompt in the terminal
            output_loading_info=True,
            attn_implementation=attention,
            dtype=torch.float32,
        )


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


def check_config(folder: Path) -> None:
    """Refuse settings that could make transformers run code other than its own."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise EncoderError(f"no readable config.json ({error})", folder, "give the directory of a text model") from None
    if not isinstance(config, dict):
        raise EncoderError("config.json is not a JSON object", folder, "give the directory of a text model")
    odd = [key for key in config if key.startswith("_attn_implementation")]
    if odd:
        raise EncoderError(f"config.json sets {odd[0]}", path, "remove that field: it can load foreign code")


def limit_of(tokenizer: Any, config: Any) -> int:
    """Longest input in word pieces; tokenizers without a limit report 1e30."""
    positions = getattr(config, "max_position_embeddings", None) or -1
    if positions < 1:  # relative positions: no limit in the model
        return int(tokenizer.model_max_length)
    if config.model_type in ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", *OFFSET):
        positions -= 2  # their positions start at 2
    return int(min(tokenizer.model_max_length, positions))


def _untrained(corpus: Sequence[str], seed: int) -> tuple[Any, Any]:
    """A small BERT with random weights, whose vocabulary is the corpus's words and letters.

    Words that occur once are spelt with single letters.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    cleanup = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    split = pre_tokenizers.BertPreTokenizer()
    words = Counter(w for text in corpus for w, _ in split.pre_tokenize_str(cleanup.normalize_str(text)))
    letters = sorted({letter for word in words for letter in word})
    known = [word for word, n in sorted(words.items(), key=lambda wn: (-wn[1], wn[0])) if n > 1]
    vocabulary = dict.fromkeys([*SPECIAL, *known, *letters, *("##" + letter for letter in letters)])
    number = {piece: n for n, piece in enumerate(vocabulary)}
    core = Tokenizer(models.WordPiece(number, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = cleanup, split
    core.post_processor = processors.BertProcessing(("[SEP]", number["[SEP]"]), ("[CLS]", number["[CLS]"]))
    wrap: Any = transformers.PreTrainedTokenizerFast
    tokenizer = wrap(
        tokenizer_object=core,
        model_max_length=512,
        **{f"{name[1:-1].lower()}_token": name for name in SPECIAL},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = transformers.BertModel(transformers.BertConfig(vocab_size=len(number), **TINY))
    module.pooler = None  # unused
    return tokenizer, module
