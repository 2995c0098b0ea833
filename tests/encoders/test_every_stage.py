"""The table of encoders in docs/encoders.md: each cell that says yes works, each other one is refused in one line."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from one_space import Pictures, Words
from package_models import TIMM, write_open_clip, write_timm
from running import run, write_own
from sentence_models import TANH, make_sentence
from small_models import write_bert, write_clip, write_image_weights, write_vit

import cmrhash
from cmrhash.data.view import View
from cmrhash.encoders import text
from cmrhash.errors import CmrhashError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PAGE = Path(__file__).parents[2] / "docs/encoders.md"
SQUEEZE, REGIONS = "squeezenet1_1", "fasterrcnn_mobilenet_v3_large_320_fpn"
WORDS = "bag of words, word vectors"
FROM = ("extract", "--dataset", "manifest", "--root", "mine", "--device", "cpu", "--dtype", "float32")
TRAIN = ["--method", "tie-ap", "--epochs", "2", "--batch", "16", "--hidden", "16", "--bits", "8", "--device", "cpu"]
OPTIONS = ("--image-size", "192", "--image-layers", "features.9+penultimate", "--mirror")
# options -> rows of the table
PAIRS = {
    ("--image-model", SQUEEZE, "--image-weights", "net.pth", *OPTIONS, "--text-model", "bert"): (
        "classifier of torchvision",
        "BERT-like text model",
    ),
    ("--image-model", "vit", "--mirror", "--text-model", "random"): (
        "vision model of transformers",
        "untrained text encoder (`random`)",
    ),
    ("--image-model", TIMM, "--image-weights", "timm.pth", "--text-model", "sentence"): (
        "`timm:NAME`",
        "directory of sentence-transformers",
    ),
    ("--model", "clip"): ("dual encoder of transformers",),
    ("--model", "open_clip:tiny/tiny.pt"): ("`open_clip:...`",),
    ("--image-model", REGIONS, "--image-weights", "random", "--text-model", "bow"): ("Faster R-CNN (regions)", WORDS),
}
REFUSED = {
    "--finetune": "fine-tuning needs a classifier|fine-tuning has no network to tune",
    "--runtime onnx": "has no ONNX graph|has no network",
}
LEFT_OUT = "regions|region features|a word encoder is a table"


def table():
    """row -> column -> cell."""
    lines = PAGE.read_text(encoding="utf-8").partition("## Encoders and commands")[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    _, *columns = rows[0]
    known = rows[1 : next(n for n, row in enumerate(rows) if row[0].startswith("object of your own")) + 1]
    return {row[0]: dict(zip([column.replace("`", "") for column in columns], row[1:], strict=True)) for row in known}


def works(kinds, column):
    cells = [table()[kind][column] for kind in kinds]
    assert set(cells) <= {"yes", "no", ""}
    return "no" not in cells


@pytest.fixture(scope="module", params=list(PAIRS.items()), ids=[kinds[0] for kinds in PAIRS.values()])
def made(request, tmp_path_factory):
    """Folder with the extracted features and a run of encoders, their options, and their rows of the table."""
    options, kinds = request.param
    here = tmp_path_factory.mktemp("every")
    few = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    write_own(here / "mine", 8 if REGIONS in options else 12, lambda entries: [without(e, "de") for e in entries])
    for name, write in (("bert", write_bert), ("sentence", write_bert), ("clip", write_clip), ("vit", write_vit)):
        if name in options:
            (here / name).mkdir()
            write(here / name)
    if "sentence" in options:
        make_sentence(here / "sentence", "cls", [(64, 16, TANH), "Normalize"], width=64)
    if SQUEEZE in options:
        write_image_weights(here / "net.pth", SQUEEZE)
    if TIMM in options:
        write_timm(here / "timm.pth")
    if "open_clip:tiny/tiny.pt" in options:
        write_open_clip(here / "tiny.pt")
    with contextlib.chdir(here), pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "TINY", few)
        assert run(*FROM, *options, "-q") == 0
        trained()
        yield here, options, kinds


@pytest.fixture
def stage(made, monkeypatch):
    """Options of the encoders and their rows of the table, in their folder."""
    here, options, kinds = made
    monkeypatch.chdir(here)
    return options, kinds


def without(entry, lang):
    return {**entry, "texts": {spoken: texts for spoken, texts in entry["texts"].items() if spoken != lang}}


def same_features(other, atol):
    one, two = (cmrhash.open_dataset(name, cache="cache") for name in ("manifest", other))
    for view in (View.IMAGE, View.text("en")):
        x, y = (data.features(view).features.x for data in (one, two))
        np.testing.assert_allclose(x, y, atol=atol * abs(x).max())


def trained(name="manifest"):
    assert run("train", "--dataset", name, *TRAIN, "-q") == 0
    return next(Path("runs", name).iterdir())


def refused(capsys, words, *args):
    """The command ends with one line of these words, and writes nothing."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert run(*args, "-q") != 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert any(each in line for each in words.split("|")), line
    assert sorted(Path().rglob("*")) == before


