"""Plots with Matplotlib: curves, histograms of distances, maps of embeddings, as PNG, SVG or PDF.

No other module imports Matplotlib or sets the style of a figure. Every series has a colour that colour-blind readers
can tell apart (Okabe & Ito 2008), and a marker, dash or hatch that survives a grey print. Equal data give equal bytes
of a file, whatever the user's Matplotlib settings, which stay unchanged.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import lacking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1.2, 1.2)), (0, (7, 1.5, 1, 1.5, 1, 1.5)))
LEVELS: tuple[Any, ...] = (":", (0, (6, 2, 1, 2)))
RELEVANT, IRRELEVANT = ("#0072B2", "////"), ("#E69F00", "....")  # colour and hatch
INK, MUTED, PALE = "#222222", "#595959", "#C8C8C8"
WIDTH, PANEL, TALL = 3.0, 2.4, 1.55  # inches: of a panel, its height, that of a panel with a wide time axis
NARROW, LOWEST = 1.4, 1.5  # inches: width of a panel below which panels go below each other, least height
INSIDE, ROOMY = 5, 2.2  # entries of a legend that find room inside a panel of at least that width in inches
DPI = 200  # of a PNG
STYLE = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib: the same letters everywhere
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,  # names of data sets and classes are not formulas
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 8,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.6,
    "hatch.linewidth": 0.5,
    "legend.framealpha": 0.8,
    "legend.edgecolor": "none",
    "legend.borderpad": 0.2,
    "legend.labelspacing": 0.3,
    "legend.fontsize": 7,
    "legend.handlelength": 2.6,
    "pdf.fonttype": 42,  # TrueType letters inside the file, as publishers ask for
    "figure.titlesize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "cmrhash",  # ids of an SVG, otherwise random
}
SILENT = ("Date", "Creator", "Format", "Type")  # metadata left out of an SVG
UNDATED = ("CreationDate", "Creator", "Producer")  # ... and of a PDF


@dataclass(frozen=True)
class Look:
    """Size and frame of a figure. width: inches, None for that of its panels; titled: with title and footer."""

    width: float | None = None
    titled: bool = True


USUAL = Look()


@dataclass(frozen=True)
class Series:
    """A line. style: index of its colour, marker and dash; -1 for a reference without markers.

    x, y: (N,) numbers; NaN breaks the line. sd: (N,) standard deviations, drawn as error bars. reference: a baseline,
    drawn thin and dashed with hollow markers; all references of a figure share one legend entry.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int
    sd: Sequence[float] | None = None
    reference: bool = False


