"""Progress of work that had none: closed forms, word2vec, stores, plots; and how bars and lines show it."""

import io
from contextlib import closing
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from cmrhash.config import PlotConfig, TrainConfig
from cmrhash.data.view import View
from cmrhash.evaluation.jobs import Job, Shared, train_each
from cmrhash.search.hasher import Hasher
from cmrhash.search.publish import deploy
from cmrhash.search.stores import open_store
from cmrhash.training.kernel_codes import CODES, REGRESSION, VAL, Stages
from cmrhash.training.train import train
from cmrhash_cli import bar_columns, output


class Seen(list):
    """Calls of a progress function."""

    def __call__(self, what, done, total, note=""):
        self.append((what, done, total, note))

    def ends(self):
        """Task -> whether it began at 0, never went back, and ended at its total."""
        tasks = {what: [call for call in self if call[0] == what] for what in dict.fromkeys(call[0] for call in self)}
        return {
            what: calls[0][1] == 0 and calls[-1][1] == calls[-1][2] and calls == sorted(calls, key=lambda one: one[1])
            for what, calls in tasks.items()
        }


@pytest.fixture(scope="module")
def data(make_cache, tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("progress") / "cache")


@pytest.mark.parametrize(
    ("method", "awaited"), [("cca", "ridge 0.01: val mAP"), ("krr-ap", "hash heads, image (stage 5 of 8)")]
)
def test_a_closed_form_says_how_far_it_is(data, tmp_path, monkeypatch, method, awaited):
    monkeypatch.setattr("cmrhash.training.kernel_codes.STEPS", 10)
    seen = Seen()
    train(TrainConfig(method=method, bits=8, device="cpu"), data, tmp_path, progress=seen)
    assert seen.ends() == {f"{method} 8 bits": True}
    assert any(awaited in note for *_, note in seen)


def test_stages_of_kernel_ridge_have_the_shares_of_their_time():
    seen = []
    stages = Stages([View.IMAGE, View.text("de")], lambda *call: seen.append(call))
    stages.show(REGRESSION, View.text("de"))
    stages.show(CODES, part=0.5)
    stages.show(VAL)
    stages.finish("val mAP 0.5")
    assert seen == [
        (12, 100, "kernel ridge regression, de (stage 2 of 6)"),
        (60, 100, "training of the codes (stage 3 of 6)"),
        (93, 100, "val mAP (stage 6 of 6)"),
        (100, 100, "val mAP 0.5"),
    ]


def test_a_closed_form_among_jobs_counts_what_it_does_and_no_epochs(data, tmp_path):
    seen = Seen()
    jobs = [Job("one", TrainConfig(method="cca", bits=8, epochs=20, device="cpu"), tmp_path)]
    train_each(jobs, Shared(data, (), ()), progress=seen)
    own = [call[1:] for call in seen if call[0] == "run"]
    assert [call[:2] for call in own] == [*((done, 5) for done in range(6)), (5, 5)]
    assert own[2][2].startswith("one: ridge 0.01: val mAP ")
    assert own[-1][2] == "one: codes of all items"
    assert seen.ends()["grid"]


def test_a_store_and_plots_say_what_they_wait_for(data, tmp_path):
    run, _ = train(TrainConfig(bits=8, epochs=1, hidden=8, device="cpu"), data, tmp_path / "runs")
    seen = Seen()
    with closing(Hasher.open(run, data)) as hasher, closing(open_store(f"faiss:{tmp_path / 'store'}")) as store:
        deploy(run, hasher.dataset, hasher.views, store, progress=seen)
    name = f"toy-{run.folder.name}-image"
    assert seen.ends().items() >= {name: True, f"{name}: index": True}.items()
    pytest.importorskip("matplotlib")
    from cmrhash.show.figures import draw

    seen = Seen()
    draw(PlotConfig(kinds=("training", "distances"), formats=("svg",)), data, tmp_path / "runs", seen)
    assert seen.ends() == {"plots": True}
    assert [note for *_, note in seen if "Hamming distances" in note]


