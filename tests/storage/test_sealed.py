"""The user block of the .h5 files byte by byte: manifests, notes, and what each of them guards."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrhash.errors import CmrhashError, DamagedError, DataError, StaleError
from cmrhash.storage import sealed

BLOCK = 8192
AGAIN = "delete it and create it again"
MANIFEST = {"version": 1, "payload_sha256": hashlib.sha256(b"payload").hexdigest(), "payload_bytes": 7}
DONE = 1 << 32


def block(magic, body):
    return (magic + hashlib.sha256(body).hexdigest().encode() + b"\n" + body).ljust(BLOCK, b"\0")


def write(path, content=MANIFEST, payload=b"payload"):
    with path.open("wb") as file:
        file.write(b"x" * 100)  # the block is written over what is there
        sealed.write_block(file, sealed.MAGIC, content)
        file.seek(BLOCK)
        file.write(payload)
    return path


def refused(error, words, call, path):
    with pytest.raises(error) as caught:
        call(path)
    assert (type(caught.value), caught.value.what, caught.value.where) == (error, words, path)
    return caught.value.fix


# ---------------------------------------------------------------------------------------------- manifests


def test_a_sealed_file_is_a_block_and_its_payload(tmp_path):
    path = write(tmp_path / "x.h5")
    body = json.dumps(MANIFEST, sort_keys=True, separators=(",", ":")).encode()
    assert path.read_bytes() == block(b"cmrhash sealed HDF5\n", body) + b"payload"
    assert sealed.read_manifest(path) == sealed.check_payload(path) == MANIFEST
    with path.open("rb") as file:
        assert sealed.payload(file) == (MANIFEST["payload_sha256"], 7)


@pytest.mark.parametrize("more", [0, 1])
def test_the_largest_manifest(tmp_path, more):
    room = BLOCK - len(block(sealed.MAGIC, b"").rstrip(b"\0"))
    content = MANIFEST | {"x": ""}
    content["x"] = "x" * (room - len(json.dumps(content, separators=(",", ":"))) + more)
    if more:
        with pytest.raises(CmrhashError, match=f"the manifest has {room + 1} bytes: .*: it may have at most 8102"):
            write(tmp_path / "x.h5", content)
    else:
        assert sealed.read_manifest(write(tmp_path / "x.h5", content)) == content


def test_a_payload_of_many_pieces(tmp_path):
    whole = os.urandom((1 << 22) + 5)
    about = {"payload_sha256": hashlib.sha256(whole).hexdigest(), "payload_bytes": len(whole)}
    path = write(tmp_path / "x.h5", MANIFEST | about, whole)
    assert sealed.check_payload(path)["payload_bytes"] == len(whole)
    for changed in (whole[:-1], whole + b"\0", whole[:-1] + bytes([whole[-1] ^ 1]), bytes([whole[0] ^ 1]) + whole[1:]):
        path.write_bytes(path.read_bytes()[:BLOCK] + changed)
        assert refused(DamagedError, "does not match its sha256", sealed.check_payload, path) == AGAIN
        assert sealed.read_manifest(path)["payload_bytes"] == len(whole)


def test_a_payload_whose_size_alone_differs_is_refused(tmp_path):
    path = write(tmp_path / "x.h5", MANIFEST | {"payload_bytes": 8})
    refused(DamagedError, "does not match its sha256", sealed.check_payload, path)


def test_what_is_no_manifest(tmp_path):
    path = tmp_path / "x.h5"
    assert refused(DataError, "no such file", sealed.read_manifest, path) == "run `extract` first"
    whole = write(path).read_bytes()
    for other in (b"", whole[: BLOCK - 1], whole[1:], b"y" + whole[1:], whole.replace(b"version", b"versiom")):
        path.write_bytes(other)
        assert refused(DamagedError, "not a sealed file of cmrhash, or damaged", sealed.read_manifest, path) == AGAIN
    for body in (
        b"[1]",
        b"{}",
        b"3",
        *(json.dumps({**MANIFEST, name: 1}).replace(name, "other").encode() for name in MANIFEST),
    ):
        path.write_bytes(block(sealed.MAGIC, body))
        assert refused(DamagedError, "not a cmrhash manifest", sealed.read_manifest, path) == AGAIN
    for body in (b"{", b"[" * 7000, b"\xff"):
        path.write_bytes(block(sealed.MAGIC, body))
        refused(DamagedError, "not a sealed file of cmrhash, or damaged", sealed.read_manifest, path)
    path.unlink()
    os.mkfifo(path)
    refused(DamagedError, "not a sealed file of cmrhash, or damaged", sealed.read_manifest, path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_manifest_of_another_version_says_which_one_is_read(tmp_path, version):
    path = write(tmp_path / "x.h5", MANIFEST | {"version": version})
    fix = refused(StaleError, f"file format version {version}", sealed.read_manifest, path)
    assert fix == f"this cmrhash reads version 1; upgrade it, or {AGAIN}"


# ---------------------------------------------------------------------------------------------- notes


def unfinished(path, content, changing, at=BLOCK, recipe=None, blocks=3):
    """An unfinished file: zeros, then its content."""
    path.write_bytes(bytes(BLOCK) + content)
    sealed.write_note(path, recipe or {"kind": "image"}, 30, blocks, at, changing)
    return path


def record(*done):
    return b"".join((DONE * flag + 77).to_bytes(8, "little") for flag in done)


def test_a_note_says_what_is_done(tmp_path):
    path = unfinished(tmp_path / "x.part", b"head" + record(1, 0, 1) + record(1), [(BLOCK + 4, 24)], BLOCK + 4)
    assert sealed.read_note(path) == sealed.Unfinished({"kind": "image"}, 30, 3, 2)
    body = path.read_bytes()[len(sealed.UNFINISHED) + 65 : BLOCK].rstrip(b"\0")
    assert path.read_bytes()[:BLOCK] == block(b"cmrhash unfinished\n\n", body)
    note = json.loads(body)
    assert note["frame_sha256"] == hashlib.sha256(b"%d" % (BLOCK + 36) + b"head" + record(1)).hexdigest()
    assert (note["version"], note["commits_at"], note["changing"]) == (1, BLOCK + 4, [[BLOCK + 4, 24]])


def test_as_many_records_count_as_there_are_blocks(tmp_path):
    path = unfinished(tmp_path / "x.part", record(*[1] * 12), [], blocks=9)
    assert sealed.read_note(path).done == 9


def test_a_note_of_records_that_are_cut_short_counts_those_that_are_there(tmp_path):
    path = unfinished(tmp_path / "x.part", record(1, 1), [], blocks=9)
    assert sealed.read_note(path).done == 2
    path = unfinished(tmp_path / "x.part", record(1, 1), [], blocks=1 << 60)  # and reads no more than the file has
    assert sealed.read_note(path).done == 2


def test_a_file_without_a_note_of_ours_has_none(tmp_path):
    path = unfinished(tmp_path / "x.part", record(1), [])
    note = json.loads(path.read_bytes()[len(sealed.UNFINISHED) + 65 : BLOCK].rstrip(b"\0"))
    for body in ({**note, "version": 2}, {**note, "version": 0}):
        path.write_bytes(block(sealed.UNFINISHED, json.dumps(body).encode()) + record(1))
        assert sealed.read_note(path) is None
    assert sealed.read_note(write(path)) is None
    sealed.check_frame(path)
    del note["frame_sha256"]  # of an earlier version
    path.write_bytes(block(sealed.UNFINISHED, json.dumps(note).encode()) + record(0))
    sealed.check_frame(path)
    assert sealed.read_note(path).done == 0


RANGES = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=4)


@settings(max_examples=60)
@given(RANGES, st.integers(0, 23), st.integers(0, 2))
def test_a_byte_counts_if_it_is_in_no_changing_range(tmp_path_factory, ranges, at, more):
    path = tmp_path_factory.getbasetemp() / "x.part"
    changing = [(BLOCK + start, size) for start, size in ranges]
    unfinished(path, bytes(range(24)), changing)
    sealed.check_frame(path)
    content = bytearray(path.read_bytes())
    content[BLOCK + at] ^= 1
    path.write_bytes(content + b"\0" * more)
    if any(start <= at < start + size for start, size in ranges) and not more:
        sealed.check_frame(path)
    else:
        fix = refused(DamagedError, "unfinished file is damaged", sealed.check_frame, path)
        assert fix == "delete it, or use `overwrite=True`"


def test_a_note_is_on_disk_when_it_is_written(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(handle):
        synced.append((tmp_path / "x.part").read_bytes()[:18])
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    unfinished(tmp_path / "x.part", b"", [])
    assert synced == [b"cmrhash unfinished"]


def test_names_of_shards(tmp_path):
    assert sealed.merging(tmp_path / "image-x.h5") == tmp_path / "image-x.h5.shards"
    found = sealed.SHARD.fullmatch("image-x.h5.shard-12-of-130")
    assert found.groups() == ("image-x.h5", "12", "130")
    assert not sealed.SHARD.fullmatch(str(Path("image-x.h5.shard-1")))
