"""Runs, stores and files of a collection that has changed."""

from __future__ import annotations

import contextlib
import json
import re

import numpy as np
import pytest
from growing import COUNT, RUN, entries, same_as_fresh, state, write_more
from running import EXTRACT, QUICK, run, write_manifest

import cmrhash
from cmrhash.data.view import View
from cmrhash.errors import UsageError
from cmrhash.evaluation import saved_scores
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import read_features
from cmrhash.retrieval.ranking import Rank, cosine_scores
from cmrhash.search.stores import open_store
from cmrhash.training import runs
from cmrhash.training.runs import open_run

# ---------------------------------------------------------------------------------------------- runs


def test_a_run_stays_valid_and_eval_says_what_changed(here, capsys):
    union = entries(here / "mine")
    union += [{**union[3], "id": "more", "splits": ["database"]}]
    union[1] = {**union[1], "texts": {"en": ["another caption"], "de": ["Hund"]}}
    del union[12]
    write_manifest(here / "mine", union)
    assert run(*EXTRACT) == 0
    assert "runs stay usable" in capsys.readouterr().err
    assert saved_scores.shown(open_run(RUN)) is not None
    assert run("eval", "--json", "-q") == 0
    protocol = json.loads(capsys.readouterr().out)["protocol"]
    assert protocol["since the training"] == "1 added, 1 removed, 1 changed; trained on 8 items"
    same_as_fresh(here, union)
    assert run("search", "dog", "--lang", "en", "-q") == 0
    capsys.readouterr()
    assert run("cache", "ls", "--json") == 0
    assert "stale" not in capsys.readouterr().out


def test_scores_of_the_old_codes_are_not_shown(here):
    run_there = open_run(RUN)
    assert saved_scores.shown(run_there)
    assert run("remove", "i5", "-q") == 0
    assert saved_scores.shown(run_there) is None


def legacy(run_folder):
    """The run as version 0.1 wrote it."""
    record = runs.read_record(run_folder)
    record = {key: value for key, value in record.items() if key not in ("made_as", "version")}
    record["files"] = {name: digest for name, digest in record["files"].items() if name != runs.DIGESTS}
    (run_folder / runs.DIGESTS).unlink()
    runs.write_record(run_folder, record)


def test_a_run_of_an_earlier_version_stays_valid(here, capsys):
    legacy(here / RUN)
    codes = (here / RUN / "codes.h5").read_bytes()
    assert run("search", "dog", "--lang", "en", "-q") == 0
    assert (here / RUN / "codes.h5").read_bytes() == codes
    write_more(here / "mine/more")
    assert run("add", "mine/more", "-q") == 0
    capsys.readouterr()
    assert run("eval", "--json", "-q") == 0
    protocol = json.loads(capsys.readouterr().out)["protocol"]
    assert protocol["since the training"] == "items were added, removed or changed; trained on 8 items"


@pytest.mark.parametrize("old", [False, True])
def test_heads_that_do_not_fit_are_refused(old, here, capsys):
    if old:
        legacy(here / RUN)
    assert run(*EXTRACT, "--pooling", "cls", "--overwrite", "-q") == 0
    capsys.readouterr()
    assert run("search", "dog", "--lang", "en", "-q") == 4
    assert re.search("text-de-.* was extracted again in another way since this run was made", capsys.readouterr().err)
    assert run("remove", "i5") == 0
    assert "triplet-8 is not brought up to date: text-de" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- stores, bytes


