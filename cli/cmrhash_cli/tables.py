"""Tables of the commands: whole in a pipe, and on a terminal in a form that fits its width."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cmrhash.data.cleaning import shown

if TYPE_CHECKING:
    from rich.table import Table

PLAIN: dict[str, Any] = {"highlight": False, "markup": False}  # a caption may have [brackets], which are not markup
FOLDED = 24  # characters at least of a column that may go over several lines
PIPE = 1000  # usual width without a terminal: each row is one line


@dataclass(frozen=True)
class Cells:
    """Columns and rows of a table. keys: columns that name a row; folded: the one whose cells may wrap, "" for none."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: int = 1
    folded: str = ""
    gap: int = 3  # spaces between columns

    def chosen(self, places: Sequence[int], keys: int) -> Cells:
        """Some of the columns, without rows that have nothing there but their keys."""
        rows = [[row[at] for at in places] for row in self.rows]
        kept = [row for row in rows if any(row[keys:])] if len(places) > keys else rows
        return replace(self, columns=[self.columns[at] for at in places], rows=kept, keys=keys)

    @property
    def is_wide(self) -> bool:
        """Whether it has the form of a wide terminal."""
        return self.gap == Cells.gap

    @property
    def width(self) -> int:
        """Characters of a line, those of the folded column at least FOLDED."""
        from rich.cells import cell_len

        longest = [max(map(cell_len, cells)) for cells in zip(self.columns, *self.rows, strict=True)]
        widths = [min(FOLDED, w) if c == self.folded else w for c, w in zip(self.columns, longest, strict=True)]
        edges = self.gap + 1 if self.is_wide else 0
        return sum(widths) + self.gap * (len(widths) - 1) + edges


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    *,
    folded: str = "",
    below: Sequence[str] = (),
    keys: int = 1,
    piped: int = PIPE,
) -> None:
    """Print a table for people on stdout; numbers are right-aligned.

    A terminal that is too narrow gets it with smaller gaps; else with columns of one value named below the title, and
    then in parts, each of which repeats the first ``keys`` columns. folded: the column whose cells may wrap;
    below: columns that a narrow terminal shows below the cells of the folded one. piped: width without a terminal.
    """
    from rich.console import Console
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = Console(**PLAIN) if terminal else Console(**PLAIN, width=piped)
    names, folded = [shown(column) for column in columns], shown(folded)
    cells = Cells(names, [[shown(cell) for cell in row] for row in rows], keys, folded)
    width = console.width
    same, parts = _fitting(cells, [shown(name) for name in below], width) if terminal or piped < PIPE else ("", [cells])

    with console.capture() as printed:
        console.print(Text("\n".join(_lines(title, width, terminal)), "bold"), soft_wrap=True)
        if same:
            console.print("\n".join(_lines(same, width, terminal)), soft_wrap=True)
        for part in parts:
            console.width = max(width, part.width)  # a wrapped line is readable, a truncated figure is not
            console.print(*([] if part.is_wide else [""]), _table(part), sep="\n")
        if not parts[-1].is_wide:  # a wide table has an edge of its own
            console.print()
        if caption:
            console.print("\n".join(_lines(caption, width, terminal)), soft_wrap=True)
    print(re.sub(r" +$", "", printed.get().removesuffix("\n"), flags=re.MULTILINE))


def _lines(text: str, width: int, terminal: bool) -> list[str]:
    """Lines of a text, on a terminal broken between words."""
    lines = shown(text).splitlines()
    return [part for line in lines for part in _broken(line, width)] if terminal else lines


def _broken(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) or [""]


def _fitting(cells: Cells, below: Sequence[str], width: int) -> tuple[str, list[Cells]]:
    """The values that all rows share, in words, and the parts of a table that fit."""
    if cells.width <= width:
        return "", [cells]
    cells = replace(cells, gap=2)
    if cells.width <= width:
        return "", [cells]
    cells = _stacked(cells, below)
    if cells.width <= width:
        return "", [cells]
    same, cells = _without_constants(cells)
    return same, list(_parts(cells, width))


def _stacked(cells: Cells, below: Sequence[str]) -> Cells:
    """The same with the cells of some columns below those of the folded one."""
    if not below:
        return cells
    into, moved = cells.columns.index(cells.folded), [cells.columns.index(name) for name in below]
    name = ", ".join([cells.folded, *below])
    rows = [
        [
            "\n".join(filter(None, [row[into], *(row[at] for at in moved)])) if at == into else cell
            for at, cell in enumerate(row)
        ]
        for row in cells.rows
    ]
    names = [name if at == into else column for at, column in enumerate(cells.columns)]
    kept = [at for at in range(len(names)) if at not in moved]
    return replace(cells, columns=names, rows=rows, folded=name).chosen(kept, cells.keys)


def _without_constants(cells: Cells) -> tuple[str, Cells]:
    """Columns in which two or more rows have one value, in words, and the table without them; a key stays."""
    columns = list(zip(*cells.rows, strict=True))
    same = [at for at, values in enumerate(columns) if len(values) > 1 and values[0] and len(set(values)) == 1]
    if set(range(cells.keys)) <= set(same):
        same.remove(0)
    kept = [at for at in range(len(columns)) if at not in same]
    words = ", ".join(f"{cells.columns[at]} {columns[at][0]}" for at in same)
    return f"all rows: {words}" if words else "", cells.chosen(kept, sum(at < cells.keys for at in kept))


def _parts(cells: Cells, width: int) -> Iterator[Cells]:
    """Tables of as many columns as fit beside the keys, one at least."""
    keys, part = list(range(cells.keys)), list[int]()
    for at in range(cells.keys, len(cells.columns)):
        if part and not cells.chosen([*keys, *part, at], cells.keys).width <= width:
            yield cells.chosen([*keys, *part], cells.keys)
            part = []
        part.append(at)
    yield cells.chosen([*keys, *part], cells.keys)


def _table(cells: Cells) -> Table:
    from rich import box
    from rich.table import Table

    wide = cells.is_wide
    table = Table(box=box.SIMPLE_HEAD, show_edge=wide, pad_edge=wide, padding=(0, 1, 0, 1 * wide))
    for at, column in enumerate(cells.columns):
        numeric = bool(cells.rows) and all(_is_number(row[at]) for row in cells.rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=column != cells.folded)
    for row in cells.rows:
        table.add_row(*row)
    return table


def _is_number(cell: str) -> bool:
    digits = cell.replace(".", "").replace(",", "").replace("-", "").replace(" ", "")
    return digits.isdigit() or not cell.strip(" -")
