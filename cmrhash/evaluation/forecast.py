"""How long a grid of trainings will take, by those of the same method that are finished."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from statistics import fmean

ENOUGH = 0.1  # of a training: the share from which those in work say how long their method takes


class Forecast:
    """Time left of several trainings. methods: of all of them; processes: trainings at a time."""

    def __init__(self, methods: Iterable[str], processes: int = 1) -> None:
        self._waiting, self._processes = Counter(methods), processes
        self._seconds: dict[str, list[float]] = {}  # method -> of its finished trainings
        # title -> method, begin and share then, last report and share then
        self._present: dict[str, tuple[str, float, float, float, float]] = {}

    def show(self, title: str, method: str, share: float) -> None:
        """Take note of a training in work. title: of its progress; share: what is done of it, from 0 to 1."""
        now = time.monotonic()
        if title not in self._present:
            self._waiting[method] -= 1
        _, began, first, *_ = self._present.get(title, (method, now, share))
        self._present[title] = method, began, first, now, share

    def finish(self, title: str, method: str) -> None:
        """Take note of a finished training, or of a run that was there, which was never shown."""
        if title not in self._present:
            self._waiting[method] -= 1
            return
        _, began, first, *_ = self._present.pop(title)
        if first < 1:  # a part of it was resumed
            self._seconds.setdefault(method, []).append((time.monotonic() - began) / (1 - first))

    def __str__(self) -> str:
        """The time left in words, with the methods that nothing is known of; "" if nothing is known at all."""
        known = {**self._by_share(), **{method: fmean(seconds) for method, seconds in self._seconds.items()}}
        own, now, unknown = [0.0], time.monotonic(), self._waiting.copy()  # own: of the trainings in work
        for method, began, first, *_ in self._present.values():
            unknown[method] += method not in known
            own.append(max(0.0, known.get(method, 0.0) * (1 - first) - (now - began)))
        left = sum(own) + sum(seconds * unknown.pop(method, 0) for method, seconds in known.items())
        left = max(left / self._processes, *own)
        others = ", ".join(f"{count} of {method}" for method, count in unknown.items() if count)
        about = "at least" if others else "about"
        parts = [f"{about} {_in_words(left)} left"] if left else []
        parts += [f"{others} to train"] if others and known else []
        return ", and ".join(parts)

    def _by_share(self) -> dict[str, float]:
        """Seconds of a training by method, by all those in work together: of one alone they would go up and down."""
        seconds, done = defaultdict[str, float](float), defaultdict[str, float](float)
        for method, began, first, reported, share in self._present.values():
            seconds[method] += reported - began
            done[method] += share - first
        return {method: seconds[method] / done[method] for method in done if done[method] >= ENOUGH}


def _in_words(seconds: float) -> str:
    """A time without digits that mean nothing."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
