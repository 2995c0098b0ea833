"""Extraction by ONNX Runtime: the same codes, graphs beside the features, and which runtime "auto" takes."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from extracting import config, contents, save_bert
from small_models import write_image_weights

from cmrhash.config import PruneConfig, VerifyConfig
from cmrhash.data.view import View
from cmrhash.encoders import graphs
from cmrhash.errors import EncoderError, StaleError, UsageError
from cmrhash.features import reopen, runtime
from cmrhash.features.extract import extract, open_encoders
from cmrhash.features.file import read_features
from cmrhash.maintenance.inventory import survey
from cmrhash.maintenance.prune import delete, plan
from cmrhash.maintenance.verify import verify

pytestmark = pytest.mark.slow
BITS = 256
SMALL = "squeezenet1_1"  # has a graph of few nodes
IMAGE, TEXTS = View.IMAGE, [View.text("de"), View.text("en")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Settings with encoders in files, which count as trained ones."""
    folder = tmp_path_factory.mktemp("weights")
    write_image_weights(folder / "image.pth", SMALL)
    return {
        "image_model": SMALL,
        "image_weights": str(folder / "image.pth"),
        "text_models": (str(save_bert(folder / "tiny-bert")),),
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def by_torch(small_blocks_and_models, source, weights, tmp_path_factory):
    settings = weights | {"runtime": "torch", "dtype": "float32"}
    return extract(config(source, tmp_path_factory.mktemp("torch"), **settings))


@pytest.fixture(scope="module")
def by_onnx(small_blocks_and_models, source, weights, tmp_path_factory):
    for name in graphs.PACKAGES:
        pytest.importorskip(name, reason="pip install cmrhash[onnx]")
    return extract(config(source, tmp_path_factory.mktemp("onnx"), **weights, runtime="onnx"))


def features(report):
    return [read_features(file.path) for file in report.files]


def test_both_runtimes_give_the_same_codes(by_torch, by_onnx):
    random = np.random.default_rng(0)
    for plain, other in zip(features(by_torch), features(by_onnx), strict=True):
        assert np.abs(plain.x - other.x).max() <= 1e-4 * np.abs(plain.x).max()
        head = random.standard_normal((plain.x.shape[1], BITS)).astype(np.float32)
        centre = plain.x[plain.valid].mean(0)
        codes = [((of.x[of.valid] - centre) @ head >= 0) for of in (plain, other)]
        assert (codes[0] != codes[1]).sum() <= codes[0].size / 1000


def test_a_recipe_names_the_runtime_only_if_it_is_onnx(by_torch, by_onnx):
    for plain, other in zip(features(by_torch), features(by_onnx), strict=True):
        assert "runtime" not in plain.recipe
        assert other.recipe == plain.recipe | {"runtime": "onnx"}
        assert "onnxruntime" in other.header.made_with
        assert "onnxruntime" not in plain.header.made_with
    assert by_onnx.onnx == ("image", "de", "en")
    assert by_torch.onnx == ()


def test_two_languages_share_a_graph(by_onnx):
    assert len(list(by_onnx.folder.glob("graph-tiny-bert-*.sealed"))) == 1


@pytest.mark.parametrize("made", ["by_torch", "by_onnx"])
def test_auto_finds_the_features_of_either_runtime(made, request, source, weights, tmp_path, monkeypatch):
    cache = shutil.copytree(request.getfixturevalue(made).folder.parent, tmp_path / "cache")
    monkeypatch.setattr(runtime, "WORTH", {"image": 1, "text": 1})
    monkeypatch.setattr(graphs, "PACKAGES", ("no_such_package",) if made == "by_onnx" else graphs.PACKAGES)
    before = contents(cache / "manifest")
    report = extract(config(source, cache, **weights, dtype="float32"))
    assert not any(file.fresh for file in report.files)
    assert contents(cache / "manifest") == before


def test_the_runtime_that_is_named_replaces_no_features_of_the_other(by_onnx, source, weights, tmp_path):
    cache = shutil.copytree(by_onnx.folder.parent, tmp_path / "cache")
    before = contents(cache / "manifest")
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(StaleError, match="runtime = onnx, but this call has torch"):
            extract(config(source, cache, **weights, dtype=dtype, runtime="torch"))
    assert contents(cache / "manifest") == before


def test_an_interrupted_extraction_goes_on_with_its_runtime(by_onnx, source, weights, tmp_path, monkeypatch):
    asked = config(source, tmp_path / "cache", **weights)
    folder = shutil.copytree(by_onnx.folder, tmp_path / "cache/manifest")
    for file in by_onnx.files:
        (folder / file.path.name).unlink()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cmrhash.features.file.FeatureWriter.seal", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(config(source, tmp_path / "cache", **weights, runtime="onnx"))
    assert (folder / by_onnx.files[0].path.name).with_suffix(".h5.part").exists()
    report = extract(asked)
    assert report.onnx == ("image",)  # the texts had not begun
    assert read_features(report.files[0].path).sha256 == read_features(by_onnx.files[0].path).sha256


def test_queries_of_its_features_are_encoded_alike(by_onnx):
    path = by_onnx.folder / View.text("en").feature_file("tiny-bert")
    encoder = reopen.text_encoder(path, by_onnx.dataset, torch.device("cpu"))
    made = read_features(path)
    again = encoder.encode([text for item in by_onnx.dataset.items for text in item.texts["en"]])
    np.testing.assert_allclose(again, made.x, atol=1e-4 * np.abs(made.x).max())
    opened = reopen.image_encoder(by_onnx.files[0].path, torch.device("cpu"))
    assert opened.recipe["dtype"] == "float32"


def test_a_damaged_graph_is_found_and_made_again(by_onnx, source, weights, tmp_path):
    cache = shutil.copytree(by_onnx.folder.parent, tmp_path / "cache")
    graph = next((cache / "manifest").glob("graph-tiny-bert-*.sealed"))
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1] + b"?")
    check = VerifyConfig(sources=False)
    damaged = [one.path for one in verify(check, cache, tmp_path) if one.status != "whole"]
    assert damaged == [graph]
    extract(config(source, cache, **weights, runtime="onnx", overwrite=True))
    assert len(graph.read_bytes()) == len(whole)
    assert all(one.status == "whole" for one in verify(check, cache, tmp_path))


