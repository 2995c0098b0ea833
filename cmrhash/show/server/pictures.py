"""Plots of the served run, drawn at their first request and kept."""

from __future__ import annotations

from importlib.util import find_spec

from cmrhash.config import PLOTS, PlotConfig
from cmrhash.errors import CmrhashError
from cmrhash.search.hasher import Hasher
from cmrhash.show import plots, themed
from cmrhash.show.figures import KINDS
from cmrhash.show.sources import ShownRuns
from cmrhash.training import runs

OF_A_LANGUAGE = ("pr", "pr-rank", "topn", "tsne")  # one plot per language
OF_ALL_RUNS = ("bits", "seen")


class Pictures:
    """Plots of a run. names: name in the URL -> caption; empty without Matplotlib."""

    def __init__(self, hasher: Hasher) -> None:
        self._hasher = hasher
        self._drawn: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        for kind, words in PLOTS.items() if find_spec("matplotlib") else ():
            if kind in OF_A_LANGUAGE:
                named = {f"{kind}-{lang}": f"{words}, {lang}" for lang in hasher.langs}
            else:
                named = {kind: words}
            self.names |= named
            self._kinds |= dict.fromkeys(named, kind)

    def svg(self, name: str) -> bytes:
        """Draw a plot as SVG, or the reason why it cannot be drawn. name: one of ``names``."""
        if name not in self._drawn:
            kind = self._kinds[name]
            mine = [other for other, of in self._kinds.items() if of == kind]
            try:
                drawn = [of.figure for of in KINDS[kind](self._source(kind))]
            except CmrhashError as error:
                drawn = [plots.words(f"not available: {error.what}")] * len(mine)
            self._drawn |= dict(zip(mine, map(themed.themed, drawn), strict=True))
        return self._drawn[name]

    def _source(self, kind: str) -> ShownRuns:
        run, dataset = self._hasher.run, self._hasher.dataset
        found = [run]
        if kind in OF_ALL_RUNS:
            beside = run.folder.parents[1]
            found = runs.find_runs(beside, dataset.name, dataset.relevance)
        return ShownRuns(self._hasher.data, found, (), PlotConfig.items)
