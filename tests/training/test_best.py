"""Method ``best``: which method it stands for, in train and compare, in Python and at the command line."""

import json
from dataclasses import replace
from types import SimpleNamespace

from exit_codes import USAGE
from running import run

import cmrhash
from cmrhash.training import best
from cmrhash.training.best import chosen
from cmrhash.training.names import METHODS


def test_it_stands_for_a_method_by_the_kind_of_data(extracted, make_cache, tmp_path, monkeypatch):
    assert chosen("best", extracted) == ("krr-ap", "several labels an item")
    assert chosen("best", extracted, "pairs") == ("supcon", "relevance by pairs")
    assert chosen("cmpm", extracted) == ("cmpm", "")
    one = make_cache(tmp_path / "one", change=lambda item: replace(item, labels=item.labels[:1]))
    assert chosen("best", one) == ("krr-ap", "exclusive classes")
    monkeypatch.setattr(best, "EXACT", 79)
    method, why = chosen("best", extracted)
    assert method == "tie-ap"
    assert "80 train items, more than 79" in why


def test_photos_without_captions_get_a_closed_form_of_the_images():
    assert chosen("best", SimpleNamespace(no_captions=True)).method == "itq"


def test_a_run_has_the_name_of_the_method_that_was_chosen(extracted, tmp_path):
    found = cmrhash.train(extracted, "best", runs=tmp_path, bits=16, device="cpu")
    assert found.folder.name == "krr-ap-16"
    assert found.method == "krr-ap" in METHODS
    again = cmrhash.train(extracted, "krr-ap", runs=tmp_path, bits=16, device="cpu")
    assert again.folder == found.folder
    table = cmrhash.compare(extracted, ["best", "krr-ap"], runs=tmp_path, bits=(16,), seeds=1, device="cpu")
    assert {row["method"] for row in table.rows} == {"krr-ap"}


def test_the_command_says_which_and_why(extracted, tmp_path, capsys):
    place = ["--cache", str(extracted.folder.parent), "--runs", str(tmp_path), "--bits", "16", "--device", "cpu"]
    assert run("train", "--method", "best", "--method", "krr-ap", *place, "--json") == 0
    told = capsys.readouterr()
    assert "best: krr-ap (several labels an item)" in told.err
    assert [of["train"]["method"] for of in json.loads(told.out)] == ["krr-ap"]


def test_eval_has_no_best_method(extracted, capsys):
    assert run("eval", "--cache", str(extracted.folder.parent), "--method", "best") == USAGE
    assert "unknown method 'best'" in capsys.readouterr().err
