"""Text encoders: BERT-like transformers from a directory or the hub, or untrained.

Models are always loaded from an existing directory, so that loading never waits for the network.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from cmrhash.compute.device import choose_dtype, send
from cmrhash.config import RANDOM
from cmrhash.encoders import hub, packages, sentence, tokens
from cmrhash.encoders.config_file import BOTH, SHARE, check_config, refuse_code
from cmrhash.encoders.pooling import pool
from cmrhash.encoders.sentence import BEHIND, POOLING, Layout, check_pooling
from cmrhash.encoders.sentence_layers import layers as layers_of
from cmrhash.encoders.sentence_layers import width_of
from cmrhash.encoders.transformer import from_folder, limit_of, tokenizer_of
from cmrhash.encoders.weights import drawn, refuse_broken, state_digest
from cmrhash.errors import EncoderError, UsageError

ENCODER_OF_TWO = ("t5", "mt5", "umt5")  # types with a decoder, which texts do not need
CPU_TOKENS, GPU_TOKENS = (
    512,
    32768,
)  # word pieces per forward pass: fits a CPU's caches, fills a GPU
# Size of the untrained BERT, the sample's default encoder; small enough for any machine.
TINY: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
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
    prompt: str = ""  # put before every text
    skip: int = 0  # word pieces at the start that the pooling leaves out
    layers: nn.Sequential = field(default_factory=nn.Sequential)  # behind the pooling; their weights are in ``module``
    is_sentence: bool = False  # read from a directory of sentence-transformers

    def __repr__(self) -> str:
        return f"TextEncoder({self.name!r}, {self.dim} features, {self.device.type})"

    def encode(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """N captions -> (N, D) float32, in the order of the captions."""
        out = np.empty((len(captions), self.dim), np.float32)  # (N, D)
        for rows, x in self.encode_batches(captions):
            out[rows] = x
        return out

    def encode_batches(self, captions: Sequence[str]) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """The same, batch by batch: the rows of B captions and their features (B, D).

        Captions are batched by length, at most ``token_budget`` word pieces with padding each, which keeps the padding
        small.
        """
        pieces = self.pieces(captions)
        for rows in _batches([self.padded_to or len(p) for p in pieces], self.token_budget):
            with torch.inference_mode():
                x = self.forward([pieces[row] for row in rows]).cpu().numpy()
            yield rows, x

    def pieces(self, captions: Sequence[str]) -> list[list[int]]:
        """Word-piece ids of each caption; "[SEP]" within a caption is plain text."""
        if not captions:
            return []
        with _keeping_settings(self.tokenizer.backend_tokenizer):
            encoded = self.tokenizer(
                [self.prompt + caption for caption in captions],
                truncation=True,
                max_length=self.max_length,
                split_special_tokens=True,
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
        return self.pooled(out.last_hidden_state.float(), mask)

    def tokenizer_file(self) -> Any:
        """A ``tokenizers.Tokenizer`` that cuts and pads as the encoder does; None if there is no such one."""
        from tokenizers import Tokenizer

        made: Any = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        made.enable_truncation(self.max_length)
        pad = {"pad_token": self.tokenizer.pad_token} if self.tokenizer.pad_token else {}
        made.enable_padding(pad_id=self.tokenizer.pad_token_id or 0, length=self.padded_to, **pad)
        return made

    def pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token vectors (B, T, D) float32 and their mask (B, T) -> features (B, dim)."""
        features: torch.Tensor = self.layers(pool(hidden, mask, self.pooling, self.skip))
        return features


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
    prompt: str | None = None,
    max_length: int = 512,
    token_budget: int | None = None,
    device: torch.device | None = None,
    dtype: str = "auto",
    seed: int = 0,
    offline: bool = False,
    corpus: Sequence[str] = (),
    layer: str | None = None,
    made: Mapping[str, Any] | None = None,
) -> TextEncoder:
    """A BERT-like model, or the text tower of a dual encoder, as an encoder.

    model: a directory, an id of the hub, "open_clip:ARCH/PRETRAINED", or "random": a small untrained BERT, drawn from
    ``seed``, with the vocabulary of ``corpus``. pooling: modes out of POOLING, joined by "+"; None: those of its
    modules.json, else the mean. layer: of a dual encoder, out of LAYERS; None: the projection. prompt: name of one of
    its prompts; None: its default one. token_budget: word pieces per forward pass, padding included; None: chosen by
    device. made: recipe of features that further texts have to match: its prompt, and its layers if it names any, in
    place of those of the directory.
    Raises EncoderError for a model that is unavailable, lacks weights or has unknown modules, UsageError for an unknown
    pooling or prompt.
    """
    if packages.is_named(model):
        from cmrhash.encoders import open_clip_towers

        packages.refuse_single(model, "text model")
        _refuse_unread(pooling, prompt)
        limits = (max_length, token_budget)
        return open_clip_towers.text_encoder(model, layer, limits, device or torch.device("cpu"), dtype, offline)
    folder = None if model == RANDOM else sentence.locate(model, offline)
    if folder is not None and _is_dual(folder):
        _refuse_unread(pooling, prompt)
        limits = (max_length, token_budget)
        return _of_dual(model, folder, layer, limits, device or torch.device("cpu"), dtype)
    check_pooling(pooling or POOLING[0])
    device = device or torch.device("cpu")
    untrained = model == RANDOM
    compute = choose_dtype(dtype, device, untrained)
    if folder is None:
        tokenizer, module = _untrained(corpus, seed)
        name, source, layout = "bert-random", RANDOM, Layout(Path(RANDOM))
    else:
        name, source = hub.name_and_source(model, folder)
        layout = sentence.read(folder)
        layout = layout if made is None else layout.of(made)
        tokenizer, module = _pretrained(layout.folder / layout.transformer, made is not None)
    pooling = pooling or layout.pooling or POOLING[0]
    text = layout.prompt(prompt)
    length = min(max_length, limit_of(tokenizer, module.config), layout.max_length or max_length)
    lowered = layout.lower_case and tokens.lower_case(tokenizer.backend_tokenizer)
    skip = _prompt_pieces(tokenizer, text, length, layout)
    width = module.config.hidden_size * len(pooling.split("+"))
    layers = _with_layers(module, layout, width)
    module, dim = module.eval().to(device), width_of(layers, width)
    budget = token_budget or (GPU_TOKENS if device.type == "cuda" else CPU_TOKENS)
    of_sentence = (text, skip, layers, layout.pooling is not None)
    encoder = TextEncoder(
        name, dim, {}, source, tokenizer, module, device, compute, pooling, length, budget, None, *of_sentence
    )
    encoder.recipe = _recipe(encoder, lowered, {"weights_seed": seed} if untrained else {})
    return encoder


