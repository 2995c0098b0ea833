"""Result files of other programs, scored by the conventions of published code."""

import itertools
import json

import numpy as np
import peer_metrics
import pytest
from peer_metrics import write_results
from typer.testing import CliRunner

from cmrhash.errors import DataError, UsageError
from cmrhash.evaluation.conventions import NAMES, convention
from cmrhash.evaluation.score_files import score_files
from cmrhash_cli.main import app

QUERIES, DATABASE, BITS, CLASSES = 12, 90, 16, 7


def figures(scored, order="file_order", vectors="codes"):
    """(convention, figure, direction) -> value."""
    own = [row for row in scored.rows if row["vectors"] == vectors]
    return {(row["convention"], row["figure"], row["direction"]): row[order] for row in own}


@pytest.mark.parametrize("suffix", [".mat", ".npz"])
def test_every_convention_gives_the_value_of_its_own_function(tmp_path, suffix):
    path = tmp_path / f"results{suffix}"
    a = write_results(path)
    found = figures(score_files([path], like=["dcmh", "dcmh@5", "djsrh", "djsrh@7", "twdh@20", "ucch"]))
    for direction, asks, sought in (("i2t", "img", "txt"), ("t2i", "txt", "img")):
        ends = a[f"q_{asks}"], a[f"r_{sought}"], a["q_l"].astype(int), a["r_l"].astype(int)
        expected = {
            ("dcmh", "mAP"): peer_metrics.dcmh(*ends),
            ("dcmh", "mAP@5"): peer_metrics.dcmh(*ends, k=5),
            ("djsrh", "mAP@50"): peer_metrics.djsrh(*ends, k=50),
            ("djsrh", "mAP@7"): peer_metrics.djsrh(*ends, k=7),
            ("twdh", "mAP@20"): peer_metrics.dcmh(*ends, k=20),
            ("ucch", "mAP"): peer_metrics.ucch(*ends),
        }
        for (name, figure), value in expected.items():
            assert found[name, figure, direction] == pytest.approx(value, abs=1e-12), (name, figure)


def test_a_query_without_a_relevant_item_separates_the_conventions(tmp_path):
    write_results(tmp_path / "r.npz")
    scored = score_files([tmp_path / "r.npz"])
    counted = {row["convention"]: row["counted"] for row in scored.rows}
    assert counted["dcmh"] == QUERIES > counted["ucch"]
    found = figures(scored, "expected")
    share = counted["cmrhash"] / QUERIES
    assert found["dcmh", "mAP", "i2t"] == pytest.approx(found["cmrhash", "mAP", "i2t"] * share)
    assert found["ucch", "mAP", "i2t"] == pytest.approx(found["cmrhash", "mAP", "i2t"])


def test_the_expected_value_is_the_mean_over_all_orders_of_tied_items(tmp_path):
    """Four items, two pairs at equal distance: the mean over the permutations of the file."""
    a = write_results(tmp_path / "r.npz", seed=3)
    small = {"q_img": a["q_img"][1:3], "q_txt": a["q_txt"][1:3], "q_l": np.uint8([[1, 0], [1, 1]])}
    labels = np.uint8([[1, 0], [0, 0], [0, 1], [0, 0]])
    codes = np.concatenate([a["q_img"][1:2]] * 2 + [-a["q_img"][1:2]] * 2)
    values = []
    for order in itertools.permutations(range(4)):
        at = list(order)
        write_results(tmp_path / "p.npz", **small, r_img=codes[at], r_txt=codes[at], r_l=labels[at])
        scored = score_files([tmp_path / "p.npz"], like=["djsrh@2"])
        values.append(figures(scored)["djsrh", "mAP@2", "i2t"])
        expected = figures(scored, "expected")["djsrh", "mAP@2", "i2t"]
    assert expected == pytest.approx(np.mean(values), abs=1e-12)
    assert len(set(values)) > 1


def test_file_order_lies_within_the_bounds(tmp_path):
    write_results(tmp_path / "r.npz")
    for row in score_files([tmp_path / "r.npz"]).rows:
        assert row["lowest"] - 1e-12 <= row["expected"] <= row["highest"] + 1e-12
        assert row["lowest"] - 1e-12 <= row["file_order"] <= row["highest"] + 1e-12


def test_embeddings_are_scored_by_their_signs_and_by_cosine(tmp_path):
    a = write_results(tmp_path / "real.npz", real=True)
    scored = score_files([tmp_path / "real.npz"], like=["ucch"])
    signs = {name: np.where(x >= 0, 1, -1) for name, x in a.items() if not name.endswith("_l")}
    write_results(tmp_path / "signs.npz", **signs, q_l=a["q_l"], r_l=a["r_l"])
    assert figures(scored) == figures(score_files([tmp_path / "signs.npz"], like=["ucch"]))
    unit = {name: a[name] / np.linalg.norm(a[name], axis=1, keepdims=True) for name in ("q_img", "r_txt")}
    whole = peer_metrics.ucch(unit["q_img"], unit["r_txt"], a["q_l"].astype(int), a["r_l"].astype(int))
    assert figures(scored, vectors="cosine")["ucch", "mAP", "i2t"] == pytest.approx(whole, abs=1e-6)


