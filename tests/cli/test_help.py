"""The help in groups, choices in any case, and hints at what was meant."""

import sys

import pytest
import typer
from typer.testing import CliRunner

from cmrhash_cli.groups import GROUPS, OF_COMMAND, grouped
from cmrhash_cli.main import app
from cmrhash_cli.output import run
from cmrhash_cli.typed import commands


def parsed(*typed):
    """Parameters of a command as its function gets them."""
    name, *rest = typed
    return commands()[name].make_context(name, list(rest)).params


def test_every_option_has_a_group_and_every_name_an_option():
    names = {"help"}
    for command in commands().values():
        assert all(members for members in grouped(command.name, command.params).values())
        names |= {option.name for option in command.params}
    listed = [name for group in GROUPS.values() for name in group.split()]
    assert sorted(set(listed) - names) == []
    assert len(listed) == len(set(listed))
    assert {group for own in OF_COMMAND.values() for group in own.values()} <= GROUPS.keys()


def test_the_help_shows_the_groups_and_tuning_has_its_own():
    shown = CliRunner().invoke(app, ["extract", "--help"]).stdout
    heads = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert heads == ["Arguments:", "Data:", "Encoders:", "Fine-tuning:", "Output:", "Advanced:"]
    tuning = shown.partition("Fine-tuning:")[2].partition("Output:")[0]
    assert all(f"  --{name} " in tuning for name in ("finetune", "epochs", "bits", "unfreeze"))
    assert "--epochs" not in shown.partition("Fine-tuning:")[0]


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("train --method Tie-AP --method CCA", "method", ["tie-ap", "cca"]),
        ("train --alignment CORAL", "alignment", "coral"),
        ("train --device CUDA:1", "device", "cuda:1"),
        ("train --dataset Flickr", "dataset", "Flickr"),
        ("train --method Mine", "method", ["Mine"]),
        ("extract --dataset IAPRTC12", "dataset", "iaprtc12"),
        ("extract --image-model ResNet18", "image_model", "resnet18"),
        ("extract --image-model Own/ResNet18", "image_model", "Own/ResNet18"),
        ("extract --text-model de=BOW --text-model Word2Vec", "text_model", ["de=bow", "word2vec"]),
        ("extract --pooling Mean+MAX", "pooling", "mean+max"),
        ("extract --runtime ONNX", "runtime", "onnx"),
        ("eval --rank ReRank:5", "rank", "rerank:5"),
        ("eval --map-at-rule r", "map_at_rule", "R"),
        ("eval --direction T2I", "direction", ["t2i"]),
        ("compare --metric R@1", "metric", "r@1"),
        ("compare --against Triplet", "against", "triplet"),
        ("plot TSNE PR --format PNG", "kinds", ["tsne", "pr"]),
        ("search dog --to Image --among Database", "to", "image"),
    ],
)
def test_a_choice_may_be_typed_in_any_case(typed, name, value):
    found = parsed(*typed.split())[name]
    assert (list(found) if isinstance(found, tuple) else found) == value


def test_a_file_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BOW").mkdir()
    assert list(parsed("extract", "--text-model", "BOW")["text_model"]) == ["BOW"]


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (["search", "a", "dog"], 'quote the sentence: cmrhash search "a dog"'),
        (["search", "ein", "Hund", "im", "Schnee", "--lang", "de"], 'quote the sentence: cmrhash search "ein Hund im'),
        (["search", "--where", "label=dog", "a", "dog"], 'quote the sentence: cmrhash search "a dog"'),
        (["search", "dog", "--like", "17", "33"], "repeat the option: --like 17 --like 33"),
        (["train", "--bits", "16", "32", "64"], "repeat the option: --bits 16 --bits 32 --bits 64"),
        (["train", "--bits=16", "32"], "repeat the option: --bits 16 --bits 32"),
        (["train", "--bits", "16,32"], "repeat the option: --bits 16 --bits 32"),
        (["compare", "--method", "cca", "tie-ap", "--seeds", "1"], "repeat the option: --method cca --method tie-ap"),
        (["eval", "--lang", "en", "de"], "repeat the option: --lang en --lang de"),
    ],
)
def test_a_hint_says_what_to_type(typed, hint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cmrhash", *typed])
    with pytest.raises(SystemExit) as ended:
        run(app)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert hint in said
    assert said.count("\n") == 1


def test_an_argument_too_many_gets_no_wrong_hint(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cmrhash", "train", "--seed", "1", "2"])
    with pytest.raises(SystemExit):
        run(app)
    assert "repeat" not in capsys.readouterr().err


def test_the_version_of_typer_keeps_the_panels():
    command = typer.main.get_command(app).commands["train"]
    assert {option.rich_help_panel for option in command.params} >= {"Data", "Training", "Output", "Advanced"}
