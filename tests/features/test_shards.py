"""Shards of a feature file: whatever happens on the way, the merged file is that of one process, to the byte."""

import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cmrhash.errors import DamagedError, LockedError, StaleError, UsageError
from cmrhash.features import shards
from cmrhash.features.file import FeatureWriter, read_features, source_digest
from cmrhash.features.shards import Shard, Target
from cmrhash.storage.files import locked
from cmrhash.storage.sealed import read_manifest

BLOCK, DIM = 4, 3
ITEM = np.array([n for n in range(10) if n != 6 for _ in range(2)], np.int32)  # 18 rows in 5 blocks, the last one short
IDS = tuple(f"Bild {n} ü" for n in range(10))
RECIPE = {"kind": "text", "lang": "en", "crop": {"size": 224}, "encoder": "bert"}
X = np.random.default_rng(0).standard_normal((len(ITEM), DIM)).astype(np.float32)
BAD = {3, 17}


def sources(rows, changed=()):
    digests = [source_digest(f"{row}{' again' if row in changed else ''}".encode()) for row in range(len(ITEM))]
    return np.stack(digests[rows])


def target(folder, number=1, of=1, recipe=RECIPE, overwrite=False, item=ITEM, changed=()):
    now = lambda rows: sources(rows, changed)  # noqa: E731
    return Target(folder / "X.h5", item, IDS, DIM, recipe, BLOCK, Shard(number, of), overwrite, now)


def interrupt():
    raise KeyboardInterrupt


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def encode(made, blocks=99, changed=(), device="cpu", stop=interrupt):
    """Encode what is missing, and ``stop`` after that many blocks; returns the rows that were encoded."""
    encoded = []
    with made.writer() as writer:
        for block in range(writer.blocks):
            if block in writer.done:
                continue
            if len(encoded) == blocks:
                stop()
            rows = made.rows_of(block)
            valid = np.array([row not in BAD for row in range(rows.start, rows.stop)])
            x = X[rows] + [[row in changed] for row in range(rows.start, rows.stop)]
            writer.commit(block, np.where(valid[:, None], x, 0).astype(np.float32), valid, sources(rows, changed))
            encoded.append(rows)
        made.seal(writer, {"torch": "1", "device": device})
    return encoded


def merge(made, beside=lambda: None, progress=lambda *_: None):
    made.merge(beside, progress)
    return made


def run(folder, number, of, **options):
    """What a process does: its shard if it is not there, then the merge if it is the last one."""
    made = target(folder, number, of, **options)
    if not made.found():
        encode(made, changed=options.get("changed", ()))
    return merge(made)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of the file that one process makes."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, 1, 1).whole
    return (folder / "X.h5").read_bytes()


