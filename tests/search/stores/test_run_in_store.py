"""The codes of a run in a store: ``cmrhash index`` and ``cmrhash search --store``."""

from __future__ import annotations

import json
import re
import shlex
import sys
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from cmrhash.retrieval.ranking import cosine_scores
from cmrhash.search import publish
from cmrhash.search.stores import open_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(make_cache, tmp_path_factory):
    """A folder with ``cache/toy`` and runs by labels (16 bits) and by pairs (12 bits)."""
    from cmrhash.config import TrainConfig
    from cmrhash.training.train import train

    base = tmp_path_factory.mktemp("trained")
    data = make_cache(base / "cache")
    quick = TrainConfig(epochs=2, batch=16, hidden=16, bits=16, device="cpu")
    for config in (quick, replace(quick, relevance="pairs", bits=12), replace(quick, seed=1)):
        train(config, data, base / "runs")
    return base


@pytest.fixture
def command(trained, monkeypatch, capsys):
    """A function that runs cmrhash there: (exit code, stdout, stderr)."""
    from cmrhash_cli.main import main

    monkeypatch.chdir(trained)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["cmrhash", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.mark.parametrize("run", ["triplet-16", "triplet-12-pairs"])
def test_a_store_gives_the_hits_of_the_runs_own_index(command, url, run):
    run = f"runs/toy/{run}"
    code, out, err = command("index", "--store", url, "--run", run, "--json")
    assert code == 0, err
    made = json.loads(out)
    assert [one["name"].removeprefix("toy-triplet-") for one in made["collections"]] == [
        f"{run[17:]}-{view}" for view in ("image", "text-de", "text-en")
    ]
    assert "triplet" in err  # progress
    for args in (
        ["--id", "i7"],
        ["--id", "i8", "--to", "both", "--lang", "de", "--k", 200],
        ["--id", "i0", "--to", "text"],
    ):
        own, stored = (
            json.loads(command("search", *args, "--run", run, "--json", *to)[1]) for to in ([], ["--store", url])
        )
        distances = [[hit["distance"] for hit in found["results"]] for found in (own, stored)]
        assert distances[0] == distances[1]
        last = distances[0][-1]
        kinds = (
            {(h["distance"], h["id"], h["modality"], h["caption"], *h["labels"]) for h in found["results"]}
            for found in (own, stored)
        )
        assert {hit for hit in next(kinds) if hit[0] < last} == {hit for hit in next(kinds) if hit[0] < last}


def test_index_says_what_it_wrote_and_what_comes_next(command, tmp_path, monkeypatch):
    monkeypatch.setenv("CMRHASH_STORE", f"faiss:{tmp_path / 'codes'}")
    code, out, err = command("index", "--bits", 16)
    assert code == 0
    assert re.search(r"toy-triplet-16\S*-text-en +16 +120", out)
    assert "next: cmrhash search QUERY --store faiss:" in err
    assert json.loads(command("search", "--id", "i7", "--bits", 16, "--json")[1])["results"]


def test_the_search_that_comes_next_is_found_from_any_folder(command, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = ("--cache", trained / "cache", "--runs", trained / "runs")
    _, _, err = command("index", "--bits", 16, "--store", f"faiss:{tmp_path / 'codes'}", *places)
    following = err.splitlines()[-1].removeprefix("next: cmrhash ").replace("QUERY", "--id i7")
    code, out, _ = command(*shlex.split(following), "--json")
    assert code == 0
    assert json.loads(out)["results"]


def test_codes_of_another_training_are_refused(command, trained, tmp_path):
    url = f"faiss:{tmp_path}"
    ask = ("search", "--id", "i7", "--run", "runs/toy/triplet-16", "--store", url)
    code, _, err = command(*ask)
    assert code == 2
    assert "no collection 'toy-triplet-16-text-en' (there: none)" in err
    assert err.endswith(f"create it with cmrhash index --run runs/toy/triplet-16 --store {url}\n")
    assert command("index", "--store", url, "--run", "runs/toy/triplet-16-seed1", "-q")[0] == 0
    for view in ("image", "text-de", "text-en"):
        (tmp_path / f"toy-triplet-16-seed1-{view}.json").rename(tmp_path / f"toy-triplet-16-{view}.json")
    code, _, err = command(*ask)
    assert code == 4
    assert "was made with heads_sha256 = " in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("run", "codes", "database"), [("triplet-16", 120, 100), ("triplet-12-pairs", 240, 40)])
def test_the_codes_of_all_items_can_be_put_there_and_are_not_taken_for_the_database(command, url, run, codes, database):
    run = f"runs/toy/{run}"
    put = ("index", "--store", url, "--run", run)
    ask = ("search", "--id", "i7", "--to", "text", "--run", run, "--k", 500, "--json")
    code, out, err = command(*put)
    assert code == 0
    assert re.search(rf"text-en +\d+ +{codes}\b", out)
    assert err.splitlines()[-1].endswith(f"--run {run}")
    own, stored = (json.loads(command(*ask, *to)[1])["results"] for to in ([], ["--store", url]))
    assert len(own) == codes
    assert {(hit["distance"], hit["caption"]) for hit in own} == {(hit["distance"], hit["caption"]) for hit in stored}
    assert sum(hit["itself"] for hit in stored) == codes // 120
    code, _, err = command(*ask, "--store", url, "--among", "database")
    assert code == 4
    assert "made with --among all, but this call has --among database" in err
    assert "use --among all, or store this run with cmrhash index --run" in err
    assert command(*put, "--among", "database")[0] == 0
    assert len(json.loads(command(*ask, "--store", url)[1])["results"]) == database
    code, _, err = command(*ask, "--store", url, "--among", "all")
    assert code == 4
    assert "made with --among database, but this call has --among all" in err


def test_a_collection_that_does_not_say_whose_codes_it_has_is_of_the_database(command, tmp_path, monkeypatch):
    url, run = f"faiss:{tmp_path}", ("--run", "runs/toy/triplet-16")
    with monkeypatch.context() as before:
        made = publish.meta_of
        before.setattr(publish, "meta_of", lambda *of: {k: v for k, v in made(*of).items() if k != "among"})
        assert command("index", "--store", url, *run, "--among", "database", "-q")[0] == 0
    ask = ("search", "--id", "i7", *run, "--store", url)
    assert command(*ask)[0] == 0
    assert command(*ask, "--among", "all")[0] == 4


def test_what_others_put_there_is_found_by_its_key(command, trained, tmp_path):
    from cmrhash.search.hasher import Hasher

    url = f"faiss:{tmp_path}"
    assert command("index", "--store", url, "--run", "runs/toy/triplet-16", "-q")[0] == 0
    with closing(Hasher.load(trained / "runs/toy/triplet-16", trained / "cache", store=url)) as hasher:
        code = hasher.views["image"].codes.packed[:1] ^ 255
        with closing(open_store(url)) as store:
            store.add("toy-triplet-16-image", [(["new photo"], code)])
        hits = hasher.nearest(code[0], "image", "de", 200)
        assert (hits[0].id, hits[0].distance, hits[0].caption) == ("new photo", 0, None)
        assert sum(hit.caption is None for hit in hits) == 1


@pytest.mark.parametrize("run", ["triplet-16", "triplet-12-pairs"])
def test_conditions_and_ranks_give_the_hits_of_the_runs_own_index(command, url, run):
    run = f"runs/toy/{run}"
    keeps = url.startswith("postgresql")
    code, _, err = command("index", "--store", url, "--run", run, "-q", *(["--embeddings"] if keeps else []))
    assert code == 0, err
    for args in (
        ["--where", "label=a", "--where", "split!=query", "--to", "both", "--rank", "asymmetric"],
        ["--where", "label=b or id=i3*", "--rank", "rerank:500"],
        ["--where", "id=i7", "--to", "image", "--rank", "rerank"],
        ["--rank", "rerank:500", "--to", "both", "--k", 30],
    ):
        ask = ("search", "--id", "i7", "--run", run, "--json", *args)
        own, stored = (json.loads(command(*ask, *to)[1])["results"] for to in ([], ["--store", url]))
        assert own
        assert own == stored
    code, out, err = command("search", "--id", "i7", "--run", run, "--store", url, "--where", "label=zzz")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_the_store_scores_what_others_put_there(command, trained, url):
    from cmrhash.retrieval.codes import pack
    from cmrhash.search.hasher import Hasher

    keeps = url.startswith("postgresql")
    run = "runs/toy/triplet-16"
    assert command("index", "--store", url, "--run", run, "-q", *(["--embeddings"] if keeps else []))[0] == 0
    with closing(Hasher.load(trained / run, trained / "cache", store=url)) as hasher:
        own = hasher.views["image"].embedding[:1]
        real = own * np.linspace(0.2, 2, 16, dtype=np.float32)
        with closing(open_store(url)) as store:
            store.add("toy-triplet-16-image", [(["new photo"], pack(real), real)])
        for rank, vector in (("rerank", real if keeps else np.sign(real)), ("asymmetric", np.sign(real))):
            hits = hasher.nearest(own[0], "image", "de", 200, rank=rank)
            assert [hit.id for hit in hits if hit.caption is None] == ["new photo"]
            new = next(hit for hit in hits if hit.id == "new photo")
            assert abs(new.score - cosine_scores(own, vector)[0, 0]) < 2e-3
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_only_postgresql_keeps_embeddings(command, tmp_path):
    code, out, err = command("index", "--store", f"faiss:{tmp_path / 'codes'}", "--bits", 16, "-q", "--embeddings")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--embeddings: a folder keeps codes alone" in err
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("no --store", ["index"]),
        ("unknown kind of store", ["index", "--store", "file:x"]),
        ("unknown kind of store", ["search", "--id", "i7", "--store", "file:x", "--bits", 16]),
        ("no such trained run with 99 bits", ["index", "--store", "faiss:x", "--bits", 99]),
        (
            "among: unknown value 'train': choose database or all",
            ["index", "--store", "faiss:x", "--bits", 16, "--among", "train"],
        ),
    ],
)
def test_the_commands_refuse_in_one_line(command, words, args):
    code, out, err = command(*args)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
