"""A data set of made-up features and a run that the tests of the training share."""

import pytest
from quick_training import QUICK

from cmrhash.training import kernel_codes, train


@pytest.fixture(autouse=True)
def few_code_steps(monkeypatch):
    """Codes of ``krr-ap`` and ``krr-cluster`` take 200 steps; test_two_roles.py trains them by all 2000."""
    monkeypatch.setattr(kernel_codes, "STEPS", 200)


@pytest.fixture(scope="session")
def extracted(make_cache, tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def finished(extracted, tmp_path_factory):
    """The quick training, whole; tests that change it use a folder of their own."""
    run, fresh = train.train(QUICK, extracted, tmp_path_factory.mktemp("runs"))
    assert fresh
    return run
