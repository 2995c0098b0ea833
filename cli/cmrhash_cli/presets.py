"""Options from a TOML file (--config) or from a finished run (--from-run), for those that are not typed.

Typed options win over environment variables, these over the file, and the file over the run.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from cmrhash.config import at_home
from cmrhash.errors import DataError, UsageError, did_you_mean

VALUES = (str, int, float, bool)


def _read_config(ctx: typer.Context, path: Path | None) -> None:
    """Take the options of this command from its table in a file."""
    if path is None or ctx.resilient_parsing:
        return
    try:
        path = at_home(path)
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"not readable ({error.strerror})", path, "check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"no TOML file ({error})", path, "correct the line") from None
    name = str(ctx.info_name)
    if not isinstance(tables.get(name), dict):
        there = ", ".join(f"[{table}]" for table in tables) or "none"
        raise DataError(f"no table [{name}] (there: {there})", path, f"write the options of {name} below [{name}]")
    found = dict(_option(ctx, path, key, value) for key, value in tables[name].items())
    ctx.default_map = {**(ctx.default_map or {}), **found}


def _option(ctx: typer.Context, path: Path, key: str, value: Any) -> tuple[str, Any]:
    """Name and value of an option of the command. key: as it is typed, without the dashes."""
    known = {name.lstrip("-"): option for option in ctx.command.params for name in option.opts if name[:2] == "--"}
    known = {name: option for name, option in known.items() if option.name not in ("config_file", "from_run")}
    if key not in known:
        fix = f"{did_you_mean(key, known)} cmrhash {ctx.info_name} --help lists the options"
        raise DataError(f"'{key}' is no option of {ctx.info_name}", path, fix)
    several = bool(getattr(known[key], "multiple", False))
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, VALUES) for one in values) or (isinstance(value, list) and not several):
        kind = "a value, or a list of values" if several else "one value"
        raise DataError(f"{key} = {value!r}", path, f"give {kind}: text, a number, true or false")
    return str(known[key].name), values if several else value


def _read_run(ctx: typer.Context, folder: Path | None) -> None:
    """Take the options of a training from a run: what it was trained on, and settings other than the default."""
    if folder is None or ctx.resilient_parsing:
        return
    from cmrhash.evaluation.protocol import changed_settings
    from cmrhash.training.runs import open_run

    run = open_run(at_home(folder))
    if run.is_applied:
        raise UsageError("that run was trained elsewhere", folder, "give a run that `train` made", option="from_run")
    found: dict[str, Any] = {
        "dataset": run.dataset,
        "bits": [run.bits],
        "lang": list(run.langs),
        "method": [run.method],
        "seed": run.seed,
        "relevance": run.relevance,
        "encoder": [f"{view.short}={view.encoder_of(made.file)}" for view, made in run.features.items()],
        **changed_settings(run),
    }
    ctx.default_map = {**found, **(ctx.default_map or {})}


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file; its table of this command's name sets options that are not typed.",
        is_eager=True,
        callback=_read_config,
    ),
]
FromRun = Annotated[
    Path | None,
    typer.Option(
        "--from-run",
        help="Folder of a run whose data, method and settings hold where nothing is typed.",
        is_eager=True,
        callback=_read_run,
    ),
]
