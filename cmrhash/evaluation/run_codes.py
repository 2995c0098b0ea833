"""Codes of a run: features hashed by the trained heads, with Faiss indexes.

``codes.h5`` in the run's folder holds, for each view, ``<view>.packed`` (M, ceil(bits/8)) uint8, ``<view>.embedding``
(M, bits) float32 and ``<view>.item`` (M,) int64 of every valid row, and ``<view>.database`` (n,) int64, the rows that
``<view>.faiss`` indexes, in its order: the first caption of each database item, or all where relevance is by pairs.
Where queries are embedded differently from database items, ``<view>.query`` (M, bits) float32 holds their embeddings.

A text head also hashes other languages whose captions went through the same text encoder. The run borrows these views,
so that a training on one language can be scored on another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.config import STORE_DTYPE
from cmrhash.data.items import ImageTextDataset, with_relevance
from cmrhash.data.view import View, languages_of
from cmrhash.errors import DamagedError, UsageError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.features.file import FeatureHeader
from cmrhash.features.views import ordinals, scored_rows
from cmrhash.retrieval.codes import Codes, pack
from cmrhash.retrieval.index import BinaryIndex
from cmrhash.storage.files import checked, locked, sha256
from cmrhash.storage.hdf5 import read_sealed, write_sealed
from cmrhash.storage.recipes import Difference, first_difference
from cmrhash.storage.sealed import read_manifest
from cmrhash.training import runs
from cmrhash.training.runs import Run

if TYPE_CHECKING:
    from torch.nn import ModuleDict

    from cmrhash.training.numpy_heads import NumpyHead

AMONG = ("database", "all")  # items that a search covers
PARTS = ("packed", "embedding", "item", "database")
QUERY = "query"  # a part that only runs with two roles have
AGAIN = "delete it; `evaluate` creates it again"


@dataclass(frozen=True)
class ViewCodes:
    """Codes of one view of a run.

    embedding: (M, bits) float32. database: (n,) int64 rows in the index, in its order. head: view whose head made the
    codes, another view for a borrowed language. query: (M, bits) float32 embeddings of the rows as queries, None where
    they are those of database items.
    """

    view: View
    codes: Codes
    embedding: NDArray[np.float32]
    database: NDArray[np.int64]
    index: BinaryIndex
    head: View
    query: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        return (
            f"ViewCodes({self.view!r}, {len(self.codes)} codes of {self.codes.bits} bits, {len(self.database)} indexed)"
        )

    @property
    def asked(self) -> NDArray[np.float32]:
        """Embeddings of the rows as queries, (M, bits) float32."""
        return self.embedding if self.query is None else self.query

    @cached_property
    def asked_packed(self) -> NDArray[np.uint8]:
        """Packed codes of the rows as queries, (M, ceil(bits / 8)) uint8."""
        return self.codes.packed if self.query is None else pack(self.query)

    @cached_property
    def ordinal(self) -> NDArray[np.int64]:
        """Position of each row among the rows of its item, from 0, (M,) int64."""
        return ordinals(self.codes.item)

    def caption(self, dataset: ImageTextDataset, row: int, lang: str) -> str | None:
        """Caption that a row represents in a language; None if its item has none.

        It is the first caption for rows of other views, and where some captions of the item have no code.
        """
        item = int(self.codes.item[row])
        captions = dataset.items[item].texts.get(lang, ())
        if not captions:
            return None
        coded = int(np.searchsorted(self.codes.item, item, "right") - np.searchsorted(self.codes.item, item))
        own = self.view.lang == lang and coded == len(captions)
        return captions[int(self.ordinal[row])] if own else captions[0]


class RunCodes(Mapping[View, ViewCodes]):
    """Codes of a run by view; the header is read at once, the codes at first use."""

    def __init__(self, run: Run, manifest: Mapping[str, Any]) -> None:
        self.run, self._manifest = run, manifest
        try:
            self._names = [View(name.removesuffix(".faiss")) for name in manifest["indexes"]]
        except ValueError as error:
            raise DamagedError(f"codes of an unknown view ({error})", run.folder / runs.CODES, AGAIN) from None

    @property
    def sha256(self) -> str:
        """SHA-256 of the codes."""
        return str(self._manifest["payload_sha256"])

    @property
    def langs(self) -> list[str]:
        """Languages with codes, sorted."""
        return languages_of(self)

    @cached_property
    def _read(self) -> dict[View, ViewCodes]:
        path = self.run.folder / runs.CODES
        _, arrays = read_sealed(path, self._manifest)
        borrowed = self._manifest["recipe"]["borrowed"]
        views = {}
        for view in self._names:
            digest = self._manifest["indexes"][view.index_file]
            index = BinaryIndex.load(checked(self.run.folder, view.index_file, digest, AGAIN), self.run.bits)
            if lacking := [part for part in PARTS if f"{view}.{part}" not in arrays]:
                raise DamagedError(f"'{view}.{lacking[0]}' is missing", path, AGAIN)
            packed, embedding, item, database = (arrays[f"{view}.{part}"] for part in PARTS)
            head = View(borrowed.get(view, {"head": view})["head"])
            query = arrays.get(f"{view}.{QUERY}")
            views[view] = ViewCodes(view, Codes(packed, self.run.bits, item), embedding, database, index, head, query)
        return views

    def __getitem__(self, view: View) -> ViewCodes:
        return self._read[view]

    def __iter__(self) -> Iterator[View]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"RunCodes({str(self.run.folder)!r}, {self.run.bits} bits, {', '.join(self._names)})"


def codes_of(run: Run, data: ExtractedDataset) -> RunCodes:
    """Codes of a run, made first if they are missing, or of other heads, items or features (needs torch).

    Raises StaleError if the heads do not fit the features, LockedError if another process makes the codes,
    DamagedError for a file that does not match its digest.
    """
    manifest = _current_manifest(run, data)
    if manifest is None:
        with locked(run.folder / runs.CODES):
            _make(run, data)
        manifest = read_manifest(run.folder / runs.CODES)
    return RunCodes(run, manifest)


def stored_codes(run: Run) -> RunCodes:
    """Codes in the run's folder; raises DataError if there are none."""
    return RunCodes(run, read_manifest(run.folder / runs.CODES))