def _with_layers(module: nn.Module, layout: Layout, width: int) -> nn.Sequential:
    """Layers behind the pooling, as a part of the transformer: its digest, training and copies take them along."""
    layers = layers_of(layout, width)
    if len(layers):
        module.add_module(BEHIND, layers)
    return layers


def _recipe(encoder: TextEncoder, lowered: bool, seed: dict[str, Any]) -> dict[str, Any]:
    """All settings that change the features; those of a plain directory never got more fields.

    lowered: whether texts are put into lower case by its settings; seed: field of an untrained encoder.
    """
    config: Any = encoder.module.config
    modules = [layer.label for layer in encoder.layers]
    return {
        "encoder": encoder.name if seed else config.model_type,
        "weights": RANDOM if seed else "trained",
        "weights_sha256": state_digest(encoder.module),
        "tokenizer_sha256": tokens.digest(encoder.tokenizer.backend_tokenizer),
        "pooling": encoder.pooling,
        "max_length": encoder.max_length,
        "dtype": str(encoder.dtype).removeprefix("torch."),
        **seed,
        **({"modules": modules} if modules else {}),
        **({"prompt": encoder.prompt} if encoder.prompt else {}),
        **({"include_prompt": False} if encoder.skip else {}),
        **({"lower_case": True} if lowered else {}),
    }


