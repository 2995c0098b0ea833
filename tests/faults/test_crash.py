"""A crash at every write: the folder is rebuilt as it may be then, and opened again through real files.

What is written is recorded as system calls of a real process (`tracing`), what a crash may leave of it is in
`crash_model`, what is written and what must hold afterwards in `crash_scenes`.
"""

import itertools
import os
import shutil

import crash_naive
import crash_scenes
import pytest
import tracing
from crash_model import LOCK, History
from crash_scenes import MUTANTS, SCENES

pytestmark = pytest.mark.slow

MODELS = {"killed": History.killed, "torn": History.torn, "power cut": History.power_cut}
by_model = pytest.mark.parametrize(
    "model", [pytest.param(m, marks=pytest.mark.faults(f"crash at a write: {m}"), id=m) for m in MODELS]
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Of every scene: its history, and the folder in which it was done."""
    base = tmp_path_factory.mktemp("recorded")
    events = tracing.record([crash_scenes.__file__, str(base)])
    starts = [at for at, event in enumerate(events) if event.data.startswith(b"scene ")]
    found = {}
    for first, last in itertools.pairwise([*starts, len(events)]):
        folder = base / events[first].data.decode().removeprefix("scene ").strip()
        found[folder.name] = History(events[first + 1 : last], folder)
    return found, base


@pytest.fixture
def rebuilt(tmp_path, monkeypatch):
    """A function that rebuilds a folder after a crash and checks it: "fine" or what is wrong, and how much is lost."""
    monkeypatch.setattr("os.fsync", lambda _: None)  # the machine stays up from here on

    def judge(scene, crash, whole):
        folder = tmp_path / "rebuilt"
        folder.mkdir()
        crash.rebuild(folder)
        try:
            lost = scene.check(folder, crash.said, whole)
            return ("lost" if lost else "fine"), lost
        except AssertionError as error:
            return f"wrong: {error}", 0
        except Exception as error:
            return f"unusable: {error!r}", 0
        finally:
            shutil.rmtree(folder)

    return judge


def different(crashes):
    """Those that leave something else behind than the ones before them."""
    seen = set()
    for crash in crashes:
        if crash.key not in seen:
            seen.add(crash.key)
            yield crash


def test_the_recording_is_complete(recorded):
    """All calls, replayed, give the files that are there: none is missed, none misread."""
    histories, base = recorded
    for name, history in histories.items():
        paths = [path for path in (base / name).rglob("*") if path.is_file() and path.suffix != LOCK]
        files = {str(path.relative_to(base / name)): path.read_bytes() for path in paths}
        assert files == history.whole().files, name
        assert files, name


@by_model
@pytest.mark.parametrize("scene", SCENES)
def test_nothing_finished_is_lost_and_nothing_wrong_is_read(model, scene, recorded, rebuilt, faults):
    history = recorded[0][scene]
    whole, bad = history.whole().files, []
    share = 1 if "CMRHASH_CRASHES" in os.environ else SCENES[scene].share
    for at, crash in itertools.islice(enumerate(different(MODELS[model](history))), 0, None, share):
        what, lost = rebuilt(SCENES[scene], crash, whole)
        faults.tried += 1
        faults.survived += what == "fine"
        faults.lost += lost
        bad += [(at, what, lost)] if what != "fine" else []
    assert not bad, (len(bad), bad[:5])


@by_model
def test_the_naive_way_for_comparison(model, recorded, tmp_path, faults):
    """The same features appended to one file that is closed at the end: what of them a crash leaves, if anything."""
    said, paths = [], []
    for number, crash in enumerate(different(MODELS[model](recorded[0]["naive"]))):
        (tmp_path / str(number)).mkdir()
        crash.rebuild(tmp_path / str(number))
        paths.append(tmp_path / str(number) / "image.h5")
        said.append(len(crash.said))
    for promised, path, blocks in zip(said, paths, crash_naive.look(paths), strict=True):
        faults.naive_tried += 1
        faults.naive_survived += promised <= blocks < crash_naive.LOST if path.exists() else not promised
    assert 0 < faults.naive_survived < faults.naive_tried


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_check_notices(mutant, recorded, rebuilt):
    """What each of these measures is for: without it, some crash is not survived."""
    scene, history = MUTANTS[mutant], recorded[0][mutant]
    whole = history.whole().files
    crashes = (crash for crash in different(MODELS[scene.model](history)) if crash.said)
    with scene.mutant():
        assert any(rebuilt(scene, crash, whole)[0].startswith(scene.found) for crash in crashes)