def test_prune_deletes_the_graph_of_no_features(by_onnx, tmp_path):
    cache = shutil.copytree(by_onnx.folder.parent, tmp_path / "cache")
    assert {e.words for e in survey(cache, tmp_path) if e.kind == "graph"} == {"sealed"}
    (cache / "manifest" / by_onnx.files[0].path.name).unlink()
    list(delete(plan(PruneConfig(), cache, tmp_path), cache, tmp_path))
    assert [path.name.split("-")[1] for path in (cache / "manifest").glob("graph-*")] == ["tiny"]


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_models": ("bow",)}, "runtime: bow2912 has no network, and so no ONNX graph: use auto or torch"),
        ({"dtype": "bfloat16"}, "has dtype bfloat16, and ONNX Runtime computes in float32"),
        ({"runtime": "onx"}, "runtime: unknown runtime 'onx': did you mean onnx"),
    ],
)
def test_encoders_without_a_graph_are_refused_by_name(changes, words, source, weights, tmp_path):
    with pytest.raises(UsageError, match=words) as refused:
        extract(config(source, tmp_path / "cache", **weights | {"runtime": "onnx"} | changes))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "cache").exists()


def test_missing_packages_are_named_with_the_way_to_install_them(source, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(UsageError, match=r'needs no_such_package: pip install "cmrhash\[onnx\]"'):
        extract(config(source, tmp_path / "cache", **weights, runtime="onnx"))
    assert not (tmp_path / "cache").exists()


def test_an_encoder_of_the_users_own_is_refused_by_name(source, weights, tmp_path):
    own = SimpleNamespace(encode=lambda x: np.zeros((len(x), 4)), dim=4, recipe={"version": 1}, name="mine")
    asked = config(source, tmp_path / "cache", **weights, runtime="onnx")
    with pytest.raises(UsageError, match="mine is an encoder of your own, which has no ONNX graph"):
        extract(asked, opened=open_encoders(asked, image_encoder=own))


# ---------------------------------------------------------------------------------------------- auto


@pytest.mark.parametrize(
    ("changes", "packages", "worth", "takes"),
    [
        ({"dtype": "float32"}, True, 1, ("image", "de", "en")),
        ({"dtype": "float32"}, True, 1000, ()),
        ({"dtype": "float32"}, False, 1, ()),
        ({"dtype": "bfloat16"}, True, 1, ()),
        ({"dtype": "float32", "image_weights": "random", "text_models": ("random",)}, True, 1, ()),
    ],
)
def test_auto_takes_what_was_measured_to_be_faster(
    changes, packages, worth, takes, source, weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(graphs, "PACKAGES", ("json",) if packages else ("no_such_package",))
    monkeypatch.setattr(runtime, "WORTH", {"image": worth, "text": worth})
    asked = config(source, tmp_path / "cache", **weights | changes)
    opened = open_encoders(asked)
    runtimes = runtime.Runtimes(asked, tmp_path / "cache/manifest")
    opened.changed(lambda view, encoder: runtimes.choose(view, encoder, 10))
    assert tuple(view.short for view in runtimes.chosen) == takes


def test_auto_falls_back_to_torch_where_no_graph_can_be_made(source, weights, tmp_path, monkeypatch):
    def fails(encoder):
        raise EncoderError(f"{encoder.name} has no ONNX graph", None, "use `runtime='torch'`")

    monkeypatch.setattr(graphs, "PACKAGES", ("json",))
    monkeypatch.setattr(graphs, "network_graph", fails)
    monkeypatch.setattr(runtime, "WORTH", {"image": 1, "text": 1})
    with pytest.raises(EncoderError, match=f"{SMALL} has no ONNX graph"):
        extract(config(source, tmp_path / "refused", **weights, runtime="onnx"))
    assert not (tmp_path / "refused").exists()
    report = extract(config(source, tmp_path / "cache", **weights, dtype="float32"))
    assert report.onnx == ()
    assert "runtime" not in read_features(report.files[0].path).recipe
