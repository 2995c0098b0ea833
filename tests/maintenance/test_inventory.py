"""cmrhash cache ls over folders in every state that a cache and its runs can be in."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cache_states import CACHE, RUN, RUNS, STATES, TOY, contents, half_extracted, invoke, pruned, states, verified

from cmrhash.maintenance.inventory import survey
from cmrhash.maintenance.states import State
from cmrhash.storage.files import locked
from cmrhash.training import runs


@pytest.mark.parametrize("name", STATES)
def test_every_state_is_told(here, name):
    make, wanted = STATES[name]
    make()
    before = contents()
    assert states() == wanted
    done = invoke("cache", "ls")
    assert done.exit_code == 0, done.output
    for path, state in wanted.items():
        assert state.partition(" (")[0] in done.stdout
        assert Path(path).name in done.stdout
    assert contents() == before


def test_the_words_in_json_are_a_promise():
    words = "whole, sealed, trained, tuned, being written, unfinished, shard, left behind, items changed"
    words += ", features changed, codes of other heads, words of other features, features gone, another format"
    words += ", damaged, not of cmrhash"
    assert [state.value for state in State] == words.split(", ")
    groups = {"whole", "busy", "unfinished", "gone", "stale", "damaged", "leftover", "foreign"}
    assert {state.status for state in State} == groups
    assert all(state.fix for state in State if state.prune)  # whatever prune deletes comes with advice


def test_features_that_were_extracted_again(here, make_cache):
    make_cache(CACHE, shift="train")
    assert states() == {str(RUN): "features changed (image-toy.h5, text-de-toy.h5, text-en-toy.h5)"}
    code, lines = verified("--no-sources")
    assert code == 4
    assert list(lines) == [str(RUN)]
    assert "train again with --overwrite, or prune" in lines[str(RUN)]


def test_what_another_process_is_writing(here):
    half_extracted()
    who = f"being written (by process {os.getpid()} on "
    with locked(TOY / "image-other.h5"), locked(TOY / "image-toy.h5"), locked(RUN / runs.CONFIG):
        found = states()
        assert found.pop("cache/toy/image-other.h5.part").startswith(who)
        assert "2 of 3 blocks" in {str(e.path): e.detail for e in survey(CACHE, RUNS)}["cache/toy/image-other.h5.part"]
        assert found.pop("cache/toy/image-toy.h5").startswith(who)
        assert found.pop("runs/toy/triplet-8").startswith(who)
        assert found == {}
        assert {what for what in pruned(unfinished=True, gone=True) if "lock file" not in what} == set()
    with locked(RUN / runs.CODES):  # it is being encoded
        assert states()[str(RUN)].startswith(who)
    assert "cache/toy/image-other.h5.part" in pruned(unfinished=True)


def test_ls_counts_rows_and_sizes_as_json(here):
    done = invoke("cache", "ls", "--json")
    found = json.loads(done.stdout)
    by_name = {Path(entry["path"]).name: entry for entry in found["files"]}
    assert set(by_name) == {"items.jsonl", "image-toy.h5", "text-de-toy.h5", "text-en-toy.h5"}
    text = by_name["text-de-toy.h5"]
    wanted = {
        "view": "text-de",
        "encoder": "toy",
        "rows": 240,
        "ok": 240,
        "dim": 12,
        "state": "sealed",
    }
    assert {key: text[key] for key in wanted} == wanted
    assert text["bytes"] == (TOY / "text-de-toy.h5").stat().st_size
    (run,) = found["runs"]
    assert (run["path"], run["method"], run["bits"], run["status"]) == ("runs/toy/triplet-8", "triplet", 8, "whole")
    assert 0 < run["val_map"] < 1
    assert run["bytes"] == sum(len(content) for content in contents(RUN).values())


def test_ls_imports_no_torch(here):
    code = """
import sys
sys.argv = ["cmrhash", "cache", "ls"]
from cmrhash_cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code
print([m for m in ("torch", "torchvision", "transformers", "faiss") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_one_data_set_or_none(here, make_cache):
    make_cache(CACHE, "other")
    for command in ("ls", "verify", "prune"):
        done = invoke("cache", command, "--dataset", "toyy")
        assert str(done.exception) == "no data set 'toyy' (there: other, toy): cache: did you mean toy?"
        there = invoke("cache", command, "--dataset", "other").stdout
        assert "other" in there
        assert "toy/" not in there
    shutil.rmtree(CACHE)
    shutil.rmtree(RUNS)
    assert "run cmrhash extract first" in invoke("cache", "ls").stderr
    assert json.loads(invoke("cache", "prune", "--json").stdout)["things"] == []
    assert str(invoke("cache", "verify").exception).startswith("nothing to verify: cache and runs: ")
