"""Short list of the data sets and runs in a folder, from manifests and configs alone: no NumPy, no items."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cmrhash.data.view import View
from cmrhash.errors import CmrhashError
from cmrhash.storage.files import read_json
from cmrhash.storage.sealed import SHARD, read_manifest

BROKEN = (CmrhashError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Held:
    """A data set: its items, the encoders of each view, its runs with their validation mAP, the best one first."""

    name: str
    items: int
    views: dict[str, list[str]]
    runs: list[tuple[str, float | None]]


def overview(cache: Path, out: Path) -> list[Held]:
    """List the data sets that have finished features or runs. cache, out: folders of feature files and of runs.

    A file that cannot be read is left out; ``survey`` names it with its state.
    """
    found = []
    for name in sorted({path.name for folder in (cache, out) for path in _folders(folder)}):
        views, items = _views(cache / name)
        trained = sorted(_runs(out / name), key=lambda run: (run[1] is None, -(run[1] or 0), run[0]))
        if views or trained:
            found.append(Held(name, items, views, trained))
    return found


def _views(folder: Path) -> tuple[dict[str, list[str]], int]:
    """Encoders by view, and the number of photos; of captions if there are no photos."""
    views: dict[str, list[str]] = {}
    rows: dict[str, int] = {}
    for path in sorted(folder.glob("*.h5")):
        with contextlib.suppress(*BROKEN):
            made = read_manifest(path)
            if made["kind"] == "features" and not SHARD.fullmatch(path.name):
                recipe = made["recipe"]
                view = View.IMAGE if recipe["kind"] == "image" else View.text(recipe["lang"])
                views.setdefault(view.short, []).append(view.encoder_of(path.name))
                rows[view.short] = int(made["rows"])
    return views, rows.get("image", max(rows.values(), default=0))


def _runs(folder: Path) -> Iterator[tuple[str, float | None]]:
    for path in _folders(folder):
        with contextlib.suppress(*BROKEN):
            record = read_json(path / "config.json", "")
            score = record.get("val_map_mean")
            if "bits" in record.get("train", {}):
                yield path.name, None if score is None else float(score)


def _folders(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.is_dir())
    return []
