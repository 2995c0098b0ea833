"""Tokenizers of open_clip as files of the library ``tokenizers``, which give the same ids for plain texts.

open_clip's cleaning also repairs broken encodings and HTML entities (ftfy, html.unescape), which such a file cannot:
texts have to be clean, as the captions of a data set are.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

START, END = "<start_of_text>", "<end_of_text>"
END_OF_WORD = "</w>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
QUOTES = (("[\u02bc\u2018-\u201b]", "'"), ("[\u201c-\u201f]", '"'))  # curly quotes, which ftfy makes straight
PUNCTUATION = r"[!-/:-@\[-`{-~]"


def as_file(tokenizer: Any) -> Any:
    """A ``tokenizers.Tokenizer`` that cuts and pads as a tokenizer of open_clip does; None if there is no such one."""
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None and getattr(tokenizer, "reduction_fn", None) is None:
        made = _of_words(tokenizer)
    elif inner is not None and not tokenizer.tokenizer_mode and not tokenizer.strip_sep_token:
        made = Tokenizer.from_str(inner.backend_tokenizer.to_str())
    else:
        return None
    kind = tokenizer.clean_fn.__name__.rpartition("_")[2]
    made.normalizer = normalizers.Sequence(_cleaning(kind) + ([made.normalizer] if made.normalizer else []))
    length, pad = tokenizer.context_length, getattr(inner, "pad_token_id", None) or 0
    made.enable_truncation(length)
    made.enable_padding(pad_id=pad, pad_token=made.id_to_token(pad), length=length)
    return made


def _of_words(tokenizer: Any) -> Tokenizer:
    """The tokenizer of CLIP: pairs of bytes, the last one of a word marked."""
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)
    made = Tokenizer(models.BPE(tokenizer.encoder, merges, end_of_word_suffix=END_OF_WORD))
    split = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    made.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    made.add_special_tokens([START, END])
    return made


def _cleaning(kind: str) -> list[Any]:
    """Steps of open_clip's cleaning of that kind: lower, whitespace or canonicalize."""
    steps: list[Any] = [normalizers.NFC(), *(normalizers.Replace(Regex(some), by) for some, by in QUOTES)]
    if kind == "canonicalize":
        steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex(PUNCTUATION), "")]
    if kind != "whitespace":
        steps.append(normalizers.Lowercase())
    return [*steps, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
