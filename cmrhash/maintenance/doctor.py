"""Check of an installation: each part of cmrhash with its state, and how to add what is missing.

Nothing is downloaded. Files are written to temporary folders, which are removed again.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrhash.config import TEXT_MODELS
from cmrhash.errors import CmrhashError
from cmrhash.maintenance.environment import PACKAGES, import_or_say

OK, ABSENT, FAILED = "ok", "missing", "FAILED"  # FAILED: cmrhash cannot work; ABSENT: a part of it cannot
EXTRAS = {  # extra -> what needs it, and its modules
    "parquet": ("Parquet tables", ("pyarrow",)),
    "words": ("--text-model word2vec", ("gensim",)),
    "timm": ("--image-model timm:NAME", ("timm",)),
    "open-clip": ("--model open_clip:ARCH/PRETRAINED", ("open_clip",)),
    "onnx": ("export --onnx, extract --runtime onnx", ("onnx", "onnxruntime", "onnxscript")),
    "pgvector": ("--store postgresql://...", ("psycopg",)),
    "milvus": ("--store milvus+http://...", ("pymilvus",)),
    "viz": ("plot, report", ("matplotlib", "sklearn")),
    "tensorboard": ("train --log tensorboard", ("tensorboard",)),
    "serve": ("serve", ("fastapi", "uvicorn", "python_multipart")),
}
LEAST_FREE = 1e9  # bytes of a disk below which work soon fails


@dataclass(frozen=True)
class Check:
    """One part: its state, what was found, what to do."""

    part: str
    state: str
    found: str
    fix: str = ""


def examine(cache: Path, out: Path, tell: Callable[[str, int, int], None] = lambda *_: None) -> list[Check]:
    """Check packages, extras, device, weights and folders. cache, out: folders of feature files and of runs.

    tell: called with (what, done, total) before and after each group of checks.
    """
    groups: dict[str, Callable[[], Iterator[Check]]] = {
        "packages": _packages,
        "extras": _extras,
        "device": _device,
        "weights": _weights,
        "folders": lambda: _folders({"cache": cache, "runs": out}),
    }
    found: list[Check] = []
    for done, (name, check) in enumerate(groups.items()):
        tell(name, done, len(groups))
        found += check()
    tell("checks", len(groups), len(groups))
    return found


def passes(found: list[Check]) -> bool:
    """Whether no check failed; missing parts are allowed."""
    return all(one.state != FAILED for one in found)


def _packages() -> Iterator[Check]:
    least = _declared()
    for name, module in PACKAGES.items():
        loaded, version = import_or_say(module), _version(name)
        if isinstance(loaded, str):
            fix = "install torch and torchvision together" if name == "torchvision" else f"pip install {name}"
            yield Check(name, FAILED, f"{version} {loaded}".strip(), fix)
        elif version and name in least and _numbers(version) < _numbers(least[name]):
            yield Check(name, FAILED, f"{version}, older than {least[name]}", f'pip install "{name}>={least[name]}"')
        else:
            yield Check(name, OK, version or "there")


def _extras() -> Iterator[Check]:
    for extra, (needed_by, modules) in EXTRAS.items():
        found = {module: import_or_say(module) for module in modules}
        lacking = [f"{module} {words}" for module, words in found.items() if isinstance(words, str)]
        if lacking:
            yield Check(
                f"[{extra}]", ABSENT, f"{', '.join(lacking)}; for {needed_by}", f'pip install "cmrhash[{extra}]"'
            )
        else:
            yield Check(f"[{extra}]", OK, needed_by)


def _device() -> Iterator[Check]:
    torch = import_or_say("torch")
    if isinstance(torch, str):
        return
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") and not torch.version.cuda:
            yield Check("GPU", ABSENT, "a driver of NVIDIA, but torch is built for the CPU", "install torch for CUDA")
        else:
            yield Check("GPU", ABSENT, "none that torch can use; everything runs on the CPU")
        return
    name = torch.cuda.get_device_name(0)
    try:
        torch.ones(8, 8, device="cuda").mm(torch.ones(8, 8, device="cuda")).cpu()
    except RuntimeError as error:
        words = " ".join(str(error).split())[:200]
        yield Check("GPU", FAILED, f"{name} does not compute ({words})", "update its driver, or use --device cpu")
    else:
        yield Check("GPU", OK, f"{name}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB")


def _weights() -> Iterator[Check]:
    """Default encoders on this disk."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    torch, hub = import_or_say("torch"), import_or_say("huggingface_hub")
    there: dict[str, tuple[Any, str]] = {}
    if not isinstance(torch, str):
        files = Path(torch.hub.get_dir(), "checkpoints").glob("resnet18-*.pth")
        there["resnet18"] = (next(files, None), "--image-weights FILE")
    if not isinstance(hub, str):
        for lang, model in TEXT_MODELS.items():
            found = isinstance(hub.try_to_load_from_cache(model, "config.json"), str)
            there[model] = (found, f"--text-model {lang}=DIR")
    for name, (found, own) in there.items():
        if found:
            yield Check(name, OK, "on this disk")
        elif offline and name != "resnet18":
            yield Check(name, ABSENT, "not on this disk, and HF_HUB_OFFLINE is set", f"unset it, or give {own}")
        else:
            yield Check(name, ABSENT, "not on this disk; downloaded at the first use", f"without network: {own}")


def _folders(folders: dict[str, Path]) -> Iterator[Check]:
    """Folders in which cmrhash writes: whether files and locks can be made there, and the free space."""
    from cmrhash.storage.files import locked, write_bytes

    for name, folder in folders.items():
        path = folder.absolute()
        place = next(one for one in (path, *path.parents) if one.exists())
        try:
            with tempfile.TemporaryDirectory(prefix=".cmrhash-doctor-", dir=place) as scratch:
                file = Path(scratch) / "file"
                with locked(file):
                    write_bytes(file, b"x")
            free = shutil.disk_usage(place).free
        except (OSError, CmrhashError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            yield Check(name, FAILED, f"{path} cannot be written ({reason})", f"choose another folder with --{name}")
            continue
        words = f"{path}{'' if place == path else ' (not there yet)'}, writable, {free / 1e9:.1f} GB free"
        enough = free >= LEAST_FREE
        yield Check(name, OK if enough else FAILED, words, "" if enough else f"free some space, or use --{name}")


def _declared() -> dict[str, str]:
    """Lowest versions that cmrhash declares, by package; {} if it runs without being installed."""
    try:
        lines = importlib.metadata.requires("cmrhash") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w-]+)\s*>=\s*([\d.]+)(?!.*extra)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3]))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
