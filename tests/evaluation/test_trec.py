"""TREC files, judged by ir_measures."""

import math
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest
from quick_training import QUICK
from slow_metrics import average_precision_ranked
from slow_scores import related, run_of

from cmrhash.config import EvalConfig
from cmrhash.data.view import View
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.evaluation.run_codes import stored_codes
from cmrhash.evaluation.searches import Search, sides
from cmrhash.evaluation.trec import write_trec
from cmrhash.training.train import train


def test_trec_files_are_judged_alike(mine, tmp_path):
    ir_measures = pytest.importorskip("ir_measures")
    data, out = mine
    dataset = data.dataset
    written = write_trec(EvalConfig(bits=(8,)), data, out, tmp_path / "trec")
    assert len(written) == 8
    views = stored_codes(run_of(out))
    for lang in ("de", "en"):
        for direction in ("i2t", "t2i"):
            stem = str(tmp_path / "trec" / f"triplet-8.{lang}.{direction}")
            ranked = ir_measures.read_trec_run(stem + ".run")
            judged = ir_measures.read_trec_qrels(stem + ".qrels")
            theirs = {m.query_id: m.value for m in ir_measures.iter_calc([ir_measures.AP], judged, ranked)}
            ends = (View.IMAGE, View.text(lang))[:: 1 if direction == "i2t" else -1]
            both = sides(dataset, views, Search(direction, *ends))
            _, order = both.sought.index.search(both.source.codes.packed[both.rows], len(both.database))
            queries = both.queries
            hits = np.array(
                [[related(dataset, q, both.database[d]) for d in row] for q, row in zip(queries, order, strict=True)]
            )
            ours = average_precision_ranked(hits)
            assert theirs == pytest.approx({f"i{q}": ap for q, ap in zip(queries, ours, strict=True)}, abs=1e-9)
            assert math.isfinite(sum(theirs.values()))


def test_trec_files_can_be_asked_for_before_any_codes_exist(mine, tmp_path):
    data, out = mine
    evaluate(EvalConfig(langs=("de",)), data, out)
    assert len(write_trec(EvalConfig(langs=("de",)), data, out, tmp_path / "trec")) == 2 * 2 * 2


def test_trec_files_number_captions_and_leave_the_query_itself_out(paired, tmp_path):
    out, data, run = paired
    config = EvalConfig(relevance="pairs", langs=("de",), directions=("t2i", "t2t"))
    evaluate(config, data, out)
    names = [path.name for path in write_trec(config, data, out, tmp_path)]
    stems = [f"{run.folder.name}.de.t2i", f"{run.folder.name}.de-de.t2t"]
    assert names == [stem + end for stem in stems for end in (".run", ".qrels")]
    captions = [f"i{n}#{c}" for n in range(0, 120, 6) for c in (0, 1)]
    images, texts = ([line.split() for line in (tmp_path / (stem + ".run")).read_text().splitlines()] for stem in stems)
    assert {line[0] for line in images} == {line[0] for line in texts} == set(captions)
    assert {line[2] for line in images} == {f"i{n}" for n in range(0, 120, 6)}
    assert sorted(line[2] for line in texts if line[0] == "i6#1") == sorted(set(captions) - {"i6#1"})
    judged = [line.split() for line in (tmp_path / (stems[1] + ".qrels")).read_text().splitlines()]
    assert ["i6#1", "0", "i6#0", "1"] in judged
    assert len(judged) == len(captions)


@pytest.mark.faults("name that two systems read differently")
def test_ids_stay_apart_in_trec_files(make_cache, tmp_path):
    names = {"i0": "a b", "i1": "a_b", "i2": "a%20b", "i6": "a%b"}
    data = make_cache(tmp_path / "cache", change=lambda item: replace(item, id=names.get(item.id, item.id)))
    train(replace(QUICK, epochs=1), data, tmp_path / "runs")
    evaluate(EvalConfig(langs=("de",)), data, tmp_path / "runs")
    written = write_trec(EvalConfig(langs=("de",)), data, tmp_path / "runs", tmp_path / "trec")
    for path in written:
        lines = [line.split(" ") for line in path.read_text().splitlines()]
        assert {len(line) for line in lines} == {6 if path.suffix == ".run" else 4}
    found = {line.split(" ")[2] for line in written[0].read_text().splitlines()}
    asked = {line.split(" ")[0] for line in written[0].read_text().splitlines()}
    assert {unquote(name) for name in asked | found} >= set(names.values())
    assert {"a%20b", "a%25b"} <= asked
    assert {"a_b", "a%2520b"} <= found
