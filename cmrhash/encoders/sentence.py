"""Directories of sentence-transformers: the layers behind the transformer, read without that package.

    modules.json                        Transformer, Pooling, then any of Dense and Normalize, in their order
    sentence_bert_config.json           longest input, lower case; beside the transformer ("" or N_Transformer)
    N_Pooling/config.json               how token vectors become one vector
    N_Dense/config.json                 a linear layer with its activation; weights in model.safetensors
    config_sentence_transformers.json   prompts, which are put before every text

Without modules.json a directory is a plain transformer. Other modules are refused by name. This file needs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cmrhash.encoders import hub
from cmrhash.errors import EncoderError, UsageError, did_you_mean, some_of

POOLING = ("mean", "cls", "max", "mean_sqrt_len", "weightedmean", "lasttoken")
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU")  # by the last word of their path
BEHIND = "sentence"  # name of the layers in the transformer's state: "sentence.0.linear.weight"
MODULES, PROMPTS, WEIGHTS = "modules.json", "config_sentence_transformers.json", "model.safetensors"
# of a download; "*" matches folders too: "*.json" takes modules.json and 1_Pooling/config.json
# what a text model needs of the hub, and what it may have
TOKENIZER = ["*token*.json|*vocab*|*.model"]
FILES = ["*config.json", *TOKENIZER, "model*.safetensors|[0-9]_*/model*.safetensors"]
OPTIONAL = ["*.json", "*.txt", "*.model", "[0-9]_Dense/*.bin"]
PARTS = "config.json, model.safetensors and tokenizer.json"  # for messages
OLD_WEIGHTS = "pytorch_model.bin"  # read without running code
KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
SETTINGS = tuple(f"sentence_{kind}_config.json" for kind in KINDS)  # names that the package has used
# fields of the package's pooling before version 6, in the order in which it concatenates
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
FOREIGN = ("processing_kwargs", "processor_kwargs", "tokenizer_args", "config_args", "config_kwargs", "query_expansion")
AGAIN = "get the directory again, or remove modules.json to use the transformer alone"


@dataclass(frozen=True)
class Layout:
    """Content of a directory, apart from weights; its defaults describe a plain transformer.

    transformer: its subfolder; max_length: in word pieces; lower_case: whether texts are put into lower case;
    pooling: modes joined by "+"; include_prompt: whether the pooling covers the prompt; layers: (type, subfolder) of
    the modules behind the pooling; prompts: name -> text; default: name of the prompt to use; truncate: features kept.
    """

    folder: Path
    transformer: str = ""
    max_length: int | None = None
    lower_case: bool = False
    pooling: str | None = None
    include_prompt: bool = True
    layers: tuple[tuple[str, str], ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    truncate: int | None = None

    def prompt(self, name: str | None) -> str:
        """Text of a prompt, of the default one for None; raises UsageError for an unknown name."""
        if name is None:
            return self.prompts.get(self.default or "", "")
        if name not in self.prompts:
            known = some_of(map(repr, self.prompts))
            fix = f"{did_you_mean(name, self.prompts)} choose one of {known}" if known else "leave it out: it has none"
            raise UsageError(f"the text model has no prompt '{name}'", self.folder, fix, option="prompt")
        return self.prompts[name]

    def of(self, recipe: Mapping[str, Any]) -> Layout:
        """Layout by which features of a recipe were made, perhaps before cmrhash read modules.json."""
        layers, truncate = (self.layers, self.truncate) if "modules" in recipe else ((), None)
        return replace(
            self,
            layers=layers,
            truncate=truncate,
            max_length=None,
            lower_case=recipe.get("lower_case", False),
            include_prompt=recipe.get("include_prompt", True),
            prompts={"own": recipe.get("prompt", "")},
            default="own",
        )


def read(folder: Path) -> Layout:
    """Read what a directory says beside its weights; raises EncoderError for what cmrhash does not follow."""
    path = folder / MODULES
    if not path.exists():
        return Layout(folder)
    modules = _json(path, list)
    if not all(isinstance(m, dict) and isinstance(m.get("type"), str) for m in modules):
        raise EncoderError("not a list of modules with their types", path, AGAIN)
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    fix = "give a directory of Transformer, Pooling, then Dense and Normalize"
    if unknown := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Dense", "Normalize")]:
        raise EncoderError(f"the module '{unknown[0]}' is not supported", path, fix)
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Dense", "Normalize"}:
        raise EncoderError(f"the modules are {', '.join(kinds) or 'missing'}", path, fix)
    places = [_place(module.get("path", ""), path) for module in modules]
    settings = next((f for name in SETTINGS if (f := folder / places[0] / name).is_file()), None)
    length, lower = _settings(settings) if settings else (None, False)
    pooling, include = _pooling(folder / places[1] / "config.json")
    layers = tuple(zip(kinds[2:], places[2:], strict=True))
    layout = Layout(folder, places[0], length, lower, pooling, include, layers)
    return _with_prompts(layout, folder / PROMPTS) if (folder / PROMPTS).is_file() else layout


def locate(model: str, offline: bool = False) -> Path:
    """Directory of a text model: an existing one, the hub's local cache, or a download."""
    others = "bow, word2vec or a file of word vectors"
    fix = f'give `text_models=("[LANG=]DIR",)` with {PARTS}, or random to try it, or {others}'
    folder = hub.locate(model, FILES, offline, "text model", fix, optional=OPTIONAL)
    if not Path(model).expanduser().is_dir() and (weights := lacking(folder)):  # an older download
        return hub.locate(model, [*FILES, *weights], offline, "text model", fix, optional=OPTIONAL)
    return folder


