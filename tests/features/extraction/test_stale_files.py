"""Stale and damaged feature files are refused, and replaced if they may be."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from extracting import COUNT, DE, IMAGES, config, contents, draw, entry, write

from cmrhash.data import manifest
from cmrhash.data.view import View
from cmrhash.errors import DamagedError, StaleError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.extract import extract


def test_another_recipe_replaces_the_files_if_it_may(made, source):
    changed = config(source, made, seed=1, pooling="cls", max_length=4)
    assert all(f.fresh for f in extract(replace(changed, overwrite=True)).files)
    assert not any(f.fresh for f in extract(changed).files)


def change_photo(root):
    draw(root, 7, 99)


def add_item(root):
    write(root, [entry(n) for n in range(COUNT)] + [entry(4) | {"id": "new"}])


def draw_roles(root):
    write(root, [{k: v for k, v in entry(n).items() if k != "splits"} for n in range(COUNT)])


def test_a_data_set_that_changed_replaces_the_files_if_it_may(mine, made, tmp_path):
    add_item(mine)
    change_photo(mine)
    report = extract(config(mine, made, overwrite=True))
    assert contents(report.folder) == contents(extract(config(mine, tmp_path / "anew")).folder)


@pytest.mark.faults("stale: one field of the recipe")
def test_a_file_left_over_from_captions_that_changed_since_is_not_used(mine, made):
    change = {"texts": {"en": ["dog", "dog"], "de": ["Vogel", "Vogel"]}}
    write(mine, [entry(n) | (change if n == 7 else {}) for n in range(COUNT)])
    report = extract(config(mine, made, langs=("en",), overwrite=True))
    data = ExtractedDataset(manifest.load(report.folder), report.folder)
    assert data.features(View.text("en")).has.all()
    with pytest.raises(StaleError, match=DE):
        data.features(View.text("de"))


@pytest.mark.faults("stale: one field of the recipe")
def test_another_seed_of_drawn_roles_is_refused(mine, tmp_path):
    draw_roles(mine)
    extract(config(mine, tmp_path / "cache"))
    with pytest.raises(StaleError, match="data set 'manifest' was made with split_seed = 0, but this call has 1"):
        extract(config(mine, tmp_path / "cache", seed=1))


@pytest.mark.faults("not stale: moved, touched, elsewhere")
def test_a_data_set_that_moved_is_the_same(mine, source, made):
    old = json.loads((made / "manifest" / "dataset.json").read_text())["root"]
    assert old == str(source.resolve())
    for path in mine.iterdir():
        os.utime(path, (1, 1))
    report = extract(config(mine, made))
    assert not any(f.fresh for f in report.files)
    assert json.loads((made / "manifest" / "dataset.json").read_text())["root"] == str(mine.resolve())


def test_a_damaged_file_is_refused_and_can_be_replaced(made, source, clean):
    path = made / "manifest" / IMAGES
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=f"{IMAGES}: delete it and create it again"):
        extract(config(source, made))
    extract(config(source, made, overwrite=True))
    assert path.read_bytes() == (clean.folder / IMAGES).read_bytes()
