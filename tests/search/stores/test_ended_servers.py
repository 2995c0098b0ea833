"""A server of the tests ends with them."""

import subprocess
import sys
import time
from pathlib import Path

import servers

TESTS = """import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
from servers import watched
watched(pathlib.Path(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_server_and_its_folder_go_with_killed_tests(tmp_path):
    server = subprocess.Popen(["sleep", "60"])
    folder = tmp_path / "pg"
    (folder / "data").mkdir(parents=True)
    (folder / "data/postmaster.pid").write_text(f"{server.pid}\n{folder}\n")
    subprocess.run([sys.executable, "-c", TESTS, Path(servers.__file__).parent, folder])
    assert server.wait(20) == -3
    end = time.monotonic() + 20
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not folder.exists()
