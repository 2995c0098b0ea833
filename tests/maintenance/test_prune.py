"""cmrhash cache prune: which files go, which stay, and that nothing else is touched."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cache_states import (
    CACHE,
    RUN,
    RUNS,
    SMALL,
    STATES,
    TOY,
    TRAIN,
    contents,
    half_extracted,
    half_trained,
    half_trained_again,
    invoke,
    other_items,
    pruned,
    shards,
    states,
    tuned,
    verified,
    words_left,
)

from cmrhash.config import LEFT_BEHIND, PruneConfig
from cmrhash.data import manifest
from cmrhash.features import leaks
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.maintenance.inventory import survey
from cmrhash.maintenance.prune import Doomed, delete, plan
from cmrhash.storage import files
from cmrhash.storage.files import locked
from cmrhash.storage.sealed import merging
from cmrhash.training import checkpoint, runs
from cmrhash.training.train import train


def test_without_yes_nothing_is_deleted_and_with_it_just_what_was_listed(here):
    half_extracted()
    half_trained()
    half_trained(seed=1)
    tuned("b", "other")
    words_left()
    (TOY / "image-new.h5.part.new").write_bytes(b"")
    for name in ("notes.txt", "mine.faiss"):
        (RUN / name).write_text("mine")
    before = contents()
    everything = set(here.rglob("*"))
    listed = json.loads(invoke("cache", "prune", "--unfinished", "--gone", "--json").stdout)
    assert not listed["deleted"]
    assert contents() == before
    assert set(here.rglob("*")) == everything
    done = json.loads(invoke("cache", "prune", "--unfinished", "--gone", "--yes", "--json").stdout)
    assert done == listed | {"deleted": True}
    gone = {Path(file) for thing in done["things"] for file in thing["files"]}
    after = contents()
    assert after == {path: content for path, content in before.items() if path not in gone}
    assert done["bytes"] >= sum(len(before[path]) for path in before.keys() - after.keys()) > 0
    assert not (TOY / runs.TUNED).exists()
    assert not (RUNS / "toy/triplet-16").exists()
    assert list(here.rglob("*.lock")) == []
    assert pruned(unfinished=True, gone=True) == {}


def test_what_a_command_would_use_stays(here):
    """After a prune nothing is made again: not the features, not the run, not its codes."""
    half_extracted()
    half_trained_again()
    before = contents()
    assert set(pruned()) == {"2 lock files in runs/toy", "4 lock files in cache/toy"}
    assert invoke("cache", "prune", "--yes").exit_code == 0
    assert contents() == before
    assert not json.loads(invoke(*TRAIN, "--json").stdout)[0]["trained"]
    assert invoke("eval", "--json").exit_code == 0
    results = {runs.METRICS, leaks.FILE, "queries-labels.npz"}
    unchanged = {path: content for path, content in contents().items() if path.name not in results}
    assert unchanged == {path: content for path, content in before.items() if path.name not in results}
    with pytest.raises(KeyboardInterrupt):  # and the training in its place goes on where it was
        train(
            replace(SMALL, epochs=5), ExtractedDataset.open(CACHE, "toy"), RUNS, overwrite=True, progress=from_epoch(1)
        )


def from_epoch(wanted):
    def stop(what, done, total, note):
        assert done == wanted
        raise KeyboardInterrupt

    return stop


# states of which prune deletes what is not whole, and states of which it deletes nothing
GOES = ("an extraction of other items", "words", "killed while space was set aside", "shards of other items")
GOES += ("a shard killed while space was set aside",)
WHY = {
    name: {path.replace("triplet-8", "triplet-8/codes.h5"): why for path, why in STATES[name][1].items()}
    for name in GOES
}
WHY |= {"other heads": {"runs/toy/triplet-8/codes.h5": "codes of other heads"}}
WHY |= {"tuned encoders": {"cache/toy/tuned/b": "items changed"}}
KEPT = ("shards", "an extraction", "a training", "a training anew", "features gone", "features and codes gone")
KEPT += ("nothing trained", "a newer cmrhash", "an older cmrhash", "files of others", "damaged files", "no items")


@pytest.mark.parametrize("name", [*WHY, *KEPT])
def test_what_goes_and_why(here, name):
    STATES[name][0]()
    found = pruned()
    assert {what: why for what, why in found.items() if "lock file" not in what} == WHY.get(name, {})
    before = contents()
    assert invoke("cache", "prune", "--yes").exit_code == 0
    assert pruned() == {}
    gone = {str(path) for path in before.keys() - contents().keys()}
    assert all(any(path.startswith(what.removesuffix("/codes.h5")) for what in found) for path in gone)
    if name == "other heads":
        assert (RUN / runs.HEADS).exists()
        assert invoke("eval").exit_code == 0


def test_unfinished_and_gone_go_only_when_asked(here):
    half_extracted()
    half_trained()
    half_trained_again()
    wanted = {"cache/toy/image-other.h5.part", "runs/toy/triplet-16", "runs/toy/triplet-8/checkpoint.json"}
    assert {what for what in pruned(unfinished=True) if "lock file" not in what} == wanted
    (TOY / "text-de-toy.h5").unlink()
    assert "runs/toy/triplet-8" not in pruned()
    assert pruned(gone=True)["runs/toy/triplet-8"] == "features gone (codes left)"


def test_shards_go_only_when_asked_and_while_nobody_is_at_them(here):
    shards()
    names = [f"cache/toy/image-other.h5.shard-{name}" for name in ("2-of-3", "3-of-3.part")]
    assert [what for what in pruned(unfinished=True) if "lock file" not in what] == names
    before = contents()
    planned = plan(PruneConfig(unfinished=True), CACHE, RUNS)
    merger = merging(TOY / "image-other.h5")
    with locked(merger):
        assert states()[names[0]].startswith(f"being written (merged by process {os.getpid()} on ")
        left = {one.what: left for one, left in delete(planned, CACHE, RUNS)}
        assert all(left[name].startswith(f"being written by process {os.getpid()} on ") for name in names)
    assert contents() == before
    assert invoke("cache", "prune", "--unfinished", "--yes").exit_code == 0
    assert {str(path) for path in before.keys() - contents().keys()} == set(names)
    assert list(TOY.glob(".*.lock")) == []


def test_a_checkpoint_that_outlived_its_training(here, monkeypatch):
    """Killed between the run and the removal of its checkpoint."""
    monkeypatch.setattr("cmrhash.training.train.forget", lambda _: None)
    half_trained()
    train(replace(SMALL, bits=16), ExtractedDataset.open(CACHE, "toy"), RUNS)
    folder = RUNS / "toy/triplet-16"
    assert (folder / runs.CHECKPOINT).exists()
    assert pruned()[str(folder / runs.CHECKPOINT)] == "of a training that is finished"
    before = contents()
    invoke("cache", "prune", "--yes")
    assert {path.name for path in before.keys() - contents().keys()} == {"checkpoint.json", "checkpoint-1.safetensors"}
    assert checkpoint.CHECKPOINT == runs.CHECKPOINT


def test_what_is_held_or_has_changed_is_left_alone(here):
    other_items()
    planned = plan(PruneConfig(), CACHE, RUNS)
    (TOY / "text-en-toy.h5").write_bytes(b"extracted again meanwhile")
    before = contents()
    with locked(TOY / "image-toy.h5"), locked(RUN / runs.CONFIG):
        done = {one.what: left for one, left in delete(planned, CACHE, RUNS)}
    assert done.pop("cache/toy/text-de-toy.h5") == ""
    assert done.pop("cache/toy/text-en-toy.h5") == "cache/toy/text-en-toy.h5 has changed meanwhile"
    assert done.pop("cache/toy/image-toy.h5").startswith(f"being written by process {os.getpid()} on ")
    assert done.pop("runs/toy/triplet-8/codes.h5").startswith("being written by ")
    assert before.keys() - contents().keys() == {TOY / "text-de-toy.h5"}
    with locked(RUN / runs.CONFIG):
        shown = invoke("cache", "prune", "--yes").stdout
    assert "runs/toy/triplet-8 " not in shown  # it is busy: not even planned


def test_nothing_behind_a_link_is_deleted(here, make_cache):
    outside = here / "outside"
    outside.mkdir()
    other_items()
    shutil.move(RUN, outside / "run")
    RUN.symlink_to(outside / "run")
    shutil.move(TOY / "image-toy.h5", outside)
    (TOY / "image-toy.h5").symlink_to(outside / "image-toy.h5")
    make_cache(outside, "linked")
    manifest.store(replace(manifest.load(outside / "linked"), items=manifest.load(TOY).items), outside / "linked")
    (CACHE / "linked").symlink_to(outside / "linked")
    before = contents(outside)
    assert states()["cache/linked/image-toy.h5"] == "items changed"  # to look is no harm
    assert {what for what in pruned() if "lock" not in what} == {
        f"cache/toy/text-{lang}-toy.h5" for lang in ("de", "en")
    }
    assert invoke("cache", "prune", "--yes").exit_code == 0
    assert contents(outside) == before
    assert (TOY / "image-toy.h5").is_symlink()
    shutil.move(CACHE, here / "big")
    CACHE.symlink_to(here / "big")  # the folder that is given may be a link itself
    half_extracted()
    assert "cache/toy/image-other.h5.part" in pruned(unfinished=True)


def test_a_run_that_names_files_outside_has_no_say(here):
    precious = here / "precious.txt"
    precious.write_text("mine")
    config = runs.read_record(RUN)
    names = ["../../../precious.txt", str(precious), "../triplet-8/../../../precious.txt"]
    made = {**config["files"], **dict.fromkeys(names, files.sha256(precious))}
    features = {view: of | {"sha256": "other", "dim": 1} for view, of in config["features"].items()}
    runs.write_record(RUN, config | {"files": made, "features": features})
    assert pruned()[str(RUN)].startswith("features changed")
    invoke("cache", "prune", "--yes")
    assert not (RUN / runs.CONFIG).exists()
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("way", ["cache/toy/../../precious.txt", "precious.txt", "cache/toy/none.txt", "cache/toy"])
def test_deletion_keeps_to_files_below_the_two_folders(here, way):
    Path("precious.txt").write_text("mine")
    path = Path(way)
    info = path.stat() if path.exists() else Path("precious.txt").stat()
    ((_, left),) = delete([Doomed(way, "", {path: (info.st_size, info.st_mtime_ns)})], CACHE, RUNS)
    assert left
    assert Path("precious.txt").read_text() == "mine"
    assert TOY.is_dir()


def test_what_a_killed_process_left_goes_once_it_is_old(here):
    left = [
        *(TOY / f"{name}.part" for name in ("items.jsonl", "items.blocks", "dataset.json", "words-en-bow.h5")),
        *(RUN / f"{name}.part" for name in ("config.json", "codes.h5", "metrics.json", "heads.safetensors")),
        *(RUN / f"{name}.part" for name in ("image.faiss", "text-pt-BR.faiss", "checkpoint-3.safetensors")),
        *(RUNS / "toy/compare.csv.part", TOY / ".drawn.part-99/00/1.jpg", TOY / ".drawn.part-99/a/b.txt"),
    ]
    kept = [RUN / "mine.part", TOY / "thesis.jsonl.part", RUN / "image.faiss.part.txt", TOY / "drawn/x.part"]
    for path in [*left, *kept]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"some")
    invoke("cache", "prune", "--yes")
    assert all(path.exists() for path in left)  # somebody may be writing them
    for path in [*left, *kept, TOY / ".drawn.part-99"]:
        then = path.stat().st_mtime - LEFT_BEHIND - 1
        os.utime(path, (then, then))
    invoke("cache", "prune", "--yes")
    assert [path for path in left if path.exists()] == []
    assert all(path.exists() for path in kept)
    assert not (TOY / ".drawn.part-99").exists()


def test_lock_files_of_others_stay(here):
    (TOY / ".yarn.lock").write_text("# yarn lockfile v1\n")
    (TOY / ".image-toy.h5.lock").write_text("process 1 on host\nand more")
    (here / "elsewhere").write_text("process 1 on host\n")
    (TOY / ".poetry.lock").symlink_to(here / "elsewhere")
    before = contents()
    locks = {path for path in TOY.iterdir() if path.name.endswith(".lock")}
    invoke("cache", "prune", "--yes")
    assert contents() == before
    assert {path.name for path in locks if os.path.lexists(path)} == {
        ".yarn.lock",
        ".image-toy.h5.lock",
        ".poetry.lock",
    }


def test_prune_says_how_much_room_it_frees(here):
    other_items()
    shown = invoke("cache", "prune").stdout
    assert "would be deleted" in shown
    assert "would be freed: to delete, run cmrhash cache prune --yes" in shown
    shown = invoke("cache", "prune", "--yes").stdout
    assert shown.startswith("deleted")
    assert " freed" in shown
    assert "nothing to delete" in invoke("cache", "prune").stderr


def test_after_a_prune_extract_finds_what_it_had(tmp_path, monkeypatch):
    from trees import write_manifest

    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "mine", 10)
    encoders = ["--image-model", "shufflenet_v2_x0_5", "--image-weights", "random", "--text-model", "bow"]
    command = ["extract", "--dataset", "manifest", "--root", "mine", "--device", "cpu", *encoders, "--json", "-q"]
    assert invoke(*command).exit_code == 0
    assert verified() == (0, {})
    assert states() == {}
    kinds = [entry.kind for entry in survey(CACHE, RUNS)]
    assert kinds == ["items", "image", "text", "text", "words", "words"]
    assert list(pruned()) == ["7 lock files in cache/manifest"]
    invoke("cache", "prune", "--yes")
    before = contents()
    again = json.loads(invoke(*command).stdout)
    assert [file["fresh"] for file in again["files"]] == [False] * 3
    assert contents() == before
