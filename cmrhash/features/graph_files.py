"""Graph files: the ONNX graph of an encoder's network, sealed beside the features that it makes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cmrhash.errors import DamagedError, DataError, StaleError
from cmrhash.features.outcome import OF_DATA
from cmrhash.storage.files import write_bytes
from cmrhash.storage.recipes import fingerprint
from cmrhash.storage.sealed import MAGIC, USER_BLOCK, VERSION, check_payload, payload, write_block

GRAPH_FILE = re.compile(r"graph-.+\.sealed")
FORMAT = 1  # increase it when a change of this package changes the graph of an unchanged encoder
OF_RUNTIME = ("dtype", "runtime")  # fields of a recipe that do not change the graph


def graph_key(recipe: Mapping[str, Any]) -> str:
    """Digest that names the graph of an encoder. recipe: of the encoder, or of features that it made."""
    of_encoder = {field: value for field, value in recipe.items() if field not in (*OF_DATA, *OF_RUNTIME)}
    return fingerprint({**of_encoder, "graph": FORMAT})


def graph_path(folder: Path, name: str, recipe: Mapping[str, Any]) -> Path:
    """Path of the graph of an encoder of that name, in the folder of the features."""
    return folder / f"graph-{name}-{graph_key(recipe)}.sealed"


def load_or_make(path: Path, encoder: str, make: Callable[[], bytes]) -> bytes:
    """Content of the graph in a file; a missing or damaged file is made again, atomically. encoder: its name."""
    try:
        check_payload(path)
    except (DataError, DamagedError, StaleError):
        content = make()
        file = io.BytesIO(bytes(USER_BLOCK) + content)
        digest, size = payload(file)
        about = {"version": VERSION, "kind": "graph", "encoder": encoder, "graph": FORMAT}
        write_block(file, MAGIC, {**about, "payload_sha256": digest, "payload_bytes": size})
        write_bytes(path, file.getvalue())
        return content
    return path.read_bytes()[USER_BLOCK:]
