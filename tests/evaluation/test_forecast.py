"""The time that a grid of trainings still takes, in words."""

import pytest

from cmrhash.evaluation import forecast
from cmrhash.evaluation.forecast import Forecast


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test sets it: [seconds]."""
    now = [1000.0]
    monkeypatch.setattr(forecast.time, "monotonic", lambda: now[0])
    return now


def train(left, clock, method, seconds, steps=10, title="run"):
    """Train once; the words after each step."""
    words = []
    for step in range(steps + 1):
        left.show(title, method, step / steps)
        words.append(str(left))
        clock[0] += seconds / steps
    clock[0] -= seconds / steps
    left.finish(title, method)
    return words


def test_finished_trainings_of_a_method_say_how_long_the_others_of_it_take(clock):
    left = Forecast(["krr-ap"] * 3 + ["cca"] * 4)
    words = train(left, clock, "krr-ap", 600)
    assert words[0] == ""
    assert words[1] == "at least 29 min left, and 4 of cca to train"
    assert str(left) == "at least 20 min left, and 4 of cca to train"
    train(left, clock, "krr-ap", 600)
    assert train(left, clock, "krr-ap", 600)[5] == "at least 5 min left, and 4 of cca to train"
    assert train(left, clock, "cca", 20)[0] == "4 of cca to train"
    assert str(left) == "about 60 s left"
    for _ in range(3):
        train(left, clock, "cca", 20)
    assert str(left) == ""


def test_a_step_that_takes_long_does_not_move_the_time_once_a_training_is_finished(clock):
    left = Forecast(["krr-ap"] * 10)
    train(left, clock, "krr-ap", 60)
    left.show("run", "krr-ap", 0.0)
    clock[0] += 50  # of 60, in the first tenth of the steps
    left.show("run", "krr-ap", 0.1)
    assert str(left) == "about 8 min left"
    clock[0] += 50  # longer than expected
    assert str(left) == "about 8 min left"


def test_runs_that_are_there_take_no_time_and_resumed_ones_count_as_whole(clock):
    left = Forecast(["tie-ap"] * 4)
    left.finish("run", "tie-ap")
    assert str(left) == ""
    left.show("run", "tie-ap", 0.5)
    clock[0] += 7200
    left.show("run", "tie-ap", 1.0)
    left.finish("run", "tie-ap")
    assert str(left) == "about 8.0 h left"


def test_processes_share_the_trainings(clock):
    left = Forecast(["tie-ap"] * 6, processes=2)
    for title in ("process 1", "process 2"):
        left.show(title, "tie-ap", 0.0)
    clock[0] += 300
    for title in ("process 1", "process 2"):
        left.finish(title, "tie-ap")
    assert str(left) == "about 10 min left"


def test_the_last_training_has_one_process_to_itself(clock):
    left = Forecast(["tie-ap"] * 3, processes=2)
    train(left, clock, "tie-ap", 600)
    left.show("process 1", "tie-ap", 0.0)
    left.finish("process 2", "tie-ap")
    assert str(left) == "about 10 min left"


def test_trainings_in_work_share_their_rate(clock):
    """One that is slow for a while and one that is quick do not move the time in turn."""
    left, words = Forecast(["tie-ap"] * 8, processes=2), []
    for step in range(5):
        for title in ("process 1", "process 2"):
            clock[0] += 0 if title == "process 1" else 60
            left.show(title, "tie-ap", step / 10)
            words.append(str(left))
    minutes = [int(said.split()[1]) for said in words if said]
    assert minutes == sorted(minutes, reverse=True)
