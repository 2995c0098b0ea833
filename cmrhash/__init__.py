"""Cross-modal hashing: find images by text and texts by image through compact binary codes.

Importing this package imports nothing heavy: its names are imported when they are first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from cmrhash.version import __version__ as __version__

if TYPE_CHECKING:
    from cmrhash.api import add as add
    from cmrhash.api import apply as apply
    from cmrhash.api import compare as compare
    from cmrhash.api import evaluate as evaluate
    from cmrhash.api import extract as extract
    from cmrhash.api import find_runs as find_runs
    from cmrhash.api import from_pretrained as from_pretrained
    from cmrhash.api import load as load
    from cmrhash.api import open_dataset as open_dataset
    from cmrhash.api import relocate as relocate
    from cmrhash.api import remove as remove
    from cmrhash.api import sweep as sweep
    from cmrhash.api import train as train
    from cmrhash.config import CompareConfig as CompareConfig
    from cmrhash.config import EvalConfig as EvalConfig
    from cmrhash.config import ExtractConfig as ExtractConfig
    from cmrhash.config import FinetuneConfig as FinetuneConfig
    from cmrhash.config import GrowConfig as GrowConfig
    from cmrhash.config import SweepConfig as SweepConfig
    from cmrhash.config import TrainConfig as TrainConfig
    from cmrhash.data.in_memory import dataset as dataset
    from cmrhash.data.items import ImageTextDataset as ImageTextDataset
    from cmrhash.data.items import Item as Item
    from cmrhash.data.view import View as View
    from cmrhash.encoders.own import Encoder as Encoder
    from cmrhash.errors import CmrhashError as CmrhashError
    from cmrhash.errors import DamagedError as DamagedError
    from cmrhash.errors import DataError as DataError
    from cmrhash.errors import DivergedError as DivergedError
    from cmrhash.errors import EncoderError as EncoderError
    from cmrhash.errors import LockedError as LockedError
    from cmrhash.errors import PeerError as PeerError
    from cmrhash.errors import StaleError as StaleError
    from cmrhash.errors import UsageError as UsageError
    from cmrhash.evaluation.evaluate import Evaluation as Evaluation
    from cmrhash.evaluation.score_files import Scored as Scored
    from cmrhash.evaluation.score_files import score_files as score_files
    from cmrhash.evaluation.sweep import Sweep as Sweep
    from cmrhash.features.dataset import ExtractedDataset as ExtractedDataset
    from cmrhash.retrieval import metrics as metrics
    from cmrhash.search.exported.hasher import PretrainedHasher as PretrainedHasher
    from cmrhash.search.grow import Grown as Grown
    from cmrhash.search.hasher import Hasher as Hasher
    from cmrhash.search.results import Hit as Hit
    from cmrhash.training import losses as losses
    from cmrhash.training.loggers import Logger as Logger
    from cmrhash.training.methods import METHODS as METHODS
    from cmrhash.training.methods import Batch as Batch
    from cmrhash.training.methods import Method as Method
    from cmrhash.training.methods import Terms as Terms
    from cmrhash.training.methods import register as register
    from cmrhash.training.runs import Run as Run

_HOME = {  # module -> the names that it gives to the public face
    "api": "add apply compare evaluate extract find_runs from_pretrained load open_dataset relocate remove sweep train",
    "config": "CompareConfig EvalConfig ExtractConfig FinetuneConfig GrowConfig SweepConfig TrainConfig",
    "data.in_memory": "dataset",
    "data.items": "ImageTextDataset Item",
    "data.view": "View",
    "encoders.own": "Encoder",
    "errors": "CmrhashError DamagedError DataError DivergedError EncoderError LockedError PeerError StaleError "
    "UsageError",
    "evaluation.evaluate": "Evaluation",
    "evaluation.score_files": "Scored score_files",
    "evaluation.sweep": "Sweep",
    "features.dataset": "ExtractedDataset",
    "search.exported.hasher": "PretrainedHasher",
    "search.grow": "Grown",
    "search.hasher": "Hasher Hit",
    "training.loggers": "Logger",
    "training.methods": "METHODS Batch Method Terms register",
    "training.runs": "Run",
}
_HOME_OF = {name: f"cmrhash.{module}" for module, names in _HOME.items() for name in names.split()}
_MODULES = {"losses": "cmrhash.training.losses", "metrics": "cmrhash.retrieval.metrics"}

__all__ = sorted([*_HOME_OF, *_MODULES, "__version__"])

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until the program that imports it says else


def __getattr__(name: str) -> Any:
    """Import a name of the public face when it is first used."""
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'cmrhash' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