def _prompt_pieces(tokenizer: Any, prompt: str, length: int, layout: Layout) -> int:
    """Word pieces of a prompt that the pooling leaves out; raises EncoderError for a prompt that leaves no room."""
    if not prompt:
        return 0
    with _keeping_settings(tokenizer.backend_tokenizer):
        ids, plain = (tokenizer(prompt, split_special_tokens=split)["input_ids"] for split in (False, True))
    if ids != plain:
        fix = "choose another one with `prompt`"
        raise EncoderError(f"the prompt {prompt!r} has special tokens, which texts cannot have", layout.folder, fix)
    pieces = len(ids) - (ids[-1] in tokenizer.all_special_ids)
    if pieces + 1 >= length:
        what = f"the prompt has {pieces} word pieces, and a text may have {length} with it"
        raise EncoderError(what, layout.folder, "choose another `prompt`, or a larger `max_length`")
    return 0 if layout.include_prompt else pieces


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


def _refuse_unread(pooling: str | None, prompt: str | None) -> None:
    """Raise UsageError for settings that the text tower of a dual encoder does not read."""
    if pooling is not None:
        what = f"the text tower of a dual encoder has no pooling '{pooling}'"
        raise UsageError(what, None, "leave it out, or choose a `layer`", option="pooling")
    if prompt is not None:
        what = f"the text tower of a dual encoder has no prompt '{prompt}'"
        raise UsageError(what, None, "leave it out", option="prompt")


def _of_dual(
    model: str,
    folder: Path,
    layer: str | None,
    limits: tuple[int, int | None],
    device: torch.device,
    dtype: str,
) -> TextEncoder:
    """The text tower of a dual encoder. limits: word pieces per caption, and per forward pass."""
    from cmrhash.encoders import tower

    tokenizer, module, longest, padded, recipe = tower.text_tower(folder, layer)
    name, source = hub.name_and_source(model, folder)
    compute, length = choose_dtype(dtype, device, False), min(limits[0], longest)
    recipe |= {"tokenizer_sha256": tokens.digest(tokenizer.backend_tokenizer), "max_length": length}
    recipe["dtype"] = str(compute).removeprefix("torch.")
    budget = limits[1] or (GPU_TOKENS if device.type == "cuda" else CPU_TOKENS)
    module = module.to(device)
    return TextEncoder(name, module.dim, recipe, source, tokenizer, module, device, compute, "", length, budget, padded)


def _pretrained(folder: Path, is_known: bool) -> tuple[Any, Any]:
    """Tokenizer and model of a directory; every weight except a pooler's must be in the file.

    is_known: whether features were made with it before, by a version that asked less of the directory.
    """
    config = check_config(folder)
    kind = config.get("model_type")
    if not is_known:
        refuse_code(config, folder)
    tokenizer = tokenizer_of(folder)
    auto: Any = transformers.AutoModelForTextEncoding if kind in ENCODER_OF_TWO else transformers.AutoModel
    module, report = from_folder(folder, "text model", auto=auto)
    if getattr(module, "pooler", None) is not None:
        module.pooler = None  # unused, and random if the file has none
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler"))
    if missing:
        what = f"the weights lack {len(missing)} tensors ({', '.join(missing[:3])})"
        raise EncoderError(what, folder, "the file is truncated or of another model: get it again")
    refuse_broken(module, folder)
    size, own = module.config.vocab_size, len(tokenizer)
    if own > size or (own < SHARE * size and not is_known):
        raise EncoderError(f"tokenizer ({own} word pieces) and model ({size}) do not match", folder, BOTH)
    return tokenizer, module


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
    with drawn(seed):
        module = transformers.BertModel(transformers.BertConfig(vocab_size=len(number), **TINY))
    module.pooler = None  # unused
    return tokenizer, module
