"""Text encoders: the numbers against a plain loop, and every kind of model that must not be used."""

from __future__ import annotations

import builtins
import itertools
import json
import shutil
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.text import _batches, _limit, locate
from cmrhash.errors import EncoderError, UsageError

WORDS = ["a", "the", "dog", "cat", "tree", "house", "runs", "under", "near", "red", "old", "and", "in", "of", "man"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [mark + letter for mark in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz[]"]
CAPTIONS = [
    "a dog",
    "the old man and the cat in the tree",
    "dog",
    "",
    "a red house near the tree",
    "zebra",
    "狗",
    "a dog",
]
LIMIT = 48  # word pieces that the small model can take


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


def load(folder, **options):
    return text_encoders.load(str(folder), dtype="float32", **options)


def plain(folder, captions, pooling="mean"):
    """What users of transformers would write: one caption at a time, no batches, no padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    rows = []
    for caption in captions:
        with torch.no_grad():
            hidden = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]
        rows.append((hidden.mean(0) if pooling == "mean" else hidden[0]).numpy())
    return np.stack(rows)


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


# ---------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_features_are_those_of_a_plain_loop_in_the_order_of_the_captions(bert, pooling, budget):
    encoder = load(bert, pooling=pooling, token_budget=budget)
    features = encoder.encode(CAPTIONS)
    assert features.shape == (len(CAPTIONS), encoder.dim) == (len(CAPTIONS), 32)
    assert features.dtype == np.float32
    expected = plain(bert, CAPTIONS, pooling)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    apart = np.abs(expected[:, None] - expected).max(2) + np.eye(len(expected))
    assert apart[:-1, :-1].min() > 1e-3  # no two different captions are taken for each other


def test_features_do_not_depend_on_the_rest_of_the_batch(encoder):
    together = encoder.encode(CAPTIONS)
    alone = np.concatenate([encoder.encode([caption]) for caption in CAPTIONS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(CAPTIONS[::-1])[::-1], alone, atol=1e-5)


def test_the_same_captions_give_the_same_bytes(encoder):
    assert encoder.encode(CAPTIONS).tobytes() == encoder.encode(CAPTIONS).tobytes()


def test_no_captions_give_no_rows(encoder):
    assert encoder.encode([]).shape == (0, 32)


@pytest.mark.faults("broken or odd text")
def test_the_names_of_special_tokens_are_text_and_not_commands(encoder):
    for caption in ("a dog [SEP] [MASK] a cat", "[PAD]", "[CLS][CLS]", "[UNK] [MASK]"):
        (ids,) = encoder.pieces([caption])
        assert ids[0] == SPECIAL.index("[CLS]")
        assert ids[-1] == SPECIAL.index("[SEP]")
        assert not set(ids[1:-1]) & {SPECIAL.index(name) for name in ("[CLS]", "[SEP]", "[MASK]", "[PAD]")}
        assert len(ids) > 2


@pytest.mark.faults("broken or odd text")
@pytest.mark.parametrize(("asked", "length"), [(10, 10), (512, LIMIT), (LIMIT, LIMIT)])
def test_a_long_caption_is_cut_at_the_limit_of_the_model_or_below(bert, asked, length):
    encoder = load(bert, max_length=asked)
    (ids,) = encoder.pieces(["dog " * 5000])
    assert len(ids) == length == encoder.max_length == encoder.recipe["max_length"]
    assert (ids[0], ids[-1]) == (2, 3)
    long = encoder.encode(["dog " * 5000, "dog " * (length - 2), "cat"])
    assert np.isfinite(long).all()
    np.testing.assert_allclose(long[0], long[1], atol=1e-5)


def test_the_share_of_unknown_words_is_that_of_the_word_pieces(encoder):
    assert encoder.unknown_share(["a dog"]) == 0
    assert encoder.unknown_share(["a 狗", "dog"]) == pytest.approx(1 / 7)
    assert encoder.unknown_share([]) == 0


def test_the_recipe_says_what_changes_the_numbers_and_names_no_path(bert, encoder, changed):
    assert load(changed).recipe == encoder.recipe
    assert encoder.name == "tiny-bert"
    assert str(bert) not in repr(encoder.recipe)
    assert {"encoder": "bert", "weights": "trained", "pooling": "mean", "dtype": "float32"}.items() <= (
        encoder.recipe.items()
    )
    edit_weights(changed, lambda s: s | {"encoder.layer.1.output.dense.bias": torch.zeros(32)})
    assert load(changed).recipe["weights_sha256"] != encoder.recipe["weights_sha256"]


def test_a_link_gives_its_own_name(bert, encoder, tmp_path, monkeypatch):
    (tmp_path / "mine").symlink_to(bert)
    assert load(tmp_path / "mine").name == "mine"
    monkeypatch.chdir(bert)
    assert load(".").name == bert.name
    assert load(tmp_path / "mine").recipe == encoder.recipe


def test_another_vocabulary_is_another_recipe(encoder, changed):
    path = changed / "tokenizer.json"
    swapped = path.read_text().replace('"dog"', '"xdog"').replace('"cat"', '"dog"').replace('"xdog"', '"cat"')
    path.write_text(swapped)
    other = load(changed).recipe
    assert other["weights_sha256"] == encoder.recipe["weights_sha256"]
    assert other["tokenizer_sha256"] != encoder.recipe["tokenizer_sha256"]


def test_an_unknown_pooling_is_refused(bert):
    with pytest.raises(UsageError, match="--pooling max: choose one of mean, cls"):
        load(bert, pooling="max")


# ---------------------------------------------------------------------------------------------- batches


@given(st.lists(st.integers(2, 60), max_size=60), st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    batches = _batches(lengths, budget)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= budget


@given(st.lists(st.integers(2, 60), min_size=1, max_size=60), st.integers(1, 200))
def test_batches_go_from_short_to_long_and_are_as_full_as_can_be(lengths, budget):
    batches = _batches(lengths, budget)
    order = [lengths[row] for rows in batches for row in rows]
    assert order == sorted(order)
    for rows, after in itertools.pairwise(batches):
        assert (len(rows) + 1) * lengths[after[0]] > budget


# ---------------------------------------------------------------------------------------------- random weights

CORPUS = ["a dog and a cat", "the dog under the tree", "a cat under a tree"]


def test_an_untrained_model_is_the_same_for_the_same_seed_and_captions():
    one, same = (text_encoders.load("random", seed=1, corpus=CORPUS) for _ in range(2))
    assert one.recipe == same.recipe
    assert one.encode(CORPUS).tobytes() == same.encode(CORPUS).tobytes()
    assert (one.name, one.recipe["weights"], one.recipe["weights_seed"]) == ("bert-random", "random", 1)
    other_seed = text_encoders.load("random", seed=2, corpus=CORPUS).recipe
    assert other_seed["tokenizer_sha256"] == one.recipe["tokenizer_sha256"]
    assert other_seed["weights_sha256"] != one.recipe["weights_sha256"]
    other_captions = text_encoders.load("random", seed=1, corpus=CORPUS[:2]).recipe
    assert other_captions["tokenizer_sha256"] != one.recipe["tokenizer_sha256"]


def test_the_order_of_the_captions_changes_nothing_in_an_untrained_model():
    one, other = (text_encoders.load("random", corpus=corpus) for corpus in (CORPUS, CORPUS[::-1]))
    assert one.recipe == other.recipe


def test_the_vocabulary_has_the_words_that_come_twice_and_letters_for_the_rest():
    encoder = text_encoders.load("random", corpus=CORPUS)
    words = encoder.tokenizer.convert_ids_to_tokens(encoder.pieces(["A tree and the cat"])[0])
    assert words == ["[CLS]", "a", "tree", "a", "##n", "##d", "the", "cat", "[SEP]"]
    assert encoder.unknown_share(CORPUS) == 0
    assert encoder.unknown_share(["狗"]) == pytest.approx(1 / 3)


def test_an_untrained_model_tells_captions_apart_and_ignores_the_batch():
    encoder = text_encoders.load("random", corpus=CORPUS)
    together = encoder.encode(CORPUS)
    np.testing.assert_allclose(together, np.concatenate([encoder.encode([c]) for c in CORPUS]), atol=1e-5)
    assert min(np.abs(together[a] - together[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-2


def test_without_captions_to_learn_from_every_word_is_unknown():
    encoder = text_encoders.load("random")
    assert encoder.encode(["a dog"]).shape == (1, encoder.dim)
    assert encoder.unknown_share(["a dog"]) == 0.5


def test_drawing_a_model_leaves_the_random_state_of_the_process_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    text_encoders.load("random", seed=5, corpus=CORPUS)
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------------------------------- bad directories


def without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


def test_weights_that_lack_a_layer_are_refused_by_name(changed):
    edit_weights(changed, lambda s: without(s, "encoder.layer.1."))
    with pytest.raises(EncoderError, match=rf"the weights lack 16 tensors \(encoder\.layer\.1\..*{changed}"):
        load(changed)


def test_weights_without_a_pooler_are_accepted_and_another_pooler_changes_nothing_that_is_used(changed, encoder):
    edit_weights(changed, lambda s: without(s, "pooler"))
    assert load(changed).encode(CAPTIONS).tobytes() == encoder.encode(CAPTIONS).tobytes()


def test_weights_without_a_pooler_have_one_recipe(changed):
    """Missing tensors are drawn at random; what is drawn must not be part of what is compared."""
    edit_weights(changed, lambda s: without(s, "pooler"))
    torch.manual_seed(1)
    one = load(changed).recipe
    torch.manual_seed(2)
    assert load(changed).recipe == one


def test_weights_of_another_shape_are_refused(changed):
    edit_weights(changed, lambda s: s | {"encoder.layer.1.output.dense.weight": torch.zeros(32, 60)})
    with pytest.raises(EncoderError, match=str(changed)):
        load(changed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(changed, value):
    edit_weights(changed, lambda s: s | {"encoder.layer.1.output.dense.bias": torch.full((32,), value)})
    with pytest.raises(EncoderError, match=f"NaN or infinity: {changed}"):
        load(changed)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("spoil", ["truncate", "remove", "empty"])
def test_a_spoiled_or_missing_file_is_refused_with_its_directory(changed, name, spoil):
    path = changed / name
    if spoil == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100] if spoil == "truncate" else b"")
    with pytest.raises(EncoderError, match=str(changed)):
        load(changed)


@pytest.mark.parametrize("content", ["[]", "3", '"bert"', "null", '{"model_type": "nosuch"}', "{}"])
def test_a_config_that_is_none_is_refused(changed, content):
    (changed / "config.json").write_text(content)
    with pytest.raises(EncoderError, match=str(changed)):
        load(changed)


def test_a_directory_without_a_tokenizer_is_refused(changed):
    for path in changed.glob("token*"):
        path.unlink()
    with pytest.raises(EncoderError, match=str(changed)):
        load(changed)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(changed):
    edit_weights(changed, lambda s: s | {"embeddings.word_embeddings.weight": torch.zeros(10, 32)})
    edit_config(changed, vocab_size=10)
    with pytest.raises(EncoderError, match="tokenizer and model do not belong together"):
        load(changed)


@pytest.mark.faults("hostile file")
@pytest.mark.parametrize("field", ["_attn_implementation", "_attn_implementation_internal"])
def test_a_config_that_chooses_an_attention_kernel_is_refused(changed, field):
    edit_config(changed, **{field: "someone/kernel"})
    with pytest.raises(EncoderError, match=rf"config\.json sets {field}: .*config\.json: remove that field"):
        load(changed)


@pytest.mark.faults("hostile file")
def test_code_in_the_directory_is_not_run_and_nobody_is_asked_whether_it_should_be(changed, monkeypatch, tmp_path):
    trap, asked = tmp_path / "trap", []
    monkeypatch.setattr(builtins, "input", lambda *words: asked.append(words) or "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    (changed / "evil.py").write_text(f"open({str(trap)!r}, 'w').close()\n")
    auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tok", "evil.Tok"]}
    edit_config(changed, model_type="evil", auto_map=auto)
    path = changed / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto}))
    with pytest.raises(EncoderError, match=str(changed)):
        load(changed)
    assert not trap.exists()
    assert asked == []


# ---------------------------------------------------------------------------------------------- finding a model


def test_a_directory_is_taken_whatever_its_name(bert, tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate(str(bert)) == bert
    assert locate("a/b").is_dir()
    assert locate("~/a/b") == tmp_path / "a" / "b"


@pytest.mark.parametrize("model", ["./none", "/none/here", "~/none", "a/b/c", "there/none", "file.txt", "../x"])
def test_what_looks_like_a_path_is_not_asked_for_at_the_hub(tmp_path, monkeypatch, model):
    (tmp_path / "there").mkdir()
    (tmp_path / "file.txt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(EncoderError, match=f"'{model}' is not a directory with a text model: check the path"):
        locate(model)


@pytest.mark.parametrize("model", ["a b", "-x", "x..y", "a--b"])
def test_what_is_neither_a_path_nor_an_id_is_refused(model):
    with pytest.raises(EncoderError, match=f"'{model}' is neither a directory nor a model id"):
        locate(model)


@pytest.fixture
def asked(monkeypatch):
    """Hosts that were looked up, none of them with success."""
    hosts = []

    def lookup(host, *_, **__):
        hosts.append(host)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return hosts


@pytest.mark.parametrize("how", ["argument", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_an_id_that_is_not_cached_is_refused_offline_without_asking_anyone(monkeypatch, asked, how):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    if how != "argument":
        monkeypatch.setenv(how, "1")
    words = (
        r"text model 'cmrhash-tests/no-such-model' is not cached and offline mode is on: .+: "
        r"pass --text-model \[LANG=\]DIR with config\.json, model\.safetensors and tokenizer\.json, or random"
    )
    with pytest.raises(EncoderError, match=words):
        text_encoders.load("cmrhash-tests/no-such-model", offline=how == "argument")
    assert asked == []


def test_an_id_in_the_local_cache_of_the_hub_is_used_without_asking_anyone(bert, encoder, monkeypatch, asked, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(bert, repo / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    found = text_encoders.load("someone/tiny", dtype="float32")
    assert found.recipe == encoder.recipe
    assert found.name == "someone--tiny"
    assert asked == []


def test_encoding_leaves_truncation_and_padding_of_the_tokenizers_file_as_they_were(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "padding")
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.enable_truncation(9, stride=1)
    core.enable_padding(length=9, pad_id=0)
    core.save(str(folder / "tokenizer.json"))
    for model in (bert, folder):
        made = text_encoders.load(str(model), dtype="float32")
        before = made.tokenizer.backend_tokenizer.to_str()
        assert made.encode(CAPTIONS).shape == (len(CAPTIONS), 32)
        assert made.tokenizer.backend_tokenizer.to_str() == before


# ---------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("kind", "positions", "knows", "limit"),
    [
        ("bert", 512, 10**30, 512),
        ("bert", 512, 128, 128),
        ("roberta", 514, 10**30, 512),
        ("xlm-roberta", 514, 512, 512),
        ("camembert", 514, 10**30, 512),
        ("distilbert", 512, 512, 512),
    ],
)
def test_the_limit_is_the_smaller_of_what_tokenizer_and_model_can_take(kind, positions, knows, limit):
    tokenizer = SimpleNamespace(model_max_length=knows)
    config = transformers.AutoConfig.for_model(kind, max_position_embeddings=positions)
    assert _limit(tokenizer, config) == limit


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_models_whose_positions_do_not_start_at_0_take_a_caption_of_that_length(kind):
    options = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.AutoConfig.for_model(kind, **options, intermediate_size=8, max_position_embeddings=20)
    model = transformers.AutoModel.from_config(config).eval()
    limit = _limit(SimpleNamespace(model_max_length=10**30), config)
    ids = torch.full((1, limit), 5)
    assert torch.isfinite(model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state).all()
    longer = torch.full((1, limit + 1), 5)
    with pytest.raises((IndexError, RuntimeError)):
        model(longer, attention_mask=torch.ones_like(longer))


@pytest.mark.parametrize("kind", ["t5", "xlnet"])
def test_a_model_without_a_limit_of_its_own_has_that_of_its_tokenizer(kind):
    assert _limit(SimpleNamespace(model_max_length=512), transformers.AutoConfig.for_model(kind)) == 512
