"""Messages of the library name settings and calls as Python has them; the command line shows what to type."""

import dataclasses
import sys

import pytest

from cmrhash import config
from cmrhash.errors import UsageError
from cmrhash_cli.typed import COMMANDS, as_typed, command_line, commands, message, options

CONFIGS = [each for each in vars(config).values() if dataclasses.is_dataclass(each)]


@pytest.mark.parametrize(
    ("written", "typed"),
    [
        ("give `bits=32`, or another `bits`", "give --bits 32, or another --bits"),
        ("use `overwrite=True`", "use --overwrite"),
        ("with `sources=False`", "with --no-sources"),
        ("with `approximate=False`", "with --exact"),
        ('`text_models="de=DIR"` and `image_weights="FILE"`', "--text-model de=DIR and --image-weights FILE"),
        ('`text_models={"de": "DIR"}`', "--text-model de=DIR"),
        ('`langs=("en", "de")` or `langs=LANG`', "--lang en --lang de or --lang LANG"),
        ("another of `maps`, `features` or `i_know`", "another of --map, --features or --i-know"),
        (
            "run `extract`, then `evaluate` and `prune`",
            "run cmrhash extract, then cmrhash eval and cmrhash cache prune",
        ),
        ("choose `kinds`", "choose KIND"),
        ("`pip install x`, `no_setting=1`, it's a `word`", "`pip install x`, `no_setting=1`, it's a `word`"),
        ("a caption with ` alone", "a caption with ` alone"),
    ],
)
def test_settings_and_calls_are_shown_as_they_are_typed(written, typed):
    assert as_typed(written) == typed


def test_the_command_that_runs_says_how_its_options_are_called(monkeypatch):
    for command, option in (("compare", "--seeds"), ("eval", "--seed"), ("plot", "--seed")):
        monkeypatch.setattr(sys, "argv", ["cmrhash", command])
        assert as_typed("`seeds`") == option


def test_an_error_starts_with_its_option():
    error = UsageError("0 is out of range", None, "give `bits=32`", option="bits")
    assert str(error) == "bits: 0 is out of range: give `bits=32`"
    assert message(error) == "--bits: 0 is out of range: give --bits 32"
    assert (error.what, error.where, error.fix, error.option) == ("0 is out of range", None, "give `bits=32`", "bits")


def test_a_message_is_one_line():
    error = UsageError("two\nlines", "a\tplace", " and a  fix", option="map_at")
    assert str(error) == "map_at: two lines: a place: and a fix"
    assert message(error) == "--map-at: two lines: a place: and a fix"


def test_no_command_is_called_like_a_setting():
    settings = {field.name for each in CONFIGS for field in dataclasses.fields(each)}
    settings |= {name for command in commands() for name in options(command)}
    assert not settings & {*commands(), *COMMANDS}
    assert set(COMMANDS.values()) <= set(commands())


def test_a_command_line_names_what_is_not_default():
    given = command_line("train", dataset="my data", bits=[16, 32], encoder=[], relevance=None, cache=config.CACHE)
    assert given == "cmrhash train --dataset 'my data' --bits 16 --bits 32"
    assert (
        command_line("search QUERY", store="faiss:x", among="all") == "cmrhash search QUERY --store faiss:x --among all"
    )
