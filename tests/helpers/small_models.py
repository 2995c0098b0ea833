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


def write_words(folder, end="</s>", length=16, pad=None, **settings):
    """A tokenizer of whole words and letters, with an end token; its vocabulary has the given length or more."""
    letters = [chr(n) for n in range(ord("a"), ord("z") + 1)]
    pieces = list(dict.fromkeys(["<s>", "<pad>", "<unk>", *WORDS, *letters, end]))
    core = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="<unk>"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    ends = [(end, len(pieces) - 1)]
    core.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=ends)
    names = {"unk_token": "<unk>", "eos_token": end, "pad_token": pad or "<pad>"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=length, **names, **settings
    ).save_pretrained(folder)
    return len(pieces)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PHOTO = {"image_size": 32, "patch_size": 8}


def save_drawn(network, config, folder, seed=1):
    """The untrained network of a config, drawn from a seed, with every parameter away from 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(folder)


def write_clip(folder, seed=1, projection=24):
    """A very small CLIP: photos resized to 36 pixels, 32 of them cut out; at most 16 word pieces."""
    count = write_words(folder, pad="</s>")
    text = {**SIZES, "vocab_size": count, "max_position_embeddings": 16}
    text |= {"eos_token_id": count - 1, "bos_token_id": 0, "pad_token_id": 1}
    config = transformers.CLIPConfig(text_config=text, vision_config={**SIZES, **PHOTO}, projection_dim=projection)
    save_drawn(transformers.CLIPModel, config, folder, seed)
    crop = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size={"shortest_edge": 36}, crop_size=crop).save_pretrained(folder)


def write_siglip(folder, seed=1):
    """A very small SigLIP, whose texts are padded to 16 word pieces."""
    count = write_words(folder, model_input_names=["input_ids"])
    text = {**SIZES, "vocab_size": count, "max_position_embeddings": 16, "projection_size": 32}
    text |= {"eos_token_id": count - 1, "bos_token_id": 0, "pad_token_id": 1}
    config = transformers.SiglipConfig(text_config=text, vision_config={**SIZES, **PHOTO})
    save_drawn(transformers.SiglipModel, config, folder, seed)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def write_vit(folder, pooler=True):
    """A very small ViT."""
    network, config = transformers.ViTModel, transformers.ViTConfig(**SIZES, **PHOTO)
    save_drawn(lambda given: network(given, add_pooling_layer=pooler), config, folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def write_dinov2(folder):
    """A very small DINOv2."""
    save_drawn(transformers.Dinov2Model, transformers.Dinov2Config(**SIZES, **PHOTO), folder)
    crop = {"height": 32, "width": 32}
    transformers.BitImageProcessor(size={"shortest_edge": 36}, crop_size=crop).save_pretrained(folder)
