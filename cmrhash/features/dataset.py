"""The extracted data set: items and feature files in the cache, each read once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cmrhash.data import manifest
from cmrhash.data.cleaning import known_language
from cmrhash.data.items import ImageTextDataset, also_of, ids_digest, with_relevance
from cmrhash.data.view import View
from cmrhash.errors import UsageError, did_you_mean
from cmrhash.features.file import FeatureHeader, read_features, read_header
from cmrhash.features.views import ViewFeatures, chosen_encoders, over_items

Stamp = tuple[int, int, int]  # inode, size and modification time (ns) of a file


class ExtractedDataset:
    """A data set in the cache: items (``dataset``), its ``folder`` and its feature files.

    Headers and features stay in memory and are read again only if the file was replaced.
    """

    def __init__(self, dataset: ImageTextDataset, folder: Path) -> None:
        self.dataset, self.folder = dataset, folder
        self._headers: dict[Path, tuple[Stamp, FeatureHeader]] = {}
        self._features: dict[Path, tuple[Stamp, ViewFeatures]] = {}

    @classmethod
    def open(cls, cache: str | Path, name: str | None = None) -> ExtractedDataset:
        """Open the data set of that name, or the only one in the cache.

        Raises UsageError if none or several fit, DamagedError or StaleError for files that cannot be used.
        """
        return cls(*manifest.open_extracted(Path(cache), name))

    def __repr__(self) -> str:
        langs = ", ".join(self.dataset.languages)
        return f"ExtractedDataset({self.name!r}, {len(self.dataset.items)} items, {langs}, in {str(self.folder)!r})"

    @property
    def name(self) -> str:
        """Name of the data set and of its folder."""
        return self.dataset.name

    def with_relevance(self, asked: str | None) -> ExtractedDataset:
        """The data set under another relevance rule, "labels" or "pairs"; None keeps its own."""
        other = ExtractedDataset(with_relevance(self.dataset, asked), self.folder)
        other._headers, other._features = self._headers, self._features
        return other

    def lost_photos(self) -> Path | None:
        """Folder of the photos that is not there any more, None if all are."""
        if not any(item.image for item in self.dataset.items):
            return None
        root = self.dataset.root
        return next((folder for folder in (root, *also_of(root)) if not folder.is_dir()), None)

    def release(self) -> None:
        """Drop the features from memory; keep the headers."""
        self._features.clear()

    # ------------------------------------------------------------------------------------------ headers

    def header(self, file: str) -> FeatureHeader | None:
        """Header of the feature file of that name, None if the file does not exist."""
        path = self.folder / file
        stamp = _stamp(path)
        if stamp is None:
            return None
        if path not in self._headers or self._headers[path][0] != stamp:
            self._headers[path] = stamp, read_header(path)
        return self._headers[path][1]

    def headers(self, view: View) -> list[FeatureHeader]:
        """Headers of all feature files of a view, sorted by file name."""
        return [header for header in self._all(f"{view}-*.h5") if header.view == view]

    def present(self) -> dict[View, list[FeatureHeader]]:
        """Headers of the feature files of these items, by view; files of other items are left out."""
        items, found = ids_digest(self.dataset), dict[View, list[FeatureHeader]]()
        for header in [*self._all(View.IMAGE.feature_file("*")), *self._texts()]:
            if header.recipe.get("items") == items:
                found.setdefault(header.view, []).append(header)
        return found

    @property
    def no_captions(self) -> bool:
        """Whether there are photos alone: no caption, and no text features."""
        return self.dataset.languages == () and not self._texts()

    def languages(self, asked: Sequence[str] = ()) -> list[str]:
        """Extracted languages, or those of ``asked``; raises UsageError for a language without features.

        A language counts if the data set has captions in it, or if it has ready-made features.
        """
        if self.no_captions:
            what = "no item has a caption, so there is nothing to train or score"
            fix = "to search photos by text, hash them by a trained run: `index` `with_run=RUN`; or extract them by a "
            fix += 'dual encoder such as CLIP, and train with `method="itq"`'
            raise UsageError(what, self.folder, fix)
        texts = self._texts()
        own = set(self.dataset.languages)
        there = sorted({str(h.view.lang) for h in texts if h.view.lang in own or h.is_ready_made})
        asked = [known_language(lang, there) for lang in asked]
        unknown = [lang for lang in asked if lang not in there]
        if unknown or not there:
            raise self.no_features(unknown[0] if unknown else None, there)
        return [lang for lang in there if not asked or lang in asked]

    def no_features(self, lang: str | None, there: Sequence[str]) -> UsageError:
        """Make the error for a language without features, None for any of them. there: the languages that have some."""
        what = f"no features for language '{lang}'" if lang is not None else "no text features"
        lacks = lang is not None and lang not in self.dataset.languages
        fix = "no item has captions in it: leave it out, or add some" if lacks else "run `extract` with `langs` first"
        return UsageError(f"{what} (there: {', '.join(there) or 'none'})", self.folder, fix)

    def find(self, view: View, encoder: str | None = None) -> FeatureHeader:
        """Header of the feature file of a view; ``encoder`` selects one of several.

        Raises UsageError if none or several fit.
        """
        there = self.headers(view)
        names = [header.encoder for header in there]
        if encoder is not None:
            there = [header for header in there if header.encoder == encoder]
        if len(there) == 1:
            return there[0]
        if not there:
            wish = f"no {view} features" + (f" by '{encoder}'" if encoder else "")
            hint = did_you_mean(encoder or "", names)
            fix = f"{hint} otherwise run `extract` first"
            if view.is_image and not any(item.image for item in self.dataset.items):
                fix = "no item has a photo: give the photos, or image features (`features`)"
            raise UsageError(f"{wish} (there: {', '.join(names) or 'none'})", self.folder, fix)
        raise UsageError(
            f"several encoders have {view} features ({', '.join(names)})",
            self.folder,
            f"choose one for each view, such as {self._choice()}",
        )

    def _all(self, pattern: str) -> list[FeatureHeader]:
        found = (self.header(path.name) for path in sorted(self.folder.glob(pattern)))
        return [header for header in found if header is not None]

    def _texts(self) -> list[FeatureHeader]:
        return [header for header in self._all(View.ANY_TEXT.feature_file("*")) if not header.view.is_image]

    def _choice(self) -> str:
        """Options that select an encoder for each view with several, the last of each."""
        langs = sorted({str(header.view.lang) for header in self._texts()})
        several = {view: self.headers(view) for view in (View.IMAGE, *map(View.text, langs))}
        chosen = [f'"{view.short}={of[-1].encoder}"' for view, of in several.items() if len(of) > 1]
        return f"`encoders=[{', '.join(chosen)}]`"

    # ------------------------------------------------------------------------------------------ features

    def chosen(self, views: Sequence[View], encoders: Sequence[str] = ()) -> dict[View, str]:
        """Parse "VIEW=ENCODER" options for these views; raises UsageError for another view."""
        chosen = {View(known_language(view, views)): name for view, name in chosen_encoders(encoders).items()}
        if unknown := [view for view in chosen if view not in views]:
            raise UsageError(f"'{unknown[0]}' is not trained", None, f"choose of {', '.join(views)}", option="encoders")
        return chosen

    def check_choice(self, langs: Sequence[str], relevance: str | None, encoders: Sequence[str]) -> None:
        """Raise the UsageError that a training of this choice would raise later, after the import of torch."""
        with_relevance(self.dataset, relevance)
        if not self.no_captions:
            views = [View.IMAGE, *map(View.text, self.languages(langs))]
            chosen = self.chosen(views, encoders)
            for view in views:
                self.find(view, chosen.get(view))

    def features(self, view: View, encoder: str | None = None) -> ViewFeatures:
        """Features of a view, aligned with the items; ``encoder`` selects one of several files.

        Raises UsageError if none or several fit, StaleError if the file was made from other items or captions.
        """
        header = self.find(view, encoder)
        path = header.path
        stamp = _stamp(path)
        assert stamp is not None
        if path not in self._features or self._features[path][0] != stamp:
            self._features[path] = stamp, over_items(read_features(path, header), self.dataset)
        return self._features[path][1]


def _stamp(path: Path) -> Stamp | None:
    try:
        of = os.stat(path)
    except FileNotFoundError:
        return None
    return of.st_ino, of.st_size, of.st_mtime_ns
