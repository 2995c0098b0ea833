"""Pictures hold the numbers that eval prints: read back from the figures, and counted by plain loops."""

import json
import sys
from dataclasses import replace
from statistics import mean, stdev
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.legend import Legend
from running import run as cmrhash

from cmrhash.config import PLOTS, EvalConfig, PlotConfig, TrainConfig
from cmrhash.errors import DataError, UsageError
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.evaluation.run_codes import stored_codes
from cmrhash.retrieval.codes import unpack
from cmrhash.show import figures, plots, sources, themed, tsne
from cmrhash.show.figures import draw, drawings, nearer
from cmrhash.show.plots import Distances, Panel, Points, Series
from cmrhash.show.sources import ShownRuns
from cmrhash.training import runs
from cmrhash.training.train import train

pytestmark = pytest.mark.slow

QUICK = TrainConfig(epochs=3, batch=16, lr=0.02, hidden=16, device="cpu")
GRID = [(method, bits, seed) for method in ("triplet", "logistic") for bits in (8, 16) for seed in (0, 1)]


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(plots, "DPI", 30)  # a tenth of the time


@pytest.fixture(scope="module")
def grid(make_cache, tmp_path_factory):
    """Two methods, two lengths, two seeds: (data set, runs, rows of eval)."""
    base = tmp_path_factory.mktemp("plots")
    made = make_cache(base / "cache", weights="trained")
    for method, bits, seed in GRID:
        train(replace(QUICK, method=method, bits=bits, seed=seed), made, base / "runs")
    return made, base / "runs", evaluate(EvalConfig(), made, base / "runs").rows


def source(grid, langs=("de",), **wanted):
    data, out, _ = grid
    return ShownRuns(data, runs.find_runs(out, "toy", "labels", **wanted), langs, 1000)


def only(made, name):
    return next(drawing for drawing in made if drawing.name == name).figure


def lines(ax):
    """{name: (x, y)} of what the legend names."""
    handles, names = ax.get_legend_handles_labels()
    found = {}
    for handle, name in zip(handles, names, strict=True):
        line = handle[0] if hasattr(handle, "lines") else handle
        found[name] = line.get_xdata(), line.get_ydata()
    return found


def rows_of(grid, **fields):
    return [row for row in grid[2] if all(row[key] == value for key, value in fields.items())]


