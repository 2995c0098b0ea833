"""Handing a run on over a network: uploaded to a hub in this process, fetched from it, and what can go wrong between.

What travels by Xet, the hub's own storage protocol, is not covered: the client is told to use plain LFS.
"""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants
from local_hub import OWNER, TOKEN, WARNING, only_this_machine, taken_for_the_hub
from running import EXTRACT, QUICK, run, write_own

from cmrhash.encoders.hub import Unreachable
from cmrhash.errors import CmrhashError, DamagedError, EncoderError, StaleError, UsageError
from cmrhash.search.exported import hasher, write
from cmrhash.search.hasher import Hasher
from cmrhash.storage.files import read_json, write_json

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNING)]
NAME = f"{OWNER}/codes"
TEXTS = ["Hund 3", "ein Hund"]
FAULT = pytest.mark.faults("hub: refused, cut off, changed, foreign")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """In place of the fixture of all tests."""
    only_this_machine(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a trained run, its export and what it makes of sentences and photos."""
    folder = tmp_path_factory.mktemp("hub")
    write_own(folder / "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(*EXTRACT, "--quiet") == 0
        assert run("train", *QUICK, "--quiet") == 0
    hasher = Hasher.load(folder / "runs/manifest/triplet-8", folder / "cache", device="cpu")
    hasher.save_pretrained(folder / "shared")
    photos = [(folder / f"mine/images/{n}.png").read_bytes() for n in range(4)]
    wanted = hasher.embed_text(TEXTS, "de"), hasher.embed_image(photos)
    return SimpleNamespace(folder=folder, shared=folder / "shared", photos=photos, wanted=wanted, hasher=hasher)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that huggingface_hub takes for the one, and an empty cache."""
    with taken_for_the_hub(monkeypatch, tmp_path) as local:
        yield local


@pytest.fixture
def owner(monkeypatch):
    """Logged in."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def content(folder):
    """{path: bytes} of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetched(made):
    """What is fetched of an export: all but the card."""
    return {path: one for path, one in content(made.shared).items() if path != "README.md"}


def published(repo):
    return {path: one for path, one in repo.files.items() if path != ".gitattributes"}


def refused(call, kind=EncoderError):
    """The message of the error, which is one line."""
    with pytest.raises(CmrhashError) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load(name=NAME, **options):
    return Hasher.from_pretrained(name, device="cpu", **options)


# ---------------------------------------------------------------------------------------------- upload


def test_an_export_is_uploaded_byte_for_byte_large_files_by_lfs(made, hub, owner):
    address = write.push(made.shared, NAME)
    repo = hub.repos[NAME]
    assert address == f"{hub.url}/{NAME}/commit/{repo.refs['main']}"
    assert published(repo) == content(made.shared)
    weights = {path for path in repo.files if path.endswith(".safetensors")}
    assert weights >= {"heads.safetensors", "encoders/text-de/model.safetensors"}
    assert repo.lfs == weights
    assert set(hub.objects.values()) == {repo.files[path] for path in weights}
    assert not repo.private
    write.push(made.shared, NAME)  # nothing has changed
    assert len(hub.asked("PUT")) == len(hub.objects)
    assert published(repo) == content(made.shared)


def test_the_hf_command_uploads_it_and_another_process_fetches_it(made, hub, tmp_path):
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    own |= {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    own["PYTHONPATH"] = os.pathsep.join(sys.path)

    def child(*args):
        command = [sys.executable, *map(str, args)]
        return subprocess.run(command, env=os.environ | own, check=True, capture_output=True, text=True).stdout

    child("-m", "huggingface_hub.cli.hf", "upload", NAME, made.shared)
    assert published(hub.repos[NAME]) == content(made.shared)
    asks = f"from cmrhash.search.exported.hasher import PretrainedHasher as P; print(P.load({NAME!r}).folder)"
    folder = Path(child("-c", asks).strip())
    assert folder.is_relative_to(tmp_path / "home/hub")
    assert content(folder) == fetched(made)


def test_the_card_is_read_by_the_hubs_own_library(made, hub):
    card = ModelCard.load(made.shared / "README.md")
    assert card.data.to_dict() == {
        "library_name": "cmrhash",
        "language": ["de", "en"],
        "tags": [
            *("cross-modal-hashing", "cross-modal-retrieval", "image-text-retrieval", "hashing", "binary-codes"),
        ],
    }
    assert card.text.startswith("\n# manifest: triplet, 8 bits")


@pytest.mark.skipif("ENDPOINT" not in inspect.getsource(ModelCard.validate), reason="this release asks its own host")
def test_the_hub_finds_the_card_valid(made, hub):
    ModelCard.load(made.shared / "README.md").validate()


def test_a_run_is_pushed_by_itself_and_by_the_command(made, hub, owner, monkeypatch, capsys):
    made.hasher.push_to_hub(f"{OWNER}/private", private=True)
    assert hub.repos[f"{OWNER}/private"].private
    assert published(hub.repos[f"{OWNER}/private"]) == content(made.shared)
    monkeypatch.chdir(made.folder)
    shutil.rmtree("again", ignore_errors=True)
    capsys.readouterr()
    assert run("export", "again", "--device", "cpu", "--push", NAME, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["url"] == f"{hub.url}/{NAME}/commit/{hub.repos[NAME].refs['main']}"
    assert published(hub.repos[NAME]) == content(made.shared)
    assert not hub.repos[NAME].private


def test_only_an_exports_own_files_are_uploaded_and_those_of_an_earlier_one_go(made, hub, owner, tmp_path):
    folder = shutil.copytree(made.shared, tmp_path / "mine")
    (folder / "notes.txt").write_text("mine")
    there = {"encoders/text-fr.safetensors": b"old", "image.onnx": b"old", "plot.png": b"theirs", "config.json": b"{}"}
    hub.add(NAME, there)
    write.push(folder, NAME)
    assert published(hub.repos[NAME]) == content(made.shared) | {"plot.png": b"theirs"}


def test_what_cannot_be_uploaded_is_said_in_one_line(made, hub, monkeypatch, tmp_path, capsys):
    def push(name=NAME, kind=UsageError, folder=made.shared):
        return refused(lambda: write.push(folder, name), kind)

    assert re.fullmatch(rf"'{NAME}' cannot be uploaded \(.*\): .*run hf auth login.*", push())
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    assert "run hf auth login with a token that has the permission" in push()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "access is refused with status 403" in push("others/codes")
    assert "cannot be uploaded (" in push("some one/codes", CmrhashError)
    assert "not an exported run" in push(folder=tmp_path)
    (tmp_path / "bad").mkdir()
    bad = shutil.copytree(made.shared, tmp_path / "bad", dirs_exist_ok=True)
    (bad / "README.md").write_text("---\na: [\n---\n")
    assert "Invalid metadata in README.md" in push(kind=CmrhashError, folder=bad)
    hub.status = 503
    assert "the hub answers with status 503" in push(kind=Unreachable)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the connection failed" in push(kind=CmrhashError)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline mode is on" in push()
    for options, words in (["--push", NAME, "--offline"], "leave out one"), (["--private"], "add --push"):
        assert run("export", tmp_path / "out", *options) == 2
        assert words in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- fetching


def test_what_is_fetched_gives_the_same_bits_and_stays_in_the_cache(made, hub, monkeypatch):
    hub.add(NAME, content(made.shared))
    loaded = load()
    for found, wanted in zip(
        (loaded.embed_text(TEXTS, "de"), loaded.embed_image(made.photos)), made.wanted, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
    assert content(loaded.folder) == fetched(made)
    before = len(hub.requests)
    hub.status = 500
    assert load().folder == loaded.folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    np.testing.assert_array_equal(load().embed_text(TEXTS, "de"), made.wanted[0])
    assert load(offline=True).folder == loaded.folder
    assert len(hub.requests) == before


def test_a_private_one_is_fetched_with_a_token_that_stays_at_the_hub(made, hub, owner):
    hub.add(NAME, content(made.shared), private=True)
    assert load().bits == 8
    seen = {path.startswith("/cdn/"): token for _, path, token in hub.requests}
    assert seen == {False: True, True: False}


def test_a_revision_is_a_branch_a_tag_or_a_commit(made, hub):
    repo = hub.add(NAME, content(made.shared))
    first = repo.refs["v1"] = repo.refs["main"]
    assert load().folder.name == first
    second = repo.commit(repo.files | {"plot.png": b"new"})
    assert load().folder.name == first  # what is cached stays as it is
    assert load(revision=second).folder.name == second
    assert load(revision="v1").folder.name == first
    assert "it has no such revision" in refused(lambda: load(revision="v2"))
    assert "revision 'v2', is not in the local cache, and offline" in refused(lambda: load(revision="v2", offline=True))
    assert "only models of the hub have revisions" in refused(lambda: load(made.shared, revision="v1"), UsageError)


@FAULT
def test_a_connection_that_breaks_off_is_taken_up_again(made, hub):
    hub.add(NAME, content(made.shared))
    hub.cut = {"encoders/text-de/model.safetensors": (2, "end"), "encoders/text-de/config.json": (1, "end")}
    assert content(load().folder) == fetched(made)
    assert {left for left, _ in hub.cut.values()} == {0}


@FAULT
@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("name", ["config.json", "heads.safetensors", "encoders/text-de/model.safetensors"])
def test_one_that_breaks_off_for_good_is_one_line_and_the_next_load_goes_on(made, hub, name, how):
    hub.add(NAME, content(made.shared))
    hub.cut = {name: (10**6, how)}
    words = refused(load)
    assert re.fullmatch(rf"exported run '{NAME}'.* cannot be downloaded \(.*\): try again", words)
    hub.cut = {}
    assert content(load().folder) == fetched(made)


@FAULT
def test_a_cache_that_lacks_a_file_is_completed(made, hub, tmp_path):
    """As a fetch that broke off leaves it, by a client that does not note what is to be there."""
    commit = hub.add(NAME, content(made.shared)).refs["main"]
    cached = tmp_path / "cache" / f"models--{NAME.replace('/', '--')}"
    shutil.copytree(made.shared, cached / "snapshots" / commit, ignore=shutil.ignore_patterns("model.safetensors"))
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    assert "is not in the local cache, and offline mode is on" in refused(lambda: load(offline=True))
    assert load().folder == cached / "snapshots" / commit
    assert content(load().folder) == content(made.shared)


@FAULT
def test_a_new_commit_between_the_config_and_the_rest_mixes_nothing(made, hub, monkeypatch):
    repo = hub.add(NAME, content(made.shared))
    first, read = repo.refs["main"], hasher._fields

    def then_comes_another(folder):
        repo.commit({"config.json": b"{}", "heads.safetensors": b"other"})
        return read(folder)

    with monkeypatch.context() as patch:
        patch.setattr(hasher, "_fields", then_comes_another)
        assert load().folder.name == first
    assert content(load().folder) == fetched(made)


FAULTS = {
    "no such repository": (lambda hub: hub.repos.clear(), "it does not exist, or is private.*check the id"),
    "private": (lambda hub: vars(hub.repos[NAME]).update(private=True), "or is private.*run hf auth login"),
    "gated": (lambda hub: vars(hub.repos[NAME]).update(gated=True), "gated.*request access on its page"),
    "refused": (lambda hub: vars(hub).update(status=403), "access is refused with status 403.*run hf auth login"),
    "failing": (
        lambda hub: vars(hub).update(status=503),
        "not in the local cache, and the hub answers with status 503, as it was told",
    ),
    "a page of another": (lambda hub: vars(hub).update(page=True), "the server is not a model hub"),
}


@FAULT
@pytest.mark.parametrize("token", [None, "hf_of_another"], ids=["logged out", "logged in"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_fetched_is_said_in_one_line(made, hub, monkeypatch, fault, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.add(NAME, content(made.shared))
    spoil, words = FAULTS[fault]
    spoil(hub)
    assert re.search(words, refused(load))


@FAULT
def test_a_hub_that_is_down_is_said_in_one_line(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert re.search(r"not in the local cache, and the hub cannot be reached \(.*refused\)", refused(load))


@FAULT
def test_a_file_that_is_not_what_was_exported_is_refused(made, hub):
    files = content(made.shared)
    files["heads.safetensors"] = files["heads.safetensors"][:-1] + b"\0"
    hub.add(NAME, files)
    words = refused(load, DamagedError)
    assert re.search(r"does not match its sha256: .*heads\.safetensors: .*hf cache rm model/OWNER/NAME", words)


@FAULT
def test_what_is_no_export_is_refused_before_its_weights_are_fetched(made, hub):
    weights = {"model.safetensors": bytes(1000)}
    config = json.loads((made.shared / "encoders/text-de/config.json").read_bytes())
    hub.add(f"{OWNER}/bert", weights | {"config.json": json.dumps(config).encode()})
    hub.add(f"{OWNER}/bare", weights)
    hub.add(f"{OWNER}/empty", {})
    assert "its config.json is of another program" in refused(lambda: load(f"{OWNER}/bert"), UsageError)
    for name in ("bare", "empty"):
        words = refused(lambda name=name: load(f"{OWNER}/{name}"), UsageError)
        assert f"it has no config.json: '{OWNER}/{name}' on the hub" in words
    assert not [path for path in hub.asked("GET") if path.endswith(".safetensors")]


@FAULT
def test_one_that_names_a_file_it_has_not_or_is_newer_is_refused(made, hub, tmp_path):
    files = content(made.shared)
    del files["heads.safetensors"]
    hub.add(NAME, files)
    assert "missing" in refused(load, DamagedError)
    write_json(tmp_path / "config.json", {**read_json(made.shared / "config.json", ""), "version": 2})
    hub.add(f"{OWNER}/newer", content(made.shared) | {"config.json": (tmp_path / "config.json").read_bytes()})
    assert "export format version 2" in refused(lambda: load(f"{OWNER}/newer"), StaleError)