def test_extraction_in_shards_and_on_onnx_runtime(stage, capsys):
    options, kinds = stage
    assert works(kinds, "shards")
    for shard in ("1/2", "2/2"):
        assert run(*FROM, *options, "--name", "parts", "--shard", shard, "-q") == 0
    same_features("parts", 1e-5)
    by_onnx = (*FROM, *options, "--name", "by-onnx", "--runtime", "onnx")
    if works(kinds, "--runtime onnx"):
        pytest.importorskip("onnxruntime", reason="pip install cmrhash[onnx]")
        assert run(*by_onnx, "-q") == 0
        same_features("by-onnx", 1e-4)
    else:
        refused(capsys, REFUSED["--runtime onnx"], *by_onnx)


def test_fine_tuning_and_search_by_the_tuned_encoders(stage, capsys):
    options, kinds = stage
    tune = (*FROM, *options, "--name", "tuned", "--finetune", "--bits", "8", "--batch", "4", "--epochs", "1")
    if not works(kinds, "--finetune"):
        refused(capsys, REFUSED["--finetune"], *tune)
        return
    assert run(*tune, "-q") == 0
    trained("tuned")
    assert run("eval", "--dataset", "tuned", "-q") == 0
    assert run("search", "dog 3", "--lang", "en", "--dataset", "tuned", "-q") == 0
    assert run("search", "mine/images/3.png", "--dataset", "tuned", "-q") == 0


def test_the_page_answers_sentences_and_photos(stage):
    _, kinds = stage
    assert works(kinds, "search, serve")
    pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')
    from fastapi.testclient import TestClient

    from cmrhash.config import ServeConfig
    from cmrhash.show.server.app import new_state
    from cmrhash.show.server.server import guarded

    state = new_state(cmrhash.load(trained(), device="cpu"), ServeConfig())
    try:
        with TestClient(guarded(state, None), base_url="http://127.0.0.1:8000") as client:
            found = client.get("/api/search", params={"q": "dog 3", "lang": "en", "k": 3}).json()["results"]
            assert len(found) == 3
            photo = ("photo.png", Path("mine/images/3.png").read_bytes(), "image/png")
            found = client.post("/api/search", files={"photo": photo}, data={"to": "image", "k": 1}).json()["results"]
            assert [hit["id"] for hit in found] == ["i3"]
    finally:
        state.close()


