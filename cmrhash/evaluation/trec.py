"""Rankings and judgements in TREC's text format, for other judges of the same runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import EvalConfig
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.view import View
from cmrhash.evaluation.run_codes import ViewCodes, stored_codes
from cmrhash.evaluation.searches import Search, Sides, searches, sides
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.retrieval.relevance import EXCLUDED
from cmrhash.training import runs


def write_trec(config: EvalConfig, data: ExtractedDataset, out: Path, target: Path) -> list[Path]:
    """Write a run and a qrels file for everything that ``evaluate`` scores; it must have been called before.

    Ties stand in index order; the score is N - rank, because trec_eval orders equal scores by a rule of its own.
    Where all captions count, the n-th of an item is called "<id>#n".
    """
    dataset = data.with_relevance(config.relevance).dataset
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for run in runs.find_runs(out, dataset.name, dataset.relevance, config.bits, config.methods, config.seeds):
        views = stored_codes(run)
        for search in searches(dataset, views, config.directions, config.langs):
            ends = (search.source, search.sought) if search.direction == "t2t" else (_text_end(search),)
            stem = target / f"{run.name}.{'-'.join(view.short for view in ends)}.{search.direction}"
            ranked, judged = (stem.with_name(stem.name + end) for end in (".run", ".qrels"))
            _write(ranked, judged, sides(dataset, views, search), dataset)
            written += [ranked, judged]
    return written


def _text_end(search: Search) -> View:
    """The texts of a search; the images where there are none."""
    return search.sought if search.source.is_image else search.source


def _write(ranked: Path, judged: Path, both: Sides, dataset: ImageTextDataset) -> None:
    relevance = both.relevance(dataset)
    asking, lying = _ids(dataset, both.source)[both.rows], _ids(dataset, both.sought)[both.sought.database]
    count = len(lying)
    with ranked.open("w", encoding="utf-8") as run_file, judged.open("w", encoding="utf-8") as qrels_file:
        for at, (row, query) in enumerate(zip(both.rows, asking, strict=True)):
            _, order = both.sought.index.search(both.source.codes.packed[row : row + 1], count)
            gains = relevance.gains(at, at + 1, 0, count)[0]
            found = order[0][gains[order[0]] != EXCLUDED]
            run_file.writelines(
                f"{query} Q0 {lying[d]} {rank} {count - rank} cmrhash\n" for rank, d in enumerate(found, 1)
            )
            qrels_file.writelines(
                f"{query} 0 {lying[d]} {gains[d]}\n" for d in np.flatnonzero((gains > 0) & (gains != EXCLUDED))
            )


def _ids(dataset: ImageTextDataset, view: ViewCodes) -> NDArray[np.str_]:
    """(M,) a name for each row of a view: its item's id, numbered where an item counts with all of its rows."""
    item = view.codes.item
    ids = [dataset.items[row].id.replace(" ", "_") for row in item]
    if dataset.relevance == "pairs" and (np.diff(item) == 0).any():
        ids = [f"{name}#{n}" for name, n in zip(ids, view.ordinal, strict=True)]
    return np.array(ids)
