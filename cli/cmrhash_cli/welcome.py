"""cmrhash without a command: the way from photos to a search, and what the current folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cmrhash_cli.output import CACHE, RUNS
from cmrhash_cli.typed import command_line

if TYPE_CHECKING:
    from cmrhash.maintenance.overview import Held

WAY = (
    ("cmrhash extract PHOTOS", "features of photos and captions (without PHOTOS: of the built-in sample)"),
    ("cmrhash train --bits 32", "hash heads, which turn features into binary codes"),
    ("cmrhash eval", "mAP of the codes on the query items"),
    ('cmrhash search "a dog in snow"', "the nearest photos; cmrhash serve searches in a web page"),
)


def welcome() -> str:
    """Text of ``cmrhash`` alone; reads the folders cache and runs of the current folder."""
    from cmrhash.maintenance.overview import overview
    from cmrhash.version import __version__

    held = overview(CACHE, RUNS)
    steps = [f"  {at}. {typed:32} {what}" for at, (typed, what) in enumerate(WAY, 1)]
    there = [f"  {line}" for one in held for line in _lines(one)] or ["  no features and no runs"]
    return "\n".join(
        [
            f"cmrhash {__version__}: find photos by text and texts by photo through compact binary codes",
            *("", "The way:", *steps),
            *("", f"In this folder ({CACHE}, {RUNS}):", *there),
            *("", f"next: {_next(held)}"),
            "all commands: cmrhash --help; check of the installation: cmrhash doctor",
        ]
    )


def _lines(held: Held) -> list[str]:
    views = ", ".join(f"{view} ({', '.join(encoders)})" for view, encoders in held.views.items())
    lines = [f"{held.name}: {held.items:,} items, features of {views}" if views else f"{held.name}: no features"]
    if held.runs:
        (best, score), count = held.runs[0], len(held.runs)
        shown = best if score is None else f"{best} (val mAP {score:.3f})"
        lines.append(f"  {count} runs, best on val: {shown}" if count > 1 else f"  1 run: {shown}")
    return lines


def _next(held: Sequence[Held]) -> str:
    """The command to type next."""
    usable = [one for one in held if one.views]
    if not usable:
        return "cmrhash extract"
    several = len(usable) > 1
    if trained := [one for one in usable if one.runs]:
        return command_line("search", query="a dog in snow", dataset=trained[0].name if several else None)
    one = usable[0]
    alone = "itq" if list(one.views) == ["image"] else None
    return command_line("train", dataset=one.name if several else None, method=alone)
