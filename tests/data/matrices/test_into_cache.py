"""Feature files of others become feature files of the cache, without an encoder."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from matrix_files import CLASSES, TR, N, matlab5, matlab73, npz, other, parts_of, spread
from typer.testing import CliRunner

from cmrhash.config import EvalConfig, ExtractConfig, TrainConfig
from cmrhash.data.catalog import read_dataset
from cmrhash.data.matrices.over import lay_over
from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import text as text_encoders
from cmrhash.errors import DataError, StaleError, UsageError
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.features import precomputed as extract_ready
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract, refuse_bad
from cmrhash.features.file import read_features
from cmrhash.training.train import train
from cmrhash_cli.main import app


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(extract_ready, "READY_BLOCK", 8)


@pytest.fixture
def no_encoder(monkeypatch):
    def load(*_, **__):
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(image_encoders, "load", load)
    monkeypatch.setattr(text_encoders, "load", load)


def asked(tmp_path, *files, **more):
    return replace(ExtractConfig(dataset="features", features=files, cache=tmp_path / "cache"), **more)


def test_from_files_to_figures_without_an_encoder(tmp_path, data, no_encoder):
    file = matlab5(tmp_path / "bag of words.mat", parts_of(data, te=slice(TR, N), tr=slice(0, TR)))
    report = extract(asked(tmp_path, file))
    names = ["image-bag_of_words.h5", "text-en-bag_of_words.h5"]
    assert [f.path.name for f in report.files] == names
    assert [(f.items, f.rows, f.ok, f.fresh) for f in report.files] == [(N, N, N, True)] * 2
    assert not report.untrained
    made = read_features(report.files[1].path)
    assert np.array_equal(made.x, data["T"])
    assert made.recipe["weights"] == "ready"
    assert (made.recipe["kind"], made.recipe["lang"], made.recipe["encoder"]) == ("text", "en", "bag_of_words")
    before = [f.path.read_bytes() for f in report.files]
    assert [f.fresh for f in extract(asked(tmp_path, file)).files] == [False, False]
    assert [f.path.read_bytes() for f in report.files] == before
    data = ExtractedDataset.open(tmp_path / "cache", None)
    train(TrainConfig(bits=4, method="cca", device="cpu"), data, tmp_path / "runs")
    rows = evaluate(EvalConfig(), data, tmp_path / "runs").rows
    assert [(row["lang"], row["queries"], row["database"]) for row in rows] == [("en", 10, 20)] * 2
    assert all(row["map_real"] > 0.6 > row["chance"] for row in rows)


def test_the_same_numbers_have_the_same_digest_whatever_their_type(tmp_path, data, no_encoder):
    one = npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"]})
    digest = [f["weights_sha256"] for f in recipes(extract(asked(tmp_path, one)))]
    other = matlab73(tmp_path / "f.mat", {"image": data["I"].astype(float), "text": data["T"].astype(float)})
    report = extract(asked(tmp_path, other))
    assert [f["weights_sha256"] for f in recipes(report)] == digest
    assert not any(f.fresh for f in report.files)


def recipes(report):
    return [read_features(f.path).recipe for f in report.files]


def test_other_features_under_the_same_name_are_refused(tmp_path, data, no_encoder):
    file = npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"]})
    extract(asked(tmp_path, file))
    npz(file, {"image": data["I"] + 1, "text": data["T"]})
    with pytest.raises(StaleError, match=r"image-f\.h5: .*overwrite|weights_sha256"):
        extract(asked(tmp_path, file))
    assert [f.fresh for f in extract(asked(tmp_path, file, overwrite=True)).files] == [True, True]


def test_an_unfinished_file_goes_on_to_the_same_bytes(tmp_path, data, no_encoder, monkeypatch):
    file = npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"]})
    done = extract(asked(tmp_path, file)).files[0].path
    stop = iter([None, None, KeyboardInterrupt()])

    def progress(*_):
        if signal := next(stop):
            raise signal

    with pytest.raises(KeyboardInterrupt):
        extract(asked(tmp_path, file, cache=tmp_path / "other"), progress)
    part = tmp_path / "other/features/image-f.h5.part"
    assert part.exists()
    again = extract(asked(tmp_path, file, cache=tmp_path / "other")).files[0].path
    assert again.read_bytes() == done.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"shard": "1/2"}])
def test_no_matrix_is_ever_in_memory_as_a_whole(tmp_path, no_encoder, monkeypatch, changes):
    monkeypatch.setattr(extract_ready, "READY_BLOCK", 256)
    x = np.random.default_rng(0).standard_normal((8000, 1024), np.float32)
    files = spread(tmp_path, {"image": x, "text": x})
    size = x.nbytes
    del x
    for fresh in (True, False):
        tracemalloc.start()
        report = extract(asked(tmp_path, *files, maps=("image=image:image", "text=text:text"), **changes))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [f.fresh for f in report.files] == [fresh] * 2
        assert peak < size / 2


@pytest.mark.faults("bad labels, codes, features, Faiss calls")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_rows_that_float32_cannot_hold_are_quarantined(tmp_path, data, no_encoder, bad):
    image = data["I"].astype(float)
    image[3, 2] = bad
    report = extract(asked(tmp_path, npz(tmp_path / "f.npz", {"image": image, "text": data["T"]})))
    assert [(f.ok, f.broken) for f in report.files] == [(N - 1, 1), (N, 0)]
    made = read_features(report.files[0].path)
    assert made.valid.tolist() == [n != 3 for n in range(N)]
    assert not made.x[3].any()
    line = json.loads((report.folder / "quarantine.jsonl").read_text())
    assert (line["id"], line["stage"], line["code"]) == ("3", "image", "non-finite")
    with pytest.raises(DataError, match="1 of 30 items could not be used"):
        refuse_bad(report, 0.01)


def test_views_that_the_file_does_not_bring_are_encoded(tmp_path, data, manifest_root, monkeypatch):
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    monkeypatch.setattr(text_encoders, "TINY", tiny)
    monkeypatch.setattr(image_encoders, "load", None)
    file = tmp_path / "image.npy"
    np.save(file, np.random.default_rng(0).standard_normal((40, 5)))
    config = asked(tmp_path, file, dataset="manifest", root=manifest_root, text_models=("random",), name="mixed")
    report = extract(config)
    assert [f.path.name for f in report.files] == ["image-image.h5", "text-de-bert-random.h5", "text-en-bert-random.h5"]
    assert report.untrained
    data = ExtractedDataset.open(tmp_path / "cache", "mixed")
    run, _ = train(TrainConfig(bits=5, method="cca", device="cpu"), data, tmp_path / "runs")
    assert list(run.langs) == ["de", "en"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": ()}, "data set 'features' needs its files: give `features="),
        (
            {"text_models": ("en=bert-base-uncased",)},
            r"the en texts have ready-made features: leave it out, or encode the captions with `maps=..text.en=",
        ),
        ({"text_models": ("bow",)}, r"text_models: 'bow' is not needed, the texts have ready-made features"),
        ({"image_weights": "random"}, r"image_weights: 'random' is not needed, the images have ready-made features"),
        ({"image_model": "resnet50"}, r"image_model: 'resnet50' is not needed, the images have ready-made features"),
        ({"langs": ("de",)}, "the data set has no language 'de'"),
        ({"maps": ("text.de=texts",), "text_models": ("de=own", "en=own")}, "the languages are de"),
    ],
)
def test_options_that_contradict_the_files(tmp_path, data, changes, words, no_encoder):
    file = npz(tmp_path / "f.npz", {"image": data["I"], "texts": data["T"]})
    with pytest.raises(UsageError, match=words):
        extract(asked(tmp_path, file, **changes))


def test_images_of_the_file_and_captions_for_an_encoder(tmp_path, data, no_encoder):
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"{('cat', 'dog', 'tree')[n // 2 % 3]} {n}\n" for n in range(2 * N)))
    file = npz(tmp_path / "f.npz", {"image": data["I"], "labels": data["L"]})
    report = extract(asked(tmp_path, file, captions=(str(captions),), text_models=("bow",)))
    assert [f.path.name for f in report.files] == ["image-f.h5", "text-en-bow2912.h5"]
    assert [(f.items, f.rows, f.ok) for f in report.files] == [(N, N, N), (N, 2 * N, N)]
    opened = ExtractedDataset.open(tmp_path / "cache", None)
    assert opened.dataset.items[1].texts == {"en": ("dog 2", "dog 3")}
    both = npz(tmp_path / "g.npz", {"image": data["I"], "text": data["T"], "labels": data["L"]})
    given = {"captions": (str(captions),), "text_models": ("bow",), "name": "both"}
    with pytest.raises(UsageError, match=r"'bow' is not needed"):
        extract(asked(tmp_path, both, **given))
    assert not (tmp_path / "cache/both").exists()
    files = extract(asked(tmp_path, both, maps=("text=",), **given)).files
    assert [f.path.name for f in files] == ["image-g.h5", "text-en-bow2912.h5"]


def test_several_rows_per_photo_are_rows_of_the_cache(tmp_path, data, no_encoder):
    text = np.repeat(data["T"], 5, 0) + np.arange(5 * N, dtype=np.float32)[:, None] / 100
    file = npz(tmp_path / "f.npz", {"image": data["I"], "text": text})
    report = extract(asked(tmp_path, file))
    made = read_features(report.files[1].path)
    assert np.array_equal(made.x, text)
    assert made.item.tolist() == [n // 5 for n in range(5 * N)]
    opened = ExtractedDataset.open(tmp_path / "cache", None)
    run, _ = train(TrainConfig(bits=5, method="cca", device="cpu"), opened, tmp_path / "runs")
    assert run.relevance == "pairs"


def test_no_options_that_only_feature_files_read(tmp_path, manifest_root):
    for more in ({"ids": tmp_path / "ids.txt"}, {"captions": ("c.txt",)}):
        config = ExtractConfig(dataset="manifest", root=manifest_root, cache=tmp_path / "cache", **more)
        with pytest.raises(UsageError, match=r"data set 'manifest' has \w+ of its own: leave it out"):
            read_dataset(config)


def test_own_features_must_be_there(tmp_path, manifest_root, data):
    config = ExtractConfig(
        dataset="manifest", root=manifest_root, cache=tmp_path, image_weights="random", text_models=("own",)
    )
    with pytest.raises(UsageError, match="the data set has no de features of its own"):
        extract(config)
    with pytest.raises(UsageError, match="maps: 'image=x' needs a feature file"):
        read_dataset(replace(config, maps=("image=x",)))


def test_files_without_labels_name_the_ways_to_labels(tmp_path, data):
    file = npz(tmp_path / "f.npz", {"image": data["I"], "text": data["T"]})
    config = ExtractConfig(dataset="features", features=(file,), cache=tmp_path / "cache")
    assert read_dataset(config).notes[0].endswith('an array of labels: `maps=("labels=ARRAY",)`')
    (tmp_path / "trainset_txt_img_cat.list").touch()
    way = f'; trainset_txt_img_cat.list belongs to wikipedia: `dataset="wikipedia"` with `root="{tmp_path}"` reads its'
    assert way in read_dataset(config).notes[0]
    npz(file, {"image": data["I"], "text": data["T"], "labels": data["L"]})
    assert read_dataset(config).notes == ()


def test_parts_over_the_sample_point_to_arrays_alone(tmp_path, data):
    file = npz(tmp_path / "f.npz", {"I_tr": data["I"], "T_tr": data["T"]})
    unsplit = replace(other([set()] * N), name="sample")
    with pytest.raises(UsageError, match='for arrays alone give `dataset="features"`'):
        lay_over(unsplit, [file], ())


def test_the_command(tmp_path, data, no_encoder):
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    npz(one, {"a": data["I"], "b": data["T"]})
    npz(two, {"c": data["L"]})
    args = ["--map", "image=a", "--map", "text.de=b", "--map", "labels=two:c", "--cache", tmp_path, "--json", "-q"]
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"p{n}\n" for n in range(N)))
    args = ["extract", "--dataset", "features", "--features", one, "--features", two, "--ids", ids, *args]
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert (shown["items"], shown["classes"], len(shown["files"])) == (N, CLASSES, 2)
    assert (tmp_path / "features/text-de-one.h5").exists()
    assert '"id":"p7"' in (tmp_path / "features/items.jsonl").read_text().replace(" ", "")
