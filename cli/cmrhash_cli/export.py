"""cmrhash export: a trained run -> a folder that works without its data set, and ONNX graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmrhash.config import ExportConfig
from cmrhash.errors import UsageError
from cmrhash_cli.chosen import (
    ImageWeights,
    Offline,
    OneLength,
    OneMethod,
    OneRun,
    RunChoice,
    TextModel,
    open_hasher,
)
from cmrhash_cli.output import (
    CACHE,
    RUNS,
    Cache,
    Dataset,
    Debug,
    Device,
    Json,
    Overwrite,
    Quiet,
    Relevance,
    Runs,
    note,
    print_json,
    print_line,
    print_table,
    progress_bars,
    size_of,
)
from cmrhash_cli.presets import Config
from cmrhash_cli.typed import as_typed

if TYPE_CHECKING:
    from cmrhash.search.hasher import Hasher

D = ExportConfig


def export(
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write.")],
    with_encoders: Annotated[
        bool, typer.Option("--with-encoders", help="Bundle public encoder weights instead of referencing them.")
    ] = D.with_encoders,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write image.onnx and text-LANG.onnx.")] = D.onnx,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder to this repository of the model hub.")
    ] = D.push,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private if it is created.")
    ] = D.private,
    run: OneRun = None,
    bits: OneLength = None,
    method: OneMethod = None,
    relevance: Relevance = None,
    dataset: Dataset = None,
    image_weights: ImageWeights = D.image_weights,
    text_model: TextModel = None,
    offline: Offline = D.offline,
    device: Device = D.device,
    cache: Cache = CACHE,
    runs: Runs = RUNS,
    overwrite: Overwrite = False,
    config_file: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Export a trained run as a folder that works without its data set: heads, encoders, model card.

    cmrhash export shared --bits 32

    cmrhash export whole --with-encoders --onnx

    cmrhash export shared --bits 32 --overwrite --push owner/name

    In Python: cmrhash.from_pretrained("shared").encode_text(["a black dog in the snow"], lang="en")
    """
    texts = tuple(text_model or ())
    config = ExportConfig(
        with_encoders=with_encoders,
        onnx=onnx,
        image_weights=image_weights,
        text_models=texts,
        device=device,
        offline=offline,
        push=push,
        private=private,
    )
    _check(config)
    choice = RunChoice(run=run, bits=bits, method=method, relevance=relevance, dataset=dataset, cache=cache, runs=runs)
    from cmrhash.search.exported.hasher import read_config

    hasher, rule = open_hasher(
        choice,
        device="cpu" if config.onnx else config.device,
        image_weights=config.image_weights,
        text_models=config.text_models,
        offline=config.offline,
    )
    chosen = hasher.run
    graphs, url = _write(hasher, target, config, overwrite, quiet)
    files = {path.relative_to(target).as_posix(): path.stat().st_size for path in _files(target)}
    encoders = {view: entry["part"] or entry["source"] for view, entry in read_config(target)["encoders"].items()}
    if as_json:
        found = {"folder": str(target), "run": str(chosen.folder), "url": url, "files": files, "encoders": encoders}
        print_json({**found, "onnx": graphs.get("graphs", {}), "left_out": graphs.get("left_out", {})})
        return
    note(f"run: {chosen.folder}{rule}", quiet)
    rows = [[name, size_of(size)] for name, size in files.items()]
    print_table(f"{target}: {chosen.method}, {chosen.bits} bits", ["file", "size"], rows, _told(encoders, graphs))
    if url:
        print_line(f"uploaded: {url}")


def _write(
    hasher: Hasher, target: Path, config: ExportConfig, overwrite: bool, quiet: bool
) -> tuple[dict[str, Any], str | None]:
    """Write the folder with its graphs, then upload it; returns onnx.json, and the address of the upload."""
    steps, url = 1 + config.onnx + bool(config.push), None
    graphs: dict[str, Any] = {}
    with progress_bars(quiet) as progress:

        def write_graphs(folder: Path) -> None:
            from cmrhash.search.exported.onnx import write

            progress("export", 1, steps, "ONNX graphs, compared with torch")
            graphs.update(write(hasher, folder, hasher.captions(8)))

        if steps > 1:
            progress("export", 0, steps, "heads and encoders, opened once to check them")
        more = write_graphs if config.onnx else None
        hasher.save_pretrained(target, with_encoders=config.with_encoders, overwrite=overwrite, more=more)
        if config.push:
            from cmrhash.search.exported.write import push as upload

            progress("export", steps - 1, steps, f"upload to {config.push}")
            url = upload(target, config.push, private=config.private)
        if steps > 1:
            progress("export", steps, steps)
    return graphs, url


def _check(config: ExportConfig) -> None:
    """Raise UsageError for options that contradict each other, before any work."""
    if config.push and config.offline:
        raise UsageError("--push needs the network, --offline forbids it", None, "leave out one of them")
    if config.private and not config.push:
        raise UsageError("--private is used only with --push", None, "add --push OWNER/NAME")
    if config.onnx:
        from cmrhash.encoders.graphs import need_onnx

        need_onnx()


def _files(target: Path) -> list[Path]:
    return sorted(path for path in target.rglob("*") if path.is_file() and ".git" not in path.parts)


def _told(encoders: dict[str, str | None], graphs: dict[str, dict[str, dict[str, str]]]) -> str:
    """Notes on the exported folder, a line each."""
    lines = [f"{view}: weights not included (--with-encoders bundles them)" for view in encoders if not encoders[view]]
    for name, graph in graphs.get("graphs", {}).items():
        lines.append(f"{name}: {graph['checked']}")
    lines += [f"{view}: {as_typed(str(why))}" for view, why in graphs.get("left_out", {}).items()]
    return "\n".join(lines)
