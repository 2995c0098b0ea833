"""Small models that the tests of the encoders share."""

from __future__ import annotations

import shutil
import socket

import pytest
import torch
import transformers
from image_networks import network
from text_models import LETTERS, LIMIT, SPECIAL, WORDS, load
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from word_vectors import VECTORS, text_of

from cmrhash.encoders.word_vectors import WORD2VEC


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.300d.txt"
    path.write_bytes(text_of(VECTORS))
    return path


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WORD2VEC, "vector_size", 16)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ``net.pth``, the state dict of a small network."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(network().state_dict(), folder / "net.pth")
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A directory with a small BERT and its tokenizer, as transformers saves them."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    vocabulary = {piece: n for n, piece in enumerate([*SPECIAL, *WORDS, *[x for x in LETTERS if x not in WORDS]])}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LIMIT,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = transformers.BertModel(config)
        for parameter in model.parameters():  # far enough from nothing for word order and neighbours to matter
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(bert):
    return load(bert)


@pytest.fixture
def changed(bert, tmp_path):
    """A copy of the directory, to be spoiled."""
    return shutil.copytree(bert, tmp_path / "copy")


@pytest.fixture
def asked(monkeypatch):
    """Hosts that were looked up, none of them with success."""
    hosts = []

    def lookup(host, *_, **__):
        hosts.append(host)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return hosts
