"""METHODS: a name for each way of training the heads. One file per family, one entry per method."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from cmrhash.errors import UsageError, did_you_mean, some_of
from cmrhash.training.heads import Head, KernelHead
from cmrhash.training.methods import acmr, classes, closed, corrnet, dcmh, nrch, pairwise, triplets, unlabelled
from cmrhash.training.methods.method import Batch, Method, Terms, total
from cmrhash.training.sequences import SequenceHead

__all__ = [
    "BUILT_IN",
    "METHODS",
    "Batch",
    "Method",
    "Terms",
    "build_head",
    "get_method",
    "method_names",
    "register",
    "total",
]

METHODS = triplets.METHODS | pairwise.METHODS | acmr.METHODS | corrnet.METHODS | closed.METHODS
METHODS |= dcmh.METHODS | classes.METHODS | nrch.METHODS | unlabelled.METHODS
BUILT_IN = frozenset(METHODS)


def register(method: Method) -> str:
    """Add a method of the user's own to METHODS and return its name.

    Raises UsageError without a name, for a name with characters that no folder has, or one that METHODS has already.
    """
    if not re.fullmatch(r"\w[\w.-]*", method.name):
        raise UsageError(
            f"a method named {method.name!r}", None, "give `Method` a `name` of letters, digits, '.' and '-'"
        )
    if METHODS.get(method.name, method) is not method and method.name in BUILT_IN:
        raise UsageError(f"'{method.name}' is a method of cmrhash", None, "give your method another name")
    METHODS[method.name] = method
    return method.name


def build_head(dim: int, bits: int, shape: Mapping[str, Any], view: str) -> Head:
    """The head that a run records for a view. shape: keywords of ``Head``; "network" names the method whose ``heads``
    it has; "rows" makes it a ``KernelHead`` with that many support rows, and "near" items that correct it; "words"
    holds the number of words of the views that have a ``SequenceHead``.

    Raises UsageError if that method is not registered here.
    """
    if "rows" in shape:
        return KernelHead(dim, bits, shape["rows"], shape.get("near", 0))
    own = {key: value for key, value in shape.items() if key not in ("network", "words")}
    if view in shape.get("words", {}):
        return SequenceHead(dim, bits, shape["words"][view], **own)
    if "network" not in shape:
        return Head(dim, bits, **own)
    method = METHODS.get(shape["network"])
    if method is None or method.heads is None:
        what = f"the heads of method '{shape['network']}' are not defined here"
        raise UsageError(what, None, "register the method first: `cmrhash.register(method)`")
    return Head(dim, bits, **own, network=method.heads(dim, bits))


def method_names(usable: Callable[[Method], bool] = lambda _: True) -> list[str]:
    """Names of usable methods, those for reproduction last."""
    names = [name for name, method in METHODS.items() if usable(method)]
    return sorted(names, key=lambda name: METHODS[name].reproduction)


def get_method(name: str, relevance: str = "labels") -> Method:
    """The method of that name; UsageError with the nearest name and the list for any other, and for one that learns
    from labels where ``relevance``, the data set's, is by pairs."""
    if name not in METHODS:
        fix = f"{did_you_mean(name, METHODS)} choose one of {some_of(method_names())}"
        raise UsageError(f"unknown method '{name}'", None, fix, option="method")
    if METHODS[name].labels and relevance != "labels":
        without = some_of(method_names(lambda method: not method.labels))
        raise UsageError(f"method '{name}' needs labels, but relevance is pairs", None, f"choose one of {without}")
    return METHODS[name]
