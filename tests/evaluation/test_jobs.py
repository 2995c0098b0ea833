"""Several trainings at a time: the same files as one by one, and nothing lost when a process dies."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from slow_scores import QUICK

from cmrhash.config import CompareConfig
from cmrhash.errors import CmrhashError, DataError, UsageError
from cmrhash.evaluation import jobs, worker, workers
from cmrhash.evaluation.compare import compare
from cmrhash.evaluation.jobs import Job, Shared, train_each
from cmrhash.training.methods import METHODS

STAND_IN = str(Path(__file__).parents[1] / "helpers/stand_in_worker.py")


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture
def stood_in(make_cache, tmp_path, monkeypatch):
    """A function that runs jobs of these names in two processes that train nothing: (results, progress)."""
    monkeypatch.setattr(workers, "WORKER", (STAND_IN,))
    monkeypatch.setattr(jobs.runs, "open_run", lambda folder: folder)
    data = make_cache(tmp_path / "cache")

    def call(*names, **options):
        seen = []
        wanted = [Job(name, replace(QUICK, seed=seed), tmp_path) for seed, name in enumerate(names)]
        return train_each(wanted, Shared(data), 2, lambda *a: seen.append(a), **options), seen

    return call


@pytest.mark.slow
def test_two_processes_write_what_one_writes_byte_for_byte(make_cache, tmp_path):
    """5 s: PyTorch is imported in two processes."""
    data = make_cache(tmp_path / "cache")
    grid = CompareConfig(methods=("triplet", "cca"), bits=(8,), langs=("de",), seeds=2, against="cca")
    apart = compare(replace(grid, jobs=2), QUICK, data, tmp_path / "two")
    assert compare(grid, QUICK, data, tmp_path / "one").rows == apart.rows
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert len(one) > 30
    assert one == two


def test_one_display_counts_all_jobs(stood_in, tmp_path):
    found, seen = stood_in("a", "b", "c")
    assert found == [str(tmp_path)] * 3
    done = [done for what, done, *_ in seen if what == "grid"]
    assert (done, done[-1]) == (sorted(done), 3)
    assert {what for what, *_ in seen} == {"grid", "process 1", "process 2"}
    assert {total for what, _, total, _ in seen if what == "grid"} == {3}


def test_a_closed_form_refuses_its_bits_before_anything_is_trained(make_cache, tmp_path):
    configs = [QUICK, replace(QUICK, method="krr-ap"), replace(QUICK, method="cca", bits=200)]
    wanted = [Job(one.method, one, tmp_path / "runs") for one in configs]
    with pytest.raises(UsageError, match="cca allows at most .* features: use fewer bits, or another method"):
        train_each(wanted, Shared(make_cache(tmp_path / "cache")))
    assert not (tmp_path / "runs").exists()


def test_a_process_that_dies_ends_the_call_in_one_line_and_lets_the_others_save(stood_in, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "cmrhash"), pytest.raises(CmrhashError) as error:
        stood_in("waits", "dies", "never")
    assert str(error.value).startswith("dies: its process was killed by SIGKILL: use fewer `jobs`")
    assert (tmp_path / "saved").exists()
    assert {"about waits", "about dies"} <= set(caplog.messages)


def test_ctrl_c_lets_the_processes_save(stood_in, tmp_path, monkeypatch):
    answers = workers.Workers.next_answer

    def interrupted(self):
        at, answer = answers(self)
        if answer.get("done") == 1:
            raise KeyboardInterrupt
        return at, answer

    monkeypatch.setattr(workers.Workers, "next_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stood_in("waits", "a")
    assert (tmp_path / "saved").exists()


def test_an_error_of_a_training_is_that_of_this_process_or_a_result(stood_in, tmp_path):
    with pytest.raises(DataError, match=r"^lr: no good: there: mend it$"):
        stood_in("a", "fails")
    found, _ = stood_in("fails", "a", tolerated=(DataError,))
    assert (type(found[0]), found[1]) == (DataError, str(tmp_path))
    with pytest.raises(CmrhashError, match="unexpected ValueError: x: rerun without `jobs`"):
        stood_in("breaks")


def test_a_worker_answers_as_the_other_side_expects(make_cache, tmp_path):
    shared = Shared(make_cache(tmp_path / "cache"), (), ("de",), "labels")
    good = Job("good", replace(QUICK, bits=8, epochs=1), tmp_path / "runs")
    bad = replace(good, name="bad", config=replace(good.config, lr=1e12, bits=16, epochs=3))
    lines = [json.dumps(line) for line in (shared.as_json(), good.as_json(), bad.as_json(), None)]
    told = []
    worker.serve(lambda: lines.pop(0), told.append)
    assert told[0] == {"done": 0, "total": 1, "note": ""}
    assert told[2] == {"done": 1, "total": 1, "note": "codes of all items"}
    assert Path(told[3]["finished"]) == tmp_path / "runs/toy/triplet-8"
    assert (tmp_path / "runs/toy/triplet-8/metrics.json").exists()
    assert "lower `lr`" in str(workers.error_of(told[-1]["error"]))
    again = workers.error_of(worker.error_as_json(OSError(28, "No space left on device", "there")))
    assert (again.errno, again.filename) == (28, "there")


def test_what_cannot_be_started_is_refused(make_cache, tmp_path, monkeypatch):
    data = make_cache(tmp_path / "cache")
    with pytest.raises(UsageError, match="^jobs: 0 is out of range"):
        compare(CompareConfig(jobs=0), QUICK, data, tmp_path / "runs")
    monkeypatch.setitem(METHODS, "mine", METHODS["triplet"])
    with pytest.raises(UsageError, match="^jobs: 'mine' is a method of this program"):
        train_each([Job("mine", replace(QUICK, method="mine"), tmp_path / "runs")], Shared(data), 2)
    assert not (tmp_path / "runs").exists()
    assert Job.read(json.loads(json.dumps(Job("a", QUICK, tmp_path).as_json()))).config == QUICK
