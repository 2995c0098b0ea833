"""``cmrhash search``."""

import html
import json
import os
import re
import shutil
import sys
from dataclasses import replace

import pytest
from small_searches import QUICK, photo

from cmrhash.config import TrainConfig
from cmrhash.evaluation import run_codes
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.search.hasher import Hasher
from cmrhash.training import runs
from cmrhash.training.train import train
from cmrhash_cli.main import main


@pytest.fixture
def command(made, monkeypatch, capsys):
    """A function that runs ``cmrhash search`` there: (exit code, stdout, stderr)."""
    monkeypatch.chdir(made)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["cmrhash", "search", *args, "--device", "cpu"])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_the_command_prints_a_table_and_the_run(command):
    code, out, err = command("Katze 5", "--k", "3")
    assert code == 0
    assert "caption (de)" in out
    assert "UNTRAINED ENCODERS" in out
    assert out.count("images/") == 3
    assert err.startswith("run: runs/manifest/triplet-16")


@pytest.mark.parametrize(
    ("args", "order"),
    [
        ((), "ordered by score, the cosine of the embeddings, not by distance in bits"),
        (
            ("--rank", "asymmetric"),
            "ordered by score, the cosine of the query's embedding and each code, not by distance in bits",
        ),
        (("--rank", "hamming"), "ordered by Hamming distance; score: 1 - 2 distance / bits"),
    ],
)
def test_the_command_and_its_sheet_say_what_orders_the_results(command, tmp_path, args, order):
    sheet = tmp_path / "found.html"
    code, out, _ = command("Katze 5", "--k", "3", "--html", str(sheet), *args)
    assert code == 0
    assert f"\n{order}\nimages below " in out
    assert html.escape(f"3 images, {order}") in sheet.read_text(encoding="utf-8")
    assert "ordered by" not in command("Katze 5", "--where", "id=nobody", *args)[1]


def test_the_command_says_what_it_did_not_search(command, by_pairs, monkeypatch):
    monkeypatch.chdir(by_pairs)
    hint = "20 database items of 120 are searched: --among all searches all of them\n"
    run = "captions in en: --lang chooses another (de)\nrun: runs/toy/triplet-16, "
    for args, notes in (
        (["--among", "database"], f"{hint}{run}20 database items\n"),
        (["--among", "database", "--json"], hint),
        (["--among", "database", "--quiet"], ""),
        ([], f"{run}all 120 items\n"),
        (["--json"], ""),
    ):
        code, out, err = command("--id", "i7", "--k", "200", *args)
        assert (code, err) == (0, notes)
        assert ("itself" in out.replace('"itself": false', "")) == ("database" not in args)


def test_a_photo_finds_captions_and_the_command_says_how_to_find_photos(command, hasher):
    photo = hasher.dataset.root / hasher.dataset.items[0].image
    hint = "captions for a photo; --to image finds similar photos\n"
    code, out, err = command(str(photo), "--k", "3")
    assert (code, out.count("text"), err.endswith(hint)) == (0, 3, True)
    for other in (("--to", "image"), ("--to", "text"), ("--json",), ("--quiet",)):
        assert hint not in command(str(photo), "--k", "3", *other)[2]


