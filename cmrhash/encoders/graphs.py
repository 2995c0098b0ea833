"""ONNX graphs of networks: export by PyTorch, computation by ONNX Runtime."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cmrhash.errors import EncoderError, UsageError

if TYPE_CHECKING:
    from cmrhash.encoders.image import ImageEncoder
    from cmrhash.encoders.text import TextEncoder

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
ONE_FILE = 1 << 31  # bytes from which on the format needs a second file for the weights
SEED = 0  # of the pixels that check a graph
SAMPLES = ("a dog", "two dogs run through the snow, and a man watches them from his house near the trees", "12 cats")
NEAR = 1e-4  # largest difference between the features of both runtimes, as a share of the largest feature
FEATURES = "features"  # output of a network that returns a tensor
PARTS = ("last_hidden_state", "pooler_output")  # outputs of a network of transformers

Network = TypeVar("Network", bound="ImageEncoder | TextEncoder")


def lacking() -> list[str]:
    """Packages of the extra "onnx" that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def need_onnx() -> None:
    """Raise UsageError unless the packages that write and run ONNX are installed."""
    if missing := lacking():
        raise UsageError(f"ONNX needs {', '.join(missing)}", None, 'pip install "cmrhash[onnx]"')


def export(graph: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], shapes: Any) -> Any:
    """Export a network as an ``onnx_program``; shapes: the axes of each input that may have other sizes."""
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        program: Any = torch.onnx.export(
            graph,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    outside = {id(value) for value in program.model.graph.outputs}
    for value in (value for node in program.model.graph for value in node.outputs):
        if value.name in outputs and id(value) not in outside:
            value.name = f"inner_{value.name}"  # BERT has an inner value "embedding"
    weights = program.model.graph.initializers
    for name in set(outputs) & set(weights):  # as a ViT's token embedding is named
        value = weights.pop(name)
        value.name = f"inner_{name}"
        weights[value.name] = value
    return program


def open_graph(graph: Path | bytes, threads: int = 1) -> Any:
    """Open an onnxruntime session on the CPU, without its warnings. graph: a file, or its content."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def refuse_unbounded(content: bytes) -> None:
    """Raise ValueError for a graph with loops, branches or data in other files, which ``network_graph`` never makes."""
    import onnx

    model = onnx.load_from_string(content)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    if any(each.HasField("g") or each.graphs for node in nodes for each in node.attribute):
        raise ValueError("it has graphs within the graph")
    tensors = [*model.graph.initializer, *(each.t for node in nodes for each in node.attribute if each.HasField("t"))]
    if model.graph.sparse_initializer or any(tensor.external_data for tensor in tensors):
        raise ValueError("it has data in other files")


def sample_pixels(size: int) -> NDArray[np.uint8]:
    """Five photos of coloured patches, (5, size, size, 3): pooling averages out single pixels."""
    coarse = np.random.default_rng(SEED).integers(0, 256, (5, 7, 7, 3), np.uint8)
    pixels = coarse.repeat(-(-size // 7), 1).repeat(-(-size // 7), 2)[:, :size, :size]
    return np.ascontiguousarray(pixels)


# ---------------------------------------------------------------------------------------------- networks of encoders


class OnnxNetwork(nn.Module):
    """The network of an encoder, computed by ONNX Runtime on as many threads as PyTorch would use.

    made: returns the content of the graph; called at the first batch, so that a finished cache needs no graph.
    """

    def __init__(self, made: Callable[[], bytes]) -> None:
        super().__init__()
        self._made, self._session = made, None

    def open(self) -> Any:
        """Open the session, unless it is open. Raises EncoderError for a graph that cannot be used."""
        if self._session is None:
            need_onnx()
            content = self._made()
            with _usable():
                refuse_unbounded(content)
                self._session = open_graph(content, torch.get_num_threads())
        return self._session

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network of the encoder returns for the same tensors; raises EncoderError if it cannot."""
        session = self.open()
        with _usable():
            names = [one.name for one in session.get_inputs()]
            feed = dict(zip(names, (x.contiguous().numpy() for x in _tensors(args, kwargs).values()), strict=True))
            outputs = [one.name for one in session.get_outputs()]
            found = {name: torch.from_numpy(x) for name, x in zip(outputs, session.run(None, feed), strict=True)}
        return found[FEATURES] if FEATURES in found else SimpleNamespace(**found)


@contextlib.contextmanager
def _usable() -> Iterator[None]:
    """Raise errors of a graph as EncoderError: onnx and ONNX Runtime raise types of their own."""
    try:
        yield
    except Exception as error:
        what = f"an ONNX graph in the cache cannot be used ({' '.join(str(error).split())[:120]})"
        raise EncoderError(what, None, "delete the files graph-*.sealed there, or use `runtime='torch'`") from None


def on_onnx(encoder: Network, made: Callable[[], bytes]) -> Network:
    """The encoder with its network computed by ONNX Runtime, in float32. made: as of ``OnnxNetwork``."""
    recipe = {**encoder.recipe, "dtype": "float32", "runtime": "onnx"}
    return replace(encoder, module=OnnxNetwork(made), dtype=torch.float32, recipe=recipe)


def network_graph(encoder: Network) -> bytes:
    """Content of the ONNX file of an encoder's network, float32, for batches of any number and length.

    The graph is run once: its features must be those of PyTorch within 1e-4 of the largest. Raises EncoderError if the
    network cannot be exported or gives other features, UsageError without the packages of ``cmrhash[onnx]``.
    """
    need_onnx()
    plain = replace(encoder, dtype=torch.float32)
    if sum(p.numel() * 4 for p in plain.module.parameters()) >= ONE_FILE:
        raise EncoderError(f"{encoder.name} is too large for one ONNX file", None, "use `runtime='torch'`")
    batches = _samples(plain)
    recorder = _Recorder(plain.module)
    try:
        replace(plain, module=recorder).forward(batches[0])
        args, kwargs, found = recorder.calls[0]
        inputs = _tensors(args, kwargs)
        outputs = [FEATURES] if isinstance(found, Tensor) else [name for name in PARTS if _has(found, name)]
        graph = _Positional(plain.module, args, kwargs, outputs)
        auto = torch.export.Dim.AUTO
        shapes = tuple({0: auto, 1: auto} if x.ndim == 2 else {0: auto} for x in inputs.values())
        content: bytes = export(graph, inputs, outputs, (shapes,)).model_proto.SerializeToString()
        apart = _apart(plain, content, batches)
    except Exception as error:  # the exporter and the session raise types of their own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise EncoderError(f"{encoder.name} has no ONNX graph ({reason})", None, "use `runtime='torch'`") from None
    if not apart <= NEAR:
        raise EncoderError(f"the ONNX graph of {encoder.name} gives other features", None, "use `runtime='torch'`")
    return content


def _samples(encoder: ImageEncoder | TextEncoder) -> list[Any]:
    """Batches of three sizes, and of two lengths, as ``encoder.forward`` takes them."""
    crop = getattr(encoder, "crop", None)
    some: Any = torch.from_numpy(sample_pixels(crop.size)) if crop else encoder.pieces(SAMPLES)  # type: ignore[union-attr]
    return [some[:2], some, some[:1]]


def _apart(encoder: Any, content: bytes, batches: Sequence[Any]) -> float:
    """Largest difference between the features of both runtimes, as a share of the largest feature."""
    other = on_onnx(encoder, lambda: content)
    worst = 0.0
    for batch in batches:
        with torch.inference_mode():
            wanted, found = encoder.forward(batch), other.forward(batch)
        worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max()))
    return worst


