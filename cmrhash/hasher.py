"""Hasher: a trained run that takes sentences and photos, and finds what lies near them in its database.

    hasher = Hasher.load("runs/sample/triplet-32")
    for hit in hasher.search("ein schwarzer Hund im Schnee", lang="de", k=5):
        print(hit.distance, hit.id, hit.caption)

The codes of the database come out of the run; torch is imported when the first query has to be encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash import runs
from cmrhash.codes import pack
from cmrhash.config import CACHE
from cmrhash.data.dataset import ImageTextDataset, Item, clean_text, with_relevance
from cmrhash.data.manifest import open_extracted
from cmrhash.encode import Encoded, encode, has_codes, load_heads, read_codes, refuse_new_features
from cmrhash.encoders.pixels import BadImage, decode, read_bytes, to_rgb
from cmrhash.encoders.words import lower_words
from cmrhash.errors import DataError, StaleError, UsageError
from cmrhash.sides import language_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from cmrhash.encoders.image import ImageEncoder
    from cmrhash.extract_texts import CaptionEncoder

TARGETS = ("image", "text", "both")


@dataclass(frozen=True)
class Hit:
    """What a search found. distance: Hamming, in bits. modality: "image" or "text"; lang: of the caption, which for an
    image is one of its own. labels: names of the item's classes. image: path below the data set's root.
    """

    rank: int
    distance: int
    id: str
    modality: str
    lang: str | None
    caption: str | None
    labels: tuple[str, ...]
    image: str | None

    def as_json(self) -> dict[str, Any]:
        """What ``cmrhash search --json`` prints of it."""
        return asdict(self)


class Hasher:
    """A finished run with its data set. image_weights, text_models: where the encoders are now, if they moved."""

    def __init__(
        self,
        run: runs.Run,
        dataset: ImageTextDataset,
        folder: Path,
        device: str = "auto",
        image_weights: str | None = None,
        text_models: Mapping[str, str] | None = None,
        offline: bool = False,
    ) -> None:
        if run.config["items_sha256"] != dataset.sha256:
            raise StaleError("trained on other items or splits than the cache holds", run.folder, "train again")
        refuse_new_features(run, folder)
        self.run, self.dataset, self.folder = run, with_relevance(dataset, run.relevance), folder
        self._device, self._offline = device, offline
        self._image_weights, self._text_models = image_weights, dict(text_models or {})
        self._text_encoders: dict[str, CaptionEncoder] = {}
        if not has_codes(run, dataset, folder):
            encode(run, dataset, folder)
        self.views: dict[str, Encoded] = read_codes(run)
        self._place = {item.id: row for row, item in enumerate(dataset.items)}

    @classmethod
    def load(cls, run: str | Path, cache: str | Path = CACHE, **options: Any) -> Hasher:
        """Open the run in a folder. cache: where its data set lies; options: as the class takes them.

        Raises UsageError for a folder without a run, StaleError if data or features changed since the training,
        DamagedError for a file that is not what was written.
        """
        opened = runs.open_run(Path(run))
        return cls(opened, *open_extracted(Path(cache), opened.config["dataset"]), **options)

    @property
    def langs(self) -> tuple[str, ...]:
        """Languages that can ask and be found."""
        return tuple(sorted(language_of(view) for view in self.views if view != "image"))

    # ------------------------------------------------------------------------------------------ encoding

    def embed_image(self, images: Sequence[str | Path | Image | bytes]) -> NDArray[np.float32]:
        """N photos -> (N, bits) float32 embeddings; the sign is the code. A photo: path, PIL image or a file's bytes.

        Raises DataError that names the first one that is no readable image.
        """
        crop = self._image_encoder.crop
        pixels = [crop(_opened(image)) for image in images]
        if not pixels:
            return np.empty((0, self.run.bits), np.float32)
        return self._embed("image", self._image_encoder.encode(np.stack(pixels)))

    def embed_text(self, texts: Sequence[str], lang: str | None = None) -> NDArray[np.float32]:
        """N sentences -> (N, bits) float32 embeddings. lang: may be left out where the run has one language."""
        lang = self.language(lang)
        cleaned = [clean_text(text) for text in texts]
        if "" in cleaned:
            raise UsageError("an empty text", None, "say what you look for")
        view = f"text-{lang}"
        return self._embed(self.views[view].head, self._text_encoder(view).encode(cleaned))

    def encode_image(self, images: Sequence[str | Path | Image | bytes]) -> NDArray[np.uint8]:
        """N photos -> (N, ceil(bits / 8)) uint8 packed codes."""
        return pack(self.embed_image(images))

    def encode_text(self, texts: Sequence[str], lang: str | None = None) -> NDArray[np.uint8]:
        """N sentences -> (N, ceil(bits / 8)) uint8 packed codes."""
        return pack(self.embed_text(texts, lang))

    def language(self, asked: str | None = None, text: str = "") -> str:
        """The language to use: the asked one, the only one, or the one whose captions have most words of the text.

        Raises UsageError for one that the run has not, or if it cannot be told.
        """
        if asked is not None:
            if asked not in self.langs:
                raise UsageError(f"no language '{asked}'", self.run.folder, f"it has {', '.join(self.langs)}")
            return asked
        if len(self.langs) == 1:
            return self.langs[0]
        words = set(lower_words(text))
        known = {lang: len(words & self._words[lang]) for lang in self.langs}
        best = [lang for lang in self.langs if known[lang] == max(known.values())]
        if len(best) != 1:
            raise UsageError("which language is it?", None, f"give --lang, one of {', '.join(self.langs)}")
        return best[0]

    def item(self, ident: str) -> Item | None:
        """The item of the data set that has this id."""
        return self.dataset.items[self._place[ident]] if ident in self._place else None

    # ------------------------------------------------------------------------------------------ searching

    def search(
        self, query: str | Path | Image | bytes, *, lang: str | None = None, to: str | None = None, k: int = 10
    ) -> list[Hit]:
        """The k nearest items of the database, nearest first, equal distances in the order of the data set.

        query: a sentence (str), or a photo (a Path, a PIL image, a file's bytes). to: "image", "text" or "both";
        None: the other modality. lang: of a sentence, and of the texts that are found.
        """
        if isinstance(query, str):
            lang = self.language(lang, query)
            return self.nearest(self.encode_text([query], lang)[0], to or "image", lang, k)
        return self.nearest(self.encode_image([query])[0], to or "text", self._shown(lang), k)

    def search_item(
        self, ident: str, *, by: str = "image", lang: str | None = None, to: str | None = None, k: int = 10
    ) -> list[Hit]:
        """The same for an item of the data set, whose code is there already, by its image or its first caption."""
        if ident not in self._place:
            raise UsageError(f"no item '{ident}'", self.folder, "see items.jsonl for the ids")
        lang = self._shown(lang)
        view = "image" if by == "image" else f"text-{lang}"
        codes = self.views[view].codes
        rows = np.flatnonzero(codes.item == self._place[ident])
        if not len(rows):
            raise UsageError(f"item '{ident}' has no {by}", self.folder, "ask by the other one")
        return self.nearest(codes.packed[rows[0]], to or ("text" if by == "image" else "image"), lang, k)

    def nearest(self, code: NDArray[np.uint8], to: str, lang: str, k: int) -> list[Hit]:
        """The k nearest of a packed code (ceil(bits / 8),) uint8."""
        if to not in TARGETS:
            raise UsageError(f"--to {to}", None, f"choose one of {', '.join(TARGETS)}")
        found = []
        for view in {"image": ["image"], "text": [f"text-{lang}"], "both": ["image", f"text-{lang}"]}[to]:
            distances, places = self.views[view].index.search(code[None], k)
            found += [(int(d), view, int(p)) for d, p in zip(distances[0], places[0], strict=True)]
        found.sort(key=lambda hit: hit[0])  # stable: images before texts, then the order of the index
        return [self._hit(rank, *hit, lang) for rank, hit in enumerate(found[:k], 1)]

    def _hit(self, rank: int, distance: int, view: str, place: int, lang: str) -> Hit:
        codes, row = self.views[view].codes, int(self.views[view].database[place])
        item = self.dataset.items[int(codes.item[row])]
        captions = item.texts.get(lang, ())
        mine = np.flatnonzero(codes.item == codes.item[row])
        nth = int(np.searchsorted(mine, row)) if view != "image" and len(mine) == len(captions) else 0
        labels = tuple(self.dataset.classes[label] for label in item.labels)
        modality = "image" if view == "image" else "text"
        return Hit(rank, distance, item.id, modality, lang, captions[nth] if captions else None, labels, item.image)

    def _shown(self, lang: str | None) -> str:
        """The language of texts that are found where no sentence tells: the asked one, or the first."""
        return self.language(lang) if lang or len(self.langs) == 1 else self.langs[0]

    # ------------------------------------------------------------------------------------------ what it needs

    @cached_property
    def _heads(self) -> Any:
        return load_heads(self.run)

    @cached_property
    def _image_encoder(self) -> ImageEncoder:
        from cmrhash import reopen
        from cmrhash.device import choose_device

        path = self.folder / self.run.config["features"]["image"]["file"]
        return reopen.image_encoder(path, choose_device(self._device), self._image_weights, self._offline)

    def _text_encoder(self, view: str) -> CaptionEncoder:
        from cmrhash import reopen
        from cmrhash.device import choose_device

        path = self.folder / self._features_of(view)
        if str(path) not in self._text_encoders:
            lang = language_of(view)
            model = self._text_models.get(lang, self._text_models.get(""))
            encoder = reopen.text_encoder(path, self.dataset, choose_device(self._device), model, self._offline)
            self._text_encoders[str(path)] = encoder
        return self._text_encoders[str(path)]

    def _features_of(self, view: str) -> str:
        """The feature file of a view. A borrowed language went through the encoder of the language it borrows from."""
        return str(self.run.config["features"][self.views[view].head]["file"])

    def _embed(self, head: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        if not np.isfinite(x).all():
            raise DataError("the encoder gave a query features that are no numbers", None, "try --dtype float32")
        embedding: NDArray[np.float32] = self._heads[head].embed(torch.from_numpy(x)).numpy()
        return embedding

    @cached_property
    def _words(self) -> dict[str, set[str]]:
        """language -> every word of its captions, in lower case."""
        return {lang: {word for text in self._texts(lang) for word in lower_words(text)} for lang in self.langs}

    def _texts(self, lang: str) -> Iterator[str]:
        return (text for item in self.dataset.items for text in item.texts.get(lang, ()))


def _opened(image: str | Path | Image | bytes) -> Image:
    """A photo as RGB, upright."""
    where = str(image) if isinstance(image, (str, Path)) else "the photo"
    try:
        if isinstance(image, (str, Path)):
            return decode(read_bytes(Path(image)))
        if isinstance(image, bytes):
            return decode(image)
        from PIL.ImageOps import exif_transpose

        return to_rgb(exif_transpose(image))
    except BadImage as bad:
        raise DataError(f"not a readable photo ({bad})", where, "give another file") from None
