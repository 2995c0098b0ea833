"""How long a grid of trainings will take, by those of the same method that are finished."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from statistics import fmean

ENOUGH = 0.1  # of a training: the share from which its own time says how long a method takes


class Forecast:
    """Time left of several trainings. methods: of all of them; processes: trainings at a time."""

    def __init__(self, methods: Iterable[str], processes: int = 1) -> None:
        self._waiting, self._processes = Counter(methods), processes
        self._seconds: dict[str, list[float]] = {}  # method -> of its finished trainings
        self._present: dict[str, tuple[str, float, float, float]] = {}  # title -> method, begin, share then and now

    def show(self, title: str, method: str, share: float) -> None:
        """Take note of a training in work. title: of its progress; share: what is done of it, from 0 to 1."""
        if title not in self._present:
            self._waiting[method] -= 1
        _, began, first, _ = self._present.get(title, (method, time.monotonic(), share, share))
        self._present[title] = method, began, first, share

    def finish(self, title: str, method: str) -> None:
        """Take note of a finished training, or of a run that was there, which was never shown."""
        if title not in self._present:
            self._waiting[method] -= 1
            return
        _, began, first, _ = self._present.pop(title)
        if first < 1:  # a part of it was resumed
            self._seconds.setdefault(method, []).append((time.monotonic() - began) / (1 - first))

    def __str__(self) -> str:
        """The time left in words, with the methods that nothing is known of; "" if nothing is known at all."""
        known = {method: fmean(seconds) for method, seconds in self._seconds.items()}
        left, now, unknown = 0.0, time.monotonic(), self._waiting.copy()
        for method, began, first, share in self._present.values():
            if method not in known and share - first >= ENOUGH:
                known[method] = (now - began) / (share - first)
            unknown[method] += method not in known
            left += max(0.0, known.get(method, 0.0) * (1 - first) - (now - began))
        left += sum(seconds * unknown.pop(method, 0) for method, seconds in known.items())
        others = ", ".join(f"{count} of {method}" for method, count in unknown.items() if count)
        about = "at least" if others else "about"
        parts = [f"{about} {_in_words(left / self._processes)} left"] if left else []
        parts += [f"{others} to train"] if others and known else []
        return ", and ".join(parts)


def _in_words(seconds: float) -> str:
    """A time without digits that mean nothing."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
