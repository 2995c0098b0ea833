"""Tables of a run's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmrhash.show.html.document import table

Row = Mapping[str, Any]


def score_table(rows: Sequence[Row], caption: str) -> str:
    """Build the table of score rows as ``cmrhash eval`` saves them.

    By labels one line per language and direction; by pairs three: codes, real-valued embeddings, chance.
    """
    lines = [line for row in rows for line in (_by_pairs(row) if row["relevance"] == "pairs" else [_by_labels(row)])]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    return table(columns, [[line.get(column, "") for column in columns] for line in lines], caption)


def _named(row: Row) -> dict[str, str]:
    langs = "-".join(filter(None, (row["lang"], row.get("database_lang"))))
    return {"language": langs, "direction": row["direction"]}


def _by_labels(row: Row) -> dict[str, str]:
    maps = {column: f"{row[key]:.3f}" for column, key in {"mAP": "map", "chance": "chance"}.items()}
    ties = f"{row['map_pessimistic']:.3f}-{row['map_optimistic']:.3f}"
    real = f"{row['map_real']:.3f}"
    cuts = {f"P@{k}": f"{value:.3f}" for k, value in row["precision_at"].items()}
    return {**_named(row), **maps, "real-valued mAP": real, "tie range": ties, **cuts, **_counts(row)}


def _by_pairs(row: Row) -> list[dict[str, str]]:
    lines = []
    for which, name in (("", "codes"), ("_real", "real-valued"), ("_chance", "chance")):
        cuts = {f"R@{k}": f"{value:.3f}" for k, value in row[f"hit_at{which}"].items()}
        median = f"{row[f'median_rank{which}']:.1f}"
        lines.append({**_named(row), "values": name, **cuts, "median rank": median, **_counts(row)})
    return lines


def _counts(row: Row) -> dict[str, str]:
    return {"queries": str(row["queries"]), "database": str(row["database"])}