def test_codes_of_0_and_1_equal_those_of_minus_1_and_1(tmp_path):
    a = write_results(tmp_path / "r.npz")
    zero_one = {name: (x > 0).astype(np.uint8) for name, x in a.items() if not name.endswith("_l")}
    write_results(tmp_path / "01.npz", **zero_one)
    assert score_files([tmp_path / "01.npz"]).rows == score_files([tmp_path / "r.npz"]).rows


def test_zeros_of_sign_are_counted(tmp_path):
    a = write_results(tmp_path / "r.npz")
    odd = a["q_img"].copy()
    odd[0, :3] = 0
    write_results(tmp_path / "zeros.npz", q_img=odd)
    scored = score_files([tmp_path / "zeros.npz"])
    assert scored.about["zeros"] == 3
    assert {row["vectors"] for row in scored.rows} == {"codes"}


@pytest.mark.parametrize("times", [1, 5])
def test_images_and_their_own_texts_are_scored_by_recall(tmp_path, times):
    draw = np.random.default_rng(1)
    images = draw.normal(size=(20, 8))
    texts = np.repeat(images, times, axis=0) + draw.normal(size=(20 * times, 8))
    np.savez(tmp_path / "pairs.npz", images=images, texts=texts)
    scored = score_files([tmp_path / "pairs.npz"])
    assert scored.about["relevance"] == "pairs"
    assert scored.about["queries"] == 20
    found = figures(scored, vectors="cosine")
    for k in (1, 5, 10):
        expected = peer_metrics.recall_at(images.astype(np.float32), texts.astype(np.float32), times, k)
        assert [found["karpathy", f"R@{k}", d] for d in ("i2t", "t2i")] == pytest.approx(expected, abs=1e-12)


def test_several_files_and_other_names_by_maps(tmp_path):
    a = write_results(tmp_path / "r.npz")
    for name in a:
        np.save(tmp_path / f"{name}.npy", a[name])
    separate = score_files([tmp_path / f"{name}.npy" for name in a])
    assert separate.rows == score_files([tmp_path / "r.npz"]).rows
    renamed = {"A": a["q_img"], "B": a["r_img"], "q_txt": a["q_txt"], "r_txt": a["r_txt"]}
    np.savez(tmp_path / "odd.npz", **renamed, q_l=a["q_l"], r_l=a["r_l"])
    by_maps = score_files([tmp_path / "odd.npz"], maps=["image.query=A", "image.database=B"])
    assert by_maps.rows == separate.rows


@pytest.mark.parametrize(
    ("changes", "like", "words"),
    [
        ({}, "djsrg", "unknown convention 'djsrg': did you mean djsrh?"),
        ({}, "djsrh@0", "no cut-off '0' for 'djsrh'"),
        ({}, "ucch@50", "no cut-off '50' for 'ucch'"),
        ({}, "karpathy", "the file has labels"),
        ({"r_txt": np.ones((DATABASE, 8), np.int8)}, "dcmh", "queries have 16 columns, the database 8"),
        ({"r_txt": np.ones((DATABASE - 1, 16), np.int8)}, "dcmh", "differ in their number of items"),
        ({"q_img": np.full((QUERIES, BITS), np.nan)}, "dcmh", "not finite numbers"),
        ({"r_l": np.zeros((DATABASE, CLASSES), np.uint8)}, "dcmh", "no query has a relevant item"),
    ],
)
def test_what_cannot_be_scored_is_one_line(tmp_path, changes, like, words):
    write_results(tmp_path / "r.npz", **changes)
    with pytest.raises((UsageError, DataError)) as refused:
        score_files([tmp_path / "r.npz"], like=[like])
    assert words in str(refused.value)


def test_a_missing_array_is_named(tmp_path):
    a = write_results(tmp_path / "r.npz")
    del a["r_txt"]
    np.savez(tmp_path / "less.npz", **a)
    with pytest.raises(UsageError, match="text.database"):
        score_files([tmp_path / "less.npz"])


def test_every_name_makes_a_convention():
    assert [convention(name).name for name in NAMES] == list(NAMES)
    assert convention("DCMH").name == "dcmh"


def test_the_command_prints_each_convention_with_its_definition(tmp_path):
    write_results(tmp_path / "r.mat")
    shown = CliRunner().invoke(app, ["score", str(tmp_path / "r.mat")])
    assert all(f"{name}: " in shown.stdout for name in ("cmrhash", "dcmh", "djsrh", "twdh", "ucch"))
    as_json = json.loads(
        CliRunner().invoke(app, ["score", str(tmp_path / "r.mat"), "--like", "djsrh@9", "--json"]).stdout
    )
    assert {row["figure"] for row in as_json["rows"]} == {"mAP", "mAP@9"}
    assert as_json["rows"] == json.loads(json.dumps(score_files([tmp_path / "r.mat"], like=["djsrh@9"]).rows))
