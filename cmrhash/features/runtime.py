"""Runtime of the encoders: PyTorch, or ONNX Runtime on a CPU without bfloat16 arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmrhash.config import AUTO, ONNX, RANDOM, TORCH, ExtractConfig
from cmrhash.data.view import View
from cmrhash.encoders.bag_and_vectors import WordEncoder
from cmrhash.encoders.own import OwnEncoder
from cmrhash.errors import CmrhashError, EncoderError, UsageError
from cmrhash.features.file import read_header
from cmrhash.features.graph_files import graph_path, load_or_make
from cmrhash.storage.sealed import read_note

if TYPE_CHECKING:
    from cmrhash.encoders.image import ImageEncoder
    from cmrhash.encoders.text import TextEncoder

log = logging.getLogger(__name__)

# Rows from which on "auto" exports a graph: an export takes 4 to 6 s of CPU, and ONNX Runtime saves 7 ms per photo with
# ResNet18, .4 to 1.2 ms per caption with MiniLM.
WORTH = {"image": 1000, "text": 10_000}


class Runtimes:
    """Choice of each encoder's runtime.

    folder: of the feature files, and of the graphs beside them. chosen: encoders of ONNX Runtime so far, by view.
    """

    def __init__(self, config: ExtractConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.chosen: dict[View, Any] = {}
        self._plain: dict[View, Any] = {}
        self._networks: dict[int, Any] = {}  # one session per encoder, which several languages may share

    def choose(self, view: View, encoder: Any, rows: int) -> Any:
        """The encoder as it will run; nothing is exported yet. rows: photos or captions of the view.

        "auto" takes the runtime of the features that exist. Without any, it takes ONNX Runtime where PyTorch would
        compute trained weights in float32 on the CPU, and the rows are worth an export. Raises UsageError if the config
        demands ONNX Runtime for an encoder that has no graph, or without its packages.
        """
        if self.config.runtime == TORCH:
            return encoder
        why, made = _obstacle(encoder, self.config), self._made(view, encoder)
        if self.config.runtime == ONNX:
            if why:
                raise UsageError(f"{encoder.name} {why}", None, "use auto or torch", option="runtime")
            if made is None:
                _need_onnx()
        elif why or not (made.get("runtime") == ONNX if made is not None else _is_faster(encoder, rows, view.kind)):
            return encoder
        if id(encoder) not in self._networks:
            self._networks[id(encoder)] = self._on_onnx(encoder)
        self._plain[view], self.chosen[view] = encoder, self._networks[id(encoder)]
        return self.chosen[view]

    def ready(self, view: View, encoder: Any) -> Any:
        """Open the graph of an encoder whose features do not exist yet; exports it if no file has it.

        "auto" returns the encoder on PyTorch if it cannot be exported; otherwise this raises EncoderError.
        """
        if view not in self.chosen or (self._path(view, encoder).exists() and not self.config.overwrite):
            return encoder
        try:
            encoder.module.open()
        except EncoderError as error:
            if self.config.runtime == ONNX or self._made(view, encoder) is not None:
                raise
            log.info("%s runs on PyTorch: %s", encoder.name, error)
            del self.chosen[view]
            return self._plain[view]
        return encoder

    def _path(self, view: View, encoder: Any) -> Path:
        return self.folder / view.feature_file(encoder.name)

    def _made(self, view: View, encoder: Any) -> Any:
        """Recipe of the view's features, finished or not; None if there are none, or if they will be replaced."""
        path = self._path(view, encoder)
        if self.config.overwrite:
            return None
        for each in (path, path.with_name(f"{path.name}.part"), *sorted(self.folder.glob(f"{path.name}.shard-*"))):
            try:
                note = read_note(each) if each.exists() else None
                if note is not None:
                    return note.recipe
                if each.exists():
                    return read_header(each).recipe
            except CmrhashError:  # extraction reports it, or makes it again
                continue
        return None

    def _on_onnx(self, encoder: ImageEncoder | TextEncoder) -> ImageEncoder | TextEncoder:
        from cmrhash.encoders.graphs import network_graph, on_onnx

        path = graph_path(self.folder, encoder.name, encoder.recipe)
        made: Callable[[], bytes] = partial(load_or_make, path, encoder.name, partial(network_graph, encoder))
        return on_onnx(encoder, made)


def _obstacle(encoder: Any, config: ExtractConfig) -> str:
    """Why ONNX Runtime cannot compute an encoder; "" if it can."""
    if isinstance(encoder, OwnEncoder):
        return "is an encoder of your own, which has no ONNX graph"
    if isinstance(encoder, WordEncoder):
        return "has no network, and so no ONNX graph"
    if "regions" in encoder.recipe:
        return "has no ONNX graph: regions are no fixed operations"
    if encoder.device.type != "cpu":
        return f"is on {encoder.device.type}, and ONNX Runtime computes on the CPU (`device='cpu'`)"
    if config.dtype not in (AUTO, "float32"):
        return f"has dtype {config.dtype}, and ONNX Runtime computes in float32 (`dtype='float32'`)"
    return ""


def _is_faster(encoder: Any, rows: int, kind: str) -> bool:
    """Whether ONNX Runtime is installed and faster, export included.

    It was measured: bfloat16 on PyTorch is faster, where the processor has it. Untrained encoders stay on PyTorch, so
    that their figures are equal on every machine.
    """
    from cmrhash.encoders.graphs import lacking

    slow = encoder.recipe["dtype"] == "float32" and encoder.recipe["weights"] != RANDOM
    return slow and rows >= WORTH[kind] and not lacking()


def _need_onnx() -> None:
    from cmrhash.encoders.graphs import need_onnx

    need_onnx()
