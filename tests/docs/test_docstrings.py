"""The examples in the docstrings of metrics, losses and codes run, and every public function there has one."""

import doctest
import importlib
import inspect

import pytest

MODULES = ("retrieval.metrics", "retrieval.codes", "training.losses", "training.alignment")


@pytest.mark.parametrize("name", MODULES)
def test_every_example_runs(name):
    module = importlib.import_module(f"cmrhash.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_has_an_example(name):
    module = importlib.import_module(f"cmrhash.{name}")
    own = {
        key: value
        for key, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == module.__name__ and not key.startswith("_")
    }
    assert own
    assert [key for key, function in own.items() if ">>> " not in (function.__doc__ or "")] == []
