"""``cmrhash serve`` as a process: it starts, answers and ends."""

import http.client
import json
import signal
import socket

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from served_process import serving

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Replaces the fixture of all tests: connections to this machine only."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            raise OSError(f"a test tried to connect to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


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
