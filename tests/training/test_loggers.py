"""Loggers: what they are told of a training, and TensorBoard without the package."""

import importlib.util
import json
import sys
import types
from dataclasses import replace

import pytest
from quick_training import QUICK, history
from typer.testing import CliRunner

from cmrhash.training.loggers import figures
from cmrhash.training.train import train
from cmrhash_cli.main import app


class Told:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.calls = []

    def start(self, run, recipe):
        self.calls.append(("start", run, recipe["train"]["bits"]))

    def log(self, epoch, values):
        self.calls.append((epoch, values))

    def finish(self, outcome):
        self.calls.append(("finish", outcome))


@pytest.mark.parametrize("method", ["triplet", "cca"])
def test_it_is_told_every_epoch_of_a_training_and_nothing_of_a_finished_run(make_cache, tmp_path, method):
    data, logger = make_cache(tmp_path / "cache"), Told()
    config = replace(QUICK, method=method, bits=8)
    run, _ = train(config, data, tmp_path / "runs", logger=logger)
    lines = history(run)
    (_, name, bits), *epochs, (end, outcome) = logger.calls
    assert (name, bits, end) == (f"{method}-8", 8, "finish")
    assert [epoch for epoch, _ in epochs] == list(range(1, len(lines) + 1))
    assert [values["val_map/de/i2t"] for _, values in epochs] == [line["val_map"]["de"]["i2t"] for line in lines]
    assert outcome == figures(lines[run.outcome.best_epoch])
    assert all(isinstance(value, float) for value in outcome.values())
    train(config, data, tmp_path / "runs", logger=(again := Told()))
    assert again.calls == []


def call(data, runs, log):
    words = ["train", "--bits", "8", "--epochs", "2", "--hidden", "16", "--log", log, "--device", "cpu"]
    return CliRunner().invoke(app, [*words, "--cache", str(data.folder.parent), "--runs", str(runs)])


def test_tensorboard_gets_a_folder_per_run(make_cache, tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def __getattr__(self, name):
            return lambda *parts: written.append((name, *parts))

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    data = make_cache(tmp_path / "cache")
    assert call(data, tmp_path / "runs", f"tensorboard:{tmp_path}/board").exit_code == 0
    assert (written[0], written[-1]) == (f"{tmp_path}/board/triplet-8", ("close",))
    assert {(name, step) for what, name, *_, step in (w for w in written if w[0] == "add_scalar")} >= {
        ("loss", 1),
        ("loss", 2),
        ("val_map_mean", 2),
    }
    assert json.loads((tmp_path / "runs/toy/triplet-8/config.json").read_text())["epochs"] == 2


def test_a_logger_that_is_unknown_or_not_installed_is_refused_in_one_line(make_cache, tmp_path, monkeypatch):
    data = make_cache(tmp_path / "cache")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for log, message in (
        ("tensorboard", 'log: TensorBoard is not installed: pip install "cmrhash[tensorboard]"'),
        ("wandb", "log: unknown logger 'wandb': give tensorboard or tensorboard:DIR"),
        ("tensorboard:", "log: unknown logger 'tensorboard:'"),
    ):
        assert str(call(data, tmp_path / "runs", log).exception).startswith(message)
    assert not (tmp_path / "runs").exists()