def text(figure):
    return " ".join(" ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))).split())


# ---------------------------------------------------------------------------------------------- the numbers


def test_a_precision_recall_curve_of_one_run_is_that_of_eval(grid):
    made = drawings(source(grid, methods=["triplet"], bits=[16], seeds=[1]), ["pr"])[0]
    figure = only(made, "pr-triplet-16-de")
    assert len(figure.axes) == 2
    for ax, direction in zip(figure.axes, ("i2t", "t2i"), strict=True):
        (row,) = rows_of(grid, method="triplet", bits=16, seed=1, lang="de", direction=direction)
        x, y = lines(ax)["16 bits"]
        curve = row["pr_by_radius"]
        np.testing.assert_array_equal(x, curve["recall"])
        np.testing.assert_array_equal(y, np.array(curve["precision"], float))
        assert lines(ax)["chance"][1][0] == row["chance"]


def test_several_methods_have_a_panel_for_each_length_and_a_mean_over_seeds(grid):
    figure = only(drawings(source(grid), ["pr"])[0], "pr-de")
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == [f"{way}, {bits} bits" for way in ("image to text", "text to image") for bits in (8, 16)]
    own = rows_of(grid, method="logistic", bits=16, lang="de", direction="i2t")
    wanted = np.mean([row["pr_by_radius"]["recall"] for row in own], axis=0)
    np.testing.assert_allclose(lines(figure.axes[1])["logistic"][0], wanted)
    assert len(own) == 2


def test_map_by_bits_has_mean_and_spread_of_the_seeds_real_values_and_chance(grid):
    figure = only(drawings(source(grid, langs=()), ["bits"])[0], "bits")
    places = [(lang, direction) for lang in ("de", "en") for direction in ("i2t", "t2i")]
    for ax, (lang, direction) in zip(figure.axes, places, strict=True):
        drawn = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        for method in ("triplet", "logistic"):
            cells = [rows_of(grid, method=method, bits=b, lang=lang, direction=direction) for b in (8, 16)]
            line, _, (bars,) = drawn[method].lines
            assert line.get_xdata().tolist() == [8, 16]
            assert line.get_ydata() == pytest.approx([mean(r["map"] for r in cell) for cell in cells])
            lengths = [(end[1][1] - end[0][1]) / 2 for end in bars.get_segments()]
            assert lengths == pytest.approx([stdev(r["map"] for r in cell) for cell in cells])
            real = [mean(r["map_real"] for r in cell) for cell in cells]
            assert any(
                list(other.get_ydata()) == pytest.approx(real) for other in ax.lines if len(other.get_ydata()) == 2
            )
        [legend] = figure.findobj(Legend)
        assert [entry.get_text() for entry in legend.get_texts()] == [
            "logistic",
            "triplet",
            "real-valued, cosine",
            "chance",
        ]
        assert drawn["chance"].get_ydata()[0] == rows_of(grid, lang=lang, direction=direction)[0]["chance"]


@pytest.mark.parametrize("better", ["triplet", "logistic"])
def test_legends_name_the_method_with_the_best_longest_codes_first(grid, better):
    shown = source(grid)
    shown.cells = {
        key: [{**row, "map": 0.9 - 0.1 * (key[:2] != (better, 16)), "map_seen": 0.5, "map_unseen": 0.5} for row in rows]
        for key, rows in ((key, rows if key[0] == better else rows[:1]) for key, rows in shown.cells.items())
    }
    order = sorted(["logistic", "triplet"], key=lambda name: name != better)
    for drawing in drawings(shown, ["pr", "topn", "bits", "seen"])[0]:
        [legend] = drawing.figure.findobj(Legend)
        assert [entry.get_text() for entry in legend.get_texts()][:2] == order
        drawn = dict(zip(*reversed(drawing.figure.axes[0].get_legend_handles_labels()), strict=True))
        handles = [drawn[name] for name in ("logistic", "triplet")]
        colours = [(one[0] if isinstance(one, tuple) else one).get_color() for one in handles]
        assert colours == list(plots.COLOURS[:2])


def test_lengths_whose_labels_would_touch_have_one_label():
    assert figures._apart([8, 10, 16, 32]) == [8, 16, 32]
    assert figures._apart([16, 32, 48, 64]) == [16, 32, 48, 64]


def test_a_single_seed_has_no_error_bar(grid):
    shown = source(grid)
    shown.cells = {key: rows[:1] if key[1] == 8 else rows for key, rows in shown.cells.items()}
    handles, _ = only(drawings(shown, ["bits"])[0], "bits").axes[0].get_legend_handles_labels()
    (bars,) = next(handle for handle in handles if isinstance(handle, tuple)).lines[2]
    lengths = [np.ptp(np.asarray(segment)[:, 1]) if len(segment) else np.nan for segment in bars.get_segments()]
    assert np.isnan(lengths).tolist() == [True, False]


def test_histograms_count_every_pair_at_its_distance(grid):
    data, out, _ = grid
    made = drawings(source(grid, methods=["triplet"], bits=[8], seeds=[0]), ["distances"])[0]
    figure = only(made, "distances-triplet-8")
    views = stored_codes(runs.open_run(out / "toy" / "triplet-8"))
    first = {view: np.unique(of.codes.item, return_index=True) for view, of in views.items()}
    bits = {view: unpack(of.codes.packed, 8)[first[view][1]] for view, of in views.items()}  # a row an item
    counts = np.zeros((2, 9), int)
    for q, asking in enumerate(data.dataset.items):
        for d, lying in enumerate(data.dataset.items):
            if "query" in asking.splits and "database" in lying.splits:
                near = bool(set(asking.labels) & set(lying.labels))
                counts[int(near), np.count_nonzero(bits["image"][q] != bits["text-de"][d])] += 1
    steps = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
    for name, own in (("irrelevant pairs", counts[0]), ("relevant pairs", counts[1])):
        np.testing.assert_allclose(steps[name].get_data().values, own / own.sum())
    assert f"{counts[1].sum():,} relevant, {counts[0].sum():,} irrelevant pairs" in text(figure)
    assert counts.sum() == 20 * 100
    pairs = [(a, b) for a in range(9) for b in range(9)]
    won = sum(counts[1, a] * counts[0, b] * ((a < b) + (a == b) / 2) for a, b in pairs)
    assert nearer(counts[1], counts[0]) == pytest.approx(won / (counts[1].sum() * counts[0].sum()))


def test_a_map_has_two_points_an_item_and_names_its_rule(grid):
    figure = only(drawings(source(grid, methods=["triplet"], bits=[8], seeds=[0]), ["tsne"])[0], "tsne-triplet-8-de")
    points = [len(part.get_offsets()) for part in figure.axes[0].collections]
    assert sum(points) == 2 * 20
    assert points[::2] == points[1::2]  # as many images as texts of every class
    assert "20 query items, unseen in training" in text(figure)
    assert "colour: rarest label of the item" in text(figure)


def test_an_item_has_the_colour_of_its_rarest_label(make_cache, tmp_path):
    data = make_cache(tmp_path)
    count = [sum(label in item.labels for item in data.dataset.items) for label in range(6)]
    chosen = np.arange(0, 120, 7)
    group, names = tsne._groups(data.dataset, chosen)
    for at, own in zip(chosen, group, strict=True):
        rarest = min(data.dataset.items[at].labels, key=lambda label: (count[label], label))
        assert names[own] == data.dataset.classes[rarest]


def test_the_sample_of_a_map_is_seeded_and_no_larger_than_asked(grid):
    data, out, _ = grid
    found = runs.find_runs(out, "toy", "labels", [8], ["triplet"], [1])
    chosen = []
    for items in (12, 12, 1000):
        few = ShownRuns(data, found, ("de",), items)
        chosen.append(tsne._sample(few, few.views["image"], few.views["text-de"])[0].tolist())
    assert chosen[0] == chosen[1] != chosen[2][:12]
    assert (len(chosen[0]), len(chosen[2])) == (12, 20)
    assert all("query" in data.dataset.items[at].splits for at in chosen[2])


def test_unseen_items_are_drawn_against_seen_ones(grid):
    data, out, _ = grid
    figure = only(drawings(source(grid), ["seen"])[0], "seen")
    rows = evaluate(EvalConfig(langs=("de",)), data, out).rows
    i2t = lines(figure.axes[0])
    for method in ("logistic", "triplet"):
        own = [row for row in rows if (row["method"], row["direction"]) == (method, "i2t")]
        points = [
            [mean(row[f"map_{side}"] for row in own if row["bits"] == bits) for bits in (8, 16)]
            for side in ("seen", "unseen")
        ]
        assert np.allclose(i2t[method], points)


def test_training_curves_are_the_history(grid):
    figure = only(
        drawings(source(grid, methods=["triplet"], bits=[8], seeds=[0]), ["training"])[0], "training-triplet-8"
    )
    run = runs.open_run(grid[1] / "toy" / "triplet-8")
    history = [json.loads(line) for line in run.file(runs.HISTORY).read_text().splitlines()]
    loss, val, watch = (lines(ax) for ax in figure.axes)
    by_view = {name: name.partition(".")[0] for name in history[0]["terms"]}
    assert set(loss) - {"chosen epoch"} == set(by_view.values())  # nine terms of two languages find no room
    for short in by_view.values():
        own = [name for name in by_view if by_view[name] == short]
        assert loss[short][0].tolist() == [1, 2, 3]
        assert loss[short][1] == pytest.approx([mean(entry["terms"][name] for name in own) for entry in history])
    assert val["en t2i"][1].tolist() == [entry["val_map"]["en"]["t2i"] for entry in history]
    assert val["mean"][1].tolist() == [entry["val_map_mean"] for entry in history]
    assert val["chosen epoch"][0][0] == run.outcome.best_epoch + 1
    distinct = [min(of["distinct"] for of in entry["collapse"].values()) for entry in history]
    assert watch["distinct codes, worst view"][1].tolist() == distinct
    assert "constant bits, worst view" in watch


# ---------------------------------------------------------------------------------------------- files and words


def test_every_kind_is_written_in_both_formats(grid, tmp_path, capsys):
    data, out, _ = grid
    before = {path: path.read_bytes() for path in out.rglob(runs.METRICS)}
    where = ["--cache", data.folder.parent, "--runs", out, "--out", tmp_path, "--seed", 0, "--lang", "de", "--json"]
    assert cmrhash("plot", *where) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["dataset"], printed["skipped"], printed["of"]) == ("toy", {}, 4)
    written = sorted(tmp_path.iterdir())
    assert sorted(printed["files"]) == [str(path) for path in written]
    kinds = sorted(PLOTS, key=len, reverse=True)
    assert {next(kind for kind in kinds if path.name.startswith(kind)) for path in written} == set(PLOTS)
    assert all(path.read_bytes()[:4] in (b"\x89PNG", b"<?xm") for path in written)
    assert len(written) == 2 * len(PLOTS)
    assert {path: path.read_bytes() for path in out.rglob(runs.METRICS)} == before  # eval's own last words stay


