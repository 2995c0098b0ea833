"""``cmrhash serve`` as a process: it starts, answers and ends."""

import http.client
import json
import signal
import socket

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from package_models import TIMM, write_open_clip_folder, write_timm
from running import run
from served_process import no_network, serving  # noqa: F401  # the first replaces a fixture

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("kind", ["open_clip", "timm"])
def test_it_answers_by_the_encoders_of_other_libraries(kind, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--image-model", TIMM, "--image-weights", "net.pth")
    if kind == "timm":
        write_timm(tmp_path / "net.pth")
    else:
        write_open_clip_folder(tmp_path / "model")
        options = ("--model", "open_clip:model")
    assert run("extract", made / "mine/images", "--name", "photos", *options, "--device", "cpu", "-q") == 0
    assert run("train", "--method", "itq", "--bits", "8", "--device", "cpu", "-q") == 0
    with serving(tmp_path) as (_, port, address):
        status, body, _ = get(port, "/api/search?q=dog&k=3")
        found = json.loads(body)
        assert (status, len(found.get("results", []))) == ((200, 3) if kind == "open_clip" else (400, 0))
        assert kind == "open_clip" or "this run takes no sentences" in found["error"]
        photo = next((made / "mine/images").iterdir())
        head = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'
        sent = {"content-type": "multipart/form-data; boundary=b", "origin": address.rstrip("/")}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/api/search", head + photo.read_bytes() + b"\r\n--b--\r\n", sent)
        first = json.loads(connection.getresponse().read())["results"][0]
        connection.close()
        assert (first["id"], first["distance"]) == (photo.stem, 0)
