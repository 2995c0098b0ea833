"""Figures for a paper: curves over ranks are the figures of eval; sizes, fonts, legends and numbers of lines."""

from dataclasses import replace

import numpy as np
import pytest

from cmrhash.config import EvalConfig, PlotConfig, TrainConfig
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.show import plots, tsne
from cmrhash.show.figures import _inches, draw, drawings
from cmrhash.show.plots import Distances, Look, Panel, Points, Series
from cmrhash.show.sources import ShownRuns
from cmrhash.training import runs
from cmrhash.training.train import train

METHODS = ("cca", "scm")  # closed forms, which take no time
CM = 1 / 2.54


@pytest.fixture(scope="module")
def trained(make_cache, tmp_path_factory):
    """Two closed forms of 6 bits: (data set, runs)."""
    base = tmp_path_factory.mktemp("paper")
    made = make_cache(base / "cache")
    for method in METHODS:
        train(TrainConfig(method=method, bits=6, device="cpu"), made, base / "runs")
    return made, base / "runs"


def shown(trained, most=plots.INSIDE):
    data, out = trained
    return ShownRuns(data, runs.find_runs(out, "toy", "labels"), ("de",), 1000, most=most)


def names_in(figure):
    """Entries of all legends."""
    return [entry.get_text() for legend in figure.findobj(plots_legend()) for entry in legend.get_texts()]


def plots_legend():
    from matplotlib.legend import Legend

    return Legend


def panel(*names, points=3):
    series = [Series(name, range(points), np.linspace(0.2, 0.8, points), at) for at, name in enumerate(names)]
    return Panel("p", "x", "y", series)


def test_curves_over_ranks_are_precision_and_recall_of_eval(trained):
    data, out = trained
    rows = evaluate(EvalConfig(langs=("de",), at=(1, 5, 100)), data, out).rows
    for kind in ("topn", "pr-rank"):
        (drawing,), _ = drawings(shown(trained), [kind])
        assert drawing.name == f"{kind}-6-de"
        for ax, direction in zip(drawing.figure.axes, ("i2t", "t2i"), strict=True):
            lines = {line.get_label(): line.get_xydata() for line in ax.lines}
            for row in (row for row in rows if row["direction"] == direction):
                places = lines[row["method"]]
                for k in (1, 5, 100):  # the database has 100 items
                    at, found = row["precision_at"][str(k)], row["recall_at"][str(k)]
                    x = k if kind == "topn" else found
                    near = places[np.abs(places[:, 0] - x) < 1e-9]
                    assert at in near[:, 1].round(12) or near[:, 1] == pytest.approx([at] * len(near))
                    assert len(near)
        assert places[-1, 1] == pytest.approx(row["chance"])  # the whole database


def test_only_the_best_on_val_are_drawn_where_a_figure_has_no_room_for_all(trained):
    val = {run.method: run.outcome.val_map_mean for run in runs.find_runs(trained[1], "toy", "labels")}
    (drawing,), _ = drawings(shown(trained, most=1), ["topn"])
    assert drawing.name.startswith(f"topn-{max(val, key=val.get)}-6")
    assert "1 of 2 methods, the best on val" in drawing.figure.get_supxlabel().replace("\n", " ")
    (drawing,), _ = drawings(shown(trained), ["topn"])
    assert "best on val" not in drawing.figure.get_supxlabel().replace("\n", " ")


def test_a_pdf_has_the_width_of_a_column_its_letters_and_no_title(trained, tmp_path):
    data, out = trained
    drawn = draw(PlotConfig(kinds=("topn",), formats=("pdf",), size="column", title=False, out=tmp_path), data, out)
    content = drawn.files[0].read_bytes()
    box = content.partition(b"/MediaBox [ 0 0 ")[2].split()
    assert float(box[0]) == pytest.approx(8.4 * CM * 72, abs=1e-3)
    assert [_inches(size) for size in ("page", "12.5", None)] == pytest.approx([17.4 * CM, 12.5 * CM, None])
    assert content.count(b"/FontFile2") == content.count(b"/Type /FontDescriptor") > 0  # every font is inside
    assert b"/Type3" not in content
    assert b"CreationDate" not in content


