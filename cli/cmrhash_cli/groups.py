"""Groups of options in the help, and choices that may be typed in any case: one table each for all commands."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from cmrhash import config
from cmrhash.evaluation.metric_names import METRICS
from cmrhash.training.names import ALIGNMENTS, BEST, METHODS, REPRODUCTION

# options of extract --finetune only
TUNING = (
    *("method", "bits", "epochs", "batch", "lr", "image_lr", "text_lr", "unfreeze", "weight_decay", "margin", "clip"),
)
GROUPS: dict[str, str] = {  # in the order of the help: names of parameters, of whatever command
    "Query": "item by photo like unlike queries to k radius where rank among",
    "Page": "host port i_know public_url",
    "Data": "dataset root images name prefix former lang train_lang protocol query_items train_items features maps "
    "labels labels_from ids captions added from_file relevance trained_by drop_near_duplicates noise follow_links "
    "max_bad sources",
    "Runs": "run with_run bits method seed",
    "Encoders": "model image_model image_weights image_size image_layers mirror text_model layer pooling prompt "
    "vocabulary max_length image_batch dtype runtime encoder offline",
    "Training": "alignment epochs batch lr image_lr text_lr schedule weight_decay ema hidden dropout input_dropout "
    "first_caption margin memory values samples seeds log",
    "Fine-tuning": "finetune",
    "Scores": "direction map_at map_at_rule ties at metric against",
    "Store": "store probes approximate embeddings",
    "Deletion": "unfinished gone yes",
    "Output": "out format formats size title items examples top thumbnail html trec with_encoders onnx push private "
    "store_dtype overwrite as_json quiet",
    "Advanced": "jobs device shard cache runs config_file from_run debug help",
}
OF_COMMAND: dict[str, Mapping[str, str]] = {  # where a command means something else by a name
    "extract": dict.fromkeys(TUNING, "Fine-tuning") | {"seed": "Advanced"},
    **{
        name: dict.fromkeys(("bits", "method", "seed", "direction"), "Training")
        for name in ("train", "compare", "sweep")
    },
    "index": {"store": "Output"},
    "serve": {"k": "Page"},
    "score": {"like": "Scores"},
    "bench": {"path": "Scores"},
}
CHOICES: dict[str, tuple[str, ...]] = {
    "method": (*METHODS, *REPRODUCTION, BEST),
    "against": (*METHODS, *REPRODUCTION),
    "alignment": tuple(ALIGNMENTS),
    "relevance": ("labels", "pairs"),
    "trained_by": ("labels", "pairs"),
    "direction": ("i2t", "t2i", "t2t", "i2i"),
    "metric": tuple(METRICS),
    "map_at_rule": ("min", "R", "hits", "first"),
    "ties": ("expected", "optimistic", "pessimistic"),
    "rank": ("hamming", "asymmetric", "rerank", "features"),
    "among": ("all", "database"),
    "to": ("image", "text", "both"),
    "by": ("image", "text"),
    "kinds": tuple(config.PLOTS),
    "format": ("text", "latex"),
    "formats": ("png", "svg", "pdf"),
    "schedule": config.SCHEDULES,
    "device": config.DEVICES,
    "dtype": config.DTYPES,
    "runtime": config.RUNTIMES,
    "store_dtype": config.STORE_DTYPES,
    "layer": config.LAYERS,
    "pooling": ("mean", "cls", "max", "mean_sqrt_len", "weightedmean", "lasttoken", "sum", "tf-idf", "sequence"),
    "protocol": config.PROTOCOLS,
    "added": config.ADDED,
    "labels_from": config.LABELS_FROM,
}
_WORD = re.compile(r"[\w@-]+")


class Grouped(TyperCommand):
    """A command whose help has its options in groups, and whose choices may be typed in any case."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for option in self.params:
            if option.param_type_name == "option":
                option.rich_help_panel = group_of(str(self.name), str(option.name))  # type: ignore[attr-defined]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options by group."""
        for group, members in grouped(str(self.name), self.get_params(ctx)).items():
            with formatter.section(group):
                formatter.write_dl([record for one in members if (record := one.get_help_record(ctx))])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options; names of choices become those of the tables."""
        rest = super().parse_args(ctx, args)
        for name, value in ctx.params.items():
            if (spelled := _speller(str(self.name), name)) is not None:
                several = isinstance(value, list | tuple)
                ctx.params[name] = [spelled(one) for one in value] if several else value and spelled(value)
        return rest


def group_of(command: str, name: str) -> str:
    """Group of a command's option by its name in Python."""
    return OF_COMMAND.get(command, {}).get(name) or _places()[name]


def grouped(command: str, options: Any) -> dict[str, list[Any]]:
    """Arguments and options of a command by group, in the order of the help."""
    found: dict[str, list[Any]] = {name: [] for name in ("Arguments", *GROUPS)}
    for option in options:
        argument = option.param_type_name == "argument"
        found["Arguments" if argument else group_of(command, option.name)].append(option)
    return {name: members for name, members in found.items() if members}


@cache
def _places() -> dict[str, str]:
    return {name: group for group, names in GROUPS.items() for name in names.split()}


def _speller(command: str, name: str) -> Callable[[str], str] | None:
    """The function that spells a value as the table of choices does; None for an option without choices."""
    if name in ("image_model", "image_weights", "text_model"):
        return _model
    known = config.DATASETS if (command, name) == ("extract", "dataset") else CHOICES.get(name, ())
    if not known:
        return None
    spelling = {one.casefold(): one for one in known}
    return lambda value: _WORD.sub(lambda word: spelling.get(word[0].casefold(), word[0]), value)


def _model(value: str) -> str:
    """Name of a model that is no file in the spelling of cmrhash, as in ResNet18 and de=BOW."""
    lang, sign, model = value.rpartition("=")
    if not model.isidentifier() or model == model.lower() or Path(model).exists():
        return value
    from cmrhash.encoders.names import torchvision_models

    known = ("bow", "word2vec", "random", "own", "default", *torchvision_models())
    return f"{lang}{sign}{model.lower()}" if model.lower() in known else value
