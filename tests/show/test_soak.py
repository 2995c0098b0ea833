"""Slow, idle and hostile clients keep no honest one out.

CMRHASH_SOAK is the length in seconds, such as 600; the percentiles are printed with ``pytest -s``.
"""

import json
import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from served_process import no_network, serving  # noqa: F401  # the first replaces a fixture
from serving import photo
from soak import Soak

SECONDS = float(os.environ.get("CMRHASH_SOAK", "5"))
MEMORY = 1500  # MB at most, of which the encoders take most

pytestmark = [pytest.mark.slow, pytest.mark.faults("web page: slow, idle and hostile clients")]


def memory(process):
    """Largest resident memory of a process in MB; 0 where the system does not tell."""
    status = Path(f"/proc/{process.pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def test_honest_clients_are_answered_meanwhile(made, faults):
    items = [json.loads(line) for line in (made / "cache/manifest/items.jsonl").read_text().splitlines()[1:]]
    with serving(made) as (process, port, _):
        soak = Soak(port, [item["id"] for item in items if "id" in item], photo(made, 3), SECONDS)
        quiet = Soak(port, soak.ids, soak.photo, 2)
        quiet.run(hostile=False)
        soak.run()
        peak = memory(process)
        process.send_signal(signal.SIGINT)
        log = process.stderr.read()
        assert process.wait(30) == 0
    print("", *quiet.lines(), *soak.lines(), f"{peak} MB, {len(log.splitlines())} lines of log", sep="\n")
    assert not quiet.refused
    faults.tried = len(soak.attacks)
    assert not soak.refused
    assert {"sentence", "page", "photo of an item", "upload"} == soak.waits.keys()
    assert max(max(waits) for waits in soak.waits.values()) < 30
    assert peak < MEMORY
    assert len(log.splitlines()) < 100 + SECONDS
    faults.survived = faults.tried
