"""Runs that the server has open: the one it was started with, and others of the same data set."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from cmrhash.config import ServeConfig
from cmrhash.data.manifest import ABOUT
from cmrhash.data.switch import CHANGE
from cmrhash.errors import CmrhashError, UsageError, some_of
from cmrhash.search.hasher import Hasher
from cmrhash.show.html.links import Links
from cmrhash.show.html.photo_sizes import PhotoSizes
from cmrhash.show.html.thumbnails import Thumbnails
from cmrhash.show.server.pictures import Pictures
from cmrhash.training.runs import CODES, CONFIG, Run, open_run

log = logging.getLogger(__name__)

Signature = tuple[str, ...]
AGAIN = 2.0  # seconds between attempts to open a changed run
SIDE = 640  # pixels of a thumbnail's longer side: sharp on a tile of half of that


class UnknownRun(UsageError):
    """A name of which there is no run of the data set."""


def signature(hasher: Hasher) -> Signature:
    """State of the files whose change makes an open run outdated; "" for a missing file."""
    found = []
    for path in (hasher.folder / ABOUT, hasher.run.folder / CONFIG, hasher.run.folder / CODES):
        try:
            about = path.stat()
            found.append(f"{about.st_mtime_ns} {about.st_size} {about.st_ino}")
        except OSError:
            found.append("")
    return tuple(found)


@dataclass(frozen=True)
class Served:
    """An open run with its addresses and plots."""

    hasher: Hasher
    links: Links
    pictures: Pictures
    made: Signature

    @property
    def is_current(self) -> bool:
        """Whether the files of the run and of its data set are those that were opened."""
        return self.made == signature(self.hasher)

    @property
    def plots(self) -> Mapping[str, str]:
        """Name of each plot -> its caption."""
        return self.pictures.names


class Collection:
    """The open runs of a data set, with its thumbnails and sizes of photos; for several threads.

    first: the run that the server was started with, which stays open; it is opened again when its files have changed,
    by a thread of its own, and requests get the old one until then. prefix: path before every address.
    """

    def __init__(self, first: Hasher, config: ServeConfig, prefix: str = "") -> None:
        self.config, self.prefix = config, prefix
        self._runs: dict[str, Run] = {}
        self._open: OrderedDict[str, Served] = OrderedDict()
        self._lock, self._opening = threading.Lock(), threading.Lock()
        self._renewing, self._tried = threading.Lock(), 0.0
        self._take(first, signature(first))

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
        self._renew()
        if name is None or self._usual(name):
            return self.first
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
                if not self._open[name].is_current:
                    self._open.pop(name)
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
                raise UnknownRun(what, None, f"Choose one of {some_of(self.names)}.")
            hasher = self.first.hasher.with_run(self._runs[name])
            served = self._serve(hasher, name, signature(hasher))
            with self._lock:
                self._open[name] = served
                while len(self._open) >= self.config.max_runs and len(self._open) > 1:
                    self._open.popitem(last=False)
            return served

    def _renew(self) -> None:
        """Start to open the first run again if its files have changed and no change is under way."""
        first, now = self.first, time.monotonic()
        if first.is_current or now < self._tried + AGAIN or (first.hasher.folder / CHANGE).exists():
            return
        if self._renewing.acquire(blocking=False):
            self._tried = now
            threading.Thread(target=self._open_again, args=(first.hasher,), daemon=True).start()

    def _open_again(self, hasher: Hasher) -> None:
        try:
            made = signature(hasher)
            fresh = hasher.reopened()
            now = signature(hasher)
            if made[:-1] == now[:-1]:  # not changed again meanwhile; the codes may have been made just now
                self._take(fresh, now)
                log.info("%s: opened again, %d items", fresh.run.folder, len(fresh.dataset.items))
        except (CmrhashError, OSError) as error:
            log.warning("%s changed and cannot be opened: %s", hasher.run.folder, error)
        finally:
            self._renewing.release()

    def _take(self, first: Hasher, made: Signature) -> None:
        """Serve a run as the first one; made: of its files."""
        self.thumbs = Thumbnails(first.dataset.root, SIDE, self.config.thumb_bytes)
        self.sizes = PhotoSizes(first.dataset.root)
        self._runs = self._beside(first)
        self._first = self._serve(first, "", made)
        with self._lock:
            self._open.clear()

    def _usual(self, name: str) -> bool:
        return name in ("", self.first.hasher.run.folder.name)

    def _serve(self, hasher: Hasher, name: str, made: Signature) -> Served:
        links = Links(self.prefix, name, hasher.dataset.sha256[:8], self.config.k)
        return Served(hasher, links, Pictures(hasher), made)

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
