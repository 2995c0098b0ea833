"""One command reads each file once: headers and digests are counted by file."""

from collections import Counter

import pytest
from running import run

from cmrhash.features.leaks import leaks
from cmrhash.storage import sealed


@pytest.fixture
def counted(monkeypatch):
    """What was read meanwhile: file name -> how often its header was read, and its payload hashed."""
    headers, hashes = Counter(), Counter()
    read_block, payload = sealed._read_block, sealed.payload

    def count_header(path, magic):
        headers[path.name] += 1
        return read_block(path, magic)

    def count_hash(file):
        hashes[file.name.rpartition("/")[2]] += 1
        return payload(file)

    monkeypatch.setattr(sealed, "_read_block", count_header)
    monkeypatch.setattr(sealed, "payload", count_hash)
    return headers, hashes


FEATURES = ("image-toy.h5", "text-de-toy.h5", "text-en-toy.h5")
QUICK = ("--epochs", "1", "--batch", "16", "--hidden", "4", "--device", "cpu", "-q")


@pytest.fixture
def here(make_cache, tmp_path, monkeypatch):
    leaks(make_cache(tmp_path / "cache"))  # as `extract` looks for them, once
    monkeypatch.chdir(tmp_path)


def test_one_train_reads_each_feature_file_once_for_all_lengths(here, counted):
    headers, hashes = counted
    assert run("train", "--bits", "8", "--bits", "4", *QUICK) == 0
    assert {name: headers[name] for name in FEATURES} == dict.fromkeys(FEATURES, 1)
    assert {name: hashes[name] for name in FEATURES} == dict.fromkeys(FEATURES, 1)


def test_one_eval_reads_each_header_once(here, counted, capsys):
    headers, hashes = counted
    assert run("train", "--bits", "8", "--bits", "4", *QUICK) == 0
    for _ in range(2):
        headers.clear(), hashes.clear()
        assert run("eval", "--json") == 0
        assert {name: headers[name] for name in FEATURES} == dict.fromkeys(FEATURES, 1)
        assert headers["codes.h5"] == 2  # one per run
        assert not any(hashes[name] for name in FEATURES)
    assert hashes["codes.h5"] == 0  # scored before: metrics.json has the figures
    capsys.readouterr()
