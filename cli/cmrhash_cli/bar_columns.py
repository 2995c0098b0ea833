"""Columns of the progress bars: where a terminal is narrow, names and notes are cut off, the bar and figures stay."""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len
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

SHORTEST, LONGEST = 10, 40  # characters of a bar, a fifth of the terminal between these


def columns(width: int) -> tuple[ProgressColumn, ...]:
    """Name, bar, steps, rate, time left and note. width: of the terminal."""
    return (
        Shortened(lambda task: task.description),
        BarColumn(min(max(width // 5, SHORTEST), LONGEST), table_column=_kept()),
        MofNCompleteColumn(table_column=_kept()),
        TextColumn("{task.fields[rate]}", markup=False, table_column=_kept()),
        Left(table_column=_kept()),
        Shortened(lambda task: task.fields["note"]),
    )


def _kept() -> Column:
    """A column that keeps its width."""
    return Column(no_wrap=True)


class Left(TimeRemainingColumn):
    """Time left; nothing for a task whose note says it."""

    def render(self, task: Task) -> Text:
        """Render the time."""
        return Text() if task.description == config.GRID else super().render(task)


class Shortened(ProgressColumn):
    """A text of a task in one line, which gives way to the other columns."""

    def __init__(self, text_of: Callable[[Task], str]) -> None:
        self._text_of = text_of
        super().__init__()

    def render(self, task: Task) -> Line:
        """Render the text."""
        return Line(self._text_of(task))


class Line:
    """A text that is cut off at the width that it gets."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = min(cell_len(self._text), options.max_width)
        return Measurement(width, width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = Text(self._text)
        text.truncate(options.max_width, overflow="ellipsis")
        yield text
