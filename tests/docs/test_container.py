"""The Dockerfile, as far as it can be checked without an engine, and the commands that run its image."""

import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import typer
from pages import ROOT

from cmrhash_cli.main import app

TEXT = (ROOT / "cli/Dockerfile").read_text("utf-8")
PAGE = (ROOT / "docs/howto-server.md").read_text("utf-8")


def lines(instruction):
    """The arguments of every instruction of that name."""
    return re.findall(rf"(?m)^{instruction} (.+)$", TEXT)


def parse(words):
    """Parse the words of a command line; an unknown command, option or type of value raises an error."""
    name, *rest = words
    typer.main.get_command(app).commands[name].make_context(name, rest)


def test_what_it_copies_exists_and_is_not_ignored():
    sources = [source for line in lines("COPY") for source in line.split()[:-1]]
    assert all((ROOT / source).exists() for source in sources)
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    assert sorted(kept) == sorted(sources)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    wanted |= {path.split("/")[0] for path in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    assert wanted == set(sources)


def test_it_installs_extras_that_exist_for_the_cpu():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    [installed] = [line for line in lines("RUN") if "pip install" in line]
    assert set(re.search(r"\[(.+)\]", installed)[1].split(",")) <= extras.keys()
    assert "--torch-backend cpu" in installed
    assert "--torch-backend cpu" in (ROOT / "README.md").read_text("utf-8")


def test_it_serves_as_an_ordinary_user():
    assert lines("USER") == ["cmrhash"]
    assert lines("WORKDIR") == lines("VOLUME") == ["/data"]
    [entry] = lines("ENTRYPOINT")
    [words] = lines("CMD")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert json.loads(entry) == list(project["scripts"])
    parse(json.loads(words))
    assert " ".join(json.loads(words)) in " ".join(PAGE.split())


def test_the_commands_of_the_page_run_the_image():
    docker = [shlex.split(line) for line in PAGE.splitlines() if line.startswith("docker ")]
    [build] = [words for words in docker if words[1] == "build"]
    assert (ROOT / build[build.index("-f") + 1]).exists()
    image = build[build.index("-t") + 1]
    runs = [words[words.index(image) + 1 :] for words in docker if words[1] == "run"]
    assert len(runs) == 4
    for words in filter(None, runs):
        parse(words)


@contextmanager
def answering(status):
    """A server that answers every request with this status; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (401, True), (503, False)])
def test_the_health_check_asks_the_page(status, healthy):
    [check] = re.findall(r"(?m)^HEALTHCHECK .*?CMD (\[.+\])$", TEXT)
    program, option, code = json.loads(check)
    assert (program, option, lines("EXPOSE")) == ("python", "-c", ["8000"])
    with answering(status) as port:
        done = subprocess.run([sys.executable, option, code.replace("8000", str(port))], capture_output=True)
    assert (done.returncode == 0) is healthy