def test_an_export_holds_the_encoders_and_their_graphs(stage, tmp_path, monkeypatch):
    here, (_, kinds) = Path.cwd(), stage
    run_ = trained()
    hasher = cmrhash.load(run_, device="cpu")
    ask = ["dog 3"], "en"
    wanted = hasher.encode_image(["mine/images/3.png"]), hasher.encode_text(*ask)
    assert works(kinds, "export --with-encoders")
    assert run("export", "out", "--run", run_, "--with-encoders", "--device", "cpu", "-q") == 0
    shutil.move("out", tmp_path / "out")
    shutil.copy("mine/images/3.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    opened = cmrhash.from_pretrained("out", device="cpu", offline=True)
    np.testing.assert_array_equal(opened.encode_image(["3.png"]), wanted[0])
    np.testing.assert_array_equal(opened.encode_text(*ask), wanted[1])
    assert not any(str(here) in path.read_text() for path in Path().rglob("*.json"))
    pytest.importorskip("onnxruntime", reason="pip install cmrhash[onnx]")
    from cmrhash.search.exported import onnx

    about = onnx.write(opened, Path("out"), {lang: [] for lang in opened.langs})
    assert bool(about["left_out"]) == (not works(kinds, "export --onnx"))
    assert all(any(words in reason for words in LEFT_OUT.split("|")) for reason in about["left_out"].values())


def test_photos_alone_are_found_by_sentences_of_a_dual_encoder(stage, capsys):
    options, kinds = stage
    photos = options[: options.index("--text-model")] if "--text-model" in options else options
    for n in range(3, 7):
        Path("few").mkdir(exist_ok=True)
        shutil.copy(f"mine/images/{n}.png", "few")
    assert run("extract", "few", *photos, "--name", "alone", "--device", "cpu", "-q") == 0
    assert run("train", "--dataset", "alone", "--method", "itq", "--bits", "2", "--device", "cpu", "-q") == 0
    assert run("search", "mine/images/3.png", "--dataset", "alone", "-q") == 0
    ask = ("search", "a dog", "--dataset", "alone")
    if works(kinds, "photos alone by sentences"):
        assert run(*ask, "-q") == 0
    else:
        refused(capsys, "sentence|text", *ask)


# ---------------------------------------------------------------------------------------------- without weights


def test_ready_made_features(tmp_path, monkeypatch, capsys):
    kind = ("ready-made features",)
    monkeypatch.chdir(tmp_path)
    rng, count = np.random.default_rng(0), 24
    labels = np.eye(2)[np.arange(count) % 2]
    np.savez("all.npz", image=rng.random((count, 8)), text=rng.random((count, 6)), label=labels)
    given = ("extract", "--dataset", "features", "--features", "all.npz", "--device", "cpu")
    assert run(*given, "--query", "4", "--train", "16", "-q") == 0
    assert works(kind, "shards")
    for shard in ("1/2", "2/2"):
        assert run(*given, "--query", "4", "--train", "16", "--name", "parts", "--shard", shard, "-q") == 0
    for column in ("--finetune", "search, serve", "export --with-encoders", "export --onnx"):
        assert not works(kind, column)
    refused(capsys, "fine-tuning|ready", *given, "--name", "tuned", "--finetune")
    run_ = trained("features")
    refused(capsys, "ready-made", "search", "a dog", "--lang", "en", "--dataset", "features")
    refused(capsys, "ready-made", "export", "out", "--run", run_)


def test_an_object_of_your_own(tmp_path, monkeypatch, capsys):
    kind = ("object of your own, from Python",)
    cells = table()[kind[0]]
    assert [name for name, cell in cells.items() if cell == "yes"] == ["shards", "search, serve"]
    write_own(tmp_path / "mine", 12)
    monkeypatch.chdir(tmp_path)
    own = {"image_encoder": Pictures(), "text_encoder": Words()}
    given = {"dataset": "manifest", "device": "cpu", **own}
    cmrhash.extract("mine", **given)
    for shard in ("1/2", "2/2"):
        cmrhash.extract("mine", name="parts", shard=shard, **given)
    same_features("parts", 1e-5)
    with pytest.raises(CmrhashError, match="is an encoder of your own, which has no ONNX graph"):
        cmrhash.extract("mine", name="by-onnx", runtime="onnx", **given)
    run_ = trained()
    hasher = cmrhash.load(run_, **own)
    assert hasher.search("dog 3", lang="en", k=3)
    with pytest.raises(CmrhashError, match="an encoder of your own cannot be exported"):
        hasher.save_pretrained("out")
    refused(capsys, "an encoder of your own", "search", "dog 3", "--lang", "en", "--dataset", "manifest")
    cmrhash.extract("mine/images", name="alone", device="cpu", image_encoder=Pictures())
    itq = cmrhash.train("alone", method="itq", bits=4)
    assert cmrhash.load(itq.folder, **own).search("red", k=3)


def test_every_row_of_the_table_is_run():
    run_here = {kind for kinds in PAIRS.values() for kind in kinds}
    assert set(table()) == run_here | {"ready-made features", "object of your own, from Python"}
    assert json.dumps(table())
