"""Columns of progress bars: a narrow terminal shows both ends of names and notes, and all of the bar and figures."""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from cmrhash import config

SHORTEST, LONGEST = 10, 40  # characters of a bar, an eighth of the terminal between these


def columns(width: int) -> tuple[ProgressColumn, ...]:
    """Name, bar, steps, rate, time (left, or taken by a finished task) and note. width: of the terminal."""
    return (
        Shortened(lambda task: task.description),
        BarColumn(min(max(width // 8, SHORTEST), LONGEST), table_column=_kept()),
        MofNCompleteColumn(table_column=_kept()),
        TextColumn("{task.fields[rate]}", markup=False, table_column=_kept()),
        Left(elapsed_when_finished=True, table_column=_kept()),
        Shortened(lambda task: task.fields["note"]),
    )


def _kept() -> Column:
    """A column that keeps its width."""
    return Column(no_wrap=True)


class Left(TimeRemainingColumn):
    """Time left, or taken if the task is finished; nothing for a task in work whose note says it."""

    def render(self, task: Task) -> Text:
        """Render the time."""
        return Text() if task.description == config.GRID and not task.finished else super().render(task)


class Shortened(ProgressColumn):
    """A text of a task in one line, which gives way to the other columns."""

    def __init__(self, text_of: Callable[[Task], str]) -> None:
        self._text_of = text_of
        super().__init__()

    def render(self, task: Task) -> Line:
        """Render the text."""
        return Line(self._text_of(task))


class Line:
    """A text without its middle if the width that it gets is too small: the end of a note has its numbers."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = min(cell_len(self._text), options.max_width)
        return Measurement(width, width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text, room = self._text, options.max_width
        if cell_len(text) > room:
            end = 2 * room // 3
            text = set_cell_size(text, room - 1 - end) + "…" + set_cell_size(text[::-1], end)[::-1]
        yield Text(text)
