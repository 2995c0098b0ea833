"""The commands as scripts meet them: JSON on stdout, words on stderr, exit codes, pipes and Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from cmrhash import __version__
from cmrhash.cache import FeatureWriter
from cmrhash.data import manifest
from cmrhash.data.dataset import ImageTextDataset, Item
from cmrhash_cli.main import app

SCRIPT = [sys.executable, "-c", "from cmrhash_cli.main import main; main()"]
QUICK = ["--epochs", "2", "--batch", "16", "--hidden", "16", "--device", "cpu"]

@pytest.fixture(scope="session")
def make_cache():
    """A function that writes an extracted data set with made-up features: class centre + noise, no encoder runs."""

    def make(cache, name="toy", count=120, change=None, relevance="labels", weights="random", shift=None):
        """change: item -> item. shift: a role whose items get other features. Returns (dataset, its folder)."""
        items = []
        for n in range(count):
            roles = {"query"} if n % 6 == 0 else {"database", "val" if n % 6 == 1 else "train"}
            labels = tuple(sorted({n % 5, (n + (n % 7 == 0)) % 5}))
            texts = {lang: (f"{lang} {n} a", f"{lang} {n} b") for lang in ("de", "en")}
            item = Item(f"i{n}", f"{n}.jpg", texts, labels, frozenset(roles))
            items.append(change(item) if change else item)
        classes = tuple("abcdef") if relevance == "labels" else ()
        manifest.store(ImageTextDataset(name, cache, tuple(items), classes, relevance), cache / name)
        rng = np.random.default_rng(0)
        for view, dim in (("image", 16), ("text-de", 12), ("text-en", 12)):
            kind, _, lang = view.partition("-")
            rows = [(n, c) for n, i in enumerate(items) for c in range(len(i.texts.get(lang, ())) if lang else 1)]
            centres, noise = rng.standard_normal((5, dim)), rng.standard_normal((count, 2, dim))
            own = rng.standard_normal((count, dim))  # of the item, whatever its class
            x = np.stack([centres[n % 5] + 0.3 * own[n] + 0.7 * noise[n, c] for n, c in rows]).astype(np.float32)
            x[[shift in items[n].splits for n, _ in rows]] += 3
            valid = np.array([bool(lang or items[n].image) for n, _ in rows])
            x[~valid] = 0
            recipe = {"kind": kind, "encoder": "toy", "weights": weights, **({"lang": lang} if lang else {})}
            item = np.array([n for n, _ in rows], np.int32)
            ids = tuple(i.id for i in items)
            with FeatureWriter(cache / name / f"{view}-toy.h5", item, ids, dim, recipe, len(rows)) as writer:
                writer.commit(0, x, valid, np.zeros((len(rows), 16), np.uint8))
                writer.seal({})
        return manifest.load(cache / name), cache / name

    return make


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


@pytest.mark.parametrize("command", ["extract", "train", "eval"])
def test_help_gives_examples(command):
    shown = invoke(command, "-h").stdout
    assert f"cmrhash {command}" in shown.split("Options")[0].split("\n", 2)[2]


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
    wanted = "dataset method bits seed lang direction map map_optimistic map_pessimistic map_real chance queries database"
    assert set(wanted.split()) <= set(result["rows"][0])


def test_eval_tables_say_untrained_chance_and_protocol(here):
    done = invoke("eval", "--lang", "de", "--at", 5)
    assert done.exit_code == 0, done.output
    title, rest = done.stdout.split("\n", 1)
    assert "UNTRAINED ENCODERS" in title
    for words in ("i2t", "t2i", "chance", "P@5 i2t", "20 query items", "shares at least one label", "random order"):
        assert words in rest
    assert "en" not in rest.split("\n\n")[0].split()


def test_eval_writes_trec_files(here):
    done = invoke("eval", "--bits", 8, "--lang", "de", "--trec", "trec")
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (here / "trec").iterdir())
    assert names == [f"triplet-8.de.{d}.{end}" for d in ("i2t", "t2i") for end in ("qrels", "run")]
    for name in names:
        assert name in done.stderr


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
        assert set(file) == {"file", "items", "rows", "ok", "quarantined", "seconds", "fresh"}
        assert file["items"] == file["ok"] + file["quarantined"] == 40
        assert file["fresh"]
    assert "images: 40/40" in done.stderr
    again = invoke(*command, "--quiet")
    assert [file["fresh"] for file in json.loads(again.stdout)["files"]] == [False] * 3
    assert again.stderr == ""


@pytest.mark.parametrize("command", [["train", "--bits", "24", *QUICK], ["eval"]], ids=["train", "eval"])
def test_quiet_silences_stderr_but_not_the_result(here, command):
    loud = invoke(*command)
    assert loud.exit_code == 0, loud.output
    quiet = invoke(*command, "--quiet")
    assert quiet.stderr == ""
    assert quiet.stdout.split("\n")[0].strip() == loud.stdout.split("\n")[0].strip() != ""


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


@pytest.mark.parametrize("args", [["eval", "--json", "-q"], ["eval", "-q"], ["--help"]], ids=["json", "table", "help"])
def test_a_reader_that_has_gone_gets_no_complaint(here, args):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*SCRIPT, *args], cwd=here, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


def test_head_gets_its_line(here):
    command = " ".join(f"'{part}'" for part in [*SCRIPT, "eval", "--json", "-q"])
    done = subprocess.run(f"{command} | head -1", shell=True, cwd=here, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_ctrl_c_ends_in_one_line_and_the_same_command_goes_on(here):
    command = [*SCRIPT, "train", "--bits", "32", "--batch", "16", "--hidden", "16", "--epochs", "150", "--device", "cpu"]
    child = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = child.stderr.readline()
    assert first.startswith("triplet 32 bits: 0/150")
    time.sleep(0.8)  # some epochs
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130, err
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("error: interrupted: ")
    assert not (here / "runs/toy/triplet-32/config.json").exists()
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    start = done.stderr.splitlines()[0]
    assert start.startswith("triplet 32 bits: ")
    assert not start.startswith("triplet 32 bits: 0/")
    assert "150/150" in done.stderr