def lacking(folder: Path) -> list[str]:
    """Weights that modules.json needs and that a download did not fetch."""
    places = [folder / place for kind, place in read(folder).layers if kind == "Dense"]
    return [f"{p.name}/{WEIGHTS}" for p in places if not any((p / name).is_file() for name in (WEIGHTS, OLD_WEIGHTS))]


def _json(path: Path, kind: type) -> Any:
    """Content of a JSON file that must be an object or a list."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise EncoderError(f"not readable as JSON ({' '.join(str(error).split())[:100]})", path, AGAIN) from None
    if not isinstance(content, kind):
        raise EncoderError(f"not a JSON {'list' if kind is list else 'object'}", path, AGAIN)
    return content


def _place(place: Any, path: Path) -> str:
    if not isinstance(place, str) or not re.fullmatch(r"|\d+_\w+", place):
        raise EncoderError(f"a module is at {place!r}", path, "a module's path is empty or N_Type")
    return place


def _whole(value: Any, what: str, path: Path) -> int:
    if type(value) is not int or value < 1:
        raise EncoderError(f"{what} is {value!r}, not a whole number from 1", path, AGAIN)
    return value


def _flag(config: Mapping[str, Any], name: str, path: Path, default: bool) -> bool:
    if type(value := config.get(name, default)) is not bool:
        raise EncoderError(f"{name} is {value!r}, neither true nor false", path, AGAIN)
    return value


def _settings(path: Path) -> tuple[int | None, bool]:
    """Longest input and lower case, of the transformer's file."""
    config = _json(path, dict)
    for name in FOREIGN:
        if config.get(name) not in (None, {}, {"trust_remote_code": True}, {"trust_remote_code": False}):
            raise EncoderError(f"{name} is not supported", path, "remove that field, if the features do not need it")
    task = config.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise EncoderError(f"the task '{task}' is not supported", path, "give a model of feature-extraction")
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    if (of := config.get("modality_config")) is not None and (not isinstance(of, dict) or of.get("text") != text):
        raise EncoderError("its texts do not give last_hidden_state", path, "give a model of texts")
    length = config.get("max_seq_length")
    length = None if length is None else _whole(length, "max_seq_length", path)
    return length, _flag(config, "do_lower_case", path, False)


def _pooling(path: Path) -> tuple[str, bool]:
    config = _json(path, dict)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in FLAGS.items() if _flag(config, flag, path, False)] or [POOLING[0]]
    modes = [modes] if isinstance(modes, str) else modes
    modes = [str(mode).removesuffix("_tokens") for mode in modes] if isinstance(modes, list) else [str(modes)]
    if unknown := [mode for mode in modes if mode not in POOLING] or ([] if modes else ["none"]):
        raise EncoderError(f"the pooling '{unknown[0]}' is not supported", path, f"known are {', '.join(POOLING)}")
    return "+".join(modes), _flag(config, "include_prompt", path, True)


def _with_prompts(layout: Layout, path: Path) -> Layout:
    config = _json(path, dict)
    if (kind := config.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise EncoderError(f"the model type '{kind}' is not supported", path, "give a SentenceTransformer")
    prompts, default, size = (config.get(name) for name in ("prompts", "default_prompt_name", "truncate_dim"))
    prompts = {} if prompts is None else prompts
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise EncoderError("prompts is not an object of names with texts", path, AGAIN)
    prompts = {name: text or "" for name, text in prompts.items()}
    if default is not None and default not in prompts:
        raise EncoderError(f"the default prompt {default!r} is not among its prompts", path, AGAIN)
    size = None if size is None else _whole(size, "truncate_dim", path)
    return replace(layout, prompts=prompts, default=default, truncate=size)


@dataclass(frozen=True)
class DenseLayer:
    """A linear layer behind the pooling. inputs, outputs: features; activation: out of ACTIVATIONS; weights: file."""

    inputs: int
    outputs: int
    bias: bool
    activation: str
    weights: Path


def read_dense(folder: Path, width: int) -> DenseLayer:
    """Read what a Dense's config.json says; raises EncoderError unless it takes ``width`` features."""
    path = folder / "config.json"
    config = refuse_other_values(path)
    inputs, outputs = (_whole(config.get(name), name, path) for name in ("in_features", "out_features"))
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    known = re.fullmatch(r"torch\.nn\.(?:modules\.\w+\.)?(\w+)", activation)
    if not known or known[1] not in ACTIVATIONS:
        raise EncoderError(
            f"the activation '{activation}' is not supported", path, f"known are {', '.join(ACTIVATIONS)}"
        )
    if inputs != width:
        raise EncoderError(f"it takes {inputs} features, but gets {width}", path, "give the pooling of modules.json")
    weights = folder / (WEIGHTS if (folder / WEIGHTS).is_file() else OLD_WEIGHTS)
    return DenseLayer(inputs, outputs, _flag(config, "bias", path, True), known[1], weights)


def refuse_other_values(path: Path) -> dict[str, Any]:
    """Config of a layer, which must take and give the vector of the text."""
    config: dict[str, Any] = _json(path, dict)
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, "sentence_embedding"):
            raise EncoderError(f"{name} is {config[name]!r}", path, "only sentence_embedding is supported")
    if config.get("use_residual"):
        raise EncoderError("use_residual is not supported", path, "give a Dense without it")
    return config


def check_pooling(pooling: str) -> None:
    """Raise UsageError unless every mode is known."""
    for mode in pooling.split("+"):
        if mode not in POOLING:
            fix = f"choose one of {', '.join(POOLING)}, or several joined by +"
            raise UsageError(f"unknown pooling '{mode}'", None, fix, option="pooling")
