#!/usr/bin/env python3
"""Make the pictures of the README from the built-in data set: the search page and mAP by code length.

Usage: make.py [FOLDER]

FOLDER (default: a temporary one) holds cache and runs, so that a second call takes seconds. Needs the extras serve and
viz, and chromium, for the picture of the page.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
SENTENCE = "a black dog in the snow"
SIZE = (1080, 760)  # of the browser's window, in pixels
CLI = [sys.executable, "-c", "from cmrhash_cli.main import main; main()"]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000"]


def cmrhash(folder: Path, *words: str) -> None:
    """Run a command in the folder."""
    subprocess.run([*CLI, *words], cwd=folder, check=True)


def photographed(address: str, folder: Path) -> Image.Image:
    """The page at this address, as a browser of the size SIZE shows it."""
    picture = folder / "page.png"
    size, profile = ",".join(map(str, SIZE)), f"--user-data-dir={folder / 'profile'}"
    options = [*FLAGS, profile, f"--window-size={size}", f"--screenshot={picture}"]
    subprocess.run(["chromium", *options, address], check=True, capture_output=True)
    return Image.open(io.BytesIO(picture.read_bytes()))


def page(folder: Path) -> Image.Image:
    """The results of SENTENCE on the page of ``cmrhash serve``."""
    words = [*CLI, "serve", "--port", "0", "--method", "tie-ap", "--bits", "32"]
    with subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            address = next(found[0] for line in server.stderr if (found := re.search(r"http://[\w.:]+/", line)))
            query = urllib.parse.urlencode({"q": SENTENCE, "lang": "en"})
            urllib.request.urlopen(f"{address}api/search?{query}").read()  # waits until the encoders are loaded
            return photographed(f"{address}?{query}", folder)
        finally:
            server.terminate()


def main() -> None:
    """Make both pictures."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lengths = ["--bits", "16", "--bits", "32", "--bits", "64"]
    cmrhash(folder, "extract")
    cmrhash(folder, "train", "--method", "tie-ap", *lengths)
    cmrhash(folder, "train", "--method", "cca", *lengths)
    cmrhash(folder, "plot", "bits", "--lang", "en", "--format", "svg", "--out", str(folder / "plots"))
    [plot] = (folder / "plots").glob("bits*.svg")
    shutil.copyfile(plot, HERE / "bits.svg")
    page(folder).convert("RGB").save(HERE / "page.webp", quality=80, method=6)


if __name__ == "__main__":
    main()