def left(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def is_whole(folder, whole):
    return left(folder) == ["X.h5"] and (folder / "X.h5").read_bytes() == whole


# ---------------------------------------------------------------------------------------------- which rows


@pytest.mark.parametrize(
    ("text", "shard"), [(None, Shard(1, 1)), ("1/1", Shard(1, 1)), ("3/8", Shard(3, 8)), ("8/8", Shard(8, 8))]
)
def test_a_shard_is_written_as_its_number_and_how_many_there_are(text, shard):
    assert shards.parse(text) == shard
    assert str(shard) == (text or "1/1")


@pytest.mark.parametrize("text", ["", "3", "0/8", "9/8", "3/", "/8", "-1/8", "1/0", "a/b", "1.5/8", "3/8/9", "3 of 8"])
def test_anything_else_is_refused(text):
    with pytest.raises(UsageError, match="shard: .* is not a shard: write I/N with I from 1 to N"):
        shards.parse(text)


@pytest.mark.parametrize(("rows", "block"), [(1, 4), (18, 4), (16, 4), (18, 1), (5, 100)])
@pytest.mark.parametrize("of", [1, 2, 3, 5, 8, 40])
def test_the_blocks_are_dealt_out_evenly_and_whole(tmp_path, rows, block, of):
    item = np.arange(rows, dtype=np.int32)
    targets = [Target(tmp_path / "X.h5", item, (), 1, {}, block, Shard(n, of), False) for n in range(1, of + 1)]
    assert [row for made in targets for row in range(rows)[made.rows]] == list(range(rows))
    assert all(made.rows.start % block == 0 for made in targets)
    blocks = [-(-(made.rows.stop - made.rows.start) // block) for made in targets]
    assert max(blocks) - min(blocks) <= 1
    for made, count in zip(targets, blocks, strict=True):
        own = [row for b in range(count) for row in range(rows)[made.rows_of(b)]]
        assert own == list(range(rows))[made.rows]


# ---------------------------------------------------------------------------------------------- merged


ORDERS = [*itertools.permutations((1, 2, 3)), (2, 1), (5, 1, 4, 2, 3), tuple(random.Random(0).sample(range(1, 10), 9))]


@pytest.mark.parametrize("order", ORDERS)
def test_in_any_order_of_finishing_the_last_one_makes_the_file_of_one_process(tmp_path, whole, order):
    of = len(order)
    empty = {n for n in order if target(tmp_path, n, of).rows == slice(*[target(tmp_path, n, of).rows.stop] * 2)}
    assert len(empty) == max(0, of - 5)  # more shards than blocks
    waited_for = set(order) - empty
    for number in order:
        made = run(tmp_path, number, of)
        waited_for.discard(number)
        assert (set(made.missing), made.whole) == (waited_for, not waited_for)
        if waited_for:
            assert not (tmp_path / "X.h5").exists()
            assert made.valid.tolist() == [row not in BAD for row in range(len(ITEM))[made.rows]]
        else:
            assert made.valid.tolist() == [row not in BAD for row in range(len(ITEM))]
    assert is_whole(tmp_path, whole)
    assert not [path for path in tmp_path.iterdir() if "shard" in path.name]  # the locks are gone as well


def process(folder, code, *args):
    """Another process that runs code with this file as ``t`` and a folder as ``folder``."""
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent / "helpers"), os.environ.get("PYTHONPATH", "")])
    start = [sys.executable, "-c", f"import sys, test_shards as t; folder = t.Path(sys.argv[1]); {code}", str(folder)]
    return subprocess.Popen([*start, *map(str, args)], env=os.environ | {"PYTHONPATH": path})


@pytest.mark.slow
def test_processes_that_run_at_once_make_one_file(tmp_path, whole):
    running = [process(tmp_path, "t.run(folder, int(sys.argv[2]), 4)", n) for n in range(1, 5)]
    assert [each.wait(60) for each in running] == [0] * 4
    assert is_whole(tmp_path, whole)


def test_two_that_finish_at_the_same_moment_merge_once(tmp_path, whole):
    both = [target(tmp_path, n, 2) for n in (1, 2)]
    for made in both:
        assert not made.found()
        encode(made)
    assert merge(both[1]).whole
    merged = (tmp_path / "X.h5").stat().st_ino
    assert merge(both[0]).whole
    assert (tmp_path / "X.h5").stat().st_ino == merged
    assert is_whole(tmp_path, whole)


def test_what_lies_beside_the_file_is_there_before_it(tmp_path):
    seen = []
    for number in (1, 2):
        made = target(tmp_path, number, 2)
        encode(made)
        merge(made, beside=lambda: seen.append((tmp_path / "X.h5").exists()))
    assert seen == [False]


def test_another_machine_is_told_of_but_changes_nothing_else(tmp_path, whole):
    for number, device in ((1, "cpu"), (2, "cuda H100"), (3, "cpu")):
        made = target(tmp_path, number, 3)
        encode(made, device=device)
        merge(made)
    assert read_manifest(tmp_path / "X.h5")["made_with"] == {"torch": "1", "device": "cpu; cuda H100"}
    assert (tmp_path / "X.h5").read_bytes()[8192:] == whole[8192:]


def test_a_finished_file_is_found_by_every_shard(tmp_path, whole):
    (tmp_path / "X.h5").write_bytes(whole)
    for number, of in ((1, 2), (2, 2), (7, 9)):
        made = target(tmp_path, number, of)
        assert made.found()
        assert merge(made).whole
    assert is_whole(tmp_path, whole)


