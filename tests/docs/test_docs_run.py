"""Every line of code in the README and docs/cli.md, which are the examples of --help, is run or named as not run."""

from __future__ import annotations

import re

import pytest
from doc_steps import (
    ANY_DATASET,
    APPENDED,
    BEFORE,
    LEFT_OFF,
    MEANT,
    NOT_RUN,
    POSTGRES,
    RUNNERS,
    SECTIONS,
    STEPS,
    STORE,
    VARIABLES,
    Page,
    left_out,
)
from given import DATASETS, PLACED, datasets, places
from local_hub import WARNING
from pages import calls

from cmrhash.config import SAMPLE_DATASET

pytestmark = pytest.mark.slow

HALF = [one for one in SECTIONS if one.page.name in ("README.md", "cli.md")]  # the others: test_docs_run_pages.py


@pytest.mark.filterwarnings(WARNING)
@pytest.mark.parametrize("section", HALF, ids=str)
def test_a_section_runs(section, request):
    Page(request).run(section)


def test_every_step_is_run_or_said_not_to_be():
    """What fails here wants a runner in RUNNERS, or a reason in NOT_RUN."""
    assert not [step for step in STEPS if not left_out(step) and not any(re.match(start, step) for start in RUNNERS)]


def test_nothing_is_said_of_what_is_in_no_page():
    text = "\n".join(STEPS)
    commands = [" ".join(words) + " " for step in STEPS for words in calls(step)]
    assert not [start for start in NOT_RUN if not any(step.startswith(start) for step in STEPS)]
    assert not [pattern for pattern in RUNNERS if not any(re.match(pattern, step) for step in STEPS)]
    assert not [command for command, _, _ in APPENDED if not any(re.match(command, words) for words in commands)]
    assert not [name for name in PLACED if not places(name, text)]
    assert set.union(*(datasets(section)[1] for section in SECTIONS)) - {SAMPLE_DATASET} == set(DATASETS)
    assert not [mark for mark in (*ANY_DATASET, POSTGRES, STORE, *MEANT, *VARIABLES) if mark not in text]
    assert not LEFT_OFF.keys() - set(STEPS)
    assert not BEFORE.keys() - {str(section) for section in SECTIONS}
