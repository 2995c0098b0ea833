"""Files of a table: JSON with everything, CSV with a line of figures per row, Markdown for people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmrhash.storage.files import write_bytes


def write_table(
    folder: Path,
    name: str,
    whole: Mapping[str, Any],
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    words: Sequence[str],
) -> None:
    """Write ``name.json``, ``name.csv`` and ``name.md``.

    whole: what the JSON file holds; its "rows" are the lines of the CSV file, without their "command". columns, cells,
    words: of the Markdown.
    """
    lines = [columns, ["---"] * len(columns), *cells]
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n"
    markdown += "\n".join(f"- {line}" for line in words) + "\n"
    text = io.StringIO()
    names = [name for name in whole["rows"][0] if name != "command"]
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    for row in whole["rows"]:
        writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})
    write_bytes(folder / f"{name}.json", json.dumps(whole, indent=1).encode())
    write_bytes(folder / f"{name}.csv", text.getvalue().encode())
    write_bytes(folder / f"{name}.md", markdown.encode())
