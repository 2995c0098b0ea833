"""The commands as scripts meet them: JSON on stdout, words on stderr, exit codes, pipes and Ctrl-C."""

import contextlib
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from running import EXTRACT, write_own
from small_models import write_bert
from typer.testing import CliRunner

from cmrhash import __version__
from cmrhash.training.runs import Outcome
from cmrhash_cli.main import app
from cmrhash_cli.output import _Lines, print_table
from cmrhash_cli.train import _warnings
from cmrhash_cli.typed import message

SCRIPT = [sys.executable, "-c", "from cmrhash_cli.main import main; main()"]
QUICK = ["--epochs", "2", "--batch", "16", "--hidden", "16", "--device", "cpu"]


@pytest.fixture(scope="module")
def prepared(make_cache, tmp_path_factory):
    """A folder with ``cache/toy`` and trained runs of 8 and 16 bits with their codes."""
    base = tmp_path_factory.mktemp("prepared")
    make_cache(base / "cache")
    where = ["--cache", str(base / "cache"), "--runs", str(base / "runs")]
    done = CliRunner().invoke(app, ["train", "--bits", "8", "--bits", "16", *QUICK, *where, "-q"])
    assert done.exit_code == 0, done.output
    return base


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    """A copy of it as the current folder."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def script(*args, **options):
    return subprocess.run([*SCRIPT, *map(str, args)], capture_output=True, text=True, timeout=60, **options)


# ---------------------------------------------------------------------------------------------- what is printed


def test_version():
    done = invoke("--version")
    assert (done.exit_code, done.stdout) == (0, f"cmrhash {__version__}\n")


def test_without_arguments_the_help_is_shown():
    done = invoke()
    for command in ("extract", "train", "eval"):
        assert command in done.output
    assert "Traceback" not in done.output


def test_shell_completion_can_be_installed():
    assert "--install-completion" in invoke("--help").stdout


@pytest.mark.parametrize("command", ["extract", "train", "eval", "cache ls", "cache verify", "cache prune", "env"])
def test_help_gives_examples(command):
    shown = invoke(*command.split(), "-h").stdout
    assert f"cmrhash {command}" in shown.split("Options")[0].split("\n", 2)[2]


def test_brackets_are_no_markup(capsys):
    print_table("a [b]", ["[c]"], [["[/d]"], ["[red]e"]], "f [g]")
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("a [b]", "[c]", "[/d]", "[red]e", "f [g]"))


def test_the_end_of_a_progress_is_printed_once(capsys):
    lines = _Lines()
    for done in (0, 3, 3, 0, 3):
        lines("images", done, 3)
    assert capsys.readouterr().err == "images: 0/3\nimages: 3/3\nimages: 3/3\n"


def test_eval_warns_of_few_queries_and_tells_runs_by_different_encoders_apart(here):
    done = invoke("eval", "--bits", 8)
    assert "warning: only 20 queries: each changes a figure by up to 0.05" in done.stderr
    assert "[toy]" not in done.stdout
    assert "[toy]" not in invoke("eval").stdout  # though some scores are stored, and others are new
    shutil.copy("cache/toy/text-de-toy.h5", "cache/toy/text-de-twin.h5")
    assert invoke("train", "--bits", 24, *QUICK, "--encoder", "de=twin", "-q").exit_code == 0
    shown = invoke("eval", "-q")
    assert shown.stderr == ""
    assert "triplet [toy, twin]" in shown.stdout
    assert "triplet [toy]" in shown.stdout


def test_train_prints_json_and_nothing_else(here):
    done = invoke("train", "--json", "--bits", 8, "--bits", 24, *QUICK)
    assert done.exit_code == 0, done.output
    old, new = json.loads(done.stdout)
    assert (old["trained"], new["trained"]) == (False, True)
    assert new["folder"].endswith("triplet-24")
    assert set(new) >= {"folder", "dataset", "langs", "train", "best_epoch", "collapsed", "collapse", "val_map"}
    assert len(new["val_map"]) == len(new["history"]) == 2
    assert set(new["val_map"][0]) == {"de", "en"}
    assert set(new["collapse"]) == {"image", "text-de", "text-en"}
    assert "triplet 24 bits: 2/2" in done.stderr
    assert "triplet 8 bits" not in done.stderr  # it was there


def test_a_collapse_is_told_in_words(here, make_cache):
    """Where half of all pairs are relevant, the hardest triplets draw all into one point; batch-all does not."""
    make_cache(here / "cache", "dense", change=lambda i: replace(i, labels=(i.labels[0], i.labels[0] + 1)))
    common = ["--dataset", "dense", "--bits", 16, "--margin", 1, "--hidden", 16, "--epochs", 8, "--device", "cpu"]
    hard = invoke("train", "--method", "triplet-hard", *common, "--batch", 8, "--lr", 0.02)
    assert hard.exit_code == 0, hard.output
    assert "warning: triplet-hard-16: the codes of image have collapsed (" in hard.stderr
    gentle = invoke("train", "--method", "triplet", *common, "--batch", 8, "--lr", 0.02)
    assert gentle.exit_code == 0, gentle.output
    assert "collapsed" not in gentle.stderr


def test_a_collapse_of_other_epochs_than_the_chosen_one_is_told_too():
    outcome = Outcome(epochs=9, best_epoch=8, chosen_on="val", skipped_steps=0, collapsed_epochs=7)
    assert _warnings(SimpleNamespace(outcome=outcome), SimpleNamespace(count=lambda role: 50)) == [
        "the codes had collapsed in 7 other epochs than the chosen one"
    ]


def test_a_choice_of_the_epoch_by_few_val_items_is_called_one_by_chance(here):
    doubt = "only 20 val items chose the epoch, nearly by chance"
    trained = invoke("train", "--bits", 8, *QUICK)
    assert f"warning: triplet-8: {doubt}\n" in trained.stderr
    assert f"few val items: {doubt}\n" in invoke("eval", "--bits", 8).stdout
    compared = invoke("compare", "--bits", 8, "--seeds", 1, "--epochs", 2, "--runs", "few", "--device", "cpu")
    assert f"few val items: {doubt}\n" in compared.stdout
    closed = invoke("train", "--bits", 8, "--method", "itq", "--device", "cpu")
    assert "val items" not in closed.stderr


def test_an_alignment_names_the_run(here):
    done = invoke("train", "--json", "--method", "acmr", "--alignment", "mmd", "--bits", 8, *QUICK)
    assert done.exit_code == 0, done.output
    (run,) = json.loads(done.stdout)
    assert run["folder"].endswith("acmr-mmd-8")
    assert run["train"]["method"] == "acmr-mmd"
    refused = invoke("train", "--alignment", "mmd", *QUICK)
    assert message(refused.exception) == "--alignment: method 'triplet' has no alignment: use --method acmr"


def test_the_next_command_is_told_with_the_folders_of_this_one(here):
    shutil.move("cache", "my features")
    done = invoke("train", "--bits", 8, *QUICK, "--cache", "my features", "--runs", "r2")
    told = done.stderr.partition("next: cmrhash ")[2].strip()
    assert told == "eval --dataset toy --cache 'my features' --runs r2"
    assert invoke(*shlex.split(told), "-q").exit_code == 0


def test_a_repeated_length_is_trained_once(here):
    done = invoke("train", "--json", "--bits", 8, "--bits", 8, *QUICK)
    assert len(json.loads(done.stdout)) == 1


def test_eval_prints_json_and_nothing_else(here):
    done = invoke("eval", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert set(result) == {"protocol", "rows"}
    assert [(r["bits"], r["lang"], r["direction"]) for r in result["rows"]] == [
        (bits, lang, d) for bits in (8, 16) for lang in ("de", "en") for d in ("i2t", "t2i")
    ]
    who, what = {"dataset", "method", "bits", "seed", "lang", "direction"}, {"chance", "queries", "database"}
    maps = {"map", "map_optimistic", "map_pessimistic", "map_real"}
    assert who | maps | what <= set(result["rows"][0])


def test_eval_tables_say_untrained_chance_and_protocol(here):
    done = invoke("eval", "--lang", "de", "--at", 5)
    assert done.exit_code == 0, done.output
    title, rest = done.stdout.split("\n", 1)
    assert "UNTRAINED ENCODERS" in title
    for words in ("i2t", "t2i", "chance", "P@5 i2t", "20 query items", "shares at least one label", "random order"):
        assert words in rest
    assert "en" not in rest.split("\n\n")[0].split()


def test_by_pairs_the_table_is_that_of_image_caption_work(here):
    trained = invoke("train", "--bits", 8, "--relevance", "pairs", *QUICK)
    assert trained.exit_code == 0, trained.output
    assert "next: cmrhash eval --dataset toy --relevance pairs" in trained.stderr
    assert "for results that mean the same use --method krr-cluster, for both --method jdsh" in trained.stderr
    assert "by labels, which the training did not see: cmrhash eval --trained-by pairs --dataset toy" in trained.stderr
    chosen = invoke("train", "--bits", 8, "--relevance", "pairs", "--method", "triplet", *QUICK)
    assert "--method krr-cluster" not in chosen.stderr
    assert "--method krr-cluster" not in invoke("train", "--bits", 8, *QUICK).stderr
    assert invoke("eval", "--trained-by", "pairs").exit_code == 0
    done = invoke("eval", "--relevance", "pairs", "--lang", "de", "--map-at", 10)
    assert done.exit_code == 0, done.output
    title, head, _, codes, real, chance = [line for line in done.stdout.splitlines() if line.strip()][:6]
    assert "R@k (hit@k)" in title
    assert head.split("  ") != [head]
    assert [head.count(name) for name in ("R@1 ", "R@5", "R@10", "MedR", "mAP@10")] == [2, 2, 2, 2, 2]
    assert [line.split()[0] for line in (codes, real, chance)] == ["triplet", "real-valued", "chance"]
    *figures, none = chance.split()[4:9]
    assert list(map(float, figures)) == pytest.approx([0.05, 0.2375, 0.442, 13.67], abs=0.04)  # 2 captions among 40
    assert none == "-"
    assert "captions: all" in done.stdout


def test_a_table_of_runs_that_differ_in_their_languages_says_so(here):
    assert invoke("train", "--bits", 8, "--lang", "en", *QUICK).exit_code == 0
    done = invoke("eval", "--bits", 8, "--direction", "t2i", "--direction", "t2t")
    assert done.exit_code == 0, done.output
    for words in ("triplet (de+en)", "triplet (en)", "de (by en)", "texts by texts"):
        assert words in done.stdout
    first = done.stdout.split("texts by texts")[0]
    assert "t2i by tie order" in first
    assert "i2t" not in first


def test_compare_prints_its_table_and_the_grid_on_stderr(here):
    grid = ["--method", "triplet", "--method", "cca", "--bits", 8, "--seeds", 2, "--epochs", 2, "--train-lang", "en"]
    done = invoke("compare", *grid, "--lang", "de", "--metric", "r@10", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "de (by en)" in done.stdout
    assert "R@10 (hit@10)" in done.stdout
    assert "grid: 3/3" in done.stderr  # cca draws nothing
    assert "--lang en --seed 1 && cmrhash eval" in done.stdout


def test_eval_writes_trec_files(here):
    done = invoke("eval", "--bits", 8, "--lang", "de", "--trec", "trec")
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (here / "trec").iterdir())
    assert names == [f"triplet-8.de.{d}.{end}" for d in ("i2t", "t2i") for end in ("qrels", "run")]
    for name in names:
        assert name in done.stderr


@pytest.mark.slow
def test_extract_prints_json_and_nothing_else(manifest_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoders = ["--image-model", "mobilenet_v3_small", "--image-weights", "random", "--text-model", "random"]
    command = ["extract", "--dataset", "manifest", "--root", manifest_root, *encoders, "--json"]
    done = invoke(*command)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert set(result) >= {"dataset", "items", "classes", "found", "splits", "untrained_encoders", "files"}
    assert result["items"] == 40
    assert result["untrained_encoders"] is True
    assert result["splits"] == {"train": 28, "val": 4, "query": 8, "database": 32}
    for file in result["files"]:
        keys = {"file", "items", "rows", "ok", "quarantined", "absent", "broken", "seconds", "fresh", "missing_shards"}
        assert set(file) == keys
        assert file["items"] == file["ok"] + file["quarantined"] == 40
        assert file["fresh"]
    assert "images: 40/40" in done.stderr
    assert done.stderr.endswith("next: cmrhash train --dataset manifest --bits 32\n")
    again = invoke(*command, "--quiet")
    assert [file["fresh"] for file in json.loads(again.stdout)["files"]] == [False] * 3
    assert again.stderr == ""


def test_a_sample_drawn_into_a_folder_of_the_users_is_told(tmp_path, monkeypatch):
    def stop(*_):
        raise ZeroDivisionError  # instead of drawing it

    monkeypatch.setattr("cmrhash.features.extract.extract", stop)
    told = f"{tmp_path} is empty: the built-in sample is written there (for other data, use --dataset)\n"
    assert invoke("extract", "--root", tmp_path).stderr == told + f"reading {tmp_path} ...\n"
    (tmp_path / "a").touch()
    assert invoke("extract", "--root", tmp_path).stderr == f"reading {tmp_path} ...\n"


@pytest.mark.slow
def test_half_precision_that_nobody_asked_for_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("cmrhash.compute.device._cpu_has_bfloat16", lambda: True)
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path / "mine", count=4)
    write_bert(tmp_path / "bert")
    command = [*EXTRACT, "--image-model", "shufflenet_v2_x0_5"]
    for options, told in (
        (["--text-model", "bert"], True),
        (["--text-model", "bert", "--dtype", "bfloat16", "--name", "asked"], False),
        (["--name", "untrained"], False),
    ):
        done = invoke(*command, *options)
        assert done.exit_code == 0, done.output
        assert ("dtype: bfloat16, chosen for this machine (--dtype float32 for" in done.stderr) == told


@pytest.mark.parametrize("command", [["train", "--bits", "24", *QUICK], ["eval"]], ids=["train", "eval"])
def test_quiet_silences_stderr_but_not_the_result(here, command):
    loud = invoke(*command)
    assert loud.exit_code == 0, loud.output
    quiet = invoke(*command, "--quiet")
    assert quiet.stderr == ""
    assert quiet.stdout.split("\n")[0].strip() == loud.stdout.split("\n")[0].strip() != ""


@pytest.mark.slow
def test_a_pipe_gets_whole_lines(here):
    """No terminal is asked for its width: figures are not cut."""
    done = script("eval", cwd=here, env={**os.environ, "COLUMNS": "20"})
    assert done.returncode == 0, done.stderr
    assert "i2t by tie order" in done.stdout
    assert "…" not in done.stdout


# ---------------------------------------------------------------------------------------------- real processes


def test_eval_of_existing_codes_imports_no_torch(here):
    code = """
