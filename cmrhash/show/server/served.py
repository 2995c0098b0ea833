"""Runs that the server has open: the one it was started with, and others of the same data set."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from cmrhash.config import ServeConfig
from cmrhash.errors import CmrhashError, UsageError
from cmrhash.search.hasher import Hasher
from cmrhash.show.html.links import Links
from cmrhash.show.html.photo_sizes import PhotoSizes
from cmrhash.show.html.thumbnails import Thumbnails
from cmrhash.show.server.pictures import Pictures
from cmrhash.training.runs import CONFIG, Run, open_run

log = logging.getLogger(__name__)

SIDE = 640  # pixels of a thumbnail's longer side: sharp on a tile of half of that


class UnknownRun(UsageError):
    """A name of which there is no run of the data set."""


@dataclass(frozen=True)
class Served:
    """An open run with its addresses and plots."""

    hasher: Hasher
    links: Links
    pictures: Pictures

    @property
    def plots(self) -> Mapping[str, str]:
        """Name of each plot -> its caption."""
        return self.pictures.names


class Collection:
    """The open runs of a data set, with its thumbnails and sizes of photos; for several threads.

    first: the run that the server was started with, which stays open. prefix: path before every address.
    """

    def __init__(self, first: Hasher, config: ServeConfig, prefix: str = "") -> None:
        self.config, self.prefix = config, prefix
        self.thumbs = Thumbnails(first.dataset.root, SIDE, config.thumb_bytes)
        self.sizes = PhotoSizes(first.dataset.root)
        self._first = self._serve(first, "")
        self._runs = self._beside(first)
        self._open: OrderedDict[str, Served] = OrderedDict()
        self._lock, self._opening = threading.Lock(), threading.Lock()

    @property
    def first(self) -> Served:
        """The run that the server was started with."""
        return self._first

    @property
    def names(self) -> list[str]:
        """Names of the runs to choose from, the first one included."""
        return sorted({*self._runs, self.first.hasher.run.folder.name})

    def get(self, name: str | None) -> Served | None:
        """Return a run that is open; name: None or "" for the first. Never waits."""
        if name is None or self._usual(name):
            return self.first
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
            return self._open.get(name)

    def of(self, name: str | None) -> Served:
        """Open a run at its first use; the least recently used one is closed if too many are open.

        Raises UnknownRun, and the errors of ``Hasher.open``.
        """
        with self._opening:
            if served := self.get(name):
                return served
            name = str(name)
            if name not in self._runs:
                self._runs = self._beside(self.first.hasher)  # it may have been trained meanwhile
            if name not in self._runs:
                what = f"There is no run '{name}' of this data set"
                raise UnknownRun(what, None, f"Choose one of {', '.join(self.names)}.")
            served = self._serve(self.first.hasher.with_run(self._runs[name]), name)
            with self._lock:
                self._open[name] = served
                while len(self._open) >= self.config.max_runs and len(self._open) > 1:
                    self._open.popitem(last=False)
            return served

    def _usual(self, name: str) -> bool:
        return name in ("", self.first.hasher.run.folder.name)

    def _serve(self, hasher: Hasher, name: str) -> Served:
        return Served(hasher, Links(self.prefix, name, hasher.dataset.sha256[:8], self.config.k), Pictures(hasher))

    def _beside(self, first: Hasher) -> dict[str, Run]:
        """Find the current runs of the data set that lie beside the first one."""
        found = {}
        for path in sorted(first.run.folder.parent.glob(f"*/{CONFIG}")):
            try:
                run = open_run(path.parent)
            except CmrhashError as error:
                log.info("not offered: %s", error)
                continue
            if run.dataset == first.run.dataset and run.is_current(first.data):
                found[path.parent.name] = run
        return found
