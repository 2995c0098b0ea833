"""A data set with a file of every odd kind: each is read as what it shows or quarantined, and nothing else changes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from odd_photos import ODD, encoded, noise

from cmrhash.encoders.pixels import BadImage, decode, read_bytes
from cmrhash.features.file import read_features


def shows(odd, pixels):
    """Whether these are the pixels of the file, be it of a kind that is accepted or not."""
    expected = odd.holds if isinstance(odd.seen, str) else odd.seen
    if expected is None or pixels.shape != expected.shape:
        return False
    return np.abs(pixels.astype(int) - expected).max() <= odd.off


@contextlib.contextmanager
def at_most(seconds):
    """Fail instead of waiting for ever."""

    def late(*_):
        raise TimeoutError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: ascii(odd.name)[1:40])
def test_it_is_read_as_what_it_shows_or_refused_by_its_code(odd, tmp_path):
    path = odd.make(tmp_path)
    try:
        with at_most(5):
            pixels = np.asarray(decode(read_bytes(path)))
    except BadImage as bad:
        assert isinstance(odd.seen, str), bad
        assert bad.code == odd.seen
        assert str(bad)
    else:
        assert not isinstance(odd.seen, str)
        assert shows(odd, pixels)


# ---------------------------------------------------------------------------------------------- among ordinary ones


def write(root, odd_names):
    """The data set's manifest, and an ordinary photo behind every odd one."""
    lines = []
    (root / "good").mkdir(parents=True)
    for n, name in enumerate(odd_names):
        (root / f"good/{n}.jpg").write_bytes(encoded(noise(seed=1000 + n), "JPEG"))
        for ident, image in ((f"odd-{n}", f"odd/{name}"), (f"good-{n}", f"good/{n}.jpg")):
            lines.append(json.dumps({"id": ident, "image": image, "texts": {"en": "a dog"}}))
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """ "odd", and "clean": the same with a plain PNG of what is seen, or of anything, in place of every odd file."""
    base = tmp_path_factory.mktemp("photos")
    write(base / "odd", [odd.name for odd in ODD])
    write(base / "clean", [f"{n}.png" for n in range(len(ODD))])
    for name in ("odd", "clean"):
        (base / name / "odd").mkdir()
    for n, odd in enumerate(ODD):
        odd.make(base / "odd" / "odd")
        seen = noise(seed=n) if isinstance(odd.seen, str) else np.ascontiguousarray(odd.seen)
        (base / "clean" / "odd" / f"{n}.png").write_bytes(encoded(seen))
    return base


def child(code, folder, *args, **options):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, env=env, **options)


EXTRACT = """
import resource, sys
from cmrhash_cli.main import main

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

options = sys.argv[1:]
for name in ("clean", "odd"):
    before, sys.argv = peak(), ["cmrhash", "extract", "--root", name, "--name", name, *options]
    try:
        main()
    except SystemExit as end:
        assert not end.code
print(peak() - before)
"""
OPTIONS = ["--dataset", "manifest", "--image-model", "shufflenet_v2_x0_5", "--image-weights", "random", "--quiet"]


NAIVE = """
import json, resource, signal, sys
import numpy as np
from PIL import Image
from torchvision import transforms

transform = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30),) * 2)  # a machine has some memory to spare, not any

def late(*_):
    raise TimeoutError

signal.signal(signal.SIGALRM, late)
for n, name in enumerate(json.load(sys.stdin)):
    try:
        signal.setitimer(signal.ITIMER_REAL, 3)
        try:
            image = Image.open("odd/odd/" + name).convert("RGB")
            transform(image)
            np.save(f"naive-{n}.npy", np.asarray(image))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Exception:
        pass
"""


def survivors(folder):
    """The odd files in which the naive way sees what they show, without an error or an end of its patience."""
    done = child(NAIVE, folder, input=json.dumps([odd.name for odd in ODD]))
    assert done.returncode == 0, done.stderr
    files = [folder / f"naive-{n}.npy" for n in range(len(ODD))]
    return [odd.name for odd, file in zip(ODD, files, strict=True) if file.exists() and shows(odd, np.load(file))]


@pytest.mark.slow
@pytest.mark.faults("broken or odd photo")
def test_it_harms_no_other_photo_and_neither_process_nor_memory(folder, faults):
    done = child(EXTRACT, folder, *OPTIONS, "--text-model", "random", "--device", "cpu", "--max-bad", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert int(done.stdout.splitlines()[-1]) < 150_000  # kB more than for plain photos
    clean, odd = (read_features(folder / "cache" / n / "image-shufflenet_v2_x0_5-random.h5") for n in ("clean", "odd"))
    lines = (folder / "cache/odd/quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    quarantine = {entry["id"]: entry for entry in map(json.loads, lines)}
    assert len(lines) + odd.valid.sum() == len(odd.ids)
    assert all(entry["reason"] and entry["path"] for entry in quarantine.values())
    wrong = []
    for n, one in enumerate(ODD):
        code = quarantine.get(f"odd-{n}", {}).get("code")
        good = odd.x[2 * n + 1].tobytes() == clean.x[2 * n + 1].tobytes()
        if isinstance(one.seen, str):
            good &= code == one.seen and not odd.x[2 * n].any()
        else:
            good &= code is None and bool(odd.valid[2 * n])
            good &= bool(one.off) or odd.x[2 * n].tobytes() == clean.x[2 * n].tobytes()
        if not good:
            wrong.append(one.name)
    assert wrong == []
    faults.tried = faults.survived = len(ODD)
    naive = survivors(folder)
    assert "photo.bmp" in naive  # it does read photos
    faults.naive_tried, faults.naive_survived = len(ODD), len(naive)
