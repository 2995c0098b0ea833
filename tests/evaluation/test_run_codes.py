"""The codes of a run: when they are made, made again, and refused."""

from dataclasses import replace

import pytest
from slow_scores import QUICK, expected_ap, hamming, mean, rankings, run_of

from cmrhash.config import EvalConfig
from cmrhash.errors import DamagedError, StaleError
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.training import runs
from cmrhash.training.train import train


def test_codes_are_made_once(mine):
    data, out = mine
    run = run_of(out)
    made = [run.folder / runs.CODES, *run.folder.glob("*.faiss")]
    assert len(made) == 4
    before = {path: path.stat().st_mtime_ns for path in made}
    evaluate(EvalConfig(), data, out)
    assert before == {path: path.stat().st_mtime_ns for path in made}


def test_codes_are_made_again_for_other_heads(mine):
    data, out = mine
    run, _ = train(replace(QUICK, epochs=1), data, out, overwrite=True)
    row = evaluate(EvalConfig(bits=(8,)), data, out).rows[0]
    slow = rankings(run, data, "de", "i2t", hamming)
    assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)


def test_codes_of_other_features_are_never_scored(mine, make_cache):
    """Features of changed photos give new codes; those of another encoder need other heads."""
    data, out = mine
    make_cache(data.folder.parent, weights="other")
    with pytest.raises(StaleError, match="run `train` with `overwrite=True`"):
        evaluate(EvalConfig(bits=(8,)), data, out)
    make_cache(data.folder.parent, shift="query")
    run = run_of(out)
    row = evaluate(EvalConfig(bits=(8,)), data, out).rows[0]
    slow = rankings(run, data, "de", "i2t", hamming)
    assert row["map"] == pytest.approx(mean(map(expected_ap, slow)), abs=1e-9)


@pytest.mark.parametrize("name", [runs.CODES, "image.faiss", "text-de.faiss"])
def test_a_deleted_file_is_made_again_to_the_same_bytes(mine, scored, name):
    data, out = mine
    path = run_of(out).folder / name
    before = path.read_bytes()
    path.unlink()
    rows = evaluate(EvalConfig(bits=(8,)), data, out).rows
    assert path.read_bytes() == before
    assert [r["map"] for r in rows] == [r["map"] for r in scored[2].rows if r["bits"] == 8]


def test_damaged_heads_make_no_codes(mine):
    data, out = mine
    folder_of_run = run_of(out).folder
    (folder_of_run / runs.CODES).unlink()
    (folder_of_run / runs.HEADS).write_bytes((folder_of_run / runs.HEADS).read_bytes()[:-1])
    with pytest.raises(DamagedError, match=runs.HEADS):
        evaluate(EvalConfig(bits=(8,)), data, out)
    assert not (folder_of_run / runs.CODES).exists()


def test_a_run_of_other_items_is_scored_on_these(mine, make_cache):
    data, out = mine
    before = evaluate(EvalConfig(bits=(8,)), data, out).rows[0]["map"]
    data = make_cache(data.folder.parent, change=lambda i: replace(i, labels=i.labels[:1]))
    result = evaluate(EvalConfig(bits=(8,)), data, out)
    assert result.rows[0]["map"] != before
    assert result.protocol["since the training"] == "18 changed; trained on 80 items"


def test_a_run_of_another_data_set_is_refused(mine, make_cache):
    data, out = mine
    other = make_cache(data.folder.parent, name="other", count=60)
    with pytest.raises(StaleError, match="trained on the data set 'toy', not 'other'"):
        run_of(out).refuse_stale(other)
