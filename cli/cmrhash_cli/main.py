"""Table of the commands of cmrhash."""

from __future__ import annotations

from collections.abc import Callable

import typer

from cmrhash_cli.app import App, app
from cmrhash_cli.bench import bench
from cmrhash_cli.cache import ls, prune, verify
from cmrhash_cli.compare import compare
from cmrhash_cli.doctor import doctor
from cmrhash_cli.env import env
from cmrhash_cli.evaluate import evaluate
from cmrhash_cli.export import export
from cmrhash_cli.extract import extract
from cmrhash_cli.groups import Grouped
from cmrhash_cli.grow import add, relocate, remove
from cmrhash_cli.index import index
from cmrhash_cli.output import print_line, print_version, run
from cmrhash_cli.plot import plot
from cmrhash_cli.report import report
from cmrhash_cli.score import score
from cmrhash_cli.search import search
from cmrhash_cli.serve import serve
from cmrhash_cli.sweep import sweep
from cmrhash_cli.train import train
from cmrhash_cli.welcome import welcome


@app.callback(invoke_without_command=True)
def _global(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=print_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    if ctx.invoked_subcommand is None:
        print_line(welcome())


COMMANDS: dict[str, Callable[..., None]] = {
    "extract": extract,
    "train": train,
    "eval": evaluate,
    "index": index,
    "add": add,
    "remove": remove,
    "relocate": relocate,
    "search": search,
    "export": export,
    "serve": serve,
    "compare": compare,
    "sweep": sweep,
    "score": score,
    "plot": plot,
    "report": report,
    "bench": bench,
    "doctor": doctor,
    "env": env,
}
for name, command in COMMANDS.items():
    app.command(name, cls=Grouped)(command)

cache = App(help="Inspect and clean up the cache and the runs.")
cache.command("ls", cls=Grouped)(ls)
cache.command("verify", cls=Grouped)(verify)
cache.command("prune", cls=Grouped)(prune)
app.add_typer(cache, name="cache")


def main() -> None:
    """Run the ``cmrhash`` script; an error becomes one line and an exit code."""
    run(app)


if __name__ == "__main__":
    main()
