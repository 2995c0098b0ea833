"""``cmrhash serve`` as a process: it starts, answers and ends; and, where asked for, a real browser uses it."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from browser import MISSING, browser

pytestmark = pytest.mark.slow

ASKED = os.environ.get("CMRHASH_BROWSER", "") not in ("", "0")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Replaces the fixture of all tests: connections to this machine only."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            raise OSError(f"a test tried to connect to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@contextlib.contextmanager
def serving(folder, *args):
    """(process, its port, the line with its address) of a page that ends afterwards."""
    code = "from cmrhash_cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--device", "cpu", *args]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = next((line for line in process.stderr if line.startswith("http://")), "")
            yield process, int(re.search(r":(\d+)/", address)[1]), address.strip()
        finally:
            process.kill()


def get(port, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def test_it_starts_answers_and_ends_by_an_interrupt(made):
    with serving(made) as (process, port, address):
        assert address == f"http://127.0.0.1:{port}/"
        assert json.loads(get(port, "/healthz")[1])["status"] == "ok"
        status, body, headers = get(port, "/api/search?q=dog&lang=en&k=3")
        assert (status, len(json.loads(body)["results"])) == (200, 3)
        assert "server" not in headers
        assert get(port, "/", host="evil.example")[0] == 421
        with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
            raw.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 413 ")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "stopped\n"
        assert process.wait(30) == 0


def test_to_others_it_gives_an_address_with_a_token(made):
    with serving(made, "--host", "0.0.0.0", "--i-know") as (_, port, address):
        token = address.partition("?token=")[2]
        assert len(token) == 32
        assert get(port, "/healthz")[0] == 401
        assert get(port, "/healthz", authorization=f"Bearer {token}")[0] == 200


@pytest.mark.skipif(not ASKED, reason="set CMRHASH_BROWSER=1 to drive a real browser")
@pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}")
def test_in_a_browser_sentences_and_a_photo_find_pictures_and_no_other_host_is_asked(made, tmp_path):
    with serving(made) as (_, _port, address), browser(tmp_path) as window:
        window.go("about:blank")
        window.logged("performance")  # the browser's own first tab
        for sentence, lang in (("dog and cat", "en"), ("Hund und Katze", "de")):
            window.go(address)
            window.one("#q").type(sentence + "\n")
            window.wait(".count")
            assert f"query language: {lang}" in window.one("main").text
            assert _drawn(window) == 12
            assert window.run("return document.querySelector('.plots img').currentSrc") == ""  # the section is closed
        window.go(address)
        window.one("#photo").type(str(made / "mine/images/3.jpg"))  # which sends it: no button is pressed
        window.wait("#found-text")
        assert _drawn(window) == 1 + 12 + 12
        window.one("ol.images a").click()
        window.wait(".relevant")
        window.one(".run > summary").click()
        assert _drawn(window, ".plots img") == len(window.find("figcaption")) > 0
        requests = [json.loads(entry["message"])["message"] for entry in window.logged("performance")]
        asked = {m["params"]["request"]["url"] for m in requests if m["method"] == "Network.requestWillBeSent"}
        assert any("/thumb/" in url for url in asked)
        assert any("/plot/" in url for url in asked)
        assert not [url for url in asked if not url.startswith((address, "data:image/jpeg;base64,"))]
        assert window.logged("browser") == []  # no complaint: nothing missing, nothing against the policy


def _drawn(window, css="ol img, .query img"):
    """How many pictures are there, once all have come that are asked for."""
    each = f"[...document.querySelectorAll('{css}')].map(i => {{i.loading = 'eager'; return i.decode()}})"
    return window.run(f"return Promise.all({each}).then(all => all.length)")