class _Recorder(nn.Module):
    """A network that notes what an encoder gives it, and what it returns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, list[tuple[tuple[Any, ...], dict[str, Any], Any]]()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            found = self.module(*args, **kwargs)
        self.calls.append((args, kwargs, found))
        return found


class _Positional(nn.Module):
    """A network with its tensors as positional inputs, and a tuple of tensors as its output."""

    def __init__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: list[str]) -> None:
        super().__init__()
        self.module, self.outputs = module, outputs
        self.args = [None if isinstance(x, Tensor) else x for x in args]
        self.places = [n for n, x in enumerate(args) if isinstance(x, Tensor)]
        self.names = [name for name, x in kwargs.items() if isinstance(x, Tensor)]
        self.others = {name: x for name, x in kwargs.items() if not isinstance(x, Tensor)}

    def forward(self, *tensors: Tensor) -> Any:
        args = list(self.args)
        for place, x in zip(self.places, tensors, strict=False):
            args[place] = x
        named = dict(zip(self.names, tensors[len(self.places) :], strict=True))
        found = self.module(*args, **named, **self.others)
        return found if self.outputs == [FEATURES] else tuple(getattr(found, name) for name in self.outputs)


def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a call by the names of a graph's inputs."""
    named = {**{f"input_{n}": x for n, x in enumerate(args)}, **kwargs}
    return {name: x for name, x in named.items() if isinstance(x, Tensor)}


def _has(found: Any, name: str) -> bool:
    return isinstance(getattr(found, name, None), Tensor)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notices on stdout, in warnings and in loggers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
