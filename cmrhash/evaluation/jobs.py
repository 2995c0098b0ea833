"""Trainings of a grid, one after another in this process or several at a time in processes of one thread each.

Each process is a ``cmrhash.evaluation.worker``. If one dies, fails or is interrupted, the others save what they are
training; finished runs stay, and a rerun resumes. Results do not depend on the number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from cmrhash.config import GRID, EvalConfig, Progress, TrainConfig
from cmrhash.errors import CmrhashError, StaleError, UsageError
from cmrhash.evaluation.evaluate import refuse_languages, score
from cmrhash.evaluation.forecast import Forecast
from cmrhash.evaluation.run_codes import codes_of
from cmrhash.evaluation.workers import Workers, error_of
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.training import runs
from cmrhash.training.methods import BUILT_IN, get_method
from cmrhash.training.task import run_folder
from cmrhash.training.train import train

Told = Callable[[int, int, str], None]  # takes finished steps, all steps and a note, as Progress does
Result = runs.Run | CmrhashError


@dataclass(frozen=True)
class Job:
    """One training. name: as it is called in messages; out: the folder of all runs."""

    name: str
    config: TrainConfig
    out: Path

    def as_json(self) -> dict[str, Any]:
        """The job for a worker."""
        return {"name": self.name, "config": asdict(self.config), "out": str(self.out)}

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Job:
        """The job that ``as_json`` described."""
        config = TrainConfig(**{**line["config"], "langs": tuple(line["config"]["langs"])})
        return cls(line["name"], config, Path(line["out"]))


@dataclass(frozen=True)
class Shared:
    """What all trainings share.

    encoders: as ``train`` takes them. langs: languages that every run must be able to score; None: runs get no codes
    and no scores. relevance: of the scoring.
    """

    data: ExtractedDataset
    encoders: tuple[str, ...] = ()
    langs: tuple[str, ...] | None = None
    relevance: str | None = None

    def as_json(self) -> dict[str, Any]:
        """What a worker reads first."""
        cache, name = str(self.data.folder.parent), self.data.folder.name
        level = logging.getLogger("cmrhash").getEffectiveLevel()
        return {"cache": cache, "name": name, "own": self.data.dataset.relevance, "level": level} | {
            key: getattr(self, key) for key in ("encoders", "langs", "relevance")
        }

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Shared:
        """What ``as_json`` described; the data set is opened."""
        data = ExtractedDataset.open(line["cache"], line["name"]).with_relevance(line["own"])
        langs = None if line["langs"] is None else tuple(line["langs"])
        return cls(data, tuple(line["encoders"]), langs, line["relevance"])


def check_jobs(count: int | None) -> None:
    """Raise UsageError for a number of processes that cannot be started."""
    if count is not None and count < 1:
        raise UsageError(f"{count} is out of range", None, "give a whole number from 1", option="jobs")


def train_each(
    jobs: Sequence[Job],
    shared: Shared,
    processes: int | None = None,
    progress: Progress = lambda *_: None,
    tolerated: tuple[type[CmrhashError], ...] = (),
) -> list[Result]:
    """Train or find the run of every job, in the order of the jobs.

    Existing runs come first, so that one of another recipe is refused before any training, then closed forms, which
    take seconds and may refuse the number of bits. processes: None for this
    process with all its threads. progress: GRID counts jobs, "run" the steps of the present one (epochs, or parts of
    a closed form), "process N" those of a process. tolerated: errors of a training that take its place in the result;
    others end the call. Raises CmrhashError if a process dies.
    """
    check_jobs(processes)
    if processes and (own := [job.config.method for job in jobs if job.config.method not in BUILT_IN]):
        what = f"'{own[0]}' is a method of this program, which other processes do not have"
        raise UsageError(what, None, "leave it out", option="jobs")
    turns = [_turn(job, shared) for job in jobs]
    parts = [[at for at in range(len(jobs)) if turns[at] == turn] for turn in range(3)]
    board, found = _Board(progress, jobs, processes or 1), dict[int, Result]()
    if processes is None:
        for at in chain(*parts):
            found[at] = _here(jobs[at], shared, board, tolerated)
    else:
        with Workers(min(processes, len(jobs)), shared.as_json()) as workers:
            for part in parts:
                found |= _spread(workers, {at: jobs[at] for at in part}, board, tolerated)
    return [found[at] for at in range(len(jobs))]


def _turn(job: Job, shared: Shared) -> int:
    """0 for a run that exists, 1 for a closed form that takes seconds, 2 for all others."""
    if (run_folder(job.config, shared.data, job.out) / runs.CONFIG).exists():
        return 0
    method = get_method(job.config.method)
    return 1 if method.terms is None and not method.kernel else 2


def work(job: Job, shared: Shared, told: Told, scored: bool = True) -> runs.Run:
    """Train or find one run, with its codes and scores."""
    steps = 1

    def show(_what: str, done: int, total: int, note: str = "") -> None:
        nonlocal steps
        steps = total
        told(done, total, note)

    try:
        run, fresh = train(job.config, shared.data, job.out, shared.encoders, progress=show)
    except StaleError as error:
        if error.where != run_folder(job.config, shared.data, job.out):
            raise
        fix = "use the settings of that run, or another `runs`, or delete it"
        raise StaleError(f"{job.name}: {error.what}", error.where, fix) from None
    if shared.langs is not None:
        if fresh:
            told(steps, steps, "codes of all items")
        codes_of(run, shared.data)
        refuse_languages([run], shared.data, shared.langs)
        if scored:
            score(EvalConfig(langs=shared.langs), [run], shared.data.with_relevance(shared.relevance))
    return run


def _here(job: Job, shared: Shared, board: _Board, tolerated: tuple[type[CmrhashError], ...]) -> Result:
    """Train in this process. Scores are left to the caller, who has what runs share in memory."""
    try:
        return work(job, shared, partial(board.show, "run", job), scored=False)
    except tolerated as error:
        return error
    finally:
        board.finish("run", job)


def _spread(
    workers: Workers, jobs: Mapping[int, Job], board: _Board, tolerated: tuple[type[CmrhashError], ...]
) -> dict[int, Result]:
    """Let the processes train these jobs; each gets the next one when it has finished."""
    waiting, found = list(jobs), dict[int, Result]()
    free, busy = list(range(len(workers))), dict[int, int]()  # processes; process -> its job
    while waiting or busy:
        while free and waiting:
            worker, at = free.pop(0), waiting.pop(0)
            busy[worker] = at
            workers.give(worker, jobs[at].name, jobs[at].as_json())
        worker, answer = workers.next_answer()
        job, title = jobs[busy[worker]], f"process {worker + 1}"
        if "done" in answer:
            board.show(title, job, answer["done"], answer["total"], answer["note"])
            continue
        result = error_of(answer["error"]) if "error" in answer else runs.open_run(answer["finished"])
        if isinstance(result, Exception) and not isinstance(result, tolerated):
            raise result
        found[busy.pop(worker)] = result
        free.append(worker)
        board.finish(title, job)
    return found


class _Board:
    """Progress of all jobs, and of those in work by the title of their bar."""

    def __init__(self, progress: Progress, jobs: Sequence[Job], processes: int) -> None:
        self._progress, self._jobs, self._finished = progress, len(jobs), 0
        self._forecast = Forecast((job.config.method for job in jobs), processes)

    def show(self, title: str, job: Job, done: int, total: int, note: str) -> None:
        """Show a job in work. done, total: its steps so far, and all of them."""
        self._forecast.show(title, job.config.method, done / total)
        self._progress(GRID, self._finished, self._jobs, str(self._forecast))
        self._progress(title, done, total, f"{job.name}{': ' if note else ''}{note}")

    def finish(self, title: str, job: Job) -> None:
        """Count a job."""
        self._forecast.finish(title, job.config.method)
        self._finished += 1
        self._progress(GRID, self._finished, self._jobs, str(self._forecast))