def among_all(dataset: ImageTextDataset, views: Mapping[View, ViewCodes]) -> dict[View, ViewCodes]:
    """Index the codes of all items instead of the database, for searches only.

    Scores always use the database alone.
    """
    return _indexed(dataset, views, np.arange(len(dataset.items)))


def among_database(dataset: ImageTextDataset, views: RunCodes) -> Mapping[View, ViewCodes]:
    """Codes of a run, indexed for a data set under a relevance that need not be that of the training."""
    if views.run.relevance == dataset.relevance:
        return views
    return _indexed(dataset, views, np.flatnonzero(["database" in item.splits for item in dataset.items]))


def _indexed(
    dataset: ImageTextDataset, views: Mapping[View, ViewCodes], items: NDArray[np.int64]
) -> dict[View, ViewCodes]:
    found = {}
    for name, view in views.items():
        rows = scored_rows(dataset, view.codes.item, items)
        index = BinaryIndex.build(np.ascontiguousarray(view.codes.packed[rows]), view.codes.bits)
        found[name] = replace(view, database=rows, index=index)
    return found


# ---------------------------------------------------------------------------------------------- making codes


def load_heads(run: Run) -> ModuleDict:
    """Trained heads of a run by view name, in eval mode on the CPU."""
    import torch

    from cmrhash.training.checkpoint import fill, read_tensors
    from cmrhash.training.methods import build_head

    heads = torch.nn.ModuleDict(
        {view: build_head(of.dim, run.bits, run.head, view) for view, of in run.features.items()}
    )
    path = run.file(runs.HEADS)
    fill(heads, read_tensors(path, runs.ANEW), path, runs.ANEW)
    return heads.eval()


def load_light_heads(run: Run) -> dict[View, NumpyHead]:
    """The same without torch; {} where they need torch."""
    from cmrhash.training.numpy_heads import read_heads

    return read_heads(run.file(runs.HEADS), run.features, run.head)


