"""A run, or a comparison -> one HTML file that holds all it shows: protocol, tables, plots, examples, commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import cmrhash
from cmrhash.config import PlotConfig, ReportConfig
from cmrhash.data.items import ImageTextDataset
from cmrhash.errors import DataError, StaleError, UsageError
from cmrhash.evaluation.protocol import changed_settings
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.search.hasher import Hasher
from cmrhash.show import page, plots
from cmrhash.show.examples import Answer, Example, Thumbnails, examples, labels_of
from cmrhash.show.figures import drawings
from cmrhash.show.sources import WORDS, Row, Source
from cmrhash.storage.files import write_bytes
from cmrhash.training import runs

COMPARISON = "compare.json"
NEEDED = {
    *("method", "bits", "lang", "head_lang", "direction", "relevance", "metric", "mean", "sd", "n", "real", "real_sd"),
    *("chance", "collapsed", "seeds", "trained_langs", "command"),
}


@dataclass(frozen=True)
class Report:
    """size: bytes. photos: thumbnails in it; missing: photos that were to be shown and could not be read."""

    file: Path
    size: int
    runs: list[Path]
    photos: int
    missing: int

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        told = {"file": str(self.file), "bytes": self.size, "runs": list(map(str, self.runs))}
        return {**told, "photos": self.photos, "photos_missing": self.missing}


def report(config: ReportConfig, data: ExtractedDataset, out: Path) -> Report:
    """Write the report of a run, or of the comparison that lies beside the runs. folder: the data set's cache; out: of
    all runs.

    Raises UsageError if there is no run, or for numbers that nothing can be shown by; StaleError if the comparison is
    no longer that of the runs.
    """
    for name in ("examples", "top", "thumbnail"):
        if getattr(config, name) < 1:
            raise UsageError(f"--{name} {getattr(config, name)}", None, "give a whole number from 1")
    dataset = data.dataset
    beside = out / data.name
    compared = beside / COMPARISON
    if config.run is None and compared.is_file():
        rows = _read_comparison(compared)
        paired = data.with_relevance(rows[0]["relevance"])
        source = _source(paired, _runs_of(rows, paired.dataset, out, compared), config)
        _refuse_other_scores(rows, source, compared)
        title, results, commands = f"{dataset.name}: comparison", _comparison(rows, config), _commands(rows)
        target = config.out or beside / "report.html"
    else:
        run = (
            runs.open_run(config.run)
            if config.run
            else runs.best_run(runs.find_runs(out, dataset.name, dataset.relevance))
        )
        source = _source(data.with_relevance(run.relevance), [run], config)
        title, results = f"{dataset.name}: {run.folder.name}", _scores(source.evaluation.rows)
        commands, target = [command_of(run, data)], config.out or run.folder / "report.html"
    thumbnails = Thumbnails(dataset.root, config.thumbnail)
    body = _body(config, source, title, results, commands, thumbnails)
    content = page.page(title, body).encode(errors="backslashreplace")
    write_bytes(target, content)
    return Report(target, len(content), [run.folder for run in source.found], *thumbnails.counts)


def _source(data: ExtractedDataset, found: Sequence[runs.Run], config: ReportConfig) -> Source:
    return Source(data, found, config.langs, PlotConfig.items)


# ---------------------------------------------------------------------------------------------- parts


def _body(
    config: ReportConfig, source: Source, title: str, results: str, commands: Sequence[str], thumbnails: Thumbnails
) -> list[str]:
    evaluation = source.evaluation
    protocol = {key: words for key, _, words in (line.partition(": ") for line in evaluation.in_words())}
    untrained = evaluation.protocol["untrained_encoders"]
    warning = f"Untrained encoders: {', '.join(untrained)}. The figures show that the path works, not how well."
    made, skipped = drawings(source)
    counts = f"{len(source.dataset.items):,} items, {len(source.found)} run{'s' if len(source.found) > 1 else ''}"
    return [
        f"<h1>{escape(title)}</h1><p class=sub>cmrhash {escape(cmrhash.__version__)}; {escape(counts)}</p>",
        f"<p class=warn>{escape(warning)}</p>" if untrained else "",
        "<h2>Results</h2>",
        results,
        "<h2>Protocol</h2>",
        page.points(protocol),
        "<h2>Plots</h2>",
        *(
            f"<figure>{plots.inline(of.figure, f'f{at}')}<figcaption>{escape(of.caption)}</figcaption></figure>"
            for at, of in enumerate(made)
        ),
        *(f"<p class=sub>Not shown: {escape(why)}.</p>" for why in skipped.values()),
        "<h2>Examples</h2>",
        *_examples(config, source, thumbnails),
        "<h2>How to make it again</h2>",
        f"<pre>{escape(chr(10).join(commands))}</pre>",
        "<p>The features it was trained on, in the cache:</p>",
        _features(source.best),
    ]


def _scores(rows: Sequence[Row]) -> str:
    """A line a language and direction; by pairs also one for real values and one for a random order."""
    if rows[0]["relevance"] != "pairs":
        cuts = list(rows[0]["precision_at"])
        columns = ["lang", "direction", "mAP", "by tie order", "chance", "real-valued", *(f"P@{k}" for k in cuts)]
        lines = [
            [
                *(row["lang"], row["direction"], f"{row['map']:.3f}"),
                f"{row['map_pessimistic']:.3f}-{row['map_optimistic']:.3f}",
                *(f"{value:.3f}" for value in (row["chance"], row["map_real"], *row["precision_at"].values())),
            ]
            for row in rows
        ]
        return page.table(columns, lines)
    cuts = list(rows[0]["hit_at"])
    lines = [
        [
            *(row["lang"], row["direction"], name, *(f"{value:.3f}" for value in row[f"hit_at{which}"].values())),
            f"{row[f'median_rank{which}']:.1f}",
        ]
        for row in rows
        for which, name in (("", "codes"), ("_real", "real-valued"), ("_chance", "chance"))
    ]
    return page.table(["lang", "direction", "", *(f"R@{k}" for k in cuts), "median rank"], lines)


def _features(run: runs.Run) -> str:
    lines = [[view, of.file, of.encoder, of.weights, of.sha256[:16]] for view, of in run.features.items()]
    return page.table(["view", "file", "encoder", "weights", "sha256"], lines)


def _examples(config: ReportConfig, source: Source, thumbnails: Thumbnails) -> list[str]:
    run = source.best
    hasher = Hasher.open(run, source.data)
    which = f"of {run.folder.name}" + (", the best run on val" if len(source.found) > 1 else "")
    parts = [
        f"<p>Queries {escape(which)}, by their average precision over the whole database (AP, tie-aware): the best, "
        f"the median and the worst, with the nearest {config.top}; equal distances in the order of the data set.</p>"
    ]
    for lang in source.langs:
        for direction, found in examples(source, hasher, lang, config.examples, config.top).items():
            parts.append(f"<h3>{escape(f'{WORDS[direction]}, {lang}')}</h3>")
            parts += [_example(source.dataset, example, thumbnails) for example in found]
    there, missing = thumbnails.counts
    if missing:
        parts.append(f"<p class=sub>{missing} of {there + missing} photos are no longer there, or cannot be read.</p>")
    return parts


def _example(dataset: ImageTextDataset, example: Example, thumbnails: Thumbnails) -> str:
    labels = ", ".join(labels_of(dataset, example.item))
    asked = f"<p>{escape(example.caption)}</p>" if example.caption is not None else ""
    uri = None if asked else thumbnails.of(example.item.image)
    asked += page.photo(uri, f"photo {example.item.id}") if uri else ""
    found = "".join(_answer(answer, thumbnails) for answer in example.answers)
    about = f"<small>{escape(example.item.id)}{f'<br>{escape(labels)}' if labels else ''}</small>"
    return (
        f"<div class=example><h4>{example.rank}: AP {example.ap:.3f}</h4>"
        f"<div class=asked>{asked}{about}</div><ol class=found>{found}</ol></div>"
    )


def _answer(answer: Answer, thumbnails: Thumbnails) -> str:
    hit = answer.hit
    uri = thumbnails.of(hit.image) if hit.modality == "image" else None
    shown = page.photo(uri, f"photo {hit.id}") if uri else ""
    shown += f"<div>{escape(hit.caption or '')}</div>" if hit.modality == "text" else ""
    judged = "<b>relevant</b>" if answer.relevant else "not relevant"
    about = f"{hit.rank}. {judged}, distance {hit.distance}"
    words = "<br>".join(escape(part) for part in (hit.id, ", ".join(hit.labels)) if part)
    return f"<li{' class=yes' if answer.relevant else ''}>{about}{shown}<small>{words}</small></li>"


def command_of(run: runs.Run, data: ExtractedDataset) -> str:
    """Shell commands that train a run and score it, with every setting that is not the default.

    data: with its own relevance.
    """
    which = f"--dataset {shlex.quote(run.dataset)} --method {run.method} --bits {run.bits}"
    if run.relevance != data.dataset.relevance:
        which += f" --relevance {run.relevance}"
    options = [(name.replace("_", "-"), value) for name, value in changed_settings(run).items()]
    options += [("lang", lang) for lang in run.langs if set(run.langs) != set(data.dataset.languages)]
    for view, of in run.features.items():
        if len(data.headers(view)) > 1:
            options.append(("encoder", f"{view.short}={view.encoder_of(of.file)}"))
    words = "".join(f" --{name} {shlex.quote(str(value))}" for name, value in options)
    return f"cmrhash train {which}{words} --seed {run.seed} && cmrhash eval {which} --seed {run.seed}"


# ---------------------------------------------------------------------------------------------- a comparison


def _read_comparison(path: Path) -> list[dict[str, Any]]:
    """The rows that ``cmrhash compare`` wrote."""
    again = "run cmrhash compare again"
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_bytes())["rows"]
        lacking = not rows or any(not row.keys() >= NEEDED for row in rows)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"not a comparison ({type(error).__name__})", path, again) from None
    if lacking:
        raise DataError("not a comparison, or of another version", path, again)
    return rows


def _runs_of(rows: Sequence[Mapping[str, Any]], dataset: ImageTextDataset, out: Path, path: Path) -> list[runs.Run]:
    """The runs of the grid; StaleError if one is gone."""
    found = runs.find_runs(out, dataset.name, dataset.relevance)
    cells = {(row["method"], row["bits"], seed, *row["trained_langs"]) for row in rows for seed in row["seeds"]}
    there = {(run.method, run.bits, run.seed, *run.langs): run for run in found}
    if gone := sorted(cells - there.keys()):
        what = f"{len(gone)} runs of the comparison are gone, {gone[0][0]} with {gone[0][1]} bits first"
        raise StaleError(what, path, "run cmrhash compare again")
    return [run for cell, run in there.items() if cell in cells]


def _refuse_other_scores(rows: Sequence[Mapping[str, Any]], source: Source, path: Path) -> None:
    """StaleError if a mean of the comparison is not what its runs score now."""
    for row in rows:
        own = [
            now
            for now in source.evaluation.rows
            if all(now[key] == row[key] for key in ("method", "bits", "lang", "direction", "trained_langs"))
        ]
        cut = row["metric"].removeprefix("r@")
        scores = [now["map"] if row["metric"] == "map" else now["hit_at"].get(cut) for now in own]
        if scores and None not in scores and abs(sum(scores) / len(scores) - row["mean"]) > 1e-6:
            what = f"{row['method']}, {row['bits']} bits, {row['lang']} {row['direction']} is {row['mean']:.3f} there"
            now = f"{what}, its runs score {sum(scores) / len(scores):.3f} now"
            raise StaleError(now, path, "run cmrhash compare again")


def _comparison(rows: Sequence[dict[str, Any]], config: ReportConfig) -> str:
    from cmrhash.evaluation.compare import WORDS as METRICS  # brings torch
    from cmrhash.evaluation.compare import table

    shown = [row for row in rows if not config.langs or row["lang"] in config.langs]
    metric = METRICS.get(rows[0]["metric"], rows[0]["metric"])
    about = f"{metric}; mean +- standard deviation over seeds; * = a run has collapsed"
    return f"<p>{escape(about)}</p>{page.table(*table(shown))}"


def _commands(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a cell."""
    return list(dict.fromkeys(str(row["command"]) for row in rows))
