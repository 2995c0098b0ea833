"""``cmrhash serve`` and ``cmrhash search --html`` as commands."""

import json
import re
import socket
import sys
from dataclasses import replace

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from serving import QUICK, Seen

from cmrhash.config import TrainConfig
from cmrhash.show.html.results import about
from cmrhash.show.server import server
from cmrhash.training.train import train
from cmrhash_cli.main import main


@pytest.fixture
def command(made, monkeypatch, capsys):
    """A function that runs a command there: (exit code, stdout, stderr)."""
    monkeypatch.chdir(made)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["cmrhash", *map(str, args), "--device", "cpu"])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_serve_says_how_many_items_it_searches(command, make_cache, tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr(
        server, "serve", lambda hasher, config, tell, opened: served.append((hasher.among, config.among))
    )
    few = ("serve", "--port", "0", "--cache", tmp_path / "cache", "--runs", tmp_path / "runs")

    def change(item):
        return replace(item, splits=item.splits - {"database"}) if int(item.id[1:]) % 3 else item

    train(TrainConfig(**QUICK), make_cache(tmp_path / "cache", change=change), tmp_path / "runs")
    run = f"run: {tmp_path / 'runs/toy/triplet-16'}"
    hint = "20 database items of 120 are searched: --among all searches all of them\n"
    assert command("serve", "--port", "0")[2] == "run: runs/manifest/triplet-16, all 40 items; stop with Ctrl-C\n"
    assert command(*few)[2] == f"{run}, all 120 items; stop with Ctrl-C\n"
    assert command(*few, "--among", "database")[2] == f"{run}, 20 database items; stop with Ctrl-C\n{hint}"
    assert command(*few, "--quiet")[2] == ""
    assert served == [("all", None)] * 2 + [("database", "database"), ("all", None)]


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "python_multipart"])
def test_a_missing_package_is_named_with_its_cure(command, monkeypatch, missing):
    for name in [name for name in sys.modules if name.startswith("cmrhash.show.server.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    code, out, err = command("serve")
    assert (code, out) == (2, "")
    assert err == f'error: cmrhash serve needs {missing}, which is not installed: pip install "cmrhash[serve]"\n'


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("--host: others on the network can reach 0.0.0.0: .*add --i-know", ["--host", "0.0.0.0"]),
        ("--rank: the page takes sentences, too", ["--rank", "features"]),
        ("--rank: unknown ranking 'best'", ["--rank", "best"]),
        ("--port: 70000 is out of range: give a number from 0", ["--port", "70000"]),
        ("no such trained run with 99 bits", ["--bits", "99"]),
        (r"cannot listen \(.*\): 192.0.2.1 port 1: give another", ["--host", "192.0.2.1", "--i-know", "--port", "1"]),
    ],
)
def test_serve_refuses_in_one_line(command, words, args):
    code, out, err = command("serve", *(args if "--port" in args else ["--port", "0", *args]))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(words, err), err


def test_a_port_that_is_taken_is_reported_before_anything_else(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = command("serve", "--port", port)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: cannot listen \(.*\): 127.0.0.1 port {port}: give another --port or --host\n", err), (
        err
    )


def test_search_writes_a_sheet_that_needs_no_other_file(command, hasher, tmp_path, made):
    path = tmp_path / "found.html"
    for args, title in (
        (["Katze 5"], "“Katze 5”"),
        (["--id", "i3"], "Photo of item i3"),
        (["mine/images/3.jpg"], "Your photo"),
    ):
        code, out, err = command("search", *args, "--k", 4, "--to", "image", "--json", "--html", path)
        assert code == 0
        assert f"wrote {path}" in err
        found = json.loads(out)["results"]
        document = path.read_text(encoding="utf-8")
        seen = Seen(document)
        pictures = [p for p in seen.all("img") if p["alt"] in {hit["caption"] for hit in found}][-4:]
        assert [p["alt"] for p in pictures] == [hit["caption"] for hit in found]
        assert {p["src"].partition(",")[0] for p in seen.all("img")} == {"data:image/jpeg;base64"}
        assert f"<title>{title}" in document
        assert about(hasher) in document
        assert not seen.all("script") + seen.all("link") + seen.all("a")
        assert "prefers-color-scheme: dark" in document
