"""Settings that a method does not read are refused; all others change its result."""

from dataclasses import fields, replace

import numpy as np
import pytest
import safetensors.torch
from quick_training import QUICK, heads

import cmrhash
from cmrhash.config import TrainConfig
from cmrhash.errors import UsageError
from cmrhash.training import kernel_codes, runs, train
from cmrhash.training.methods import BUILT_IN, METHODS, Method
from cmrhash.training.names import CHOSEN
from cmrhash.training.settings import refuse_unread
from cmrhash.training.task import prepare

OTHER = {
    "epochs": 3,
    "batch": 8,
    "lr": 0.01,
    "image_lr": 0.001,
    "text_lr": 0,
    "schedule": "constant",
    "weight_decay": 0.5,
    "ema": 0.9,
    "hidden": 8,
    "dropout": 0.6,
    "input_dropout": 0.6,
    "first_caption": 1.0,
    "margin": 0.05,
    "memory": 20,
    "drop_near_duplicates": True,
    "noise": 0.5,
    "direction": "i2t",
}
SMALL = replace(QUICK, bits=8, epochs=2, margin=0.25)


def refused(method, name, config=SMALL, relevance="labels"):
    try:
        refuse_unread((method,), (name,), replace(config, method=method), relevance)
    except UsageError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Short trainings of codes; every fourth item is near a query: which ones are, is another test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_codes, "STEPS", 20)
        patch.setattr("cmrhash.training.task.near_duplicates", lambda of: np.arange(len(of.dataset.items)) % 4 == 0)
        yield


@pytest.fixture(scope="module")
def small(make_cache, tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache"), count=60)


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A function that runs the epochs of a method, without any file, or its closed form, and returns the heads."""
    known = {}

    def of(method, **changes):
        key = (method, *changes.items())
        if key not in known:
            config = replace(SMALL, method=method, **changes)
            if METHODS[method].terms is None:
                known[key] = heads(train.train(config, small, tmp_path_factory.mktemp("runs"))[0])
                return known[key]
            task = prepare(config, small)
            state = train.fresh(config, METHODS[method], task)
            for _ in range(config.epochs):
                train.one_epoch(config, METHODS[method], task, state)
                state.epoch += 1
            known[key] = safetensors.torch.save(state.averaged.state_dict())
        return known[key]

    return of


def test_every_setting_is_tried():
    assert set(OTHER) == CHOSEN
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    assert all(value not in (defaults[name], getattr(SMALL, name)) for name, value in OTHER.items())


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("method", sorted(BUILT_IN))
def test_a_setting_is_refused_or_changes_the_heads(trained, method, name):
    words = refused(method, name)
    if METHODS[method].terms is None and name not in METHODS[method].settings:
        assert f"{name}: method '{method}' has no such setting: leave it out, or use " in words
        return
    same = trained(method, **{name: OTHER[name]}) == trained(method)
    assert same == bool(words)


def test_a_refusal_names_methods_that_have_the_setting():
    assert refused("tie-ap", "margin").endswith("leave it out, or use triplet, triplet-hard, triplet-seed ...")
    assert refused("cca", "epochs").endswith("leave it out, or use triplet, triplet-hard, triplet-seed ...")


def test_dropout_of_no_hidden_units_and_the_first_caption_of_pairs_are_refused():
    assert "dropout: a linear head has no hidden units" in refused("triplet", "dropout", replace(SMALL, hidden=0))
    assert not refused("triplet", "input_dropout", replace(SMALL, hidden=0))
    assert "first_caption: with relevance pairs" in refused("triplet", "first_caption", relevance="pairs")


def test_of_several_methods_one_has_to_read_it():
    ignored = refuse_unread(("cca", "tie-ap", "triplet"), ("epochs", "margin", "bits", "runs"), SMALL, "labels")
    assert ignored == {"epochs": ["cca"], "margin": ["cca", "tie-ap"]}
    with pytest.raises(UsageError, match="margin: methods cca, tie-ap have no such setting"):
        refuse_unread(("cca", "tie-ap"), ("margin",), SMALL, "labels")


def test_a_method_of_the_users_own_reads_all_that_its_heads_leave_and_a_direction_if_it_says_so():
    own = Method(METHODS["triplet"].terms, "own", name="own", heads=lambda dim, bits: None)
    assert own.settings == CHOSEN - {"hidden", "dropout", "input_dropout", "direction"}
    assert replace(own, reads=("direction",)).settings == own.settings | {"direction"}


def test_python_refuses_given_settings_even_at_their_defaults(small, tmp_path):
    with pytest.raises(UsageError, match="epochs: method 'cca' has no such setting"):
        cmrhash.train(small, "cca", epochs=TrainConfig.epochs, runs=tmp_path)
    with pytest.raises(UsageError, match="margin: methods cca, tie-ap have no such setting"):
        cmrhash.compare(small, ("cca", "tie-ap"), margin=0.5, runs=tmp_path, bits=8, seeds=1)
    assert not list(tmp_path.iterdir())
    assert cmrhash.train(small, "cca", bits=8, runs=tmp_path, device="cpu").method == "cca"


def test_a_run_is_found_again_whatever_it_recorded_of_settings_without_effect(small, tmp_path):
    """Runs of earlier versions: other settings that the method does not read, and none of later ones."""
    config = replace(SMALL, method="tie-ap")
    run, _ = train.train(replace(config, margin=0.5), small, tmp_path)
    record = runs.read_record(run.folder)
    del record["train"]["schedule"], record["train"]["image_lr"]
    runs.write_record(run.folder, record)
    assert train.train(config, small, tmp_path)[1] is False
    with pytest.raises(cmrhash.StaleError, match=r"train\.schedule = one-cycle, but this call has constant"):
        train.train(replace(config, schedule="constant"), small, tmp_path)
