"""Settings of a training that no chosen method reads: refused, not ignored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cmrhash.config import TrainConfig
from cmrhash.errors import UsageError
from cmrhash.training.methods import METHODS, get_method
from cmrhash.training.names import CHOSEN


def refuse_unread(
    methods: Sequence[str], given: Iterable[str], config: TrainConfig, relevance: str
) -> dict[str, list[str]]:
    """Raise UsageError for a given setting that none of the methods reads.

    given: names of the settings that the caller chose, whatever their values; relevance: that of the training. Returns
    each setting that some of the methods do not read, with the names of these.
    """
    ignored = {}
    for name in dict.fromkeys(name for name in given if name in CHOSEN):
        lacking = [method for method in methods if name not in get_method(method).settings]
        if len(lacking) == len(methods):
            readers = [known for known in METHODS if name in METHODS[known].settings]
            fix = f"leave it out, or use {', '.join(readers[:3])} ..."
            raise UsageError(f"{_listed(lacking)} no such setting", None, fix, option=name)
        if name == "dropout" and config.hidden == 0:
            raise UsageError("a linear head has no hidden units", None, "leave it out", option=name)
        if name == "first_caption" and relevance == "pairs":
            what = "with relevance pairs all captions of an item train alike"
            raise UsageError(what, None, "leave it out", option=name)
        if lacking:
            ignored[name] = lacking
    return ignored


def _listed(methods: Sequence[str]) -> str:
    return f"method '{methods[0]}' has" if len(methods) == 1 else f"methods {', '.join(methods)} have"
