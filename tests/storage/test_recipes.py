"""Recipes: equal content gives equal bytes, and a difference is found wherever there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrhash.errors import StaleError
from cmrhash.storage.recipes import canonical, first_difference, refuse_difference

TEXT = st.text(st.characters(exclude_categories=()), max_size=4)  # with lone surrogates, as in odd file names
KEY = TEXT.filter(lambda key: "." not in key)
VALUE = TEXT | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.lists(TEXT, max_size=2)
RECIPE = st.dictionaries(KEY, VALUE | st.dictionaries(KEY, VALUE, min_size=1, max_size=3), max_size=4)


def reversed_order(value):
    """The same mapping, its keys the other way round at every level."""
    if not isinstance(value, dict):
        return value
    return {key: reversed_order(value[key]) for key in reversed(value)}


@given(RECIPE)
def test_the_order_of_the_fields_changes_no_byte_and_what_is_written_is_read(recipe):
    assert canonical(reversed_order(recipe)) == canonical(recipe)
    assert json.loads(canonical(recipe).decode()) == recipe
    assert first_difference(json.loads(canonical(recipe)), recipe) is None


@pytest.mark.parametrize(
    ("field", "fix"),
    [("dtype", r"use `dtype=\'float32\'`, or replace it with `overwrite=True`"), ("crop", "use the same settings, or")],
)
def test_the_setting_that_differs_is_named_with_the_value_to_give(field, fix):
    with pytest.raises(StaleError, match=f"made with {field} = float32, but this call has x: .*{fix}"):
        refuse_difference({field: "float32"}, {field: "x"}, Path("a.h5"), "feature file")


@given(RECIPE, RECIPE)
def test_a_difference_is_found_exactly_where_there_is_one(one, other):
    found = first_difference(one, other)
    assert (found is None) == (one == other)
    if found:
        assert all(isinstance(word, str) for word in found)


def test_letters_in_two_forms_are_two_values():
    assert canonical({"a": "\u00e4"}) != canonical({"a": "a\u0308"})
    assert first_difference({"a": "\u00e4"}, {"a": "a\u0308"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x"])
def test_what_json_does_not_know_is_refused(value):
    with pytest.raises((ValueError, TypeError)):
        canonical({"a": value})