def test_title_and_footer_say_what_was_measured(grid):
    said = text(only(drawings(source(grid), ["bits"])[0], "bits"))
    for words in (
        "mAP by code length, toy ",
        "logistic triplet",
        "20 queries, 100 database",
        "tie-aware",
        "seeds 0, 1",
        "(bits)",
    ):
        assert words in said
    assert "UNTRAINED" not in said


def test_methods_with_fewer_seeds_are_named():
    found = [SimpleNamespace(method="cca", seed=0), *(SimpleNamespace(method="triplet", seed=seed) for seed in (1, 0))]
    assert sources._seeds(found) == "seeds 0, 1 (cca: 0)"
    assert sources._seeds(found[:1]) == "seed 0"


def test_the_runs_of_several_grids_are_told_apart(grid, tmp_path, capsys):
    assert cmrhash("plot", "bits", "--cache", grid[0].folder.parent, "--runs", grid[1], "--out", tmp_path) == 0
    said = "drawn: logistic, triplet: 8, 16 bits, seeds 0, 1; choose with --method, --bits, --seed\n"
    assert said in capsys.readouterr().err
    later = [("cca", 8, 0), ("scm", 8, 0), *(("triplet", bits, seed) for bits in (8, 16) for seed in (0, 1))]
    found = [SimpleNamespace(method=m, bits=b, seed=s) for m, b, s in [*later, ("triplet", 32, 0)]]
    assert sources.of_runs(found) == "cca, scm: 8 bits, seed 0; triplet: 8, 16 bits, seeds 0, 1 and 32 bits, seed 0"


