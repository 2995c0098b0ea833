"""Text encoders: the numbers against a plain loop."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from text_models import CAPTIONS, LIMIT, SPECIAL, edit_weights, load

from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.text import _batches
from cmrhash.encoders.transformer import limit_of
from cmrhash.errors import UsageError


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
    for pooling in ("sum", "cls+sum"):
        with pytest.raises(UsageError, match="unknown pooling 'sum': choose one of mean, cls"):
            load(bert, pooling=pooling)


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
    assert limit_of(tokenizer, config) == limit


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_models_whose_positions_do_not_start_at_0_take_a_caption_of_that_length(kind):
    options = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.AutoConfig.for_model(kind, **options, intermediate_size=8, max_position_embeddings=20)
    model = transformers.AutoModel.from_config(config).eval()
    limit = limit_of(SimpleNamespace(model_max_length=10**30), config)
    ids = torch.full((1, limit), 5)
    assert torch.isfinite(model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state).all()
    longer = torch.full((1, limit + 1), 5)
    with pytest.raises((IndexError, RuntimeError)):
        model(longer, attention_mask=torch.ones_like(longer))


@pytest.mark.parametrize("kind", ["t5", "xlnet"])
def test_a_model_without_a_limit_of_its_own_has_that_of_its_tokenizer(kind):
    assert limit_of(SimpleNamespace(model_max_length=512), transformers.AutoConfig.for_model(kind)) == 512
