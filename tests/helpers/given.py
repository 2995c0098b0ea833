"""What the pages take as given, laid down small: photos, archives, weights, features, data sets, runs."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
from one_space import draw_photos
from package_models import write_open_clip, write_timm
from pages import Section, calls
from peer_metrics import write_results
from running import run
from sentence_models import make_sentence
from small_models import write_bert, write_clip, write_dinov2, write_image_weights, write_siglip, write_vit
from trees import COUNT, NOUNS, WRITERS, draw_photo, write_manifest

from cmrhash.config import SAMPLE_DATASET

BERT, VECTORS = "small-bert", "vectors.txt"
FEW_FEATURES = "regnet_x_400mf"  # 400; of torchvision's quick classifiers it has the fewest


def write_photo(path):
    draw_photo(path, len(path.name))


def write_vectors(path, dim=300):
    """A file of word vectors, of the words of both languages."""
    rng = np.random.default_rng(0)
    words = [word for words in NOUNS.values() for word in words] + ["a", "ein", "the", "und"]
    text = "".join(f"{word} {' '.join(f'{x:.2f}' for x in rng.standard_normal(dim))}\n" for word in words).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def write_sentence(path):
    write_bert(path)
    make_sentence(path, "cls", ["Normalize"], width=64, prompts={"query": "query: ", "passage": "passage: "})


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_features(path, count=COUNT):
    """Ready-made features of a whole data set, as an HDF5 file (which MATLAB 7.3 writes too)."""
    import h5py

    rng, kind = np.random.default_rng(0), np.arange(count) % 4
    with h5py.File(path, "w") as file:
        for name, dim in (("IAll", 8), ("YAll", 6)):
            file[name] = rng.standard_normal((4, dim))[kind] + 0.3 * rng.standard_normal((count, dim))
        file["LAll"] = np.eye(4)[kind]


def write_wikipedia_features(path):
    """The features that come with Wikipedia, of the items of the data set that ``trees`` writes."""
    import scipy.io

    rng, kind = np.random.default_rng(0), np.arange(COUNT) % 2
    image, text = (rng.random((2, dim))[kind] + 0.1 * rng.random((COUNT, dim)) for dim in (128, 10))
    parts = {"I_tr": image[:-10], "I_te": image[-10:], "T_tr": text[:-10], "T_te": text[-10:]}
    scipy.io.savemat(path, parts)


# Data sets that the pages work with without having extracted them.
DATASETS = ("flickr", "iaprtc12", "shop")
# Methods without epochs; of the pages, best is one.
CLOSED = "cca|cca-itq|itq|sign|scm|cvh|krr-ap|krr-ap-symmetric|krr-cluster|best"

# Files and folders that the pages name without having made them.
PLACED = {
    "photo.jpg": write_photo,
    "dog.jpg": write_photo,
    "1.jpg": write_photo,
    "2.jpg": write_photo,
    "resnet10t.pth": lambda path: write_timm(path, "resnet10t"),
    "open_clip.pt": lambda path: write_open_clip(path.parent.parent / path.name, path.parent.name),  # ARCH/FILE
    "resnet18.pth": lambda path: write_image_weights(path, "resnet18"),
    "minilm": write_bert,
    "MODEL_DIR": write_bert,
    "CLIP_DIR": lambda path: write_clip(path, projection=64),  # twice the bits of a run
    "SIGLIP_DIR": write_siglip,
    "DINOV2_DIR": write_dinov2,
    "VIT_DIR": write_vit,
    "SENTENCE_DIR": write_sentence,
    "glove.6B.300d.txt": write_vectors,
    "cc.de.300.vec.gz": write_vectors,
    "raw_features.mat": write_wikipedia_features,
    "mirflickr.mat": lambda path: write_features(path, 20_015),
    "FILE": write_features,
    "results.mat": write_results,
    "results.npz": write_results,
    "common_tags.txt": lambda path: path.write_text("dog 9\nnikon 9\nnone 9\n", encoding="utf-8"),
    "image.npz": lambda path: np.savez(path, image=np.random.default_rng(0).standard_normal((COUNT, 8))),
    "captions.txt": lambda path: write_lines(path, [f"a {NOUNS['en'][n % 4]} {n}" for n in range(COUNT)]),
    "sentences.txt": lambda path: write_lines(path, ["a black dog in the snow", "", "a cat"]),
    "ids.txt": lambda path: write_lines(path, [f"photo-{n}" for n in range(COUNT)]),
    "PHOTOS": WRITERS["folder"],
    "sold.txt": lambda path: write_lines(path, ["i2", "i3"]),
    "moved": write_manifest,
    "pictures": lambda path: draw_photos(path, 60),
    "holiday": lambda path: [draw_photo(path / f"{n}.jpg", n) for n in range(8)],
    "TARS": WRITERS["webdataset"],
    "captions.csv": lambda path: WRITERS["table"](path.parent),
}


def places(name, text):
    """The paths of that name in a text, with the folders before it."""
    return sorted(
        set(re.findall(rf"(?<![\w.=/-])((?:\w[\w.-]*/)*{re.escape(name)})(?![\w./])", text.replace("=", " ")))
    )


def options(words, name):
    """The values of an option in the words of a command."""
    return [value for option, value in itertools.pairwise(words) if option == name]


def place(section: Section, folder: Path):
    """Lay down the archives and files that a section names."""
    for words in [words for step in section.steps() for words in calls(step)]:
        for dataset, root in zip(options(words, "--dataset"), options(words, "--root"), strict=False):
            if dataset in WRITERS and not (folder / root).exists():
                WRITERS[dataset](folder / root)
    for name, write in PLACED.items():
        for path in places(name, section.text):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write(folder / path)


def datasets(section: Section):
    """Names of the data sets that a section works with: those that it extracts, and those that it takes as given."""
    extracted, used = set(), set(re.findall(r"\bruns/([\w-]+)/", section.text))
    for words in [words for step in section.steps() for words in calls(step)]:
        given = options(words, "--dataset")
        if words[0] == "index" and "--with" in words:
            extracted.add(words[1])
        elif words[0] != "extract":
            used.update(given)
        else:
            place = [Path(word).name for word in words[1:2] if not word.startswith("-")]
            extracted.update(options(words, "--name") or given or place)
            extracted.update([] if given else [SAMPLE_DATASET])  # whatever it is called then
    return extracted, used - extracted


class Extracted:
    """Data sets of any name, extracted once: photos and captions in two languages through small encoders."""

    def __init__(self, base: Path):
        self.base, self.names = base, set()
        base.mkdir()
        write_manifest(base / "photos")
        write_bert(base / BERT)
        write_vectors(base / VECTORS, 64)

    def lay(self, name: str, folder: Path):
        """Put the data set into the cache of a folder."""
        if name not in self.names:
            encoders = [
                "--image-model",
                "squeezenet1_1",  # has a graph of few nodes
                "--image-weights",
                "random",
                f"--text-model=en={BERT}",
                f"--text-model=de={VECTORS}",
            ]
            with contextlib.chdir(self.base):
                assert run("extract", "--dataset", "manifest", "--root", "photos", "--name", name, *encoders) == 0
            self.names.add(name)
        shutil.copytree(self.base / "cache" / name, folder / "cache" / name)

    def lay_bert(self, folder: Path):
        shutil.copytree(self.base / BERT, folder / BERT)


def train_runs(name: str, section: Section):
    """Train the runs of a data set that a section names by folder, or by method and length, or one if it names none."""
    named = re.findall(rf"\bruns/{name}/([a-z-]+)-(\d+)\b", section.text)
    for words in [words for step in section.steps() for words in calls(step)]:
        if words[0] == "eval" and options(words, "--dataset") == [name]:
            named += itertools.product(options(words, "--method"), options(words, "--bits"))
    for method, bits in dict.fromkeys(named or [("triplet", "32")]):
        short = [] if re.fullmatch(CLOSED, method) else ["--epochs", "1"]
        assert run("train", "--dataset", name, "--method", method, "--bits", bits, *short) == 0


def write_line(line: str, folder: Path):
    """A manifest of that one line, with its photo."""
    entry = json.loads(line)
    write_photo(folder / entry["image"])
    (folder / "manifest.jsonl").write_text(line + "\n", encoding="utf-8")
    return entry
