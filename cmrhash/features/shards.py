"""Sharded feature files: several processes extract a shard each, the last one merges.

A shard is a range of whole blocks, so batches, padding and finally the bytes equal those of a single process. It is a
sealed feature file ``X.h5.shard-3-of-8`` beside the whole one, with the same recipe plus its row range; it survives a
kill and resumes as the whole file would. Merging copies block by block and removes the shards.
"""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import DamagedError, LockedError, StaleError, UsageError
from cmrhash.features.file import FeatureWriter, open_features, read_features, read_header
from cmrhash.storage.files import drop_lock, locked, move
from cmrhash.storage.recipes import first_difference, refuse_difference
from cmrhash.storage.sealed import OVERWRITE, SHARD, merging, read_note

Sources = Callable[[slice], NDArray[np.uint8]]  # rows -> (M, 16) digests of their present sources
OF_ITEMS = ("items",)  # fields of a recipe that change with the items
OF_CORPUS = ("items", "weights_sha256", "tokenizer_sha256", "words", "idf_sha256")  # if the encoder learns from them


@dataclass(frozen=True)
class Shard:
    """Share of the work of one process, counted from 1."""

    number: int = 1
    of: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse(option: str | None) -> Shard:
    """Parse a shard option: "3/8" is the third of eight, None the whole; raises UsageError."""
    if option is None:
        return Shard()
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", option)
    number, of = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= of:
        raise UsageError(
            f"'{option}' is not a shard", None, "write I/N with I from 1 to N, such as 3/8", option="shard"
        )
    return Shard(number, of)


