"""A new extraction in the place of an old one: the old one stays whole until the new one is complete."""

from __future__ import annotations

import pytest
from ready_data import IMAGES, TEXTS, dataset, put

from cmrhash.data import manifest, switch
from cmrhash.errors import LockedError, StaleError
from cmrhash.features import shards
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import read_features
from cmrhash.storage.files import locked


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def items(cache):
    """Number of items, which all features agree on."""
    data = ExtractedDataset.open(cache, "toy")
    rows = {len(read_features(path).x) for path in data.folder.glob("*.h5")}
    assert rows == {len(data.dataset.items)}, rows
    return rows.pop()


@pytest.fixture
def cache(tmp_path):
    put(5, tmp_path, texts=True)
    return tmp_path


def test_an_interrupted_replacement_keeps_the_old_one_and_the_same_command_resumes_it(cache):
    before = files(cache)
    with pytest.raises(KeyboardInterrupt):
        put(7, cache, texts=True, stop_at="text")
    assert before.items() <= files(cache).items()
    assert items(cache) == 5
    report = put(7, cache, texts=True)
    assert [file.fresh for file in report.files] == [False, True]
    assert [file.path for file in report.files] == [cache / "toy" / IMAGES, cache / "toy" / TEXTS]
    assert report.folder == cache / "toy"
    assert items(cache) == 7
    put(7, cache.with_name("fresh"), texts=True)
    whole = {name: files(cache.with_name("fresh")).get(name) for name in files(cache)}
    assert {name: content for name, content in files(cache).items() if not name.endswith(".lock")} == {
        name: content for name, content in whole.items() if not name.endswith(".lock")
    }


def test_another_command_starts_anew_and_the_old_extraction_still_goes_on(cache):
    with pytest.raises(KeyboardInterrupt):
        put(7, cache, texts=True, stop_at="text")
    report = put(5, cache, texts=True, overwrite=False)
    assert [file.fresh for file in report.files] == [False, False]
    assert [file.fresh for file in put(6, cache, texts=True).files] == [True, True]
    assert items(cache) == 6


def test_a_changed_data_set_stays_whole_without_overwrite_too(cache):
    before = files(cache)
    with pytest.raises(KeyboardInterrupt):
        put(6, cache, texts=True, stop_at="text", overwrite=False)
    assert before.items() <= files(cache).items()
    assert put(6, cache, texts=True, overwrite=False).files[0].fresh is False
    assert items(cache) == 6


def test_what_was_prepared_and_then_damaged_is_made_again(cache):
    with pytest.raises(KeyboardInterrupt):
        put(7, cache, texts=True, stop_at="text")
    path = cache / "toy/next/toy" / IMAGES
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert [file.fresh for file in put(7, cache, texts=True).files] == [True, True]
    assert items(cache) == 7


def test_a_refused_replacement_leaves_nothing_behind(cache, monkeypatch):
    def refuse(*_):
        raise StaleError("photos are gone", None, "put them back")

    before = files(cache)
    with monkeypatch.context() as patch:
        patch.setattr(shards.Target, "found", refuse)
        with pytest.raises(StaleError, match="photos are gone"):
            put(7, cache, texts=True)
    now = files(cache)
    assert {name: now[name] for name in now if not name.endswith(".lock")} == {
        name: before[name] for name in before if not name.endswith(".lock")
    }


def test_shards_of_a_replacement_take_effect_together(cache, monkeypatch):
    monkeypatch.setattr("cmrhash.features.precomputed.READY_BLOCK", 2)
    first = put(8, cache, texts=True, shard="1/2")
    assert [file.missing for file in first.files] == [(2,), (2,)]
    assert items(cache) == 5
    assert [file.missing for file in put(8, cache, texts=True, shard="2/2").files] == [(), ()]
    assert items(cache) == 8
    assert not (cache / "toy/next").exists()


def test_a_shard_whose_peers_have_finished_meanwhile_reports_the_finished_files(cache, monkeypatch):
    monkeypatch.setattr("cmrhash.features.precomputed.READY_BLOCK", 2)
    put(8, cache, texts=True, shard="1/2")
    merge, peer = shards.Target.merge, [True]

    def late(self, *args):
        if peer and peer.pop():
            put(8, cache, texts=True, shard="2/2")
        return merge(self, *args)

    monkeypatch.setattr(shards.Target, "merge", late)
    report = put(8, cache, texts=True, shard="2/2")
    assert [(file.path, file.missing) for file in report.files] == [
        (cache / "toy" / name, ()) for name in (IMAGES, TEXTS)
    ]
    assert items(cache) == 8


def test_two_replacements_at_a_time_are_refused(cache):
    with locked(cache / "toy/next"), pytest.raises(LockedError, match="being written by process"):
        put(7, cache, texts=True)
    put(8, cache, texts=True, shard="1/2")
    with locked(cache / "toy/next/toy" / IMAGES), pytest.raises(LockedError, match="being written by process"):
        put(7, cache, texts=True)
    assert items(cache) == 5


def test_a_damaged_description_is_replaced(cache):
    (cache / "toy" / manifest.ABOUT).write_text("{}")
    put(7, cache, texts=True)
    assert items(cache) == 7


def test_old_files_of_a_folder_that_is_replaced_whole_go_away(cache):
    folder = cache / "toy"
    for place, names in ((folder, ("a/config.json", "a/old/x", "b/x")), (folder / "new", ("a/config.json", "a/new/x"))):
        for name in names:
            (place / "tuned" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "tuned" / name).write_text(place.name)
    aside = switch.start(folder, (), "toy")
    manifest.store(dataset(5), aside)
    (folder / "new/tuned").rename(aside / "tuned")
    switch.switch(folder, (), ("tuned/a",), brief=True)
    found = {path.relative_to(folder / "tuned").as_posix() for path in (folder / "tuned").rglob("*") if path.is_file()}
    assert found == {"a/config.json", "a/new/x", "b/x"}
    assert (folder / "tuned/a/config.json").read_text() == "new"
    assert not (folder / switch.CHANGE).exists()