@pytest.mark.parametrize(
    ("look", "title"),
    [(Look(3.3, False), ""), (Look(), "a title"), (Look(), "a title of lines " * 16), (Look(3.3), "long " * 40)],
)
def test_nothing_is_cut_off_and_legends_cover_no_title(look, title):
    grid = [[panel("first method", "second", *map(str, range(n))) for _ in range(4)] for n in (0, 9)]
    xy, names = np.random.default_rng(0).random((80, 2)), [*map(str, range(20))]
    points = Points(xy, np.arange(80) % 20, np.arange(80) > 40, names)
    counts = Distances("d", np.ones(9, int), np.ones(9, int), "1 relevant, 2 other pairs\nP = .5")
    figures = [
        plots.curves(grid, title, "a footer", look=look),
        plots.distances([[counts] * 2], title, "a footer", look),
        plots.scatter(points, title, "a footer", look),
    ]
    for figure in figures:
        figure.draw_without_rendering()
        whole = figure.bbox
        for legend in figure.findobj(plots_legend()):
            box = legend.get_window_extent()
            assert whole.x0 <= box.x0 < box.x1 <= whole.x1
            assert whole.y0 <= box.y0 < box.y1 <= whole.y1
            assert not look.titled or figure._suptitle.get_window_extent().y0 - box.y1 > 0.08 * figure.dpi
        assert all(ax.get_window_extent().width > 0.7 * figure.dpi for ax in figure.axes)
        assert bool(figure._suptitle) == look.titled
    for ax in figures[1].axes:
        bars = ax.transData.transform((0, 1 / 9))[1]
        assert all(note.get_window_extent().y0 > bars for note in ax.texts)


def test_a_footer_is_folded_to_the_width_of_the_figure():
    footer = "precision: mean over queries with WWWWWWW of 32 bits " * 9
    figure = plots.curves([[panel("method")]], "a title", footer)
    figure.canvas.draw()
    assert 0.7 * figure.bbox.x1 < figure._supxlabel.get_window_extent().x1 <= figure.bbox.x1
    assert "32\n" not in figure.get_supxlabel()


def test_panels_without_a_point_are_left_out_and_too_narrow_ones_turned():
    empty = Panel("e", "x", "y", [Series("none", [1, 2], [float("nan")] * 2, 0)])
    full = panel("a")
    assert len(plots.curves([[full, empty], [full, empty]], "", "").axes) == 2
    assert len(plots.curves([[full, full], [empty, full]], "", "").axes) == 4  # its row and column have points
    assert len(plots.curves([[empty]], "", "").axes) == 1
    shapes = [plots.curves([[full] * 4] * 2, "", "", look=Look(width)).axes[0].get_gridspec() for width in (3.3, 6.9)]
    assert [(grid.nrows, grid.ncols) for grid in shapes] == [(4, 2), (2, 4)]


def test_a_legend_covers_no_line():
    lines = [Series(f"method {n}", [1, 2], [n, n], n) for n in range(plots.INSIDE)]
    figure = plots.curves([[Panel("", "x", "y", lines)]], "", "")
    assert not figure.axes[0].get_legend()
    assert names_in(figure) == [line.name for line in lines]


def test_a_short_legend_is_in_a_wide_panel_and_a_long_one_above():
    few, many = panel("a", "b"), panel(*map(str, range(plots.INSIDE + 1)))
    assert plots.curves([[few]], "", "").axes[0].get_legend()
    for figure in (plots.curves([[many]], "", ""), plots.curves([[few, few]], "", "", look=Look(3.3))):
        assert not any(ax.get_legend() for ax in figure.axes)
        assert len(names_in(figure)) > 1


def test_a_map_names_up_to_twenty_classes_and_has_no_axes(make_cache, tmp_path):
    names = [f"c{at}" for at in range(20)]
    xy = np.random.default_rng(0).random((40, 2))
    figure = plots.scatter(Points(xy, np.arange(40) % 20, np.arange(40) > 19, names), "", "")
    assert not figure.axes[0].axison
    assert [name.partition(" ")[0] for name in names_in(figure)] == [*names, "image", "text"]
    looks = {(plots.COLOURS[at % 7], plots.MARKERS[at % 8]) for at in range(20)}
    assert (len(looks), tsne.CLASSES) == (20, 20)


def test_an_item_whose_rarest_label_is_not_named_has_the_colour_of_another(make_cache, tmp_path, monkeypatch):
    data = make_cache(tmp_path, change=lambda item: replace(item, labels=item.labels or (0,))).dataset
    monkeypatch.setattr(tsne, "CLASSES", 2)
    group, names = tsne._groups(data, np.arange(len(data.items)))
    assert len(names) == 2
    for item, at in zip(data.items, group, strict=True):
        there = {data.classes[label] for label in item.labels} & set(names)
        assert (names[at] in there) if at >= 0 else not there


def test_a_search_direction_without_scores_has_no_panel(trained):
    source = shown(trained)
    source.__dict__["cells"] = {
        (name, bits, *key[2:]): rows
        for (name, *key_), rows in source.cells.items()
        for bits in (6, 8)
        if (key := (name, *key_))[3] == "t2i"
    }
    for kind in ("bits", "topn"):
        (drawing,), _ = drawings(source, [kind])
        assert all(ax.get_title(loc="left").startswith("text to image") for ax in drawing.figure.axes)
