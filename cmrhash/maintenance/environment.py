"""Report of the environment for bug reports: versions, machine, devices, folders, environment variables.

A missing or broken package becomes a line of the report, never an error. The report holds no secrets: only the
variables named here are read, and the home folder is written as "~".
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cmrhash.version import __version__

PACKAGE = Path(__file__).parents[1]

# name of the distribution -> name of the module
PACKAGES = {name: name for name in ("torch", "torchvision", "transformers", "tokenizers", "safetensors")}
PACKAGES |= {"huggingface_hub": "huggingface_hub", "h5py": "h5py", "numpy": "numpy", "faiss-cpu": "faiss"}
PACKAGES |= {"pillow": "PIL", "typer": "typer", "rich": "rich"}
EXTRAS = {"scipy": "scipy", "gensim": "gensim", "matplotlib": "matplotlib", "scikit-learn": "sklearn"}
EXTRAS |= {
    name: name for name in ("pyarrow", "psycopg", "pymilvus", "onnx", "onnxruntime", "onnxscript", "fastapi", "uvicorn")
}
VARIABLES = (
    *("CMRHASH_DEBUG", "CMRHASH_LOG"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT"),
    *("TORCH_HOME", "XDG_CACHE_HOME", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ENABLE_MPS_FALLBACK"),
    *("HDF5_USE_FILE_LOCKING", "HDF5_PLUGIN_PATH", "PYTHONPATH", "TMPDIR", "LANG", "LC_ALL", "NO_COLOR"),
)
LONGEST = 200  # characters of a value


def describe(cache: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Collect the report: section -> name -> value, all JSON. cache, out: folders of feature files and of runs."""
    imported = {name: import_or_say(module) for name, module in (PACKAGES | EXTRAS).items()}
    torch = imported["torch"]
    return {
        "cmrhash": {"version": __version__, "commit": _commit(), "from": _home(PACKAGE)},
        "machine": _machine(),
        "packages": {name: _version(name, imported[name]) for name in PACKAGES},
        "extras": {name: _version(name, imported[name]) for name in EXTRAS},
        "devices": {"torch": torch} if isinstance(torch, str) else _devices(torch),
        "folders": _folders(cache, out, imported),
        "variables": {name: _clean(os.environ[name]) for name in VARIABLES if name in os.environ},
    }


def as_markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the report as a Markdown list that also reads well as plain text."""
    sections = []
    for section, values in found.items():
        lines = [f"- {name}: {_in_words(value)}" for name, value in values.items()]
        sections.append("\n".join([f"**{section}**\n", *(lines or ["- none"])]))
    return "\n\n".join(sections)


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):  # a folder
        return f"`{value['path']}`, {value['state']}, {value['free_bytes'] / 1e9:.1f} GB free"
    return str(value)


# ---------------------------------------------------------------------------------------------- packages


def import_or_say(module: str) -> Any:
    """Import a module, or say in words why that fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        return "not installed" if missing == module else f"broken (needs {error.name})"
    except Exception as error:  # a broken package may raise anything
        return f"broken ({type(error).__name__}: {' '.join(str(error).split())[:LONGEST]})"


def _version(name: str, module: Any) -> str:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = str(getattr(module, "__version__", ""))  # faiss, installed by conda or as faiss-gpu
    if isinstance(module, str):
        return f"{version} {module}".strip()
    details: dict[str, Callable[[], str]] = {
        "h5py": lambda: f"HDF5 {module.version.hdf5_version}",
        "faiss-cpu": lambda: module.get_compile_options().strip(),
        "torch": lambda: f"built for CUDA {module.version.cuda}" if module.version.cuda else "CPU only",
    }
    return f"{version} ({_tried(details[name])})" if name in details else version


def _commit() -> str:
    """Commit of the checkout that cmrhash runs from; "" outside a checkout."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


# ---------------------------------------------------------------------------------------------- machine


def _machine() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "Python": f"{platform.python_version()} ({platform.python_implementation()}, {_home(Path(sys.executable))})",
        "system": platform.platform(),
        "CPU": _processor(),
        "cores": f"{usable} of {os.cpu_count()} usable",
        "memory": _tried(lambda: f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"),
    }


def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        names = []
    return f"{platform.machine()} {names[0] if names else platform.processor()}".strip()


def _devices(torch: Any) -> dict[str, Any]:
    """Devices that torch can use, and the device and dtype that "auto" selects."""
    from cmrhash.compute.device import choose_device, choose_dtype

    def dtype() -> Any:
        return choose_dtype("auto", choose_device("auto"), untrained=False)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = {
            "CUDA": _tried(lambda: _cuda(torch)),
            "MPS": _tried(lambda: "there, not used" if torch.backends.mps.is_available() else "none"),
            "--device auto": _tried(lambda: str(choose_device("auto"))),
            "--dtype auto": _tried(lambda: f"{dtype()} (untrained encoders: float32)".removeprefix("torch.")),
            "threads": torch.get_num_threads(),
        }
    messages = dict.fromkeys(_clean(str(warning.message)) for warning in said)
    return found | {f"warning {at}": message for at, message in enumerate(messages, 1)}


def _cuda(torch: Any) -> str:
    if not torch.cuda.is_available():
        return "none"
    cards = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return "; ".join(f"{card.name}, {card.total_memory / 2**30:.0f} GiB" for card in cards)


# ---------------------------------------------------------------------------------------------- folders


def _folders(cache: Path, out: Path, imported: Mapping[str, Any]) -> dict[str, Any]:
    hub, torch = imported["huggingface_hub"], imported["torch"]
    return {
        "cache": _tried(lambda: _place(cache)),
        "runs": _tried(lambda: _place(out)),
        "Hugging Face": hub if isinstance(hub, str) else _tried(lambda: _place(Path(hub.constants.HF_HUB_CACHE))),
        "torch hub": torch if isinstance(torch, str) else _tried(lambda: _place(Path(torch.hub.get_dir()))),
    }


def _place(folder: Path) -> dict[str, Any]:
    folder = folder.absolute()
    there = folder.exists()
    above = next(path for path in (folder, *folder.parents) if path.exists())
    writable = "writable" if os.access(above, os.W_OK) else "not writable"
    state = writable if there else f"not there yet, {writable}"
    return {"path": _home(folder), "state": state, "free_bytes": shutil.disk_usage(above).free}


# ---------------------------------------------------------------------------------------------- small parts


def _tried(value: Callable[[], Any]) -> Any:
    """Call a function, or say in words why that fails."""
    try:
        return value()
    except Exception as error:  # nothing here may end the report
        return f"unknown ({type(error).__name__}: {' '.join(str(error).split())[:LONGEST]})"


def _home(path: Path) -> str:
    """Write a path without the user's name."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _clean(value: str) -> str:
    """Shorten a value to one line without the user's name or a password in an address."""
    value = re.sub(r"(?<=://)[^/@\s]+@", "***@", " ".join(value.split()))
    return value.replace(str(Path.home()), "~")[:LONGEST] if str(Path.home()) != "/" else value[:LONGEST]
