"""Encoders in files, untrained: what stands in for weights that others would download."""

from __future__ import annotations

import torch
import torchvision
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["dog", "cat", "tree", "house", *"0123456789", *(f"##{digit}" for digit in "0123456789")]


def write_bert(folder):
    """A very small BERT. Its tokenizer's file sets truncation and padding, as those of sentence-transformers do."""
    pieces = {piece: n for n, piece in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=40, **names).save_pretrained(folder)
    core.enable_truncation(9)
    core.enable_padding(length=9)
    core.save(str(folder / "tokenizer.json"))
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = transformers.BertConfig(vocab_size=len(pieces), max_position_embeddings=40, **sizes)
        transformers.BertModel(config).save_pretrained(folder)


def write_image_weights(path, name):
    """The weights of torchvision's model of that name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(torchvision.models.get_model(name).state_dict(), path)
