"""Wrong codes, labels, scores and Faiss calls: one line of ours or the right answer, also where asserts are off."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import misuse
import pytest
from misuse import CALLS, RIGHT


def child(*args):
    """What became of every call in another interpreter, by its words."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    return dict(json.loads(line) for line in done.stdout.splitlines())


def survived(expected, outcome):
    """Of the naive way less is asked: the right answer, or any error that says a word."""
    kind, _, words = outcome.partition(":")
    return outcome == RIGHT if expected == RIGHT else kind.startswith("untyped") and bool(words.strip())


def test_the_words_for_each_are_its_own():
    assert len({call.what for call in CALLS}) == len(CALLS)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.what)
def test_it_is_refused_in_one_line_or_answered_rightly(call):
    assert misuse.outcome(call.ours) == call.expected


@pytest.mark.slow
@pytest.mark.faults("bad labels, codes, features, Faiss calls")
def test_so_it_is_without_asserts_and_the_naive_way_has_its_own(faults):
    found = child("-O", misuse.__file__, "ours")
    assert found == {call.what: call.expected for call in CALLS}
    faults.tried = faults.survived = len(CALLS)
    naive = child(misuse.__file__, "naive")
    assert naive["search without queries"] == RIGHT
    expected = {call.what: call.expected for call in CALLS if call.naive}
    faults.naive_tried = len(expected)
    faults.naive_survived = sum(survived(cls, naive.get(what, "crash")) for what, cls in expected.items())
