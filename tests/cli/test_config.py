"""The command line takes its defaults from config.py, has an option for every field, and reads every option."""

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import typer

from cmrhash import checks, config, errors
from cmrhash.config import (
    CompareConfig,
    EvalConfig,
    ExportConfig,
    ExtractConfig,
    FinetuneConfig,
    IndexConfig,
    PlotConfig,
    PruneConfig,
    ReportConfig,
    SearchConfig,
    ServeConfig,
    TrainConfig,
    VerifyConfig,
)
from cmrhash.training import names
from cmrhash.training.methods import BUILT_IN
from cmrhash_cli.main import app, cache

COMMANDS = {
    "extract": ExtractConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
    "compare": CompareConfig,
    "index": IndexConfig,
    "search": SearchConfig,
    "export": ExportConfig,
    "plot": PlotConfig,
    "report": ReportConfig,
    "serve": ServeConfig,
    "cache verify": VerifyConfig,
    "cache prune": PruneConfig,
}
FIELD_OF = {"lang": "langs", "text_model": "text_models"}  # options that can be repeated have a plural field
PLURAL = {
    "eval": {"method": "methods", "seed": "seeds", "direction": "directions"},
    "search": {"lang": "lang"},
    "plot": {"method": "methods", "seed": "seeds"},
    "compare": {"method": "methods", "train_lang": "langs"},
}
MORE = {"extract": FinetuneConfig}  # a second config, for what --finetune does
TRAINED_BY = {
    "compare": ("epochs", "drop_near_duplicates", "noise", "direction", "relevance", "device")
}  # what a grid hands on to its trainings
NOT_OPTIONS = {
    "train": {"checkpoint_seconds"},
    "extract": {"checkpoint_seconds"},
    "serve": {
        *("max_k", "max_depth", "max_runs", "max_text", "max_body", "max_photo", "body_seconds", "queue", "uploads"),
        *("kept_photos", "kept_bytes", "thumb_bytes", "max_pixels", "uploads_each"),
    },
}
NOT_FIELDS = {
    "path",
    *("dataset", "cache", "runs", "overwrite", "as_json", "quiet", "debug", "encoder", "trec", "device", "help"),
    "alignment",  # a way to say the method
    "finetune",
    "log",  # an object in Python
    *("config_file", "from_run"),  # where options come from that are not typed
}
WHICH_RUN = {"run", "bits", "method", "relevance"}
CHOICE = {  # what is asked, and of which run
    "search": {"query", "item", "photo", "like", "unlike", "queries", "html", *WHICH_RUN},
    "export": {"target", *WHICH_RUN},
    "index": {"collection", *WHICH_RUN},
    "serve": WHICH_RUN,
}


def commands():
    """{words: command} as the shell sees them, those of a group by both its words."""
    top = typer.main.get_command(app).commands
    groups = {name: group.commands for name, group in top.items() if hasattr(group, "commands")}
    return top | {f"{name} {each}": command for name, own in groups.items() for each, command in own.items()}


def options(name):
    """{name: option} of a command as the shell sees it."""
    return {option.name: option for option in commands()[name].params}


def fields(name):
    configs = [COMMANDS[name], *([MORE[name]] if name in MORE else [])]
    found = [(f.name, f.default) for each in configs for f in dataclasses.fields(each)]
    assert len(dict(found)) == len(set(found)), "a field of two configs with two defaults"
    return dict(found) | {f: getattr(TrainConfig, f) for f in TRAINED_BY.get(name, ())}


def field_of(name, option):
    return PLURAL.get(name, {}).get(option) or FIELD_OF.get(option, option)


