"""``cmrhash serve`` as a process."""

import contextlib
import os
import re
import socket
import subprocess
import sys

import pytest


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Replaces the fixture of all tests where it is imported: connections to this machine only."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not address[0].startswith(("127.", "::1")):
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
