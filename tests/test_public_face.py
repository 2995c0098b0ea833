"""The public face: complete, light to import, typed, and the way of section "Python" from one name to the next."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import cmrhash
from cmrhash import METHODS, Batch, Method, Terms, UsageError, View, losses

COUNT = 60
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220)}


class MeanColour:
    """An image encoder of ten lines: the mean colour of 16 x 16 patches."""

    name, dim, size, recipe = "mean-colour", 12, 16, {"version": 1}

    def encode(self, batch):
        return batch.reshape(len(batch), 2, 8, 2, 8, 3).mean((2, 4)).reshape(len(batch), -1) / 255


class Letters:
    """A text encoder: how often each letter occurs."""

    dim, recipe = 26, {"version": 1}

    def encode(self, batch):
        return np.array([[text.lower().count(chr(97 + n)) for n in range(26)] for text in batch], np.float32)


def photo(colour, seed):
    noise = np.random.default_rng(seed).integers(-30, 30, (24, 20, 3))
    return Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    names = [list(COLOURS)[n % 3] for n in range(COUNT)]
    for n, name in enumerate(names):
        photo(name, n).save(root / f"{n}.png")
    texts = {"en": [f"a {name} wall" for name in names]}
    roles = [["query"], ["database", "val"], *[["database", "train"]] * 3]
    splits = [roles[n // 3 % 5] for n in range(COUNT)]
    return cmrhash.dataset([root / f"{n}.png" for n in range(COUNT)], texts, names, splits=splits, name="walls")


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    base = tmp_path_factory.mktemp("public")
    return {"cache": base / "cache", "runs": base / "runs"}


@pytest.fixture(scope="module")
def data(items, where):
    own = {"image_encoder": MeanColour(), "text_encoder": Letters()}
    return cmrhash.extract(items, cache=where["cache"], seed=1, **own)


@pytest.fixture(scope="module")
def run(data, where):
    return cmrhash.train(data, "tie-ap", bits=16, epochs=80, lr=0.02, hidden=32, runs=where["runs"], device="cpu")


@pytest.fixture(scope="module")
def hasher(run, where):
    return cmrhash.load(run, cache=where["cache"], image_encoder=MeanColour(), text_encoder=Letters())


def test_every_name_is_there_and_nothing_heavy_is_imported():
    code = (
        "import sys, cmrhash; assert set(cmrhash.__all__) <= set(dir(cmrhash)); "
        "print({'torch', 'numpy', 'faiss', 'h5py', 'PIL'} & set(sys.modules)); "
        "print(all(getattr(cmrhash, name) is not None for name in cmrhash.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "True"]
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = cmrhash.trian


def test_the_names_for_type_checkers_are_those_of_the_module():
    source = Path(cmrhash.__file__).read_text(encoding="utf-8")
    typed = {line.split(" as ")[1] for line in source.splitlines() if line.startswith("    from cmrhash.")}
    assert typed == set(cmrhash.__all__) - {"__version__"}


def test_items_in_memory_are_extracted_trained_scored_and_searched(data, run, hasher):
    assert [len(data.dataset.items), data.languages()] == [COUNT, ["en"]]
    scored = cmrhash.evaluate(run, data, langs=["en"])
    assert {row["direction"] for row in scored.rows} == {"i2t", "t2i"}
    assert min(row["map"] for row in scored.rows) > 0.8
    assert "mAP" in str(scored)
    assert "metric: mAP over the whole database" in str(scored)
    hits = hasher.search("a green wall", k=3)
    assert [hit.labels for hit in hits] == [("green",)] * 3


def test_photos_come_in_every_form_and_in_lists(hasher, data, tmp_path):
    path = data.dataset.root / "3.png"
    image = Image.open(path).convert("RGB")
    forms = [path, str(path), image, np.asarray(image), path.read_bytes()]
    codes = hasher.encode_image(forms)
    assert codes.shape == (5, 2)
    assert (codes == codes[0]).all()
    assert hasher.encode_image(path).tolist() == codes[0].tolist()
    assert hasher.embed_image(image).shape == (16,)
    assert hasher.encode_text("a red wall").shape == (2,)
    assert hasher.encode_text(["a red wall", "blue"]).shape == (2, 2)
    found = hasher.search([*forms, "a red wall"], k=2)
    assert [len(hits) for hits in found] == [2] * 6
    assert {hit.modality for hits in found[:5] for hit in hits} == {"text"}
    assert {hit.modality for hit in found[5]} == {"image"}
    by_code = hasher.search(codes[0], k=2)
    assert by_code == hasher.search(codes, k=2)[4] == hasher.nearest(codes[0], "image", "en", 2)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (7, "a query is a int: give a sentence, a photo, packed codes"),
        (np.zeros(3, np.uint8), r"shape \(1, 3\) and type uint8 holds no codes of 16 bits: give uint8 with 2 columns"),
        (np.zeros((4, 4, 1), np.uint8), r"an image array of shape \(4, 4, 1\) and type uint8: give \(H, W, 3\) uint8"),
        ([None], "a query is a NoneType"),
        ("", "an empty text"),
    ],
)
def test_another_query_is_one_clear_line(hasher, query, words):
    with pytest.raises(UsageError, match=words):
        hasher.search(query)


def test_a_method_of_ones_own_has_its_loss_and_its_heads(data, where):
    def cosine(views, batch: Batch):
        u, v = (nn.functional.normalize(x) for x in views.values())
        return Terms({"mse": ((u @ v.T - batch.relevant.float()) ** 2).mean()}, {})

    def heads(dim, bits):
        return nn.Sequential(nn.Linear(dim, 8), nn.GELU(), nn.Linear(8, bits))

    mine = Method(cosine, "a test", name="cosine-mse", heads=heads)
    run = cmrhash.train(data, mine, bits=8, epochs=80, lr=0.02, runs=where["runs"], device="cpu")
    assert (run.method, run.name) == ("cosine-mse", "cosine-mse-8")
    assert all(row["map"] > row["chance"] + 0.1 for row in cmrhash.evaluate(run, data).rows)
    del METHODS["cosine-mse"]
    (run.folder / "codes.h5").unlink()
    with pytest.raises(UsageError, match="the heads of method 'cosine-mse' are not defined here"):
        cmrhash.evaluate(run, data)
    cmrhash.register(mine)
    assert cmrhash.evaluate(run, data).rows
    del METHODS["cosine-mse"]


@pytest.mark.parametrize("name", ["", "a/b", "triplet"])
def test_a_method_needs_a_name_of_its_own(name):
    with pytest.raises(UsageError, match="a method named|is a method of cmrhash"):
        cmrhash.register(Method(None, "a test", name=name))
    assert METHODS["triplet"].terms is not None


def test_another_encoder_than_that_of_the_database_is_refused(run, where):
    class Other(Letters):
        name, recipe = "letters", {"version": 2}

    opened = cmrhash.load(run, cache=where["cache"], text_encoder={"en": Other()})
    with pytest.raises(cmrhash.EncoderError, match="was made with weights_sha256"):
        opened.search("a red wall")
    with pytest.raises(cmrhash.EncoderError, match="made by 'letters', an encoder of your own"):
        cmrhash.load(run, cache=where["cache"]).search("a red wall")


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (object(), "the image encoder \\(object\\) has no encode"),
        (type("Flat", (MeanColour,), {"dim": 5})(), r"returned shape \(\d+, 12\), expected \(\d+, 5\)"),
        (type("Odd", (MeanColour,), {"recipe": {"x": object()}})(), "the recipe of 'mean-colour' is not JSON"),
    ],
)
def test_an_encoder_that_cannot_be_used_is_one_line(items, tmp_path, encoder, words):
    with pytest.raises(cmrhash.EncoderError, match=words):
        cmrhash.extract(items, cache=tmp_path, image_encoder=encoder, text_encoder=Letters())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cmrhash.extract("sampel"), "no data set and no folder 'sampel': did you mean sample?"),
        (lambda: cmrhash.extract("sample", bits=3), "no setting 'bits'"),
        (lambda: cmrhash.extract("sample", text_encoders=3), "did you mean text_encoder?"),
        (lambda: cmrhash.load("runs", imageencoder=3), "no setting 'imageencoder': did you mean image_encoder?"),
        (lambda: cmrhash.extract(3), "a data set is a int"),
        (lambda: cmrhash.train(3), "a data set is a int"),
        (lambda: cmrhash.evaluate([]), "no run to evaluate"),
        (lambda: cmrhash.dataset(), "no items: give `images` and `texts`"),
        (lambda: cmrhash.dataset(["a.png"], {"en": ["a", "b"]}), "1 images, but 2 items|images: 1 images"),
        (lambda: cmrhash.dataset([b"x"], {"en": ["a"]}), "images: an image is a bytes, not a path"),
    ],
)
def test_a_wrong_call_is_one_clear_line(call, words):
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_unknown_split_is_a_data_error():
    with pytest.raises(cmrhash.DataError, match="unknown split 'trian': did you mean train?"):
        cmrhash.dataset(["a.png"], {"en": ["a"]}, splits=["trian"])


def test_every_object_says_what_it_is(data, run, hasher, items):
    codes = hasher.views[View.IMAGE]
    shown = {
        "ExtractedDataset('walls', 60 items, en,": data,
        "ImageTextDataset('walls', 60 items, 3 classes, en,": items,
        "Run('": run,
        "Hasher('": hasher,
        "Evaluation('walls', 2 rows)": cmrhash.evaluate(run, data),
        "Codes(60 codes of 16 bits)": codes.codes,
        "ViewCodes(View('image'), 60 codes of 16 bits": codes,
        "BinaryIndex(": codes.index,
        "ViewFeatures('image-mean-colour.h5', 60 items, 60 rows)": data.features(View.IMAGE),
        "Features('image-mean-colour.h5', 60 x 12)": data.features(View.IMAGE).features,
        "OwnEncoder('mean-colour', 12 features)": hasher.image_encoder,
        "Method(": METHODS["triplet"],
        "View('text-en')": View.text("en"),
    }
    for start, thing in shown.items():
        assert repr(thing).startswith(start)
        assert len(repr(thing)) < 300


def test_losses_and_metrics_are_modules_of_the_face():
    u = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert losses.contrastive(u, u, torch.eye(2, dtype=torch.bool), 1.0) == 0
    assert cmrhash.metrics.average_precision(np.array([[1, 1]]), np.array([[1, 0]])) == 1
