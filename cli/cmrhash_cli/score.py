"""cmrhash score: anybody's codes or embeddings, by published conventions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmrhash_cli.output import Debug, Json, not_empty, print_json, print_table

if TYPE_CHECKING:
    from cmrhash.evaluation.score_files import Scored


def score(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            parser=not_empty,
            help="Result files (.mat, .npz, .npy, HDF5, .safetensors) with q_img, q_txt, r_img, r_txt, q_l, r_l.",
        ),
    ],
    like: Annotated[
        list[str] | None,
        typer.Option(
            help="Convention: dcmh, djsrh@50, twdh@5000, ucch or karpathy (repeatable); default: all that fit."
        ),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", help="Role of an array, as image.query=NAME or labels.database=NAME (repeatable)."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score codes or embeddings of any program by each published convention, side by side.

    cmrhash score results.mat

    cmrhash score results.mat --like djsrh@50 --like dcmh
    """
    from cmrhash.evaluation.conventions import convention

    for name in like or ():
        convention(name)  # before the files are read
    from cmrhash.evaluation.score_files import score_files

    scored = score_files(files, tuple(maps or ()), tuple(like or ()))
    if as_json:
        print_json(scored._asdict())
    else:
        _print(scored)


def _print(scored: Scored) -> None:
    about, rows = scored
    columns = ["convention", "figure", "vectors", "lang", "direction", "expected", "by tie order", "file order"]
    cells = [
        [
            *(row[name] for name in ("convention", "figure", "vectors", "lang", "direction")),
            f"{row['expected']:.4f}",
            f"{row['lowest']:.4f}-{row['highest']:.4f}",
            f"{row['file_order']:.4f}",
        ]
        for row in rows
    ]
    lines = [f"relevance: {about['relevance']}; {rows[0]['counted']} queries with a relevant item"]
    if about["zeros"]:
        lines.append(f"{about['zeros']} zeros among codes of -1 and 1 count as 1; published code gives them half a bit")
    lines += [f"{name}: {words}" for name, words in {row["convention"]: row["definition"] for row in rows}.items()]
    title = (
        f"{Path(about['files'][0]).name}: {about['bits']} bits, {about['queries']} queries, {about['database']} items"
    )
    print_table(title, columns, cells, "\n".join(lines), keys=5)
