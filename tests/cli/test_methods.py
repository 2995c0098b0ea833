"""Several methods in a call, and options that some or none of them read."""

import json

import pytest
from typer.testing import CliRunner

from cmrhash.errors import UsageError
from cmrhash.evaluation.commands import command_of
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.training import runs
from cmrhash_cli.main import app
from cmrhash_cli.typed import message

QUICK = ["--epochs", "2", "--batch", "16", "--hidden", "16", "--device", "cpu"]


@pytest.fixture
def here(make_cache, tmp_path, monkeypatch):
    make_cache(tmp_path / "cache", count=60)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_an_option_that_no_method_reads_is_refused_and_one_that_some_read_noted(here):
    done = invoke("train", "--method", "cca", "--epochs", 60, "--bits", 8)
    assert isinstance(done.exception, UsageError)
    assert message(done.exception).startswith(
        "--epochs: method 'cca' has no such setting: leave it out, or use triplet"
    )
    assert not (here / "runs/toy/cca-8").exists()
    done = invoke("compare", "--method", "cca", "--bits", 8, "--seeds", 1, "--epochs", 1)
    assert "epochs: method 'cca' has no such setting" in str(done.exception)
    done = invoke("train", "--method", "cca", "--method", "tie-ap", "--bits", 8, *QUICK)
    assert done.exit_code == 0, done.output
    for option in ("--epochs", "--batch", "--hidden"):
        assert f"{option} does not apply to cca" in done.stderr
    assert "--device" not in done.stderr
    cells = {line.split()[0]: line.split()[2] for line in done.stdout.splitlines() if line.strip().startswith("runs/")}
    assert cells["runs/toy/cca-8"] == "-"  # a closed form has no epochs
    assert cells["runs/toy/tie-ap-8"] in ("1", "2")


def test_train_takes_several_methods_and_lengths(here):
    methods = ["--method", "contrastive", "--method", "tie-ap", "--method", "contrastive"]
    done = invoke("train", *methods, "--bits", 8, "--bits", 12, *QUICK, "--json")
    assert done.exit_code == 0, done.output
    names = [run["folder"].rpartition("/")[2] for run in json.loads(done.stdout)]
    assert names == ["contrastive-8", "contrastive-12", "tie-ap-8", "tie-ap-12"]
    done = invoke("train", "--method", "tie-ap", "--method", "triplets", *QUICK)
    assert "unknown method 'triplets'" in str(done.exception)


def test_the_command_of_an_earlier_run_leaves_out_what_its_method_does_not_read(here):
    assert invoke("train", "--method", "cca", "--bits", 8).exit_code == 0
    folder = here / "runs/toy/cca-8"
    record = runs.read_record(folder)
    record["train"] |= {"epochs": 7, "margin": 0.5}
    run = runs.Run.read(folder, runs.write_record(folder, record))
    assert "epochs" not in command_of(run, ExtractedDataset.open(here / "cache", "toy"))
