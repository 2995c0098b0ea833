"""LaTeX table of a comparison for a paper (package booktabs): a line per method, a column per direction and length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

WORDS = {"i2t": r"Image $\rightarrow$ text", "t2i": r"Text $\rightarrow$ image"}
SINGLE = {False: 6, True: 3}  # figures that fit into one column of a page, without and with their spread
NARROW = 6  # figures with their spread that fit into a page in small type; more get smaller type
SPECIAL = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "†": r"$^\dagger$",
    "±": r"$\pm$",
}
Rows = Sequence[Mapping[str, Any]]


def latex_table(rows: Rows, protocol: Mapping[str, Any], words: Sequence[str]) -> str:
    r"""Write the results as a float with caption and label, which needs ``\usepackage{booktabs}`` alone.

    rows, protocol: of ``compare.compare``; words: the protocol for people, which becomes comments. The best mean of a
    column is bold among the methods of a language; a dagger and a star mean what the caption says.
    """
    bits = sorted({row["bits"] for row in rows})
    ways = [way for way in WORDS if any(row["direction"] == way for row in rows)]
    places = [(way, length) for way in ways for length in bits]
    ends = [2 + len(bits) * at for at in range(len(ways) + 1)]
    heads = [f"\\multicolumn{{{len(bits)}}}{{c}}{{{WORDS[way]}}}" for way in ways]
    rules = " ".join(f"\\cmidrule(lr){{{first}-{last - 1}}}" for first, last in pairwise(ends))
    spread = any(row["sd"] is not None for row in rows)
    kind = "table" if len(places) <= SINGLE[spread] else "table*"
    size, gap = ("footnotesize", 2) if spread and len(places) > NARROW else ("small", 4)
    lines = [
        *(f"% {' '.join(line.split())}" for line in words),
        f"\\begin{{{kind}}}",
        f"\\centering\\{size}\\setlength{{\\tabcolsep}}{{{gap}pt}}",
        f"\\caption{{{_caption(rows, protocol)}}}",
        f"\\label{{tab:{''.join(c if c.isalnum() and c.isascii() else '-' for c in rows[0]['dataset'])}}}",
        r"\smallskip",
        f"\\begin{{tabular}}{{l{'c' * len(places)}}}",
        r"\toprule",
        _line(["", *heads]),
        rules,
        _line(["Method", *(f"{length} bits" for _, length in places)]),
        *_blocks(rows, places),
        r"\bottomrule",
        r"\end{tabular}",
        f"\\end{{{kind}}}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    r"""Escape a plain text.

    >>> print(escaped("tie_ap, p < .05"))
    tie\_ap, p $<$ .05
    """
    return "".join(SPECIAL.get(char, char) for char in " ".join(text.split()))


def _blocks(rows: Rows, places: Sequence[tuple[str, int]]) -> list[str]:
    """Lines of each language, with its name above where there are several, and with the chance level below."""
    blocks: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        lang = row["lang"] if row["lang"] == row["head_lang"] else f"{row['lang']} (by {row['head_lang']})"
        blocks.setdefault(lang, []).append(row)
    lines = []
    for lang, own in blocks.items():
        methods = list(dict.fromkeys(row["method"] for row in own))
        cells = {(row["method"], row["direction"], row["bits"]): row for row in own}
        best = {at: max(r["mean"] for r in own if (r["direction"], r["bits"]) == at) for at in _filled(own)}
        lines.append(r"\midrule")
        if len(blocks) > 1:
            lines.append(_line([f"\\multicolumn{{{1 + len(places)}}}{{l}}{{\\textit{{{escaped(lang)}}}}}"]))
        for method in methods:
            rivals = best if len(methods) > 1 else {}
            lines.append(_line([escaped(method), *(_cell(cells.get((method, *at)), rivals.get(at)) for at in places)]))
        chance = {(row["direction"], row["bits"]): f"{row['chance']:.3f}" for row in own}
        lines.append(_line([r"\textit{chance}", *(chance.get(at, "--") for at in places)]))
    return lines


def _filled(rows: Rows) -> set[tuple[str, int]]:
    return {(row["direction"], row["bits"]) for row in rows}


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(row: Mapping[str, Any] | None, best: float | None) -> str:
    if row is None:
        return "--"
    mean = f"\\textbf{{{row['mean']:.3f}}}" if row["mean"] == best else f"{row['mean']:.3f}"
    marks = ("\\dagger" if row.get("significant") else "") + ("*" if row["collapsed"] else "")
    spread = "" if row["sd"] is None else f"{{\\scriptsize\\,$\\pm$\\,{row['sd']:.3f}}}"
    return mean + spread + (f"$^{{{marks}}}$" if marks else "")


def _caption(rows: Rows, protocol: Mapping[str, Any]) -> str:
    """Metric, data set, seeds, and the marks that the table has."""
    drawn = [row for row in rows if row.get("draws", True)]
    counts = sorted({row["n"] for row in drawn or rows})
    seeds = (
        f"{counts[0]} seed{'s' if counts[0] > 1 else ''}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    )
    spread = "mean ± standard deviation over " if counts[-1] > 1 else ""
    parts = [f"{protocol['metric']} on {rows[0]['dataset']}, {spread}{seeds}."]
    if spread and (single := list(dict.fromkeys(row["method"] for row in rows if not row.get("draws", True)))):
        parts.append(f"Without deviation: {', '.join(single)}, which draw{'s' * (len(single) == 1)} nothing.")
    if len({row["method"] for row in rows}) > 1:
        parts.append("Bold: the best of each column.")
    if tested := protocol.get("significance"):
        found = any(row.get("significant") for row in rows)
        parts.append((tested if found else tested.replace("† differs", "No method differs")) + ".")
    if any(row["collapsed"] for row in rows):
        parts.append("*: a run has collapsed codes.")
    if protocol["untrained_encoders"]:
        parts.append(f"UNTRAINED ENCODERS: {', '.join(protocol['untrained_encoders'])}.")
    return escaped(" ".join(parts))
