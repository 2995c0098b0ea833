"""A folder of a stranger: every file is checked against its digest, every value against its range."""

import re
import shutil

import numpy as np
import pytest
from handed_on import TEXTS, refused

from cmrhash.search.hasher import Hasher
from cmrhash.storage.files import read_json, write_json
from cmrhash.training.runs import open_run

NAMES = ["heads.safetensors", "encoders/image.safetensors", "encoders/text-de.safetensors", "config.json"]
NAMES += [f"encoders/text-en/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")]


@pytest.mark.slow
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


def test_an_export_is_no_run(copy):
    assert "an exported run, which has no data set: " in refused(lambda: open_run(copy))


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
    "more words than numbers": lambda c: c["head"].update(words={"text-en": 10**9}),
    "an odd head": lambda c: c["head"].update(device="cuda"),
    "a missing field": lambda c: c["encoders"]["image"].pop("recipe"),
    "a list": lambda c: c.update(encoders=[]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_config_of_a_stranger_is_read_with_care(copy, change):
    config = read_json(copy / "config.json", "")
    change(config)
    write_json(copy / "config.json", config)
    assert "not the config of an exported run" in refused(lambda: Hasher.from_pretrained(copy))


def test_an_enormous_photo_is_not_asked_for(copy, wanted):
    config = read_json(copy / "config.json", "")
    config["encoders"]["image"]["recipe"]["crop"]["size"] = 10**6
    write_json(copy / "config.json", config)
    assert "unknown preparation of photos" in refused(lambda: Hasher.from_pretrained(copy).embed_image(wanted.photos))


def test_a_newer_version_is_refused(copy):
    write_json(copy / "config.json", {**read_json(copy / "config.json", ""), "version": 2})
    assert "export format version 2" in refused(lambda: Hasher.from_pretrained(copy))


def test_ids_of_a_hub_are_looked_up_locally_and_offline_says_so_in_one_line(shared, wanted, monkeypatch, tmp_path):
    cache = "huggingface_hub._snapshot_download.constants.HF_HUB_CACHE"
    monkeypatch.setattr(cache, str(tmp_path))
    words = refused(lambda: Hasher.from_pretrained("someone/codes"))
    assert re.search("exported run 'someone/codes' is not in the local cache, and offline mode is on", words)
    assert "is not a directory" in refused(lambda: Hasher.from_pretrained("./nowhere"))
    assert "neither a directory nor a model id" in refused(lambda: Hasher.from_pretrained("some one/codes"))
    repo, commit = tmp_path / "models--someone--codes", "0123456789abcdef0123456789abcdef01234567"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    shutil.copytree(shared, repo / "snapshots" / commit)
    np.testing.assert_array_equal(Hasher.from_pretrained("someone/codes").embed_text(TEXTS, "en"), wanted.en)
    assert "not an exported run" in refused(lambda: Hasher.from_pretrained(tmp_path))