def test_one_process_makes_shards_that_are_there_superfluous(tmp_path, whole):
    run(tmp_path, 1, 3)
    late = target(tmp_path, 2, 3)
    encode(late)
    assert run(tmp_path, 1, 1).whole
    assert is_whole(tmp_path, whole)
    assert merge(late).whole


# ---------------------------------------------------------------------------------------------- killed


@pytest.mark.faults("killed for real, extraction resumed")
def test_a_killed_shard_goes_on_where_it_was(tmp_path, whole):
    run(tmp_path, 1, 2)
    killed = process(tmp_path, "t.encode(t.target(folder, 2, 2), blocks=1, stop=t.kill)")
    assert killed.wait(60) == -signal.SIGKILL
    assert left(tmp_path) == ["X.h5.shard-1-of-2", "X.h5.shard-2-of-2.part"]
    again = target(tmp_path, 2, 2)
    assert not again.found()
    assert encode(again) == [slice(12, 16), slice(16, 18)]
    assert merge(again).whole
    assert is_whole(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.faults("killed for real, extraction resumed")
@pytest.mark.parametrize("at", [4, 8, 18])  # rows that are merged
def test_a_killed_merge_is_done_again(tmp_path, whole, at):
    for number in (1, 2):
        run(tmp_path, number, 3)
    stop = "lambda done, _: done < int(sys.argv[2]) or t.kill()"
    code = f"made = t.target(folder, 3, 3); t.encode(made); t.merge(made, progress={stop})"
    assert process(tmp_path, code, at).wait(60) == -signal.SIGKILL
    assert len(left(tmp_path)) == 4  # the unfinished file, and every shard
    assert not (tmp_path / "X.h5").exists()
    assert run(tmp_path, 1, 3).whole
    assert is_whole(tmp_path, whole)


def test_shards_that_a_kill_left_behind_are_removed_later(tmp_path, whole, monkeypatch):
    run(tmp_path, 1, 2)
    monkeypatch.setattr(shards, "remove_shards", lambda *_: None)
    run(tmp_path, 2, 2)
    monkeypatch.undo()
    assert left(tmp_path) == ["X.h5", "X.h5.shard-1-of-2", "X.h5.shard-2-of-2"]
    assert run(tmp_path, 1, 1).whole
    assert is_whole(tmp_path, whole)


def test_the_shard_that_another_process_is_at_stays(tmp_path, whole):
    (tmp_path / "X.h5").write_bytes(whole)
    with FeatureWriter(tmp_path / "X.h5.shard-2-of-3", ITEM[4:8], (), DIM, RECIPE, BLOCK):
        shards.remove_shards(tmp_path / "X.h5")
        assert left(tmp_path) == ["X.h5", "X.h5.shard-2-of-3.part"]
        with pytest.raises(LockedError), locked(tmp_path / "X.h5.shard-2-of-3"):
            pass
    shards.remove_shards(tmp_path / "X.h5")
    assert left(tmp_path) == ["X.h5"]


# ---------------------------------------------------------------------------------------------- changed, stale, damaged


def test_only_the_blocks_that_changed_since_are_done_again(tmp_path):
    run(tmp_path, 1, 2)
    again = target(tmp_path, 1, 2, changed={5})
    assert not again.found()
    assert encode(again, changed={5}) == [slice(4, 8)]
    run(tmp_path, 2, 2, changed={5})
    made = read_features(tmp_path / "X.h5")
    assert made.x[5].tolist() == (X[5] + 1).tolist()
    assert made.source.tobytes() == sources(slice(0, 18), {5}).tobytes()


def test_each_shard_looks_for_what_changed_in_its_own_rows(tmp_path, whole):
    (tmp_path / "X.h5").write_bytes(whole)
    assert target(tmp_path, 1, 2, changed={9}).found()
    with pytest.raises(StaleError, match=r"items, photos or captions changed since the extraction: .*X\.h5"):
        target(tmp_path, 2, 2, changed={9}).found()


OTHER = RECIPE | {"crop": {"size": 112}}


@pytest.mark.faults("stale: one field of the recipe")
def test_a_shard_of_another_recipe_is_refused_by_its_field(tmp_path, whole):
    run(tmp_path, 1, 2, recipe=OTHER)
    words = r"shard was made with crop\.size = 112, but this call has 224: .*X\.h5\.shard-1-of-2"
    with pytest.raises(StaleError, match=words):
        target(tmp_path, 1, 2).found()
    with pytest.raises(StaleError, match=words):
        run(tmp_path, 2, 2)
    assert left(tmp_path) == ["X.h5.shard-1-of-2", "X.h5.shard-2-of-2"]
    assert run(tmp_path, 2, 2, overwrite=True).missing == (1,)
    assert run(tmp_path, 1, 2, overwrite=True).whole
    assert is_whole(tmp_path, whole)


@pytest.mark.faults("stale: one field of the recipe")
def test_an_unfinished_file_of_another_recipe_is_refused_before_anything_is_encoded(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        encode(target(tmp_path, recipe=OTHER), blocks=2)
    with pytest.raises(StaleError, match=r"unfinished file was made with crop\.size = 112.*X\.h5\.part"):
        target(tmp_path, 1, 2).found()
    assert not target(tmp_path, 1, 2, recipe=OTHER).found()
    run(tmp_path, 1, 2, overwrite=True)
    assert run(tmp_path, 2, 2, overwrite=True).whole
    assert is_whole(tmp_path, whole)


@pytest.mark.faults("stale: one field of the recipe")
@pytest.mark.parametrize("finished", [True, False])
def test_shards_of_another_number_are_refused_or_removed(tmp_path, whole, finished):
    if finished:
        run(tmp_path, 1, 3)
    else:
        with pytest.raises(KeyboardInterrupt):
            encode(target(tmp_path, 1, 3), blocks=0)
    with pytest.raises(
        StaleError, match=r"there are shards I/3, but this call makes one of 2: .*shard-1-of-3: finish them"
    ):
        target(tmp_path, 1, 2).found()
    run(tmp_path, 1, 2, overwrite=True)
    assert left(tmp_path) == ["X.h5.shard-1-of-2"]
    assert run(tmp_path, 2, 2, overwrite=True).whole
    assert is_whole(tmp_path, whole)


@pytest.mark.faults("stale: one field of the recipe")
def test_a_shard_of_other_captions_is_not_merged(tmp_path):
    run(tmp_path, 1, 2, item=np.sort(np.append(ITEM[:-1], 0)).astype(np.int32))
    with pytest.raises(StaleError, match="made of other captions"):
        run(tmp_path, 2, 2)


def test_a_file_that_is_to_be_replaced_stays_until_all_shards_are_there(tmp_path, whole):
    run(tmp_path, 1, 1, recipe=OTHER)
    old = (tmp_path / "X.h5").read_bytes()
    with pytest.raises(StaleError, match=r"feature file was made with crop\.size = 112"):
        target(tmp_path, 1, 2).found()
    assert run(tmp_path, 1, 2, overwrite=True).missing == (2,)
    assert (tmp_path / "X.h5").read_bytes() == old
    assert run(tmp_path, 2, 2, overwrite=True).whole
    assert is_whole(tmp_path, whole)


@pytest.mark.faults("flipped bit")
def test_a_damaged_shard_is_never_merged(tmp_path, whole):
    run(tmp_path, 1, 2)
    path = tmp_path / "X.h5.shard-1-of-2"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"shard-1-of-2: delete it and create it again"):
        run(tmp_path, 2, 2)
    with pytest.raises(DamagedError, match=r"shard-1-of-2: delete it and create it again"):
        target(tmp_path, 1, 2).found()
    assert not (tmp_path / "X.h5").exists()
    path.unlink()
    assert run(tmp_path, 1, 2).whole
    assert is_whole(tmp_path, whole)


@pytest.mark.faults("second writer, reader meanwhile")
def test_two_processes_with_the_same_number_are_one_too_many(tmp_path):
    with target(tmp_path, 1, 2).writer(), pytest.raises(LockedError, match="being written by process .*shard-1-of-2"):
        encode(target(tmp_path, 1, 2))