def test_the_command_prints_json_and_nothing_else(command, hasher):
    code, out, err = command("dog 4", "--lang", "en", "--k", "3", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["query"] == "dog 4"
    hits = hasher.search("dog 4", lang="en", k=3)
    judged = {"relevant": None, "itself": False}
    assert found["results"] == [{**hit.as_json(), "labels": list(hit.labels), **judged} for hit in hits]


@pytest.mark.parametrize(
    ("args", "lang"),
    [
        (["dog 4"], "en"),
        (["Katze 5"], "de"),
        (["dog 4", "--lang", "de"], "de"),
        (["mine/images/3.jpg"], "en"),
        (["mine/images/3.jpg", "--lang", "de"], "de"),
        (["--id", "i3", "--by", "text", "--to", "image"], "en"),
    ],
)
def test_json_says_which_language_was_understood(command, args, lang):
    assert json.loads(command(*args, "--json")[1])["lang"] == lang


def test_a_path_is_a_photo_and_an_id_an_item(command, hasher, made):
    for args, hits in (
        (["mine/images/3.jpg"], hasher.search(photo(made, 3), k=2)),
        (["--id", "i3"], hasher.search_item("i3", k=2)),
    ):
        found = json.loads(command(*args, "--k", "2", "--json")[1])
        assert [result["id"] for result in found["results"]] == [hit.id for hit in hits]


@pytest.mark.parametrize("text", ["a dog and " * 60, "dog/" + "cat " * 80, "a\0dog"], ids=["long", "slash", "nul"])
def test_a_text_that_no_path_can_be_is_a_sentence(command, tmp_path, text):
    code, out, err = command(text, "--lang", "en", "--k", "1")
    assert (code, "image" in out) == (0, True), err
    (tmp_path / "q.txt").write_text(f"{text}\n")
    code, out, err = command("--queries", str(tmp_path / "q.txt"), "--lang", "en", "--k", "1")
    assert (code, len(json.loads(out)["results"])) == (0, 1), err


def test_a_language_that_the_training_did_not_see_is_not_answered_without_a_word(command, make_cache, tmp_path):
    train(TrainConfig(**QUICK, langs=("en",), device="cpu"), make_cache(tmp_path / "cache"), tmp_path / "runs")
    where = ("--cache", str(tmp_path / "cache"), "--runs", str(tmp_path / "runs"), "--id", "i6")
    warning = "warning: the run was not trained on de; its en head is used\n"
    assert warning in command(*where, "--lang", "de")[2]
    assert warning not in command(*where, "--lang", "en")[2]
    assert warning not in command(*where, "--lang", "de", "--to", "image")[2]


def test_what_is_found_by_an_item_is_judged(command, hasher):
    for by in ("image", "text"):
        args = ("--id", "i3", "--by", by, "--to", "text", "--lang", "en", "--k", "40")
        found = json.loads(command(*args, "--json")[1])
        assert found["query"] == {"id": "i3", "by": by}
        hits = hasher.search_item("i3", by=by, lang="en", to="text", k=40)
        assert [result["id"] for result in found["results"]] == [hit.id for hit in hits]
        assert {r["id"] for r in found["results"] if r["relevant"]} == {h.id for h in hits if h.labels == ("house",)}
        assert [r["itself"] for r in found["results"]] == [h.id == "i3" for h in hits]
        shown = command(*args)[1]
        assert len(re.findall(r"text +itself", shown)) == 1
        assert len(re.findall(r"text +(yes|no) ", shown)) == len(hits) - 1


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("choose image or text", ["--id", "i3", "--by", "sound"]),
        ("no query", []),
        ("the query is empty", [" "]),
        ("give one of a sentence, a photo, or --id", ["dog", "--id", "i3"]),
        ("not a regular file", ["mine/images"]),
        ("no such file.*gone.jpg", ["gone.jpg"]),
        ("no trained run.*nowhere", ["dog", "--run", "nowhere"]),
        ("no such trained run with 99 bits", ["dog", "--bits", "99"]),
        ("among: unknown value 'train': choose database or all", ["dog", "--among", "train"]),
    ],
)
def test_the_command_refuses_in_one_line(command, words, args):
    import re

    code, out, err = command(*args)
    assert code in (2, 5)
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(words, err), err


def test_the_best_run_on_val_is_asked_unless_another_is_named(made):
    data = ExtractedDataset.open(made / "cache", None)
    out = made / "several"
    for seed in (0, 1, 2):
        train(TrainConfig(**QUICK, seed=seed, device="cpu"), data, out)
    found = runs.find_runs(out, data.dataset.name, "labels")
    best = max(run.outcome.val_map_mean for run in found)
    assert runs.best_run(found).outcome.val_map_mean == best


def test_of_several_runs_the_command_names_the_rule_and_without_val_items_takes_the_last(
    command, by_pairs, tmp_path, monkeypatch
):
    monkeypatch.chdir(by_pairs)
    where = ("--runs", str(tmp_path), "--id", "i7", "--to", "image")

    def trained(name, score, at):
        folder = tmp_path / "toy" / name
        shutil.copytree("runs/toy/triplet-16", folder, dirs_exist_ok=True)
        runs.write_record(folder, {**runs.open_run(folder).record, "val_map_mean": score})
        os.utime(folder / runs.CONFIG, (at, at))

    for at, (name, score) in enumerate({"a": 0.4, "b": 0.9, "c": None}.items()):
        trained(name, score, at)
    rule = "; of 3 runs the best on validation (trained last: c): --run selects another"
    assert command(*where)[2] == f"run: {tmp_path}/toy/b, all 120 items{rule}\n"
    assert command(*where, "--run", str(tmp_path / "toy/a"))[2] == f"run: {tmp_path}/toy/a, all 120 items\n"
    for name, at in {"a": 0, "b": 9}.items():
        trained(name, None, at)
    assert "/toy/b, all 120 items; of 3 runs the one trained last: --run selects another\n" in command(*where)[2]


def test_a_photo_finds_captions_in_the_language_of_most_items(make_cache, tmp_path):
    def fewer(item):
        texts = item.texts if int(item.id[1:]) % 2 else {lang: item.texts[lang] for lang in ("de",)}
        return replace(item, texts=texts)

    data = make_cache(tmp_path / "cache", change=fewer)
    run, _ = train(TrainConfig(**QUICK, device="cpu"), data, tmp_path / "runs")
    hasher = Hasher.open(run, data)
    assert (hasher.langs, hasher.usual_lang) == (("de", "en"), "de")
    assert {hit.lang for hit in hasher.search_item("i3", to="text")} == {"de"}


def test_codes_are_made_once_and_found_again(made, tmp_path, monkeypatch):
    data = ExtractedDataset.open(made / "cache", None)
    run, _ = train(TrainConfig(**QUICK, device="cpu"), data, tmp_path / "runs")
    calls = []
    make = run_codes._make
    monkeypatch.setattr(run_codes, "_make", lambda *args: calls.append(1) or make(*args))
    for _ in range(2):
        Hasher.open(run, data)
    assert len(calls) == 1
    assert os.path.getsize(run.folder / runs.CODES)