def test_untrained_encoders_are_said(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache")
    run, _ = train(replace(QUICK, bits=8), made, tmp_path / "runs")
    for drawing in drawings(ShownRuns(made, [run], (), 1000))[0]:
        assert "UNTRAINED ENCODERS: image, text-de, text-en" in text(drawing.figure), drawing.kind


def test_by_pairs_the_length_is_drawn_against_recall_at_1(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache", relevance="pairs", change=lambda item: replace(item, labels=()))
    for bits in (8, 12):
        train(replace(QUICK, bits=bits, method="supcon"), made, tmp_path / "runs")
    found = runs.find_runs(tmp_path / "runs", "toy", "pairs")
    made_, skipped = drawings(ShownRuns(made, found, ("de",), 1000))
    rows = evaluate(EvalConfig(langs=("de",)), made, tmp_path / "runs").rows
    line = next(drawing.figure for drawing in made_ if drawing.kind == "bits").axes[0].lines[0]
    assert line.get_ydata() == pytest.approx([r["hit_at"]["1"] for r in rows if r["direction"] == "i2t"])
    assert (set(skipped), {drawing.kind for drawing in made_}) == ({"seen"}, set(PLOTS) - {"seen"})


def test_what_the_runs_do_not_allow_is_skipped_with_a_reason_and_refused_when_asked_for(grid, make_cache, tmp_path):
    data = grid[0]
    run, _ = train(replace(QUICK, bits=8, method="cca"), data, tmp_path / "runs")
    made, skipped = drawings(ShownRuns(data, [run], ("de",), 1000))
    assert set(skipped) == {"bits", "training"}
    assert {drawing.kind for drawing in made} == {"pr", "pr-rank", "topn", "seen", "distances", "tsne"}
    for kind, words in (("bits", "needs two code lengths, found only 8"), ("training", "cca is solved in closed form")):
        with pytest.raises(UsageError, match=words):
            draw(PlotConfig(kinds=(kind,), out=tmp_path / "p"), data, tmp_path / "runs")
    assert not (tmp_path / "p").exists()


def test_runs_without_val_items_have_no_val_panel_and_the_last_is_shown(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache", change=lambda item: replace(item, splits=item.splits - {"val"}))
    for bits in (8, 12):
        train(replace(QUICK, bits=bits), made, tmp_path / "runs")
    found = runs.find_runs(tmp_path / "runs", "toy", "labels")
    (drawing,), _ = drawings(ShownRuns(made, found, ("de",), 1000), ["training"])
    assert (drawing.name, len(drawing.figure.axes)) == ("training-triplet-12", 1)


def test_no_query_with_anything_to_find_is_a_data_error(make_cache, tmp_path):
    made = make_cache(tmp_path / "cache", change=lambda i: replace(i, labels=()) if "query" in i.splits else i)
    train(replace(QUICK, bits=8), made, tmp_path / "runs")
    for kind in ("distances", "pr"):
        with pytest.raises(DataError, match="no query has a relevant item"):
            draw(PlotConfig(kinds=(kind,), out=tmp_path / "p"), made, tmp_path / "runs")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["pie"], "KIND: unknown kind 'pie'"),
        (["train"], "did you mean training?"),
        (["--format", "pgn"], "did you mean png?"),
        (["--bits", "99"], "no such trained run with 99 bits"),
        (["--size", "wide"], "--size: 'wide' is no size of a figure: give column, page or a width of 5 to 60 cm"),
        (["--size", "nan"], "--size: 'nan' is no size of a figure"),
        (["--items", "1"], "--items: 1 is out of range: give a whole number from 8"),
        (["distances", "--lang", "fr"], "no features for language 'fr'"),
        (["--dataset", "none"], "none"),
    ],
)
def test_misuse_is_one_line(grid, args, words, tmp_path, capsys):
    data, out, _ = grid
    code = cmrhash("plot", *args, "--cache", data.folder.parent, "--runs", out, "--out", tmp_path / "p")
    said = capsys.readouterr().err
    assert (code, said.count("\n")) == (2, 1)
    assert words in said
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(("module", "kind"), [("matplotlib.style", "pr"), ("sklearn.manifold", "tsne")])
def test_a_missing_package_is_one_line_that_says_what_to_install(grid, module, kind, tmp_path, monkeypatch, capsys):
    data, out, _ = grid
    monkeypatch.setitem(sys.modules, module, None)
    assert cmrhash("plot", kind, "--bits", 8, "--cache", data.folder.parent, "--runs", out, "--out", tmp_path) == 2
    assert capsys.readouterr().err.endswith('pip install "cmrhash[viz]"\n')
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- drawing