def test_stores_follow(here, capsys):
    write_more(here / "mine/more")
    assert run("index", "--store", "faiss:codes", "-q") == 0
    assert run("add", "mine/more", "-q") == 0
    capsys.readouterr()
    assert run("search", "dog", "--lang", "en", "--store", "faiss:codes", "-q") == 4
    assert "was stored before the items changed" in capsys.readouterr().err
    assert run("add", "mine/more", "--store", "faiss:codes", "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out)["collections"]["manifest-triplet-8-image"] == COUNT + 3
    assert run("search", "dog", "--lang", "en", "--store", "faiss:codes", "-q") == 0
    assert run("remove", "n1", "--store", "faiss:codes", "-q") == 0
    with contextlib.closing(open_store("faiss:codes")) as store:
        assert store.about("manifest-triplet-8-image").rows == COUNT + 2


def test_a_database_gets_only_what_differs(here, postgres, monkeypatch):
    write_more(here / "mine/more")
    assert run("index", "--store", postgres.url, "--embeddings", "-q") == 0
    with contextlib.closing(open_store(postgres.url)) as store:
        kind = type(store)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "replace", lambda *_: pytest.fail("all codes are written"))
        assert run("add", "mine/more", "--store", postgres.url, "-q") == 0
        assert run("remove", "n1", "i12", "--store", postgres.url, "-q") == 0
    assert run("search", "dog", "--lang", "en", "--store", postgres.url, "-q") == 0
    with contextlib.closing(open_store(postgres.url)) as store:
        assert store.about("manifest-triplet-8-image").rows == COUNT + 1
        grown = cmrhash.load(RUN)
        packed = grown.views[View.IMAGE].codes.packed[:3]
        distances, keys = store.search("manifest-triplet-8-image", packed, COUNT + 1)
        assert np.array_equal(distances, grown.views[View.IMAGE].index.search(packed, COUNT + 1)[0])
        assert set(keys[0]) == {item.id for item in grown.dataset.items}
    _check_embeddings(postgres.url)
    assert run("remove", "n2", "-q") == 0
    assert run("remove", "n0", "--store", postgres.url, "-q") == 0  # the store has older items: all codes are written
    _check_embeddings(postgres.url)


def _check_embeddings(url):
    """The store ranks by the embeddings that the run has, each beside its own key."""
    grown = cmrhash.load(RUN)
    own = grown.views[View.IMAGE]
    with contextlib.closing(open_store(url)) as store:
        _, keys, scores = store.ranked("manifest-triplet-8-image", own.embedding[:3], COUNT + 9, Rank("rerank"))
    row = {grown.dataset.items[item].id: at for at, item in enumerate(own.codes.item)}
    for at, line in enumerate(keys):
        assert set(line) == set(row)
        rows = [row[key] for key in line]
        assert np.abs(cosine_scores(own.embedding[at : at + 1], own.embedding[rows])[0] - scores[at]).max() < 2e-3


def test_removed_rows_leave_no_bytes(here):
    features = {path: read_features(path) for path in (here / "cache/manifest").glob("*-*random.h5")}
    rows = [f.x[np.flatnonzero(f.item == f.ids.index("i7"))[0]].tobytes() for f in features.values()]
    assert all(len(row) > 64 for row in rows)
    secrets = [b"Hund 7", b"dog 7", b'"i7"', *rows]
    assert all(any(secret in content for content in state().values()) for secret in secrets)
    assert run("remove", "i7", "-q") == 0
    assert run("cache", "prune", "--yes", "-q") == 0
    for path, content in state().items():
        assert not [secret for secret in secrets if secret in content], path


def test_ready_made_features_shrink_but_do_not_grow(here, capsys):
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.standard_normal((30, 5)),
        "text": rng.standard_normal((30, 4)),
        "label": np.eye(3)[np.arange(30) % 3],
    }
    np.savez("f.npz", **arrays)
    assert run("extract", "f.npz", "--cache", "ready", "-q") == 0
    assert run("train", "-q", *QUICK, "--cache", "ready") == 0
    data = ExtractedDataset.open("ready")
    kept = data.dataset.items[3].id
    gone = next(item.id for item in data.dataset.items if "query" not in item.splits)
    assert run("remove", gone, "--cache", "ready", "--json", "-q") == 0
    after = ExtractedDataset.open("ready")
    view = after.features(View.IMAGE)
    row = [item.id for item in after.dataset.items].index(kept)
    assert np.array_equal(view.features.x[row], arrays["image"][3].astype(np.float32))
    assert run("eval", "--cache", "ready", "-q") == 0
    write_more(here / "more")
    capsys.readouterr()
    assert run("add", "more", "--cache", "ready", "-q") == 2
    assert "features of 'f' are ready-made" in capsys.readouterr().err


def test_the_public_face(here):
    write_more(here / "mine/more")
    data = cmrhash.open_dataset("manifest")
    grown = cmrhash.add("mine/more", data)
    assert grown.changes.new == ("n0", "n1", "n2")
    assert [run.name for run in grown.runs] == ["triplet-8"]
    assert cmrhash.remove("n1", "manifest").changes.gone == ("n1",)
    with pytest.raises(UsageError, match="no setting 'store'"):
        cmrhash.remove("n0", "manifest", store="faiss:x")
