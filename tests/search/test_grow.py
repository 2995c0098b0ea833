"""Items added to a collection and removed from it: the same bytes as a fresh extraction, and runs that go on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil

import numpy as np
import pytest
from growing import COUNT, RUN, entries, same_as_fresh, state, write_more
from running import EXTRACT, QUICK, run, write_manifest

import cmrhash
from cmrhash.data import switch
from cmrhash.data.items import also_of
from cmrhash.data.view import View
from cmrhash.errors import DataError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.photos import photo_bytes


def test_added_and_removed_items_give_the_bytes_of_a_fresh_extraction(here, capsys):
    more = write_more(here / "mine/more")
    union = entries(here / "mine")
    union += [{**e, "image": f"more/{e['image']}", "splits": ["database"]} for e in more]
    assert run("add", "mine/more", "--json") == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["added"], told["items"], told["runs"]) == (3, COUNT + 3, ["triplet-8"])
    assert all(f"new {what}\n" in err for what in ("images: 3/3", "en texts: 4/4"))
    assert not re.search(rf"/{COUNT + 3}\b", err)
    same_as_fresh(here, union)
    assert run("train", *QUICK) == 4
    told = (
        "the run stays valid: runs/manifest/triplet-8: use it as it is (cmrhash search, cmrhash eval), or train on the"
    )
    assert told in capsys.readouterr().err
    capsys.readouterr()
    assert run("search", "a new dog 1", "--lang", "en", "--k", "20", "--json", "-q") == 0
    assert {"n0", "n1", "n2"} < {hit["id"] for hit in json.loads(capsys.readouterr().out)["results"]}
    assert run("remove", "i11", "n1", "i12") == 0
    err = capsys.readouterr().err
    assert "3 removed" in err
    assert f"images copied: {COUNT}/{COUNT}\n" in err
    same_as_fresh(here, [entry for entry in union if entry["id"] not in ("i11", "n1", "i12")])
    assert not (here / "cache/manifest/next").exists()
    assert not (here / "cache/manifest/change.json").exists()


def test_adding_twice_adds_nothing(here, capsys):
    write_more(here / "mine/more")
    assert run("add", "mine/more", "-q") == 0
    before = state()
    capsys.readouterr()
    assert run("add", "mine/more") == 0
    told = capsys.readouterr().err
    assert told.startswith("reading mine/more; only new items are encoded ...\n")
    assert "3 items are in the collection already" in told
    assert state() == before


def test_extract_keeps_or_drops_what_add_brought(here, capsys):
    write_more(here / "elsewhere")
    assert run("add", "elsewhere", "--prefix", "new/", "-q") == 0
    before, extract = state(), [*EXTRACT, "--overwrite"]
    for command in (EXTRACT, extract):
        capsys.readouterr()
        assert run(*command) == 4
        error = capsys.readouterr().err.splitlines()[-1]
        assert "3 items that cmrhash add brought (new/n0, new/n1, new/n2) would go" in error
        assert "keep them with --added keep, or take them out with --added drop" in error
        assert state() == before
    assert run(*EXTRACT, "--added", "keep", "-q") == 0
    looked = "cache/manifest/leaks.json"  # of the features, which every extraction looks through
    assert {**state(), looked: b""} == {**before, looked: b""}
    write_manifest(here / "mine", entries(here / "mine")[:-1])
    capsys.readouterr()
    assert run(*EXTRACT, "--added", "keep") == 0
    told = capsys.readouterr().err
    assert f"since the last extraction: 1 gone (i13), {COUNT + 2} as before" in told
    assert "kept 3 items that cmrhash add brought" in told
    assert "to train on the present items: cmrhash train --dataset manifest --bits 32 --overwrite" in told
    assert run("search", "--id", "new/n1", "--json") == 0
    assert run("cache", "verify", "-q") == 0
    assert run(*EXTRACT, "--added", "drop", "-q") == 0
    assert run("search", "--id", "i3", "-q") == 0  # makes the codes
    same_as_fresh(here, entries(here / "mine"))
    assert run(*EXTRACT, "--added", "kep", "-q") == 2
    assert "unknown choice 'kep'" in capsys.readouterr().err


def clash(here):
    write_more(here / "mine/more", ("i3", "n1"))
    return "add", "mine/more"


def own_encoder(here):
    return "remove", "i1", "nobody"


def all_queries(here):
    return "remove", "i0"


def ids_of_no_file(here):
    return "remove", "--from", "nothing.txt"


def no_layout(here):
    (here / "empty").mkdir()
    return "add", "empty"


def no_store(here):
    write_more(here / "mine/more")
    return "add", "mine/more", "--store", "faiss:codes"


def features_alone(here):
    np.savez("f.npz", image=np.ones((3, 4), np.float32))
    return "add", "f.npz"


def no_photos_there(here):
    (here / "empty").mkdir()
    return "relocate", "empty"


def no_such_addition(here):
    return "relocate", "mine", "--from", "elsewhere"


REFUSED = {
    clash: (5, r"has 1 of these ids with other content \(i3\): .*--prefix"),
    own_encoder: (2, r"no item \(nobody\) in 'manifest'; nothing was removed"),
    all_queries: (2, "no query items of 'manifest' would be left"),
    ids_of_no_file: (2, "cannot read the ids: nothing.txt"),
    no_layout: (2, "no known layout"),
    no_store: (2, "no collection of 'manifest' in this store: faiss:codes"),
    features_alone: (2, "ready-made features, which no encoder of the collection made"),
    no_photos_there: (2, "this folder has none of the 14 photos"),
    no_such_addition: (2, r"no photos were added from .*elsewhere \(other folders: none\)"),
}


@pytest.mark.parametrize("call", REFUSED, ids=lambda call: call.__name__)
def test_a_refused_call_says_why_in_one_line_and_changes_nothing(call, here, capsys):
    code, words = REFUSED[call]
    command = call(here)
    before = state()
    assert run(*command, "-q") == code
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert error.count("\n") == 1
    assert state() == before


# ---------------------------------------------------------------------------------------------- photos elsewhere


def test_photos_may_lie_elsewhere_and_move(here, capsys):
    write_more(here / "elsewhere")
    assert run("add", "elsewhere", "--prefix", "new/") == 0
    item = ExtractedDataset.open("cache").dataset.items[-1]
    assert (item.id, item.image) == ("new/n2", (here / "elsewhere/photos/n2.png").as_posix())
    shutil.move(here / "elsewhere", here / "moved")
    capsys.readouterr()
    assert run("search", "--id", "i3") == 0
    where = here / "elsewhere"
    told = f"photos are not in {where}: cmrhash relocate DIR --dataset manifest --from {where} says where they are"
    assert told in capsys.readouterr().err
    assert run("relocate", "moved", "--from", "elsewhere") == 0
    assert "3 with a new path (new/n0, new/n1, new/n2)" in capsys.readouterr().err
    data = ExtractedDataset.open("cache")
    assert data.dataset.items[-1].image == (here / "moved/photos/n2.png").as_posix()
    assert photo_bytes(data.dataset.root, data.dataset.items[-1].image).startswith(b"\x89PNG")
    with pytest.raises(DataError, match="leaves the data set's folder"):
        photo_bytes(data.dataset.root, (here / "mine/images/0.png").as_posix())
    with pytest.raises(DataError, match="leaves the data set's folder"):
        photo_bytes(data.dataset.root, (here / "moved/../mine/images/0.png").as_posix())
    assert run("cache", "verify", "-q") == 0
    assert run("remove", "new/n0", "-q") == 0
    assert also_of(ExtractedDataset.open("cache").dataset.root) == (here / "moved",)


def test_a_moved_collection_is_told_where_its_photos_are(here, capsys):
    shutil.move(here / "mine", here / "ours")
    capsys.readouterr()
    assert run("search", "dog", "--lang", "en") == 0
    assert "photos are not in" in capsys.readouterr().err
    before = {path: content for path, content in state().items() if not path.endswith("dataset.json")}
    assert run("relocate", "ours") == 0
    assert {path: content for path, content in state().items() if not path.endswith("dataset.json")} == before
    capsys.readouterr()
    assert run("search", "dog", "--lang", "en") == 0
    assert "photos are not in" not in capsys.readouterr().err
    assert run("cache", "verify", "-q") == 0


# ---------------------------------------------------------------------------------------------- a kill


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(1, 12))
def test_a_kill_leaves_the_old_or_the_new_and_the_same_command_finishes(at, here, monkeypatch):
    more = write_more(here / "mine/more")
    union = entries(here / "mine")[:-1] + [{**e, "image": f"more/{e['image']}", "splits": ["database"]} for e in more]
    old = ExtractedDataset.open("cache").dataset.sha256
    for command in (["add", "mine/more", "-q"], ["remove", "i13", "-q"]):
        with monkeypatch.context() as patch:
            calls, real = [], os.replace

            def replaced(*args, calls=calls, real=real):
                calls.append(args)
                if len(calls) == 3 * at:
                    raise Killed
                return real(*args)

            patch.setattr(os, "replace", replaced)
            killed = True
            with contextlib.suppress(Killed):
                killed = run(*command) != 0
        data = ExtractedDataset.open("cache")
        assert len(data.dataset.items) in (COUNT, COUNT + len(more), COUNT + len(more) - 1)
        assert (data.dataset.sha256 == old) == (len(data.dataset.items) == COUNT)
        for lang in ("de", "en"):
            data.features(View.text(lang))
        assert cmrhash.load(RUN, among="all").search("dog", lang="en", k=3)
        again = 0 if killed or command[0] == "add" else 2
        assert run(*command) == again
    same_as_fresh(here, union)


def test_another_command_after_a_kill_is_not_confused(here, monkeypatch, capsys):
    write_more(here / "mine/more")
    with monkeypatch.context() as patch:
        patch.setattr(switch, "switch", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run("add", "mine/more", "-q")
    assert (here / "cache/manifest/next/manifest/dataset.json").exists()
    capsys.readouterr()
    assert run("cache", "ls", "--json") == 0
    (pending,) = [one for one in json.loads(capsys.readouterr().out)["files"] if one["status"] == "unfinished"]
    assert (pending["kind"], pending["state"]) == ("change", f"unfinished (a change from {COUNT} to {COUNT + 3} items)")
    assert pending["bytes"] > 1000
    assert run("cache", "ls") == 0
    assert "unfinished: rerun the command that made it; it resumes" in capsys.readouterr().out
    assert run("cache", "verify", "-q") == 0
    assert run("cache", "prune", "--yes", "-q") == 0
    assert (here / "cache/manifest/next/manifest/dataset.json").exists()
    assert run("remove", "i12", "-q") == 0
    same_as_fresh(here, [entry for entry in entries(here / "mine") if entry["id"] != "i12"])


def test_an_unfinished_change_is_pruned_when_asked(here, monkeypatch, capsys):
    before = state()
    write_more(here / "mine/more")
    with monkeypatch.context() as patch:
        patch.setattr(switch, "switch", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run("add", "mine/more", "-q")
    capsys.readouterr()
    assert run("cache", "prune", "--unfinished", "--yes") == 0
    assert "kept:" not in capsys.readouterr().out
    assert state() == before
    assert not (here / "cache/manifest/next").exists()
