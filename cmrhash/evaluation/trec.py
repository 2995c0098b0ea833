"""Rankings and judgements in TREC format, for external evaluation tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import EvalConfig
from cmrhash.data.items import ImageTextDataset
from cmrhash.data.view import View
from cmrhash.evaluation.run_codes import ViewCodes, among_database, stored_codes
from cmrhash.evaluation.scoring import scores_of
from cmrhash.evaluation.searches import Search, Sides, searches, sides
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.retrieval.ranking import Rank
from cmrhash.retrieval.relevance import EXCLUDED
from cmrhash.training import runs


def write_trec(config: EvalConfig, data: ExtractedDataset, out: Path, target: Path) -> list[Path]:
    """Write a run file and a qrels file for each search that ``evaluate`` scores.

    Call ``evaluate`` first. What is tied ranks in index order; the score is N - rank, because trec_eval orders equal
    scores by its own rule. Where all captions count, caption n of an item is named "<id>#n". A space in an id is
    written as %20 and % as %25, as in URLs. Returns the paths.
    """
    dataset = data.with_relevance(config.relevance).dataset
    trained_by = config.trained_by or dataset.relevance
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for run in runs.find_runs(out, dataset.name, trained_by, config.bits, config.methods, config.seeds):
        views = among_database(dataset, stored_codes(run))
        for search in searches(dataset, views, run.scored(config.directions), config.langs):
            ends = (search.source, search.sought) if search.direction == "t2t" else (_text_end(search),)
            stem = target / f"{run.name}.{'-'.join(view.short for view in ends)}.{search.direction}"
            ranked, judged = (stem.with_name(stem.name + end) for end in (".run", ".qrels"))
            _write(ranked, judged, sides(dataset, views, search), dataset, Rank.parse(config.rank))
            written += [ranked, judged]
    return written


def _text_end(search: Search) -> View:
    """Text view of a search; the image view if it has none."""
    return search.sought if search.source.is_image else search.source


def _write(ranked: Path, judged: Path, both: Sides, dataset: ImageTextDataset, rank: Rank) -> None:
    relevance = both.relevance(dataset)
    queries, database = _ids(dataset, both.source)[both.rows], _ids(dataset, both.sought)[both.sought.database]
    count = len(database)
    with ranked.open("w", encoding="utf-8") as run_file, judged.open("w", encoding="utf-8") as qrels_file:
        for at, query in enumerate(queries):
            order = np.argsort(-scores_of(rank, both, at, at + 1)[0], kind="stable")
            gains = relevance.gains(at, at + 1, 0, count)[0]
            found = order[gains[order] != EXCLUDED]
            run_file.writelines(
                f"{query} Q0 {database[d]} {rank} {count - rank} cmrhash\n" for rank, d in enumerate(found, 1)
            )
            qrels_file.writelines(
                f"{query} 0 {database[d]} {gains[d]}\n" for d in np.flatnonzero((gains > 0) & (gains != EXCLUDED))
            )


def _ids(dataset: ImageTextDataset, view: ViewCodes) -> NDArray[np.str_]:
    """Names of the rows of a view, (M,): item ids, numbered where all rows of an item count."""
    item = view.codes.item
    ids = [dataset.items[row].id.replace("%", "%25").replace(" ", "%20") for row in item]
    if dataset.relevance == "pairs" and (np.diff(item) == 0).any():
        ids = [f"{name}#{n}" for name, n in zip(ids, view.ordinal, strict=True)]
    return np.array(ids)
