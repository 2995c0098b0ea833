"""``cmrhash extract --finetune`` on the command line."""

import json

import pytest
from tuning import SMALL
from typer.testing import CliRunner

from cmrhash.errors import UsageError
from cmrhash_cli.main import app
from cmrhash_cli.typed import message

pytestmark = pytest.mark.slow


def invoke(source, cache, *args):
    where = ["--dataset", "manifest", "--root", str(source), "--cache", str(cache)]
    what = ["--image-model", SMALL, "--image-weights", "random", "--text-model", "random", "--device", "cpu"]
    return CliRunner().invoke(app, ["extract", *where, *what, "--dtype", "float32", *map(str, args)])


TYPED = ("--finetune", "--method", "triplet", "--bits", 16, "--epochs", 2, "--batch", 4, "--lr", 3e-3)  # QUICK


def test_json_says_what_was_tuned(made, source):
    done = invoke(source, made, *TYPED, "--json")
    assert done.exit_code == 0, done.output
    tuned = json.loads(done.stdout)["finetuned"]
    assert (tuned["fresh"], tuned["views"]) == (False, ["image", "text-de", "text-en"])
    assert tuned["rates"] == dict.fromkeys(tuned["views"], 3e-3)
    assert tuned["finetune"]["epochs"] == tuned["epochs"] == 2
    assert set(tuned["val_map"]) == {"de", "en"}
    assert "tuned before: image, text-de, text-en; epoch" in done.stderr
    assert "encoders are untrained" not in done.stderr


def test_without_finetune_json_says_that_nothing_was(made, source):
    done = invoke(source, made, "--json")
    assert json.loads(done.stdout)["finetuned"] is None
    assert "untrained" in done.stderr


def test_frozen_and_tuned_features_side_by_side_have_to_be_chosen_from(made, source):
    done = invoke(source, made, "-q")
    assert done.exit_code == 0
    cache = ["--cache", str(made), "--runs", str(made.parent / "runs"), "--epochs", "1"]
    with pytest.raises(UsageError, match="several encoders have image features .*such as ") as caught:
        CliRunner().invoke(app, ["train", *cache], catch_exceptions=False)
    typed = message(caught.value).partition("such as ")[2].split()
    assert [option.partition("=")[0] for option in typed[1::2]] == ["image", "de", "en"]
    done = CliRunner().invoke(app, ["train", *cache, *typed])
    assert done.exit_code == 0, done.output
    tuned = invoke(source, made, *TYPED).stderr.partition("next: cmrhash ")[2].split()
    assert tuned.count("--encoder") == 3
    assert f"image={SMALL}-random-tuned" in tuned
    assert tuned[-2:] == cache[:2]
    done = CliRunner().invoke(app, [*tuned, *cache, "--overwrite"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--lr", "1"], "`lr` is used only with `finetune=True`: add `finetune`, or leave out `lr`"),
        (["--image-lr", "0"], "`image_lr` is used only with `finetune=True`"),
        (["--method", "triplet"], "`method` is used only with `finetune=True`"),
        (["--finetune", "--epochs", "0"], "epochs: 0 is out of range: give a finite number above 0"),
        (["--finetune", "--image-lr", "0", "--text-lr", "0"], "leave nothing to train"),
        (["--finetune", "--method", "triplets"], "unknown method 'triplets': did you mean triplet?"),
        (["--finetune", "--method", "cca"], "'cca' has no loss that tunes encoders"),
        (["--finetune", "--margin", "0.5"], "margin: method 'tie-ap' has no such setting"),
    ],
)
def test_misuse_is_told_before_anything_is_written(source, tmp_path, args, words):
    done = invoke(source, tmp_path / "cache", *args)
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)
    assert not (tmp_path / "cache").exists()