import sys
sys.argv = ["cmrhash", "eval", "-q"]
from cmrhash_cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code
print([m for m in ("torch", "torchvision", "transformers") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("args", [["eval", "--json", "-q"], ["eval", "-q"], ["--help"]], ids=["json", "table", "help"])
def test_a_reader_that_has_gone_gets_no_complaint(here, args):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*SCRIPT, *args], cwd=here, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.slow
def test_head_gets_its_line(here):
    command = " ".join(f"'{part}'" for part in [*SCRIPT, "eval", "--json", "-q"])
    done = subprocess.run(f"{command} | head -1", shell=True, cwd=here, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("{\n", "")


INTERRUPT_ITSELF = """
import os, signal
import cmrhash.training.train as library
from cmrhash_cli.main import main

real = library.train

def train(config, data, out, encoders, overwrite, given, logger):
    def progress(what, done, total, note=""):
        given(what, done, total, note)
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)
    return real(config, data, out, encoders, overwrite, progress, logger)

library.train = train
main()
"""


@pytest.mark.slow
@pytest.mark.faults("killed for real, training resumed")
def test_ctrl_c_ends_in_one_line_and_the_same_command_goes_on(here):
    command = ["train", "--bits", "32", *QUICK, "--epochs", "6"]
    child = [sys.executable, "-c", INTERRUPT_ITSELF, *command]
    stopped = subprocess.run(child, cwd=here, capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stdout == ""
    start, *error = stopped.stderr.splitlines()
    assert start == "triplet 32 bits: 0/6"
    assert len(error) == 1
    assert error[0] == "error: Interrupted. Finished work is kept; rerun to resume"
    assert not (here / "runs/toy/triplet-32/config.json").exists()
    done = invoke(*command)
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("triplet 32 bits: 3/6")
    assert "6/6" in done.stderr


@pytest.mark.slow
def test_a_narrow_terminal_cuts_no_figure(here):
    """Its lines are broken by the terminal, as any long line is."""
    ours, theirs = pty.openpty()
    call = "import sys; sys.argv[1:] = ['eval', '-q']; from cmrhash_cli.main import main; main()"
    code = subprocess.Popen([sys.executable, "-c", call], stdout=theirs, env={**os.environ, "COLUMNS": "60"}, cwd=here)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert code.wait() == 0
    assert b"i2t by tie order" in re.sub(rb"\x1b\[[0-9;]*m", b"", shown)
    assert "…".encode() not in shown
