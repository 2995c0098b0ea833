"""A run that is handed on: the same bits elsewhere, nothing of this machine in it, nothing of a stranger's trusted."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from running import EXTRACT, QUICK, run, write_own
from small_models import write_bert, write_image_weights
from tokenizers import Tokenizer

from cmrhash.config import EvalConfig, ExtractConfig, FinetuneConfig, TrainConfig
from cmrhash.data.manifest import open_extracted
from cmrhash.errors import DamagedError, StaleError, UsageError
from cmrhash.evaluation.evaluate import evaluate
from cmrhash.features import reopen
from cmrhash.features.extract import extract
from cmrhash.retrieval.codes import pack
from cmrhash.search.exported import onnx
from cmrhash.search.hasher import Hasher
from cmrhash.storage.files import read_json, sha256, write_json
from cmrhash.training import runs
from cmrhash.training.finetune.extract import extract_tuned
from cmrhash.training.train import train

TRAIN = TrainConfig(epochs=2, batch=16, hidden=16, bits=20, device="cpu")  # 20 bits: the last byte is half used
TEXTS = ["dog 4", "a cat under a tree", "house house 17", "[SEP]", "tree"]


@pytest.fixture(scope="module")
def made(make_manifest, tmp_path_factory):
    """Photos, encoders in files, cache and an evaluated run: English by a BERT, German by its words."""
    base = tmp_path_factory.mktemp("export")
    root = make_manifest(base / "mine", 40)
    write_image_weights(base / "small.pth", "mobilenet_v3_small")
    write_bert(base / "bert")
    config = ExtractConfig(
        dataset="manifest",
        root=root,
        cache=base / "cache",
        device="cpu",
        dtype="float32",
        image_model="mobilenet_v3_small",
        image_weights=str(base / "small.pth"),
        text_models=(str(base / "bert"), "de=bow"),
    )
    extract(config)
    dataset, folder = open_extracted(base / "cache", None)
    train(TRAIN, dataset, folder, base / "runs")
    evaluate(EvalConfig(), dataset, folder, base / "runs")
    return base


@pytest.fixture(scope="module")
def hasher(made):
    return Hasher.load(made / "runs/manifest/triplet-20", made / "cache", device="cpu")


@pytest.fixture(scope="module")
def wanted(made, hasher):
    """Photos in memory and what the run itself makes of them and of sentences."""
    photos = [(made / f"mine/images/{n}.jpg").read_bytes() for n in range(5)]
    texts = {lang: hasher.embed_text(TEXTS, lang) for lang in ("en", "de")}
    return SimpleNamespace(photos=photos, image=hasher.embed_image(photos), **texts)


@pytest.fixture(scope="module")
def shared(hasher, wanted, tmp_path_factory):
    """Exported with everything in it, after the hasher had been used."""
    folder = tmp_path_factory.mktemp("shared") / "full"
    hasher.save_pretrained(folder, with_encoders=True)
    return folder


@pytest.fixture
def copy(shared, tmp_path):
    """One that can be changed."""
    return shutil.copytree(shared, tmp_path / "copy")


def refused(call):
    """The message of the error, which is one line."""
    with pytest.raises((UsageError, DamagedError, StaleError)) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- round trip


def test_the_bits_are_the_same_elsewhere_with_data_set_run_and_encoders_gone(made, copy, wanted, tmp_path):
    gone = tmp_path / "gone"
    made.rename(gone)
    try:
        loaded = Hasher.from_pretrained(copy, device="cpu", offline=True)
        np.testing.assert_array_equal(loaded.embed_image(wanted.photos), wanted.image)
        np.testing.assert_array_equal(loaded.embed_text(TEXTS, "en"), wanted.en)
        np.testing.assert_array_equal(loaded.embed_text(TEXTS, "de"), wanted.de)
        np.testing.assert_array_equal(loaded.encode_text(TEXTS, "de"), pack(wanted.de))
        assert (loaded.bits, loaded.langs) == (20, ("de", "en"))
    finally:
        gone.rename(made)


def test_public_encoders_are_named_and_have_to_be_given(made, hasher, wanted, tmp_path):
    hasher.save_pretrained(tmp_path / "plain")
    files = {str(p.relative_to(tmp_path / "plain")) for p in (tmp_path / "plain").rglob("*") if p.is_file()}
    assert files == {"config.json", "heads.safetensors", "README.md", "encoders/text-de.safetensors"}
    loaded = Hasher.from_pretrained(tmp_path / "plain")
    np.testing.assert_array_equal(loaded.embed_text(TEXTS, "de"), wanted.de)  # words travel always
    assert re.search(
        r"weights of its image encoder \(mobilenet_v3_small, \w{12}\.\.\.\) .*image_weights=FILE.*--with-encoders",
        refused(lambda: loaded.embed_image(wanted.photos)),
    )
    assert re.search(r"text-en encoder .*text_models=\{'en': DIR\}", refused(lambda: loaded.embed_text(TEXTS, "en")))
    given = {"image_weights": str(made / "small.pth"), "text_models": {"en": str(made / "bert")}}
    loaded = Hasher.from_pretrained(tmp_path / "plain", **given, device="cpu")
    np.testing.assert_array_equal(loaded.embed_image(wanted.photos), wanted.image)
    np.testing.assert_array_equal(loaded.embed_text(TEXTS, "en"), wanted.en)


def test_other_weights_than_those_of_the_run_are_refused(hasher, wanted, tmp_path):
    hasher.save_pretrained(tmp_path / "plain")
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), tmp_path / "other.pth")
    loaded = Hasher.from_pretrained(tmp_path / "plain", image_weights=str(tmp_path / "other.pth"))
    assert "weights_sha256" in refused(lambda: loaded.embed_image(wanted.photos))


def test_tuned_encoders_travel_and_languages_share_one(made, tmp_path):
    config = ExtractConfig(
        dataset="manifest",
        root=made / "mine",
        cache=tmp_path / "cache",
        device="cpu",
        dtype="float32",
        image_model="mobilenet_v3_small",
        image_weights=str(made / "small.pth"),
        text_models=(str(made / "bert"),),
    )
    extract_tuned(config, FinetuneConfig(epochs=1, batch=8, bits=8))
    dataset, folder = open_extracted(tmp_path / "cache", None)
    done, _ = train(TRAIN, dataset, folder, tmp_path / "runs")
    tuned = Hasher(done, dataset, folder, device="cpu")
    want = tuned.embed_text(TEXTS, "de"), tuned.embed_image([made / "mine/images/3.jpg"])
    tuned.save_pretrained(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out/encoders").iterdir()} == {"image.safetensors", "text-de+en"}
    english, _ = train(replace(TRAIN, langs=("en",)), dataset, folder, tmp_path / "runs")
    Hasher(english, dataset, folder, device="cpu").save_pretrained(tmp_path / "english")
    assert "(de by the head of en, which saw no de, en)" in (tmp_path / "english/README.md").read_text()
    assert "(de, en)" in (tmp_path / "out/README.md").read_text()
    shutil.rmtree(tmp_path / "cache")
    loaded = Hasher.from_pretrained(tmp_path / "out", device="cpu")
    np.testing.assert_array_equal(loaded.embed_text(TEXTS, "de"), want[0])
    np.testing.assert_array_equal(loaded.embed_image([made / "mine/images/3.jpg"]), want[1])
    assert loaded.text_encoder("text-de") is loaded.text_encoder("text-en")


def test_a_photo_is_prepared_as_the_recipe_says_whatever_the_weights_are_known_for(hasher, made, tmp_path):
    recipe = json.loads(json.dumps(hasher.image_encoder.recipe))
    recipe["crop"] |= {"resize": 40, "size": 32}
    encoder = reopen.image_from(recipe, str(made / "small.pth"), tmp_path, torch.device("cpu"))
    assert encoder.crop(Image.new("RGB", (50, 60))).shape == (32, 32, 3)
    recipe["crop"]["rules"] = "other"
    with pytest.raises(StaleError, match="rules 'other'"):
        reopen.image_from(recipe, str(made / "small.pth"), tmp_path, torch.device("cpu"))


def test_it_searches_among_the_codes_that_it_is_given(shared, wanted):
    loaded = Hasher.from_pretrained(shared, device="cpu")
    codes = loaded.encode_image(wanted.photos)
    distances, rows = loaded.search("dog 4", codes, lang="en", k=3)
    code = loaded.encode_text(["dog 4"], "en")[0]
    slow = sorted(
        (sum(bin(int(a ^ b)).count("1") for a, b in zip(code, row, strict=True)), n) for n, row in enumerate(codes)
    )
    assert list(zip(distances.tolist(), rows.tolist(), strict=True)) == slow[:3]
    assert "no database travels" in refused(lambda: loaded.search("dog 4", lang="en"))
    assert "which language is it?" in refused(lambda: loaded.search("dog 4", codes))
    assert "no language 'fr'" in refused(lambda: loaded.encode_text(["chien"], "fr"))


# ---------------------------------------------------------------------------------------------- nothing is trusted


NAMES = ["heads.safetensors", "encoders/image.safetensors", "encoders/text-de.safetensors", "config.json"]
NAMES += [f"encoders/text-en/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_what_was_written_is_refused(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert "sha256" in refused(lambda: Hasher.from_pretrained(copy))
    (copy / name).unlink()
    refused(lambda: Hasher.from_pretrained(copy))


@pytest.mark.parametrize("name", ["encoders/text-en/adapter_config.json", "encoders/more.py"])
def test_a_file_that_the_config_does_not_name_is_refused(copy, name):
    (copy / name).write_text("{}")
    assert "config does not name" in refused(lambda: Hasher.from_pretrained(copy))


def test_the_card_is_the_authors_to_finish(copy):
    (copy / "README.md").write_text("mine")
    Hasher.from_pretrained(copy)


CHANGES = {
    "another folder's file": lambda c: c["files"].update({"../heads.safetensors": "0"}),
    "an absolute file": lambda c: c["files"].update({"/etc/passwd": "0"}),
    "a file that transformers would run": lambda c: c["files"].update({"encoders/text-en/model.py": "0"}),
    "weights elsewhere": lambda c: c["encoders"]["text-en"].update(part=None, source="/etc"),
    "weights above": lambda c: c["encoders"]["text-en"].update(part=None, source="../x"),
    "a part above": lambda c: c["encoders"]["image"].update(part="encoders/../heads.safetensors"),
    "a part that is not held": lambda c: c["encoders"]["text-en"].update(part="encoders/text-fr"),
    "no part": lambda c: c["encoders"]["text-de"].update(part=None),
    "an unknown kind": lambda c: c["encoders"]["text-en"].update(kind="pickle"),
    "an odd view": lambda c: c["views"].update({"../x": "image"}),
    "a view without a head": lambda c: c["views"].update({"text-fr": "text-fr"}),
    "too many bits": lambda c: c.update(bits=10**9),
    "bits in words": lambda c: c.update(bits="20"),
    "an enormous head": lambda c: c["head"].update(hidden=10**9),
    "an odd head": lambda c: c["head"].update(device="cuda"),
    "a missing field": lambda c: c["encoders"]["image"].pop("recipe"),
    "a list": lambda c: c.update(encoders=[]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_config_of_a_stranger_is_read_with_care(copy, change):
    config = read_json(copy / "config.json", "")
    change(config)
    write_json(copy / "config.json", config)
    assert "no config of an exported run" in refused(lambda: Hasher.from_pretrained(copy))


def test_an_enormous_photo_is_not_asked_for(copy, wanted):
    config = read_json(copy / "config.json", "")
    config["encoders"]["image"]["recipe"]["crop"]["size"] = 10**6
    write_json(copy / "config.json", config)
    assert "no preparation of photos" in refused(lambda: Hasher.from_pretrained(copy).embed_image(wanted.photos))


def test_a_newer_version_is_refused(copy):
    write_json(copy / "config.json", {**read_json(copy / "config.json", ""), "version": 2})
    assert "export format version 2" in refused(lambda: Hasher.from_pretrained(copy))


def test_ids_of_a_hub_are_looked_up_locally_and_offline_says_so_in_one_line(shared, wanted, monkeypatch, tmp_path):
    cache = "huggingface_hub._snapshot_download.constants.HF_HUB_CACHE"
    monkeypatch.setattr(cache, str(tmp_path))
    words = refused(lambda: Hasher.from_pretrained("someone/codes"))
    assert re.search("exported run 'someone/codes' is not cached and offline mode is on", words)
    assert "is not a directory" in refused(lambda: Hasher.from_pretrained("./nowhere"))
    assert "neither a directory nor a model id" in refused(lambda: Hasher.from_pretrained("some one/codes"))
    repo, commit = tmp_path / "models--someone--codes", "0123456789abcdef0123456789abcdef01234567"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    shutil.copytree(shared, repo / "snapshots" / commit)
    np.testing.assert_array_equal(Hasher.from_pretrained("someone/codes").embed_text(TEXTS, "en"), wanted.en)
    assert "no exported run" in refused(lambda: Hasher.from_pretrained(tmp_path))


# ---------------------------------------------------------------------------------------------- the card


def test_the_card_is_what_hubs_read_and_says_how_the_figures_were_made(shared, made):
    _, front, text = (shared / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["library_name"] == "cmrhash"
    assert head["language"] == ["de", "en"]
    assert "cross-modal-hashing" in head["tags"]
    assert "license" not in head
    report = json.loads((made / "runs/manifest/triplet-20/metrics.json").read_text())["scores"][0]
    for row in report["rows"]:
        assert f"| {row['lang']} | {row['direction']} | {row['map']:.3f} | {row['chance']:.3f} |" in text
    assert report["protocol"]["ties"] in text
    assert "FaceNet" in text
    assert "from_pretrained" in text


def test_the_card_names_both_languages_where_texts_find_texts(made, tmp_path):
    dataset, folder = open_extracted(made / "cache", None)
    done, _ = train(TRAIN, dataset, folder, tmp_path / "runs")
    evaluate(EvalConfig(directions=("t2t", "i2i")), dataset, folder, tmp_path / "runs")
    Hasher(done, dataset, folder).save_pretrained(tmp_path / "out")
    lines = re.findall(r"^\| (\S+) \| (t2t|i2i) \|", (tmp_path / "out/README.md").read_text(), re.MULTILINE)
    assert lines == [("de-de", "t2t"), ("de-en", "t2t"), ("en-de", "t2t"), ("en-en", "t2t"), ("-", "i2i")]


def test_nothing_in_it_tells_of_this_machine(shared, made):
    for path in shared.rglob("*"):
        if path.is_file():
            assert str(made).encode() not in path.read_bytes(), path
            assert b"name_or_path" not in path.read_bytes(), path


def test_a_run_that_was_never_evaluated_says_so(make_cache, made, tmp_path):
    dataset, folder = open_extracted(made / "cache", None)
    done, _ = train(TRAIN, dataset, folder, tmp_path / "runs")
    Hasher(done, dataset, folder).save_pretrained(tmp_path / "out")
    assert "Not evaluated yet" in (tmp_path / "out/README.md").read_text()
    (done.folder / runs.METRICS).write_text("{}")  # figures of these heads do not outlive them
    train(TrainConfig(**{**vars(TRAIN), "epochs": 1}), dataset, folder, tmp_path / "runs", overwrite=True)
    assert not (done.folder / runs.METRICS).exists()


def test_the_five_lines_of_the_card_run(shared, made, monkeypatch):
    text = (shared / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    photos = [str(made / f"mine/images/{n}.jpg") for n in (1, 2)]
    code = code.replace("FOLDER or owner/name", str(shared)).replace('"1.jpg"', f'"{photos[0]}"')
    lines = code.replace('"2.jpg"', f'"{photos[1]}"').splitlines()
    assert len(lines) == 5
    found = {}
    exec("\n".join(lines), found)
    assert found["rows"].shape == (2,)


# ---------------------------------------------------------------------------------------------- ONNX


@pytest.mark.parametrize("bits", [1, 7, 8, 9, 20, 64])
def test_codes_are_packed_in_a_graph_as_everywhere(bits):
    x = torch.randn(30, bits, generator=torch.Generator().manual_seed(bits))
    x[0] = 0
    np.testing.assert_array_equal(onnx.packed(x).numpy(), pack(x.numpy()))


def need_onnx():
    for name in onnx.PACKAGES:
        pytest.importorskip(name, reason="pip install cmrhash[onnx]")


@pytest.fixture(scope="module")
def graphs(shared, hasher, wanted, tmp_path_factory):
    """A copy with ONNX graphs beside."""
    need_onnx()
    folder = shutil.copytree(shared, tmp_path_factory.mktemp("graphs") / "onnx")
    onnx.write(hasher, folder, hasher.captions(4))
    return folder


def run_graph(path, **inputs):
    return onnx.open_graph(path).run(["embedding", "codes"], inputs)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_image_graph_gives_the_bits_of_torch_for_any_batch(graphs, hasher, wanted, count):
    size = hasher.image_encoder.crop.size
    pixels = np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)
    x = hasher.image_encoder.encode(pixels)
    want = hasher.heads["image"].embed(torch.from_numpy(x)).numpy()
    embedding, codes = run_graph(graphs / "image.onnx", pixels=pixels)
    np.testing.assert_allclose(embedding, want, atol=1e-5)
    sure = np.abs(want) >= onnx.NEAR
    assert ((embedding >= 0) == (want >= 0))[sure].all()
    np.testing.assert_array_equal(codes, pack(embedding))


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], ["cat " * 60, "dog"]], ids=["some", "one", "too long"])
def test_the_text_graph_takes_what_its_tokenizer_gives(graphs, hasher, texts):
    about = read_json(graphs / "onnx.json", "")["graphs"]["text-en.onnx"]
    tokenizer = Tokenizer.from_file(str(graphs / about["tokenizer"]))
    tokenizer.encode_special_tokens = True
    found = tokenizer.encode_batch(texts)
    ids, mask = (np.array([getattr(one, of) for one in found], np.int64) for of in ("ids", "attention_mask"))
    assert ids.shape[1] <= about["max_length"] == 40
    embedding, codes = run_graph(graphs / "text-en.onnx", input_ids=ids, attention_mask=mask)
    want = hasher.embed_text(texts, "en")
    np.testing.assert_allclose(embedding, want, atol=1e-5)
    np.testing.assert_array_equal(codes, pack(want))


def test_what_has_no_graph_is_named_with_the_reason_and_files_by_digest(graphs):
    about = read_json(graphs / "onnx.json", "")
    assert set(about["graphs"]) == {"image.onnx", "text-en.onnx"}
    assert "word encoder" in about["left_out"]["text-de"]
    for graph in about["graphs"].values():
        assert graph["files"] == {name: sha256(graphs / name) for name in graph["files"]}
        assert re.match(r"\d+ of \d+ bits as torch has them on \d+ inputs, \d+ values within 1e-05", graph["checked"])
    assert "## Without Python" in (graphs / "README.md").read_text()
    assert not (graphs / "text-de.onnx").exists()


def test_a_graph_that_gives_other_bits_is_refused(graphs, hasher):
    graph = onnx.ImageGraph(hasher.image_encoder, hasher.heads["image"]).eval()
    graph.mean = graph.mean + 1
    pixels = np.zeros((2, 224, 224, 3), np.uint8)
    with pytest.raises(Exception, match="other bits than torch"):
        onnx._checked(graphs / "image.onnx", graph, [{"pixels": pixels}])


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A trained run on untrained encoders, made by commands."""
    folder = tmp_path_factory.mktemp("untrained")
    write_own(folder / "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(*EXTRACT, "--quiet") == 0
        assert run("train", *QUICK, "--quiet") == 0
    return folder


def test_the_command_writes_what_loads_without_the_data_set(untrained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(untrained)
    capsys.readouterr()
    assert run("export", tmp_path / "out", "--json", "--device", "cpu") == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert out.err == ""
    assert found["files"] == {name: (tmp_path / "out" / name).stat().st_size for name in found["files"]}
    assert found["encoders"]["image"] == "random"
    assert found["encoders"]["text-de"] == "encoders/text-de"
    want = Hasher.load("runs/manifest/triplet-8", "cache", device="cpu")
    photos = [untrained / "mine/images/3.png"]
    codes = want.encode_image(photos), want.encode_text(["Hund 3"], "de")
    monkeypatch.chdir(tmp_path)
    loaded = Hasher.from_pretrained("out", device="cpu")
    np.testing.assert_array_equal(loaded.encode_image(photos), codes[0])
    np.testing.assert_array_equal(loaded.encode_text(["Hund 3"], "de"), codes[1])


def test_the_command_prints_a_table_and_keeps_what_is_there(untrained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(untrained)
    assert run("export", tmp_path / "out", "--device", "cpu") == 0
    assert re.search(r"heads\.safetensors +\d+\.\d kB", capsys.readouterr().out)
    assert run("export", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "out/mine.txt").write_text("kept")
    (tmp_path / "out/image.onnx").write_text("of other heads")
    assert run("export", tmp_path / "out", "--overwrite", "--quiet", "--device", "cpu") == 0
    assert (tmp_path / "out/mine.txt").read_text() == "kept"
    assert not (tmp_path / "out/image.onnx").exists()


def test_without_the_packages_onnx_is_refused_before_any_work(untrained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(untrained)
    monkeypatch.setattr("cmrhash.search.exported.onnx.PACKAGES", ("onnx", "no_such_package"))
    assert run("export", tmp_path / "out", "--onnx") == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r'error: ONNX needs .*no_such_package: pip install "cmrhash\[onnx\]"\n', err)
    assert not (tmp_path / "out").exists()


def test_ready_made_features_have_no_encoder_to_hand_on(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"image": rng.standard_normal((60, 8)), "text": rng.standard_normal((60, 6))}
    labels = np.eye(3, dtype=np.int64)[rng.integers(0, 3, 60)]
    np.savez(tmp_path / "own.npz", labels=labels, **{k: x.astype(np.float32) for k, x in arrays.items()})
    extract(ExtractConfig(dataset="features", features=(tmp_path / "own.npz",), cache=tmp_path / "cache"))
    done, _ = train(TRAIN, *open_extracted(tmp_path / "cache", None), tmp_path / "runs")
    ready = Hasher.load(done.folder, tmp_path / "cache")
    with pytest.raises(UsageError, match="ready-made"):
        ready.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