def test_word2vec_counts_its_epochs(monkeypatch):
    pytest.importorskip("gensim", reason="gensim, the extra 'words', is not installed")
    from cmrhash.encoders import bag_and_vectors, word_vectors

    monkeypatch.setitem(word_vectors.WORD2VEC, "vector_size", 8)
    words = np.array(["dog", "car", "snow", "red"])
    texts = {"en": [" ".join(words[[n % 4, n % 3]]) for n in range(20)]}
    seen = Seen()
    bag_and_vectors.load("word2vec", texts, texts, vocabulary=1, progress=seen)
    assert [call[:3] for call in seen] == [("en word2vec", at, 20) for at in range(21)]


def test_one_step_of_unknown_length_moves_until_it_is_done(monkeypatch):
    from rich.progress import Progress

    totals, real = [], Progress.update

    def update(bars, task, **values):
        totals.append((values["completed"], values["total"]))
        return real(bars, task, **values)

    monkeypatch.setattr(Progress, "update", update)
    bars = output._bars()
    show = next(bars)
    show("index", 0, 1, "the store")
    show("index", 1, 1)
    show("photos", 0, 5)
    bars.close()
    assert totals == [(0, None), (1, 1), (0, 5)]


@pytest.mark.parametrize(("width", "bar"), [(40, 10), (80, 10), (250, 31)])
def test_a_long_note_leaves_room_for_the_bar_and_its_figures(monkeypatch, width, bar):
    import rich.console

    screen, real = io.StringIO(), rich.console.Console
    wide = {"width": width, "force_terminal": True, "color_system": None, "legacy_windows": False}
    monkeypatch.setattr(rich.console, "Console", lambda **_: real(file=screen, **wide))
    bars = output._bars()
    show = next(bars)
    show("run", 60, 60, "krr-ap-symmetric, 64 bits, seed 2: " + "kernel ridge regression, " * 9 + "best 0.895")
    show("loading " + "a/b" * 99, 2, 5)
    bars.close()
    shown = screen.getvalue().split("\x1b[2K")[-1].splitlines()
    first, second = next((a, b) for a, b in pairwise(shown) if "60/60" in a)
    assert first.count("━") == bar
    assert " kr" in first
    assert first.rstrip().endswith("895")
    assert "…" in first
    assert second.startswith("l")
    assert " 2/5" in second
    assert max(map(len, shown)) <= width


def test_a_finished_bar_shows_the_time_that_it_took():
    from rich.progress import Task

    task = Task(0, "grid", 2, 2, finished_time=75.0, _get_time=lambda: 0.0)
    times = [column for column in bar_columns.columns(80) if isinstance(column, bar_columns.Left)]
    assert [str(column.render(task)) for column in times] == ["0:01:15"]


def test_a_line_is_one_write(monkeypatch):
    """Processes that share stderr would write into each other's lines."""
    written = []
    monkeypatch.setattr(output.sys, "stderr", SimpleNamespace(write=written.append, isatty=lambda: False))
    with output.progress_bars(False) as progress:
        progress("photos", 0, 8, "waits")
    output.note("a\x1bb")
    with pytest.raises(SystemExit):
        output._fail("no disk", 5, False)
    assert written == ["photos: 0/8  waits\n", "a\\x1bb\n", "error: no disk\n"]


def test_a_single_step_is_one_line(monkeypatch):
    written = []
    monkeypatch.setattr(output, "note", written.append)
    lines = output._Lines()
    for done in (0, 1):
        lines("loading resnet18", done, 1)
        lines("grid", done, 1)
    assert written == ["loading resnet18 ...", "grid: 0/1", "grid: 1/1"]


def test_the_time_of_a_grid_is_that_of_its_note_alone(monkeypatch):
    from rich.progress import Progress, TimeRemainingColumn

    written, now = [], [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(output, "note", written.append)
    lines = output._Lines()
    for done in (0, 1):
        lines("grid", done, 4, "about 3 min left")
        lines("run", done, 4, "one")
        now[0] += 10
    assert written[2:] == ["grid: 1/4  about 3 min left", "run: 1/4, 0.1/s, 30 s left  one"]
    monkeypatch.setattr(TimeRemainingColumn, "render", lambda column, task: task.description)
    seen, real = [], Progress.update
    monkeypatch.setattr(Progress, "update", lambda bars, *a, **values: (seen.append(bars), real(bars, *a, **values)))
    bars = output._bars()
    show = next(bars)
    show("grid", 0, 4)
    show("run", 0, 4)
    assert [str(seen[0].columns[4].render(task)) for task in seen[0].tasks] == ["", "run"]
    bars.close()