@dataclass
class Target:
    """A feature file to extract, and this process's share of it.

    path, item, ids, dim, recipe, block_rows, overwrite: of the whole file, as for FeatureWriter. now: present source
    digests of rows; None if the recipe covers them. changing: fields of the recipe that change with the items. valid:
    (M,) bool, known once this process's share is finished, for its rows, and for all rows once the file is whole.
    missing: unfinished shards. outdated: the file was made of other items, photos or captions; its rows whose sources
    are still there are used again (``reuse``).
    """

    path: Path
    item: NDArray[np.int32]
    ids: tuple[str, ...]
    dim: int
    recipe: Mapping[str, Any]
    block_rows: int
    shard: Shard
    overwrite: bool
    now: Sources | None = None
    changing: tuple[str, ...] = OF_ITEMS
    valid: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    whole: bool = False
    missing: tuple[int, ...] = ()
    outdated: bool = False
    _former: Former | None = None

    @property
    def rows(self) -> slice:
        """Rows of this process."""
        return self._shard_rows(self.shard.number)

    @property
    def own(self) -> Path:
        """Path of this process's shard."""
        return self._shard_path(self.shard.number)

    def rows_of(self, block: int) -> slice:
        """Rows of one of this process's blocks."""
        first = self.rows.start + block * self.block_rows
        return slice(first, min(first + self.block_rows, self.rows.stop))

    def found(self) -> bool:
        """Whether nothing is left to extract here: the file or this process's shard is finished.

        Raises StaleError, unless ``overwrite``, for another recipe and for shards of another total.
        """
        if self.path.exists() and not self.overwrite:
            with open_features(self.path) as (header, arrays):
                self.outdated = self.outdated or self._is_outdated(header.recipe, arrays)
                if not self.outdated:
                    refuse_difference(header.recipe, self.recipe, self.path, "feature file")
                    self._is_whole(arrays["valid"][...])
                    return True
                refuse_other_recipe(self.path, self.recipe, self.changing, header.recipe)
                if self.shard.of > 1:
                    what = "items, photos or captions changed since the extraction"
                    raise StaleError(what, self.path, f"leave out `shard`, or {OVERWRITE}")
        if self.shard.of == 1:
            return False
        self._refuse_other_shards()
        return self.rows.start == self.rows.stop or self._own_is_good()

    @contextlib.contextmanager
    def writer(self) -> Iterator[FeatureWriter]:
        """Open the writer of this process's rows; blocks with changed sources count as not done."""
        whole = self.shard.of == 1
        path, recipe = (self.path, self.recipe) if whole else (self.own, self._shard_recipe(self.shard.number))
        item, ids = (self.item, self.ids) if whole else (self.item[self.rows], ())
        replace = self.overwrite or self.outdated
        with (
            self._reused() as self._former,
            FeatureWriter(path, item, ids, self.dim, recipe, self.block_rows, replace) as writer,
        ):
            for block in sorted(writer.done):
                if self.now and not np.array_equal(writer.committed("source", block), self.now(self.rows_of(block))):
                    writer.done.remove(block)
            yield writer

    def known(self, source: NDArray[np.uint8]) -> bool:
        """Whether the outdated file has features of this source (16,)."""
        return self._former is not None and source.tobytes() in self._former.row

    def reuse(self, source: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        """Features (N, D) and validity (N,) of sources (N, 16) that the outdated file has; which these are (N,)."""
        x, valid = np.zeros((len(source), self.dim), np.float32), np.zeros(len(source), bool)
        known = np.array([self.known(one) for one in source], bool)
        if known.any():
            assert self._former is not None
            x[known], valid[known] = self._former.read([self._former.row[one.tobytes()] for one in source[known]])
        return x, valid, known

    def refuse_gone(self, ids: Iterable[str]) -> None:
        """Raise StaleError if the outdated file has features of these items, whose sources are gone."""
        before = read_features(self.path)
        had = {before.ids[item] for item in before.item[before.valid]}
        if gone := [ident for ident in ids if ident in had]:
            names = f"{', '.join(gone[:3])}{', ...' if len(gone) > 3 else ''}"
            what = f"{len(gone)} photos were there at the extraction and are gone ({names})"
            raise StaleError(what, self.path, "put them back, or extract without them with `overwrite=True`")

    @contextlib.contextmanager
    def _reused(self) -> Iterator[Former | None]:
        """Open the outdated file, if an encoder of the same weights made it."""
        if not self.outdated:
            yield None
            return
        with open_features(self.path) as (header, arrays):
            same = {key: value for key, value in self.recipe.items() if key != "items"}
            usable = {key: value for key, value in header.recipe.items() if key != "items"} == same
            yield Former.of(arrays) if usable else None

    def seal(self, writer: FeatureWriter, made_with: Mapping[str, Any]) -> None:
        """Finish this process's share."""
        valid = _valid(writer)
        writer.seal(made_with)
        if self.shard.of == 1:
            self._is_whole(valid)
        else:
            self.valid = valid.astype(bool)

    def merge(self, beside: Callable[[], None], progress: Callable[[int, int], None]) -> None:
        """Merge the shards if all are finished, else list the others in ``missing``.

        If two processes finish at once, the second waits and finds the file. beside: writes the files that accompany
        it.
        """
        if self.whole:
            return
        lock = merging(self.path)
        with locked(lock, wait=True):
            if self._was_merged():
                return
            numbers = [n for n in range(1, self.shard.of + 1) if self._shard_rows(n).start < self._shard_rows(n).stop]
            self.missing = tuple(n for n in numbers if not self._is_finished(n))
            if not self.missing:
                self._merge(numbers, beside, progress)
                drop_lock(lock)

    # ------------------------------------------------------------------------------------------ the whole file

    def _is_whole(self, valid: NDArray[Any]) -> None:
        self.valid, self.whole, self.missing = valid.astype(bool), True, ()
        remove_shards(self.path)

    def _is_outdated(self, made: Mapping[str, Any], arrays: Mapping[str, Any]) -> bool:
        """Whether the file was made of other items, photos or captions."""
        other = made.get("items") != self.recipe.get("items") or not np.array_equal(arrays["item"][...], self.item)
        return other or bool(self._changed(arrays["source"], 0))

    def _changed(self, source: Any, first: int) -> list[int]:
        """Rows of this process whose sources changed. source: array on disk, from row ``first`` on."""
        if self.now is None:
            return []
        changed: list[int] = []
        for start in range(self.rows.start, self.rows.stop, self.block_rows):
            rows = slice(start, min(start + self.block_rows, self.rows.stop))
            differ = (source[rows.start - first : rows.stop - first] != self.now(rows)).any(1)
            changed += (start + np.flatnonzero(differ)).tolist()
        return changed

    def _was_merged(self) -> bool:
        """Whether another process merged the file meanwhile."""
        if not self.path.exists():
            return False
        difference = first_difference(read_header(self.path).recipe, self.recipe)
        if self.overwrite and (difference or self.own.exists()):
            return False  # the file to be replaced
        with open_features(self.path) as (header, arrays):
            refuse_difference(header.recipe, self.recipe, self.path, "feature file")
            self._is_whole(arrays["valid"][...])
        return True

    def _merge(self, numbers: list[int], beside: Callable[[], None], progress: Callable[[int, int], None]) -> None:
        made_with = [read_header(self._shard_path(number)).made_with for number in numbers]
        devices = dict.fromkeys(made["device"] for made in made_with if "device" in made)
        with FeatureWriter(
            self.path, self.item, self.ids, self.dim, self.recipe, self.block_rows, self.overwrite
        ) as writer:
            for number in numbers:
                rows = self._shard_rows(number)
                with open_features(self._shard_path(number)) as (_, arrays):
                    self._refuse_other_rows(self._shard_path(number), arrays["item"], rows)
                    for block in range(rows.start // self.block_rows, -(-rows.stop // self.block_rows)):
                        there = writer.slice(block)
                        at = slice(there.start - rows.start, there.stop - rows.start)
                        writer.commit(block, arrays["x"][at], arrays["valid"][at].astype(bool), arrays["source"][at])
                progress(rows.stop, writer.rows)
            valid = _valid(writer)
            beside()
            writer.seal({**made_with[0], **({"device": "; ".join(devices)} if devices else {})})
        self._is_whole(valid)

    # ------------------------------------------------------------------------------------------ shards

    def _shard_path(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.shard-{number}-of-{self.shard.of}")

    def _shard_rows(self, number: int) -> slice:
        """Rows of a shard: blocks are dealt out evenly, none if there are too few."""
        blocks = -(-len(self.item) // self.block_rows)
        first, last = (blocks * n // self.shard.of * self.block_rows for n in (number - 1, number))
        return slice(first, min(last, len(self.item)))

    def _shard_recipe(self, number: int) -> dict[str, Any]:
        rows = self._shard_rows(number)
        own = {"number": number, "of": self.shard.of, "first_row": rows.start, "end_row": rows.stop}
        return {**self.recipe, "shard": own}

    def _own_is_good(self) -> bool:
        """Whether this process's shard is finished and current.

        A shard with changed sources becomes unfinished again, so that only its changed blocks are extracted.
        """
        if not self.own.exists():
            return False
        with locked(self.own):
            try:
                with open_features(self.own) as (header, arrays):
                    refuse_difference(header.recipe, self._shard_recipe(self.shard.number), self.own, "shard")
                    self._refuse_other_rows(self.own, arrays["item"], self.rows)
                    changed = self._changed(arrays["source"], self.rows.start)
                    self.valid = arrays["valid"][...].astype(bool)
            except (StaleError, DamagedError):
                if not self.overwrite:
                    raise
                self.own.unlink()
                return False
            if changed:
                move(self.own, Path(f"{self.own}.part"))  # durable before the first write
        return not changed

    def _is_finished(self, number: int) -> bool:
        """Whether a shard is finished; raises StaleError for another recipe, unless overwriting."""
        path = self._shard_path(number)
        if not path.exists():
            return False
        made, asked = read_header(path).recipe, self._shard_recipe(number)
        if not self.overwrite:
            refuse_difference(made, asked, path, "shard")
        return first_difference(made, asked) is None

    def _refuse_other_rows(self, path: Path, item: Any, rows: slice) -> None:
        if not np.array_equal(item[...], self.item[rows]):
            raise StaleError("made of other captions", path, OVERWRITE)

    def _refuse_other_shards(self) -> None:
        """Refuse shards that cannot be merged with those of this call, before any encoder runs."""
        part = self.path.with_name(f"{self.path.name}.part")
        if part.exists() and not self.overwrite and (unfinished := read_note(part)):
            refuse_difference(unfinished.recipe, self.recipe, part, "unfinished file")
        others = {path: of for path, _, of in _shards(self.path) if of != self.shard.of}
        if others and self.overwrite:
            remove_shards(self.path, keep=self.shard.of)
        elif others:
            path, of = next(iter(others.items()))
            what = f"there are shards I/{of}, but this call makes one of {self.shard.of}"
            raise StaleError(what, path, f'finish them with `shard="I/{of}"`, or delete {self.path}.shard-*')


@dataclass(frozen=True)
class Former:
    """Rows of an outdated feature file. row: digest of a source -> row; x, valid: the arrays on disk."""

    row: dict[bytes, int]
    x: Any
    valid: Any

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Former:
        """The rows of an open feature file; a source of zeros stands for none."""
        sources = arrays["source"][...]
        row = {source.tobytes(): n for n, source in enumerate(sources) if source.any()}
        return cls(row, arrays["x"], arrays["valid"])

    def read(self, rows: list[int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Features (N, D) and validity (N,) of these rows."""
        first, last = min(rows), max(rows) + 1  # rows of a block lie near each other
        at = np.array(rows) - first
        return self.x[first:last][at], self.valid[first:last][at].astype(bool)


def refuse_other_recipe(
    path: Path, recipe: Mapping[str, Any], changing: tuple[str, ...], made: Mapping[str, Any] | None = None
) -> None:
    """Raise StaleError if a feature file was made by another recipe, whatever its items.

    changing: fields that change with the items. made: the recipe of the file, if it was read before.
    """
    made = made if made is not None else read_header(path).recipe
    found, asked = ({key: value for key, value in of.items() if key not in changing} for of in (made, recipe))
    refuse_difference(found, asked, path, "feature file")


def remove_shards(path: Path, keep: int = 0) -> None:
    """Remove the shards of a feature file, except locked ones and shards of a total of ``keep``."""
    for shard, _, of in _shards(path):
        if of != keep:
            with contextlib.suppress(LockedError), locked(shard):
                for suffix in ("", ".part", ".part.new"):
                    Path(f"{shard}{suffix}").unlink(missing_ok=True)
                drop_lock(shard)


def _shards(path: Path) -> list[tuple[Path, int, int]]:
    """Existing shards of a feature file, finished or not: path, number, total."""
    found = {}
    for name in glob.glob(f"{glob.escape(path.name)}.shard-*", root_dir=path.parent):
        shard = name.removesuffix(".new").removesuffix(".part")
        if match := SHARD.fullmatch(shard):
            found[path.with_name(shard)] = int(match[2]), int(match[3])
    return [(shard, number, of) for shard, (number, of) in sorted(found.items())]


def _valid(writer: FeatureWriter) -> NDArray[Any]:
    """ "valid" (N,) of a writer whose blocks are all done."""
    return np.concatenate([writer.committed("valid", block) for block in range(writer.blocks)])
