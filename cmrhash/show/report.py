"""Reports: one HTML file of a run or a comparison with tables, examples, plots, protocol and commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrhash.config import PlotConfig, Progress, ReportConfig
from cmrhash.data.cleaning import known_language
from cmrhash.data.items import ImageTextDataset
from cmrhash.errors import DataError, StaleError, UsageError
from cmrhash.evaluation.commands import command_of
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.search.hasher import Hasher
from cmrhash.search.judge import label_names
from cmrhash.show import themed
from cmrhash.show.examples import Example, examples
from cmrhash.show.figures import drawings
from cmrhash.show.html.document import esc, figure, picture, points, standalone, table
from cmrhash.show.html.results import card, described, gallery, query
from cmrhash.show.html.scores import score_table
from cmrhash.show.html.thumbnails import Thumbnails, data_uri
from cmrhash.show.plots import Look
from cmrhash.show.sources import WORDS, ShownRuns
from cmrhash.storage.files import write_bytes
from cmrhash.training import runs
from cmrhash.version import __version__

COMPARISON = "compare.json"
NEEDED = {
    *("method", "bits", "lang", "head_lang", "direction", "relevance", "metric", "mean", "sd", "n", "real", "real_sd"),
    *("chance", "collapsed", "seeds", "trained_langs", "command"),
}
SAME = ("method", "bits", "lang", "direction", "trained_langs", "trained_direction")  # in rows of the same runs


@dataclass(frozen=True)
class Report:
    """A written report. size: bytes; photos: thumbnails in it; missing: photos that could not be read."""

    file: Path
    size: int
    runs: list[Path]
    photos: int
    missing: int

    def as_json(self) -> dict[str, Any]:
        """Fields that ``--json`` prints."""
        told = {"file": str(self.file), "bytes": self.size, "runs": list(map(str, self.runs))}
        return {**told, "photos": self.photos, "photos_missing": self.missing}


def report(config: ReportConfig, data: ExtractedDataset, out: Path, progress: Progress = lambda *_: None) -> Report:
    """Write the report of a run, or of the comparison saved beside the runs.

    out: folder of all runs. Raises UsageError without a run or for numbers below 1; StaleError if the comparison no
    longer matches the runs.
    """
    for name in ("examples", "top", "thumbnail"):
        if getattr(config, name) < 1:
            what = f"{getattr(config, name)} is out of range"
            raise UsageError(what, None, "give a whole number from 1", option=name)
    dataset = data.dataset
    beside = out / data.name
    compared = beside / COMPARISON
    if config.run is None and compared.is_file():
        rows = _read_comparison(compared)
        paired = data.with_relevance(rows[0]["relevance"])
        source = _source(paired, _runs_of(rows, paired.dataset, out, compared), config, progress)
        _refuse_other_scores(rows, source, compared)
        title, results, commands = f"{dataset.name}: comparison", _comparison(rows, config), _commands(rows)
        target = config.out or beside / "report.html"
    else:
        run = (
            runs.open_run(config.run)
            if config.run
            else runs.best_run(runs.find_runs(out, dataset.name, dataset.relevance))
        )
        source = _source(data.with_relevance(run.relevance), [run], config, progress)
        results = score_table(source.evaluation.rows, "Scores by language and direction")
        title, commands = f"{dataset.name}: {run.folder.name}", [command_of(run, data)]
        target = config.out or run.folder / "report.html"
    thumbnails = Thumbnails(dataset.root, config.thumbnail)
    body = _body(config, source, title, results, commands, thumbnails)
    content = standalone(title, f"<main class=report>{body}</main>", themed.DARK).encode(errors="backslashreplace")
    write_bytes(target, content)
    return Report(target, len(content), [run.folder for run in source.found], *thumbnails.counts)


def _source(data: ExtractedDataset, found: Sequence[runs.Run], config: ReportConfig, progress: Progress) -> ShownRuns:
    untitled = Look(titled=False)  # captions are below the figures
    return ShownRuns(data, found, config.langs, PlotConfig.items, untitled, progress=progress)


# ---------------------------------------------------------------------------------------------- parts


def _body(
    config: ReportConfig, source: ShownRuns, title: str, results: str, commands: Sequence[str], thumbnails: Thumbnails
) -> str:
    evaluation = source.evaluation
    protocol = {key: words for key, _, words in (line.partition(": ") for line in evaluation.in_words())}
    untrained = evaluation.protocol["untrained_encoders"]
    warning = f"Untrained encoders: {', '.join(untrained)}. The scores say nothing about the quality of the method."
    made, skipped = drawings(source)
    counts = f"{len(source.dataset.items):,} items, {len(source.found)} run{'s' if len(source.found) > 1 else ''}"
    parts = [
        f"<h1>{esc(title)}</h1><p class=soft>cmrhash {esc(__version__)}; {esc(counts)}</p>",
        f"<p class=problem>{esc(warning)}</p>" if untrained else "",
        "<h2>Results</h2>",
        results,
        "<h2>Examples</h2>",
        *_examples(config, source, thumbnails),
        "<h2>Plots</h2>",
        *(figure(themed.inline(of.figure, f"f{at}"), f"{of.caption} {of.footer}.") for at, of in enumerate(made)),
        *(f"<p class=soft>Not shown: {esc(why)}.</p>" for why in skipped.values()),
        "<h2>Protocol</h2>",
        points(protocol),
        "<h2>Reproduction</h2>",
        f"<pre>{esc(chr(10).join(commands))}</pre>",
        _features(source.best),
    ]
    return "\n".join(parts)


def _features(run: runs.Run) -> str:
    lines = [[view, of.file, of.encoder, of.weights, of.sha256[:16]] for view, of in run.features.items()]
    return table(
        ["view", "file", "encoder", "weights", "sha256"], lines, f"Feature files of {run.folder.name} in the cache"
    )


def _examples(config: ReportConfig, source: ShownRuns, thumbnails: Thumbnails) -> list[str]:
    run = source.best
    hasher = Hasher.open(run, source.data, among="database")
    which = run.folder.name + (", the run with the best validation mAP" if len(source.found) > 1 else "")
    parts = [
        f"<p>Queries of {esc(which)}: those with the best, the median and the worst average precision (AP, tie-aware, "
        f"over the whole database), each with its {config.top} nearest results. Results at equal distance are "
        "ordered by id.</p>"
    ]
    for lang in source.langs:
        for direction, found in examples(source, hasher, lang, config.examples, config.top).items():
            parts.append(f"<h3>{esc(f'{WORDS[direction]}, {lang}')}</h3>")
            parts += [_example(hasher, example, lang, thumbnails) for example in found]
    readable, missing = thumbnails.counts
    if missing:
        parts.append(f"<p class=soft>{missing} of {readable + missing} photos are missing or unreadable.</p>")
    return parts


def _example(hasher: Hasher, example: Example, lang: str, thumbnails: Thumbnails) -> str:
    item, caption = example.item, example.caption
    shown = picture(data_uri(thumbnails.of(item.image)), f"photo {item.id}") if caption is None else ""
    words = described(item, label_names(hasher.dataset, item), caption or "", lang)
    cards = [card(each, hasher.bits, data_uri(thumbnails.of(each.hit.image))) for each in example.results]
    kind = "text" if caption is None else "image"
    return f"<h4>{example.rank}: AP {example.ap:.3f}</h4>{query(shown, words)}{gallery(kind, cards)}"


# ---------------------------------------------------------------------------------------------- a comparison


def _read_comparison(path: Path) -> list[dict[str, Any]]:
    """Read the rows that ``cmrhash compare`` wrote."""
    again = "run `compare` again"
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_bytes())["rows"]
        lacking = not rows or any(not row.keys() >= NEEDED for row in rows)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"not a comparison ({type(error).__name__})", path, again) from None
    if lacking:
        raise DataError("not a comparison, or one of another version", path, again)
    return rows


def _runs_of(rows: Sequence[Mapping[str, Any]], dataset: ImageTextDataset, out: Path, path: Path) -> list[runs.Run]:
    """Find the runs of the comparison; StaleError if one is missing."""
    found = runs.find_runs(out, dataset.name, dataset.relevance)
    cells = {
        (row["method"], row["bits"], seed, row.get("trained_direction", ""), *row["trained_langs"])
        for row in rows
        for seed in row["seeds"]
    }
    there = {(run.method, run.bits, run.seed, run.direction or "", *run.langs): run for run in found}
    if gone := sorted(cells - there.keys()):
        what = f"{len(gone)} runs of the comparison are gone, {gone[0][0]} with {gone[0][1]} bits first"
        raise StaleError(what, path, "run `compare` again")
    return [run for cell, run in there.items() if cell in cells]


def _refuse_other_scores(rows: Sequence[Mapping[str, Any]], source: ShownRuns, path: Path) -> None:
    """Raise StaleError if a mean of the comparison differs from the current scores of its runs."""
    for row in rows:
        own = [now for now in source.evaluation.rows if all(now.get(key) == row.get(key) for key in SAME)]
        cut = row["metric"].removeprefix("r@")
        scores = [now["map"] if row["metric"] == "map" else now["hit_at"].get(cut) for now in own]
        if scores and None not in scores and abs(sum(scores) / len(scores) - row["mean"]) > 1e-6:
            what = f"{row['method']}, {row['bits']} bits, {row['lang']} {row['direction']} is {row['mean']:.3f} in it"
            now = f"{what}, but its runs score {sum(scores) / len(scores):.3f} now"
            raise StaleError(now, path, "run `compare` again")


def _comparison(rows: Sequence[dict[str, Any]], config: ReportConfig) -> str:
    from cmrhash.evaluation.compare import SIGNIFICANCE  # brings torch
    from cmrhash.evaluation.compare import WORDS as METRICS
    from cmrhash.evaluation.compare import table as grid

    asked = {known_language(lang, {row["lang"] for row in rows}) for lang in config.langs}
    shown = [row for row in rows if not asked or row["lang"] in asked]
    metric = METRICS.get(rows[0]["metric"], rows[0]["metric"])
    about = f"{metric}; mean ± standard deviation over seeds; * = a run has collapsed codes"
    if baseline := [row["method"] for row in shown if row.get("difference", 0.0) is None]:
        about += f"; {SIGNIFICANCE.format(baseline[0])}"
    columns, cells = grid(shown)
    return table(columns, [[cell.replace(" +- ", " ± ") for cell in line] for line in cells], about)


def _commands(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Commands of all cells, each once."""
    return list(dict.fromkeys(str(row["command"]) for row in rows))
