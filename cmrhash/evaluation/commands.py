"""Shell commands that make a run again, for tables and reports."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from cmrhash.evaluation.protocol import changed_settings
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.training.runs import Run


def command_of(
    run: Run, data: ExtractedDataset, seeds: Sequence[int] = (), langs: Sequence[str] = (), scored_by: str | None = None
) -> str:
    """Commands that train and evaluate a run again, with every setting that is not the default.

    data: with its own relevance. seeds: train these, and evaluate all of them; empty: that of the run. langs: languages
    to evaluate; empty: all. scored_by: relevance of the evaluation; None: that of the training.
    """
    which = f"--dataset {shlex.quote(run.dataset)} --method {run.method} --bits {run.bits}"
    own, scored_by = data.dataset.relevance, scored_by or run.relevance
    by = f" --relevance {run.relevance}" if run.relevance != own else ""
    scored = f" --relevance {scored_by}" if scored_by != own else ""
    scored += f" --trained-by {run.relevance}" if run.relevance != scored_by else ""
    options = [(name.replace("_", "-"), value) for name, value in _with_effect(run).items()]
    options += [("lang", lang) for lang in run.langs if set(run.langs) != set(data.dataset.languages)]
    for view, of in run.features.items():
        if len(data.headers(view)) > 1:
            options.append(("encoder", f"{view.short}={view.encoder_of(of.file)}"))
    words = "".join(f" --{name} {shlex.quote(str(value))}" for name, value in options)
    trained = " && ".join(f"cmrhash train {which}{by}{words} --seed {seed}" for seed in seeds or [run.seed])
    shown = "".join(f" --lang {lang}" for lang in langs) if seeds else f" --seed {run.seed}"
    return f"{trained} && cmrhash eval {which}{scored}{shown}"


def _with_effect(run: Run) -> dict[str, Any]:
    """Changed settings that the method reads; runs of earlier versions recorded all that were given."""
    if not (changed := changed_settings(run)):
        return {}
    from cmrhash.training.methods import METHODS  # with torch

    read = METHODS[run.method].settings if run.method in METHODS else changed
    return {name: value for name, value in changed.items() if name in read}
