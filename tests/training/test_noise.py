"""Label noise: its rule, whom it touches, and that it is recorded."""

from dataclasses import replace

import pytest
import torch
from quick_training import QUICK, heads

from cmrhash.checks import check_train
from cmrhash.config import EvalConfig
from cmrhash.errors import UsageError
from cmrhash.evaluation.evaluate import score
from cmrhash.training import train
from cmrhash.training.noise import with_noise
from cmrhash.training.task import prepare


@pytest.fixture
def labels():
    y = (torch.rand(101, 6, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    y[0], y[1] = 1, 0
    return y


@pytest.mark.parametrize("rate", [0.2, 0.5, 1.0])
def test_a_drawn_item_loses_one_label_and_gains_a_wrong_one(labels, rate):
    before = labels.clone()
    noisy = with_noise(labels, rate, 3)
    assert torch.equal(labels, before)
    changed = [row for row in range(101) if not torch.equal(noisy[row], labels[row])]
    assert len(changed) == int(101 * rate)
    for row in changed:
        lost, gained = int((labels[row] > noisy[row]).sum()), int((labels[row] < noisy[row]).sum())
        assert (lost, gained) == (int(labels[row].any()), int(not labels[row].all()))


def test_the_draw_depends_on_the_seed_alone(labels):
    assert torch.equal(with_noise(labels, 0.5, 3), with_noise(labels, 0.5, 3))
    assert not torch.equal(with_noise(labels, 0.5, 3), with_noise(labels, 0.5, 4))


def test_only_train_items_are_touched_also_those_that_lack_a_view(make_cache, tmp_path):
    def change(item):
        return replace(item, texts={"de": item.texts["de"]}) if int(item.id[1:]) % 4 == 2 else item

    data = make_cache(tmp_path / "cache", change=change)
    clean, noisy = (prepare(replace(QUICK, noise=rate), data) for rate in (0, 1.0))
    assert clean.partial
    for before, after in zip([clean.train, *clean.partial], [noisy.train, *noisy.partial], strict=True):
        assert (before.items == after.items).all()
        assert ((before.labels != after.labels).sum(1) == 2).all()
    for lang, by_direction in clean.probes.items():
        for direction, probe in by_direction.items():
            q, n = len(probe.queries), len(probe.database)
            gains = [of.probes[lang][direction].relevance.gains(0, q, 0, n) for of in (clean, noisy)]
            assert (gains[0] == gains[1]).all()


def test_noise_is_recorded_named_in_the_protocol_and_never_mistaken_for_none(extracted, tmp_path):
    config = replace(QUICK, epochs=1, method="tie-ap")
    clean, _ = train.train(config, extracted, tmp_path / "clean")
    noisy, _ = train.train(replace(config, noise=0.5), extracted, tmp_path / "noisy")
    assert heads(clean) != heads(noisy)
    assert noisy.settings["noise"] == 0.5
    words = score(EvalConfig(), [noisy], extracted).protocol["label noise"]
    assert words == "50% of the train items: one label removed, a wrong one added, drawn by the run's seed"
    assert "label noise" not in score(EvalConfig(), [clean], extracted).protocol
    with pytest.raises(UsageError, match="noise"):
        train.train(replace(config, noise=0.2, relevance="pairs"), extracted, tmp_path / "pairs")


def test_a_share_is_a_share():
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(UsageError, match=f"noise: {value} is out of range: give a share from 0 to 1"):
            check_train(replace(QUICK, noise=value))