def pictures(name="a"):
    panel = Panel(name, "x", "y", [Series(name, [1, 2, 3], [0.1, float("nan"), 0.3], 0)], [("chance", 0.2)])
    counts = Distances(name, np.array([3, 2, 1]), np.array([1, 2, 9]))
    rng = np.random.default_rng(0)
    points = Points(rng.random((20, 2)), np.arange(20) % 3 - 1, np.arange(20) % 2 > 0, [name, "b"])
    return [
        plots.curves([[panel]], name, name),
        plots.curves([[panel], [panel]], name, name, wide=True),
        plots.distances([[counts]], name, name),
        plots.scatter(points, name, name),
    ]


def test_equal_numbers_give_equal_bytes_whatever_the_users_settings():
    import matplotlib as mpl

    def rendered():
        files = [plots.render(figure, form) for figure in pictures() for form in ("png", "svg")]
        return [*files, plots.render(pictures()[0], "pdf")]

    before = rendered()
    with mpl.rc_context({"svg.hashsalt": "other", "font.size": 20, "axes.grid": False, "savefig.dpi": 30}):
        after = rendered()
        assert mpl.rcParams["font.size"] == 20
    assert after == before
    assert not any(b"<dc:date>" in content or b"Matplotlib v" in content for content in after)


@pytest.mark.parametrize("name", ["$x_{$", "_hidden", "a & <b>", "犬", "%s {}", ""])
def test_any_name_can_be_drawn(name):
    for figure in pictures(name):
        assert plots.render(figure, "svg")


def test_series_differ_by_more_than_colour():
    looks = {(plots.MARKERS[at % len(plots.MARKERS)], str(plots.DASHES[at % len(plots.DASHES)])) for at in range(40)}
    assert len(looks) == 40
    assert plots.RELEVANT[1] != plots.IRRELEVANT[1]


def test_inline_figures_share_no_ids_and_name_no_host():
    first, second = (themed.inline(figure, name) for name, figure in zip("ab", pictures()[:2], strict=True))
    assert "http" not in first + second
    assert first.startswith("<svg")
    ids = [{part.split('"')[0] for part in svg.split(' id="')[1:]} for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = {part.split('"')[0] for part in first.split('href="#')[1:]}
    assert used <= ids[0]