def _recipe(
    run: Run, data: ExtractedDataset, borrowed: Mapping[View, Borrowed], codes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All that the codes depend on now. codes: manifest of existing codes, whose features may be deleted since."""
    made = codes["recipe"]["features"] if codes else {}
    now: dict[View, str] = {}
    for view, of in run.features.items():
        header = data.header(of.file) if of.sha256 else None
        now[view] = header.sha256 if header else made.get(view, of.sha256)
    return run.codes_recipe(data.dataset.sha256, now, {view: asdict(of) for view, of in borrowed.items()})


def _current_manifest(run: Run, data: ExtractedDataset) -> Mapping[str, Any] | None:
    """Manifest of ``codes.h5``, None if the codes must be made.

    It must match the run's heads and all languages that can be borrowed now, and its indexes must exist. Codes stay
    valid when their features are deleted.
    """
    path = run.folder / runs.CODES
    if not path.exists():
        return None
    manifest = read_manifest(path)
    fitting = manifest["recipe"] == _recipe(run, data, borrowed_views(run, data, manifest), manifest)
    return manifest if fitting and all((run.folder / name).exists() for name in manifest["indexes"]) else None


def _make(run: Run, data: ExtractedDataset) -> None:
    import torch

    run.refuse_stale(data)
    dataset = with_relevance(data.dataset, run.relevance)
    heads = load_heads(run)
    borrowed = borrowed_views(run, data)
    in_database = np.flatnonzero(["database" in item.splits for item in dataset.items])
    arrays: dict[str, NDArray[Any]] = {}
    digests = {}
    made_of = [view for view, of in run.features.items() if of.sha256]
    for view in [*made_of, *borrowed]:
        made: runs.TrainedOn | Borrowed = borrowed[view] if view in borrowed else run.features[view]
        of = data.features(view, view.encoder_of(made.file))
        x = torch.from_numpy(of.x)
        head: Any = heads[borrowed[view].head if view in borrowed else view]
        captions = of.captions(dataset)
        embedding = head.embed(x, captions=captions).numpy()
        packed = pack(embedding)
        database = scored_rows(dataset, of.items, in_database)
        index_path = run.folder / view.index_file
        BinaryIndex.build(np.ascontiguousarray(packed[database]), run.bits).save(index_path)
        digests[index_path.name] = sha256(index_path)
        parts = zip(PARTS, (packed, embedding, of.items, database.astype(np.int64)), strict=True)
        arrays |= {f"{view}.{part}": array for part, array in parts}
        if run.has_two_roles:
            arrays[f"{view}.{QUERY}"] = head.embed(x, query=True, captions=captions).numpy()
    manifest = {"kind": "codes", "recipe": _recipe(run, data, borrowed), "indexes": digests}
    write_sealed(run.folder / runs.CODES, arrays, manifest)


# ---------------------------------------------------------------------------------------------- borrowed languages


@dataclass(frozen=True)
class Borrowed:
    """A view without a head of its own: the view whose head hashes it, and its feature file."""

    head: View
    file: str
    sha256: str


def borrowed_views(run: Run, data: ExtractedDataset, codes: Mapping[str, Any] | None = None) -> dict[View, Borrowed]:
    """Views of languages without a head, extracted exactly as a trained language.

    The head is that of the first trained language that fits. codes: manifest of existing codes; once all features of
    the run are deleted, the borrowed views are those of its codes.
    """
    if not any(data.header(of.file) for of in run.features.values()):
        path = run.folder / runs.CODES
        manifest = codes or (read_manifest(path) if path.exists() else None)
        if manifest is not None:
            return {View(name): Borrowed(**of) for name, of in manifest["recipe"].get("borrowed", {}).items()}
    borrowed = {}
    for lang in data.dataset.languages:
        others = [] if lang in run.langs else _others(run, data, lang)
        fitting = [(head, header) for head, header, difference in others if difference is None]
        if fitting:
            head, header = fitting[0]
            borrowed[View.text(lang)] = Borrowed(head, header.path.name, header.sha256)
    return borrowed


def refuse_language(run: Run, data: ExtractedDataset, lang: str) -> None:
    """Raise UsageError with the reason why the run cannot score a language.

    Its features are missing, or come from another text encoder.
    """
    others = _others(run, data, lang) if lang else []
    if not others:
        raise data.no_features(lang, [str(view.lang) for view in data.present() if not view.is_image])
    head, header, difference = others[0]
    assert difference is not None
    field, found, wanted = difference
    what = f"{run.name} cannot score '{lang}': its texts were encoded with {field} = {found}"
    what += f", those of {head} with {wanted}"
    raise UsageError(
        what, header.path, f'run `train` with `langs=("{lang}",)`, or `extract` both languages with one text model'
    )


def _others(run: Run, data: ExtractedDataset, lang: str) -> list[tuple[View, FeatureHeader, Difference | None]]:
    """Pair each feature file of a language with each trained language and their first difference."""
    pairs = []
    for trained in map(View.text, run.langs):
        mine = data.header(run.features[trained].file)
        for header in data.headers(View.text(lang)) if mine else []:
            assert mine is not None
            asked, made = ({**of.recipe, "lang": "", STORE_DTYPE: "", "runtime": ""} for of in (mine, header))
            pairs.append((trained, header, first_difference(made, asked)))
    return pairs