@dataclass(frozen=True)
class Panel:
    """A plot of curves. levels: named horizontal lines; marks: named vertical lines; ticks: of the x axis."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    levels: Sequence[tuple[str, float]] = ()
    marks: Sequence[tuple[str, float]] = ()
    ticks: Sequence[float] = ()
    unit_y: bool = False  # the y axis runs from 0 to 1
    from_zero: bool = False  # the shared y axis starts at 0
    whole_x: bool = False  # x counts something


@dataclass(frozen=True)
class Distances:
    """Histograms: (bits + 1,) relevant and irrelevant pairs at each distance. note: text inside the plot."""

    title: str
    relevant: NDArray[np.int64]
    irrelevant: NDArray[np.int64]
    note: str = ""


@dataclass(frozen=True)
class Points:
    """Map. xy: (N, 2); group: (N,) index into ``names`` or -1; hollow: (N,) True for texts."""

    xy: NDArray[np.floating[Any]]
    group: NDArray[np.int64]
    hollow: NDArray[np.bool_]
    names: Sequence[str] = field(default=())


def curves(grid: Sequence[Sequence[Panel]], title: str, footer: str, wide: bool = False, look: Look = USUAL) -> Figure:
    """Draw panels in a grid with shared axes and one legend; panels without a single point are left out.

    wide: stack the panels over a shared x axis, each with its own y axis and legend.
    """
    grid = _fitting(_filled(grid), look)
    with _styled():
        size = (5.5, TALL) if wide else (WIDTH, PANEL)
        figure, body, axes = _figure(grid, title, footer, size, look, sharex=True, sharey=not wide)
        for row, panels in enumerate(grid):
            for column, panel in enumerate(panels):
                ax = axes[row][column]
                _panel(ax, panel)
                ax.set_xlabel(panel.x_label if row == len(grid) - 1 else "")
                ax.set_ylabel(panel.y_label if column == 0 else "")
                if wide:
                    ax.legend(*_entries([ax]), loc="best", ncols=1 if figure.get_figwidth() < 2 * ROOMY else 2)
        figure.align_ylabels()
        if any(panel.from_zero for panels in grid for panel in panels):
            axes[0][0].set_ylim(bottom=0)
        if not wide:
            _legend(figure, body, axes, *_entries([ax for row in axes for ax in row]))
        return figure


def distances(grid: Sequence[Sequence[Distances]], title: str, footer: str, look: Look = USUAL) -> Figure:
    """Draw histograms of Hamming distances, normalised per kind of pair so that few relevant pairs stay visible."""
    with _styled():
        grid = _fitting(grid, look)
        figure, body, axes = _figure(grid, title, footer, (WIDTH, PANEL), look, sharex=True, sharey=True)
        lines = 0
        for row, panels in enumerate(grid):
            for column, panel in enumerate(panels):
                ax = axes[row][column]
                _histogram(ax, panel.irrelevant, IRRELEVANT, "irrelevant pairs")
                _histogram(ax, panel.relevant, RELEVANT, "relevant pairs")
                ax.set_title(panel.title, loc="left")
                lines = max(lines, _note(ax, panel.note, figure.get_figwidth() / len(panels)))
                ax.set_ylim(0, None)
                ax.margins(x=0)
                ax.set_xlabel("Hamming distance (bits)" if row == len(grid) - 1 else "")
                ax.set_ylabel("share of pairs" if column == 0 else "")
        top = max(_share(counts).max() for row in grid for p in row for counts in (p.relevant, p.irrelevant))
        _strip(figure, body, *_entries([axes[0][0]]))
        figure.draw_without_rendering()
        notes = 0.16 * lines / (axes[0][0].get_window_extent().height / figure.dpi)  # their share of a panel's height
        axes[0][0].set_ylim(0, top / (1 - min(notes, 0.6)))
        return figure


def scatter(points: Points, title: str, footer: str, look: Look = USUAL) -> Figure:
    """Draw a map of embeddings: filled markers for images, hollow ones for texts, a colour per group."""
    with _styled():
        figure, body, axes = _figure([[points]], title, footer, (5.4, 4.6), look)
        ax = axes[0][0]
        for at in range(-1, len(points.names)):
            colour, marker = (PALE, ".") if at < 0 else (COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)])
            for hollow in (False, True):
                x, y = points.xy[(points.group == at) & (points.hollow == hollow)].T
                face, size = ("none" if hollow else colour), 12 if at < 0 else 16
                ax.scatter(x, y, size, facecolors=face, edgecolors=colour, marker=marker, linewidths=0.7)
        ax.set_aspect("equal", "datalim")
        ax.set_axis_off()  # places of a t-SNE map have no unit
        _strip(figure, body, *_keys(ax, points), handle=1.0)
        return figure


def words(text: str) -> Figure:
    """Draw a message instead of a figure."""
    with _styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.0, 0.6))
        figure.text(0.02, 0.5, _folded(text, 0.95 * 5.0, 8), va="center", color=MUTED)
        return figure


def render(figure: Figure, form: str, live_text: bool = False) -> bytes:
    """Render a figure as "png", "svg" or "pdf" bytes. live_text: keep text as text in the SVG."""
    with _styled(**{"svg.fonttype": "none" if live_text else "path"}), io.BytesIO() as file:
        if form == "svg":
            figure.savefig(file, format="svg", metadata=dict.fromkeys(SILENT))
        elif form == "pdf":
            figure.savefig(file, format="pdf", metadata=dict.fromkeys(UNDATED))
        else:
            figure.savefig(file, format=form, dpi=DPI, metadata={"Software": None})
        return file.getvalue()


# ---------------------------------------------------------------------------------------------- parts of a figure


@contextmanager
def _styled(**more: Any) -> Iterator[None]:
    """Apply our Matplotlib settings alone while drawing."""
    try:
        import matplotlib.style
    except ImportError as error:
        raise lacking("plots need Matplotlib", "matplotlib", error, None, 'pip install "cmrhash[viz]"') from None
    with matplotlib.style.context(["default", STYLE | more]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names may be in any script
        yield


def _figure(
    grid: Sequence[Sequence[Any]], title: str, footer: str, size: tuple[float, float], look: Look, **shared: Any
) -> tuple[Figure, SubFigure, Any]:
    """Make a figure with title and footer, the body between them, and the axes of a grid in the body."""
    from matplotlib.figure import Figure

    rows, columns = len(grid), len(grid[0])
    width = look.width or size[0] * columns
    panel = min(size[1], max(LOWEST, size[1] * width / (size[0] * columns)))
    inside = 0.92 * width  # letters fitted to pixels are up to a twentieth wider
    lines = (_folded(title, inside, 9, "bold"), _folded(footer, inside)) if look.titled else ("", "")
    words = 0.2 + sum(0.12 * len(text.splitlines()) for text in lines)
    figure = Figure(figsize=(width, panel * rows + words), layout="constrained")
    if look.titled:
        figure.suptitle(lines[0], x=0.01, ha="left", fontweight="bold")
        figure.supxlabel(lines[1], x=0.01, ha="left", fontsize=6, color=MUTED)
    body = figure.subfigures(squeeze=False)[0, 0]  # a legend outside its axes then leaves room for the title
    return figure, body, body.subplots(rows, columns, squeeze=False, **shared)


def _filled(grid: Sequence[Sequence[Panel]]) -> list[list[Panel]]:
    """Leave out the rows and columns in which no panel has a point."""
    full = np.array([[any(np.isfinite(of.y).any() for of in panel.series) for panel in row] for row in grid])
    if not full.any():
        return [list(row) for row in grid]
    rows, columns = (np.flatnonzero(full.any(axis=axis)).tolist() for axis in (1, 0))
    return [[grid[row][column] for column in columns] for row in rows]


def _fitting(grid: Sequence[Sequence[Any]], look: Look) -> Sequence[Sequence[Any]]:
    """Turn rows into columns where panels beside each other would be too narrow."""
    is_narrow = look.width is not None and look.width / len(grid[0]) < NARROW and len(grid) < len(grid[0])
    return list(zip(*grid, strict=True)) if is_narrow else grid


def _legend(figure: Figure, body: SubFigure, axes: Any, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Put a legend into the first panel, or above all panels if it is too large for that or would cover a line."""
    ax, width = axes[0][0], figure.get_figwidth() / len(axes[0])
    if len(names) <= INSIDE and width >= ROOMY:
        legend = ax.legend(handles, names, loc="best")
        figure.draw_without_rendering()
        box = legend.get_window_extent()
        drawn = (line.get_transform().transform_path(line.get_path()) for line in ax.lines)
        if not any(path.intersects_bbox(box, filled=False) for path in drawn):
            return
        legend.remove()
    _strip(figure, body, handles, names)


