"""Towers of open_clip as directories: fine-tuning, export, ONNX, and open_clip's own directories."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from package_models import CONFIG as PLAIN
from package_models import need, of_coca, of_transformers, write_open_clip, write_open_clip_folder
from running import run, write_own
from small_models import write_bert

import cmrhash
from cmrhash.encoders import copies, image, text
from cmrhash.encoders.open_clip_files import CONFIG
from cmrhash.encoders.open_clip_tokens import as_file
from cmrhash.errors import EncoderError
from cmrhash.features.file import read_header
from cmrhash.search.exported.hasher import SOURCE

TRAIN = ["--epochs", "2", "--batch", "16", "--hidden", "16", "--bits", "8", "--device", "cpu"]
FROM = ("extract", "--dataset", "manifest", "--root", "mine", "--device", "cpu", "--dtype", "float32")
MODEL = ("--model", "open_clip:tiny/tiny.pt")
TUNE = ("--finetune", "--epochs", "2", "--batch", "4", "--bits", "8", "--lr", "0.01")
TEXTS = ["a dog", "it\u2019s  a \u201cdog\u201d, 12 of 300", "Ein HUND", "naïve 日本", "", "far too long " * 99]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small data set and the weights of a small CLIP of open_clip."""
    write_own(tmp_path / "mine", 12)
    write_open_clip(tmp_path / "tiny.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(encoder):
    return np.random.default_rng(0).integers(0, 256, (3, encoder.crop.size, encoder.crop.size, 3)).astype(np.uint8)


def moved(here, *names):
    """Rename what an export must not need."""
    for name in names:
        (here / name).rename(here / f"{name}-moved")


@pytest.mark.slow
def test_a_fine_tuned_model_is_evaluated_searched_and_opened_again(here, capsys):
    assert run(*FROM, *MODEL) == 0
    assert run(*FROM, *MODEL, *TUNE) == 0
    tuned = here / "cache/manifest/tuned/open_clip-tiny-tiny"
    frozen, header = (read_header(here / f"cache/manifest/image-open_clip-tiny-tiny{end}.h5") for end in ("", "-tuned"))
    assert frozen.recipe["weights_sha256"] != header.recipe["weights_sha256"]
    name = "open_clip-tiny-tiny-tuned"
    chosen = [word for view in ("image", "en", "de") for word in ("--encoder", f"{view}={name}")]
    assert run("train", "--dataset", "manifest", *TRAIN, *chosen) == 0
    assert run("eval", "--dataset", "manifest") == 0
    assert run("search", "--dataset", "manifest", "--lang", "en", "dog 3") == 0
    assert run("search", "--dataset", "manifest", "mine/images/3.png") == 0
    capsys.readouterr()
    assert run(*FROM, *MODEL, *TUNE, "--json") == 0
    assert not any(file["fresh"] for file in json.loads(capsys.readouterr().out)["files"])
    of_image, of_text = (f"open_clip:{tuned / part}" for part in ("image", "text-de+en"))
    opened = image.load(of_image, dtype="float32"), text.load(of_text, dtype="float32")
    assert opened[0].recipe["weights_sha256"] == header.recipe["weights_sha256"]
    assert not any("space" in one.recipe for one in opened)
    assert run(*FROM, "--image-model", of_image, "--text-model", of_text, "--name", "again") == 0
    with pytest.raises(EncoderError, match="the image tower of a model, given as a text model"):
        text.load(of_image)


@pytest.mark.slow
def test_an_interrupted_fine_tuning_resumes_with_the_same_bytes(here, monkeypatch):
    from cmrhash.training.finetune import loop

    assert run(*FROM, *MODEL, *TUNE, "--name", "whole") == 0
    usual = loop.Tuner._epoch

    def interrupted(tuner, progress):
        if tuner.state.epoch == 1:
            raise KeyboardInterrupt
        return usual(tuner, progress)

    monkeypatch.setattr(loop.Tuner, "_epoch", interrupted)
    assert run(*FROM, *MODEL, *TUNE, "--name", "parts") != 0
    monkeypatch.undo()
    monkeypatch.chdir(here)
    folders = [here / f"cache/{name}/tuned/open_clip-tiny-tiny" for name in ("whole", "parts")]
    assert not (folders[1] / "config.json").exists()
    assert run(*FROM, *MODEL, *TUNE, "--name", "parts") == 0
    for part in ("image/model.safetensors", "text-de+en/model.safetensors"):
        assert (folders[0] / part).read_bytes() == (folders[1] / part).read_bytes()


@pytest.mark.slow
def test_an_export_of_a_tuned_model_holds_both_towers_and_graphs(here):
    onnx = pytest.importorskip("onnxruntime", reason="pip install cmrhash[onnx]")
    from tokenizers import Tokenizer

    assert run(*FROM, *MODEL, *TUNE) == 0
    assert run("train", "--dataset", "manifest", *TRAIN) == 0
    assert run("export", "--dataset", "manifest", "out", "--onnx", "--device", "cpu") == 0
    wanted = cmrhash.load(next((here / "runs/manifest").iterdir())).encode_text(["a dog", "two dogs"], "en")
    moved(here, "tiny.pt", "cache")
    assert not any(str(here) in path.read_text() for path in (here / "out").rglob("*.json"))
    hasher = cmrhash.from_pretrained("out", device="cpu", offline=True)
    assert hasher.encode_image(["mine/images/1.png"]).shape == (1, 1)
    np.testing.assert_array_equal(hasher.encode_text(["a dog", "two dogs"], "en"), wanted)
    assert set(json.loads((here / "out/onnx.json").read_text())["graphs"]) == {
        *("image.onnx", "text-de.onnx", "text-en.onnx")
    }
    rows = Tokenizer.from_file(str(here / "out/text-en.tokenizer.json")).encode_batch(["a dog", "two dogs"])
    feed = {"input_ids": [row.ids for row in rows], "attention_mask": [row.attention_mask for row in rows]}
    session = onnx.InferenceSession(here / "out/text-en.onnx")
    codes = session.run(["codes"], {name: np.array(x) for name, x in feed.items()})[0]
    np.testing.assert_array_equal(codes, wanted)


def test_an_export_without_encoders_names_no_file_of_this_machine(here):
    assert run(*FROM, *MODEL) == 0
    assert run("train", "--dataset", "manifest", *TRAIN) == 0
    assert run("export", "--dataset", "manifest", "out", "--device", "cpu") == 0
    config = (here / "out/config.json").read_text()
    assert str(here) not in config
    assert {entry["source"] for entry in json.loads(config)["encoders"].values()} == {None}
    place = f"open_clip:tiny/{here / 'tiny.pt'}"
    hasher = cmrhash.from_pretrained("out", image_weights=place, text_models={"en": place}, device="cpu", offline=True)
    loaded = cmrhash.load(next((here / "runs/manifest").iterdir()))
    assert hasher.encode_text(["a dog"], "en").tobytes() == loaded.encode_text(["a dog"], "en").tobytes()
    assert SOURCE.fullmatch("open_clip:ViT-B-32/laion2b_s34b_b79k")
    assert not SOURCE.fullmatch(place)


@pytest.mark.parametrize("kind", ["quick", "transformers", "coca"])
def test_a_copy_of_each_architecture_gives_the_same_features(kind, tmp_path):
    (tmp_path / "bert").mkdir()
    write_bert(tmp_path / "bert")
    configs = {"transformers": of_transformers(tmp_path / "bert"), "coca": of_coca()}
    content = {"content": configs[kind]} if kind in configs else {}
    model = write_open_clip(tmp_path / f"{kind}.pt", f"tiny-{kind}", **content)
    if kind == "quick":
        model = write_open_clip(tmp_path / "quick.pt", "tiny-quick", content=PLAIN | {"quick_gelu": True})
    of_image, of_text = image.load(model, dtype="float32"), text.load(model, dtype="float32")
    for encoder, part in ((of_image, "image"), (of_text, "text")):
        copies.write(encoder, copies.network_of(encoder.module).state_dict(), tmp_path / "copy" / part)
    (tmp_path / "bert").rename(tmp_path / "bert-moved")
    assert not any(str(tmp_path / "bert") in path.read_text() for path in (tmp_path / "copy").rglob(CONFIG))
    new_image = image.load(f"open_clip:{tmp_path / 'copy/image'}", dtype="float32")
    new_text = text.load(f"open_clip:{tmp_path / 'copy/text'}", dtype="float32")
    np.testing.assert_array_equal(of_image.encode(pixels(of_image)), new_image.encode(pixels(of_image)))
    np.testing.assert_array_equal(of_text.encode(TEXTS), new_text.encode(TEXTS))
    for old, new in ((of_image, new_image), (of_text, new_text)):
        assert {field: x for field, x in old.recipe.items() if field != "space"} == new.recipe
    file = new_text.tokenizer_file()
    assert [row.ids for row in file.encode_batch(TEXTS)] == new_text.pieces(TEXTS)


def test_directories_of_open_clip_itself(tmp_path):
    open_clip = need("open_clip")
    model, whole = write_open_clip(tmp_path / "tiny.pt"), tmp_path / "whole"
    write_open_clip_folder(whole, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25], interpolation="bilinear")
    encoder, words = image.load(f"open_clip:{whole}", dtype="float32"), text.load(f"open_clip:{whole}", dtype="float32")
    assert encoder.recipe["space"] == words.recipe["space"] == image.load(model).recipe["space"]
    assert encoder.crop.mean == (0.5, 0.5, 0.5)
    network = open_clip.create_model(f"local-dir:{whole}").eval()
    with torch.inference_mode():
        wanted = network.encode_text(open_clip.get_tokenizer(f"local-dir:{whole}")(TEXTS), normalize=True)
    np.testing.assert_allclose(words.encode(TEXTS), wanted.numpy(), atol=1e-5)
    (whole / "open_clip_model.safetensors").unlink()
    with pytest.raises(EncoderError, match="a directory of open_clip without weights"):
        image.load(f"open_clip:{whole}")
    for content in ("{", "[]", '{"model_cfg": {}}'):
        (whole / CONFIG).write_text(content)
        with pytest.raises(EncoderError, match="not a config of open_clip"):
            image.load(f"open_clip:{whole}")
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(EncoderError, match="is not a directory of open_clip"):
            image.load(f"open_clip:{place}")


