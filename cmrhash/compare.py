"""Methods x bits x seeds -> one table, every cell with mean, spread and the command that makes it again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cmrhash.config import CompareConfig, EvalConfig, TrainConfig
from cmrhash.data.dataset import ImageTextDataset
from cmrhash.encode import encode, has_codes
from cmrhash.errors import UsageError
from cmrhash.evaluate import Evaluation, evaluate
from cmrhash.files import write_bytes
from cmrhash.methods import get_method
from cmrhash.train import train

Progress = Callable[[str, int, int, str], None]
KEYS = ("dataset", "method", "bits", "lang", "direction")


def compare(
    grid: CompareConfig,
    config: TrainConfig,
    dataset: ImageTextDataset,
    folder: Path,
    out: Path,
    progress: Progress = lambda *_: None,
) -> Evaluation:
    """Train what is missing, score all, and return one row a cell with "mean", "sd" (of the sample) and "n".

    A cell that is trained already is taken as it is; an interrupted call goes on where it was. Writes
    ``compare.json``, ``compare.csv`` and ``compare.md`` into ``out/<dataset>/``. Raises UsageError for an empty grid.
    """
    if grid.seeds < 1:
        raise UsageError(f"--seeds {grid.seeds}", None, "give a whole number from 1")
    for method in grid.methods:
        get_method(method, dataset.relevance)
    cells = [(m, b, s) for m in grid.methods for b in grid.bits for s in range(grid.seeds)]
    for at, (method, bits, seed) in enumerate(cells):
        progress("runs", at, len(cells), f"{method} {bits} bits, seed {seed}")
        run, _ = train(replace(config, method=method, bits=bits, seed=seed), dataset, folder, out, progress=progress)
        if not has_codes(run):
            encode(run, dataset, folder)
    progress("runs", len(cells), len(cells), "")
    wanted = EvalConfig(grid.bits, grid.langs, grid.methods, tuple(range(grid.seeds)))
    scored = evaluate(wanted, dataset, folder, out)
    rows = sorted(_rows(scored.rows), key=lambda row: (grid.methods.index(row["method"]), row["bits"]))
    result = Evaluation(scored.protocol, rows)
    _write(result, out / dataset.name)
    return result


def _rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a cell: mean and standard deviation over the seeds of each figure."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault(tuple(row[key] for key in KEYS), []).append(row)
    return [
        {
            **dict(zip(KEYS, key, strict=True)),
            "mean": float(np.mean([row["map"] for row in own])),
            "sd": float(np.std([row["map"] for row in own], ddof=1)) if len(own) > 1 else None,
            "n": len(own),
            "map_real": float(np.mean([row["map_real"] for row in own])),
            "chance": own[0]["chance"],
            "collapsed": sum(row["collapsed"] for row in own),
            "seeds": [row["seed"] for row in own],
            "command": _command(own[0]),
        }
        for key, own in cells.items()
    ]


def _command(row: dict[str, Any]) -> str:
    what = f"--dataset {row['dataset']} --bits {row['bits']} --method {row['method']}"
    return f"cmrhash train {what} --seed {row['seed']} && cmrhash eval {what} --lang {row['lang']}"


def table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The field's table: a line a method, language and direction, a column a code length. Column names and cells."""
    bits = sorted({row["bits"] for row in rows})
    lines: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["method"], row["lang"], row["direction"]), {})[row["bits"]] = row
    cells = []
    for key, by_bits in lines.items():
        last = by_bits[max(by_bits)]
        cells.append(
            [
                *key,
                *(_cell(by_bits.get(length)) for length in bits),
                f"{last['map_real']:.3f}",
                f"{last['chance']:.3f}",
                str(last["n"]),
            ]
        )
    columns = ["method", "lang", "direction", *(f"{length} bits" for length in bits)]
    return [*columns, f"real ({bits[-1]})", "chance", "seeds"], cells


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    spread = "" if row["sd"] is None else f" +- {row['sd']:.3f}"
    return f"{row['mean']:.3f}{spread}" + ("*" if row["collapsed"] else "")


def _write(result: Evaluation, folder: Path) -> None:
    columns, cells = table(result.rows)
    lines = [columns, ["---"] * len(columns), *cells]
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n"
    markdown += "\n".join(f"- {key}: {value}" for key, value in result.protocol.items()) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(result.rows[0]))
    writer.writeheader()
    writer.writerows(result.rows)
    write_bytes(folder / "compare.json", json.dumps(result.as_json(), indent=1).encode())
    write_bytes(folder / "compare.csv", text.getvalue().encode())
    write_bytes(folder / "compare.md", markdown.encode())