def _strip(figure: Figure, body: SubFigure, handles: Sequence[Any], names: Sequence[str], handle: float = 2.6) -> None:
    """Put a legend above the panels in as many columns as there is room for; the figure grows by its lines.

    handle: length of the drawn part of an entry, in letters.
    """
    width, height = figure.get_size_inches()
    columns = max(1, min(len(names), int(width / (0.25 + 0.1 * handle + 0.055 * max(map(len, names))))))
    figure.set_figheight(height + 0.16 * -(-len(names) // columns))
    body.legend(handles, names, loc="outside upper center", ncols=columns, columnspacing=1.0, handlelength=handle)


def _folded(text: str, inches: float, points: float = 6, weight: str = "normal") -> str:
    """Wrap a text to a width, as its letters are drawn; a number stays with the word after it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font, lines = FontProperties(size=points, weight=weight), [""]
    for word in re.split(r"(?<!\d) +", text):
        longer = f"{lines[-1]} {word}".strip()
        fits = text_to_path.get_text_width_height_descent(longer, font, False)[0] <= 72 * inches
        lines[-1:] = [longer] if fits or not lines[-1] else [lines[-1], word]
    return "\n".join(lines)


def _panel(ax: Axes, panel: Panel) -> None:
    for of in panel.series:
        colour = COLOURS[of.style % len(COLOURS)]
        if of.reference:
            dashed: dict[str, Any] = {"linestyle": (0, (2, 2)), "linewidth": 0.8}
            dashed |= {"markersize": 3, "markerfacecolor": "white", "markeredgewidth": 0.7}
            marker, key = (MARKERS[of.style % len(MARKERS)], "o") if of.style >= 0 else ("", "")
            ax.plot(of.x, of.y, color=colour, marker=marker, **dashed)
            ax.plot([], [], color=MUTED, marker=key, label=_label(of.name), **dashed)  # the shared legend entry
            continue
        marker, dash = MARKERS[of.style % len(MARKERS)], DASHES[of.style % len(DASHES)]
        line = {"color": colour, "marker": marker, "linestyle": dash, "label": _label(of.name)}
        if of.sd is None:
            ax.plot(of.x, of.y, markevery=_every(len(of.x)), **line)
        else:
            ax.errorbar(of.x, of.y, yerr=of.sd, capsize=2, elinewidth=0.8, **line)
    for at, (name, height) in enumerate(panel.levels):
        ax.axhline(height, color=INK, linestyle=LEVELS[at % len(LEVELS)], linewidth=0.9, label=_label(name))
    for name, place in panel.marks:
        ax.axvline(place, color=MUTED, linestyle="-", linewidth=0.7, label=_label(name))
    ax.set_title(panel.title, loc="left")
    if panel.ticks:
        ax.set_xticks(panel.ticks)
    elif panel.whole_x:
        ax.locator_params(axis="x", integer=True)
    if panel.unit_y:
        ax.set_ylim(-0.02, 1.02)


def _every(points: int) -> Any:
    """Spacing of markers: all of a few points, else some along the line."""
    return None if points <= 10 else 0.12


def _note(ax: Axes, text: str, inches: float) -> int:
    """Write lines into the upper part of a panel, folded to its width without the labels of its axis; their number."""
    folded = "\n".join(_folded(line, 0.8 * inches, 6.5) for line in text.splitlines())
    written = ax.text(0.02, 0.98, folded, transform=ax.transAxes, va="top", fontsize=6.5, color=MUTED)
    written.set_in_layout(False)
    return len(folded.splitlines())


def _histogram(ax: Axes, counts: NDArray[np.int64], look: tuple[str, str], name: str) -> None:
    colour, hatch = look
    edges = np.arange(len(counts) + 1) - 0.5
    filled: dict[str, Any] = {"facecolor": colour + "55", "edgecolor": colour, "hatch": hatch, "linewidth": 1.0}
    ax.stairs(_share(counts), edges, fill=True, label=name, **filled)


def _share(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(counts / max(int(counts.sum()), 1))


def _label(name: str) -> str:
    """Strip leading "_", for which Matplotlib would drop a name from the legend."""
    return name.lstrip("_") or "-"


def _entries(axes: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Handles and names of a legend in the order of drawing, each name once, references (thin lines) last."""
    found: dict[str, tuple[bool, int, int, Any]] = {}
    for at, ax in enumerate(axes):
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):  # lines with error bars come last
            line = handle[0] if isinstance(handle, tuple) else handle
            width = getattr(handle, "get_linewidth", lambda: 1)()
            found.setdefault(name, (width < 1, at, [*ax.lines, line].index(line), handle))
    names = sorted(found, key=lambda name: found[name][:3])
    return [found[name][3] for name in names], names


def _keys(ax: Axes, points: Points) -> tuple[list[Any], list[str]]:
    """Legend of a map: groups with their sizes, then filled and hollow markers."""
    from matplotlib.lines import Line2D

    def key(marker: str, colour: str, face: str) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=colour, markerfacecolor=face)

    handles, names = [], []
    for at, name in enumerate(points.names):
        colour = COLOURS[at % len(COLOURS)]
        handles.append(key(MARKERS[at % len(MARKERS)], colour, colour))
        names.append(f"{_label(name)} ({int((points.group[~points.hollow] == at).sum())})")
    if (points.group < 0).any():
        handles.append(key(".", PALE, PALE))
        names.append(f"other ({int((points.group[~points.hollow] < 0).sum())})")
    handles += [key("o", MUTED, MUTED), key("o", MUTED, "none")]
    return handles, [*names, "image", "text"]