def test_the_commands_of_the_config_are_there():
    assert set(COMMANDS) <= set(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_default_is_that_of_the_config(name):
    known = fields(name)
    for option in options(name).values():
        field = field_of(name, option.name)
        if field in known:
            if (
                option.multiple or option.nargs < 0
            ):  # left out: the config's own default, which the help names if it is not "all"
                assert not option.default
                assert all(str(value) in (option.help or "") for value in [known[field]] if isinstance(value, int))
            else:
                assert option.default == known[field], option.name
        elif option.name in ("cache", "runs"):
            assert option.default == getattr(config, option.name.upper())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_has_an_option_and_every_option_a_field(name):
    given = {field_of(name, option) for option in options(name)}
    assert set(fields(name)) - given == NOT_OPTIONS.get(name, set())
    assert given - set(fields(name)) <= NOT_FIELDS | CHOICE.get(name, set())


REGISTERED = [*app.registered_commands, *cache.registered_commands]


@pytest.mark.parametrize("function", [command.callback for command in REGISTERED])
def test_every_option_is_read(function):
    """The last two are read by their callbacks."""
    body = ast.parse(inspect.getsource(function)).body[0]
    read = {n.id for part in body.body for n in ast.walk(part) if isinstance(n, ast.Name)}
    if "filled" in read:  # the fields of its configs are taken from all options by their names
        read |= {field.name for each in (ExtractConfig, FinetuneConfig) for field in dataclasses.fields(each)}
    unread = {parameter.arg for parameter in body.args.args} - read
    # debug is read where errors are caught, before any command runs, the others by their callbacks
    assert unread <= {"debug", "config_file", "from_run"}


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_and_option_has_help(name):
    assert commands()[name].help
    for option in options(name).values():
        assert option.help, option.name


def test_without_options_a_command_asks_for_the_config_as_it_is(monkeypatch, tmp_path):
    """What the library is called with when nothing is typed, down to the last field."""
    import cmrhash.evaluation.compare  # noqa: F401  before anything is patched: it would keep what it imports by name

    asked = {}

    class Stop(Exception):
        pass

    def remember(key):
        def call(given, *_):
            asked[key] = given
            raise Stop

        return call

    monkeypatch.chdir(tmp_path)
    doors = {
        "extract": "features.extract.extract",
        "train": "training.train.train",
        "eval": "evaluation.evaluate.evaluate",
        "compare": "evaluation.compare.compare",
        "plot": "show.figures.draw",
        "report": "show.report.report",
        "cache verify": "maintenance.verify.verify",
        "cache prune": "maintenance.prune.plan",
    }
    for door in doors.values():  # all before any is changed: some import each other
        importlib.import_module(f"cmrhash.{door.rpartition('.')[0]}")
    for name, door in doors.items():
        monkeypatch.setattr(f"cmrhash.{door}", remember(name))
    monkeypatch.setattr(
        "cmrhash.data.manifest.open_extracted", lambda *_: (SimpleNamespace(name="toy", relevance="labels"), tmp_path)
    )
    monkeypatch.setattr("cmrhash.features.dataset.ExtractedDataset.check_choice", lambda *_: None)
    for name in doors:
        with pytest.raises(Stop):
            typer.main.get_command(app)(name.split(), standalone_mode=False)
        assert asked[name] == COMMANDS[name]()


def test_the_help_names_every_method_and_alignment():
    shown = {name: options("train")[name].help for name in ("method", "alignment")}
    for method in BUILT_IN:
        assert re.search(rf"(?<!\S){method}(,| or|\.)", shown["method"]), method
    assert all(name in shown["alignment"] for name in names.ALIGNMENTS)
    assert set(names.ALIGNMENTS.values()) < BUILT_IN


def test_an_alignment_is_another_name_of_a_method():
    assert names.aligned(["acmr"], "mmd") == ["acmr-mmd"]
    assert names.aligned(["acmr"], "adversarial") == names.aligned(["acmr"], None) == ["acmr"]
    assert names.aligned(["triplet", "acmr", "triplet"], "coral") == ["triplet", "acmr-coral"]
    for method in ("triplet", "acmr-mmd"):
        with pytest.raises(
            errors.UsageError, match=f"alignment: method '{method}' has no alignment: use `method=\"acmr\"`"
        ):
            names.aligned([method], "mmd")
    with pytest.raises(errors.UsageError, match="unknown alignment 'corral': did you mean coral?"):
        names.aligned(["acmr"], "corral")


def test_finetune_alone_asks_for_its_config_as_it_is(monkeypatch):
    asked = []
    stop = lambda *given: asked.extend(given) or sys.exit()  # noqa: E731
    monkeypatch.setattr("cmrhash.training.finetune.extract.extract_tuned", stop)
    with pytest.raises(SystemExit):
        typer.main.get_command(app)(["extract", "--finetune"], standalone_mode=False)
    assert (asked[0], asked[1]) == (ExtractConfig(), FinetuneConfig())


@pytest.mark.parametrize("bits", [0, -3, 4097])
def test_impossible_code_lengths_are_refused(bits):
    with pytest.raises(errors.UsageError, match=f"^bits: {bits} is out of range: give a whole number from 1 to 4096$"):
        checks.check_train(TrainConfig(bits=bits))
    with pytest.raises(errors.UsageError, match=f"^bits: {bits} is out of range: give a whole number from 1 to 4096$"):
        checks.check_finetune(FinetuneConfig(bits=bits))


@pytest.mark.parametrize("field", ["epochs", "batch", "lr", "image_lr", "margin", "hidden", "weight_decay", "dropout"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_numbers_that_nothing_can_be_trained_with_are_refused(field, value):
    with pytest.raises(errors.UsageError, match=f"^{field}: {value} is out of range: "):
        checks.check_train(TrainConfig(**{field: value}))


@pytest.mark.parametrize("field", ["epochs", "batch", "lr", "image_lr", "text_lr", "weight_decay", "margin", "clip"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_numbers_that_nothing_can_be_tuned_with_are_refused(field, value):
    with pytest.raises(errors.UsageError, match=f"^{field}: {value} is out of range: "):
        checks.check_finetune(FinetuneConfig(**{field: value}))


def test_one_side_can_be_left_as_it_is_but_not_both():
    checks.check_finetune(FinetuneConfig(image_lr=0, weight_decay=0))
    checks.check_finetune(FinetuneConfig(text_lr=0))
    with pytest.raises(errors.UsageError, match="leave nothing to train"):
        checks.check_finetune(FinetuneConfig(image_lr=0, text_lr=0))
    with pytest.raises(errors.UsageError, match="leave nothing to train"):
        checks.check_train(TrainConfig(image_lr=0, text_lr=0))
    with pytest.raises(errors.UsageError, match="schedule: unknown schedule 'one-cyle': did you mean one-cycle?"):
        checks.check_train(TrainConfig(schedule="one-cyle"))


def test_zero_is_a_value_where_it_means_something():
    checks.check_train(TrainConfig(hidden=0, dropout=0, input_dropout=0, weight_decay=0))
    checks.check_train(TrainConfig(image_lr=0))
    for field in ("epochs", "batch", "lr", "margin"):
        with pytest.raises(errors.UsageError, match="above 0"):
            checks.check_train(TrainConfig(**{field: 0}))


def test_the_configs_need_the_standard_library_only():
    code = "import sys, cmrhash.checks; print([m for m in ('numpy', 'torch', 'typer', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
