"""A small trained collection that grows and shrinks, beside a fresh extraction of the same items."""

from __future__ import annotations

import json
import shutil

import numpy as np
from PIL import Image
from running import EXTRACT, run, write_manifest

from cmrhash.evaluation.run_codes import codes_of
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import read_features
from cmrhash.storage.hdf5 import read_sealed
from cmrhash.storage.sealed import read_manifest
from cmrhash.training.runs import open_run

COUNT = 14  # the last four are no train items: untrained text models learn their words from these
RUN = "runs/manifest/triplet-8"


def entries(root):
    return [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]


def write_more(root, names=("n0", "n1", "n2")):
    """New items, with photos of their own."""
    (root / "photos").mkdir(parents=True)
    rng = np.random.default_rng(len(names))
    more = []
    for n, name in enumerate(names):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(root / "photos" / f"{name}.png")
        texts = {"en": [f"a new dog {n}", "fox"][: 1 + n % 2], "de": [f"neuer Hund {n}"]}
        more.append({"id": name, "image": f"photos/{name}.png", "texts": texts, "labels": ["c" if n else "a"]})
    write_manifest(root, more)
    return more


def state(folder="."):
    """All files of the collection and its runs, but locks."""
    from pathlib import Path

    paths = [path for top in ("cache", "runs") for path in (Path(folder) / top).rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in paths if path.suffix != ".lock"}


def same_as_fresh(here, union):
    """The collection has the rows and the run the codes of a fresh extraction of the union of its items."""
    write_manifest(here / "mine", union)
    shutil.rmtree(here / "fresh", ignore_errors=True)
    assert run(*EXTRACT, "--cache", "fresh", "-q") == 0
    grown, fresh = (ExtractedDataset.open(folder, "manifest") for folder in ("cache", "fresh"))
    assert grown.dataset.sha256 == fresh.dataset.sha256
    for path in (here / "fresh/manifest").glob("*.h5"):
        ours = here / "cache/manifest" / path.name
        assert read_manifest(ours)["recipe"] == read_manifest(path)["recipe"], path.name
        if not path.name.startswith("words"):
            assert read_features(ours).x.tobytes() == read_features(path).x.tobytes()
        assert read_manifest(ours)["payload_sha256"] == read_manifest(path)["payload_sha256"], path.name
    shutil.copytree(RUN, "again", dirs_exist_ok=True)
    for name in ("codes.h5", *(path.name for path in (here / RUN).glob("*.faiss"))):
        (here / "again" / name).unlink()
    codes_of(open_run("again"), fresh)
    ours, anew = (read_sealed(here / folder / "codes.h5") for folder in (RUN, "again"))
    assert ours[0]["recipe"] == anew[0]["recipe"]
    assert ours[0]["indexes"] == anew[0]["indexes"]
    assert {name: array.tobytes() for name, array in ours[1].items()} == {
        name: array.tobytes() for name, array in anew[1].items()
    }