def test_a_damaged_copy_is_refused_in_one_line(tmp_path):
    encoder = image.load(write_open_clip(tmp_path / "tiny.pt"), dtype="float32")
    state = copies.network_of(encoder.module).state_dict()
    copies.write(encoder, dict(list(state.items())[1:]), tmp_path / "less")
    with pytest.raises(EncoderError, match="the file lacks 1 of .*tensors"):
        image.load(f"open_clip:{tmp_path / 'less'}")
    copies.write(encoder, state, tmp_path / "odd")
    content = json.loads((tmp_path / "odd" / CONFIG).read_bytes())
    (tmp_path / "odd" / CONFIG).write_text(json.dumps(content | {"preprocess_cfg": {"size": 32}}))
    with pytest.raises(EncoderError, match="preprocess_cfg lacks interpolation"):
        image.load(f"open_clip:{tmp_path / 'odd'}")
    (tmp_path / "odd" / CONFIG).write_text(json.dumps(content | {"model_cfg": {"text_cfg": {}, "vision_cfg": {}}}))
    with pytest.raises(EncoderError, match="open_clip cannot load"):
        image.load(f"open_clip:{tmp_path / 'odd'}")


def test_a_tokenizer_that_masks_words_has_no_file():
    open_clip = need("open_clip")
    assert as_file(open_clip.tokenizer.SimpleTokenizer(reduction_mask="simple")) is None
