"""Encoders and the heads behind them: photos and sentences -> embeddings and packed codes, wherever both come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.cleaning import clean_text, known_language
from cmrhash.data.view import View
from cmrhash.encoders.pixels import BadImage, decode, read_bytes, to_rgb
from cmrhash.errors import DataError, UsageError
from cmrhash.retrieval.codes import pack
from cmrhash.storage.files import is_there

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from torch.nn import ModuleDict

    from cmrhash.encoders.numpy_text import NumpyTextEncoder
    from cmrhash.features.captions import CaptionEncoder
    from cmrhash.features.images import PhotoEncoder
    from cmrhash.training.numpy_heads import NumpyHead

    Photo = str | Path | Image | bytes | NDArray[np.uint8]
    Photos = list[Any] | tuple[Any, ...]  # of photos

OPENING = Lock()  # threads that need the encoder of photos open it once
QUERY, DATABASE = "query", "database"  # roles of what is hashed
FEW = 512  # texts that NumPy encodes in less time than it takes to import torch


class Embedder(ABC):
    """What a run's ``Hasher`` and an exported ``PretrainedHasher`` share; they say where encoders and heads are."""

    @property
    @abstractmethod
    def bits(self) -> int:
        """Code length."""

    @property
    @abstractmethod
    def langs(self) -> tuple[str, ...]:
        """Languages that can be encoded."""

    @property
    @abstractmethod
    def place(self) -> Path:
        """The folder that messages name."""

    @property
    @abstractmethod
    def heads(self) -> ModuleDict:
        """view -> its trained head, on the CPU."""

    @property
    @abstractmethod
    def light_heads(self) -> Mapping[View, NumpyHead]:
        """view -> its trained head without torch; empty where a head needs torch."""

    @abstractmethod
    def head_of(self, view: View) -> View:
        """The view whose head (and encoder) serves a view: another one for a borrowed language."""

    @property
    @abstractmethod
    def image_encoder(self) -> PhotoEncoder:
        """The encoder of photos; EncoderError if its weights cannot be had."""

    @abstractmethod
    def text_encoder(self, view: View) -> CaptionEncoder:
        """The encoder of the texts of a language, likewise."""

    @abstractmethod
    def light_encoder(self, view: View) -> CaptionEncoder | NumpyTextEncoder:
        """The same for a few texts: without torch if possible."""

    def embed_image(self, images: Photo | Photos, role: str = QUERY) -> NDArray[np.float32]:
        """Embed photos; the sign of an embedding is its code.

        A photo is a path, a PIL image, an (H, W, 3) uint8 RGB array or the bytes of a file. Returns (bits,) float32 of
        one photo, (N, bits) of a list of N. role: "query" or "database", which differ for methods such as krr-ap.
        Raises DataError that names the first one that is no readable image, UsageError for another role.
        """
        if not isinstance(images, (list, tuple)):
            one: NDArray[np.float32] = self.embed_image([images], role)[0]
            return one
        _check_role(role)
        if not images:
            return np.empty((0, self.bits), np.float32)
        return self._embed(View.IMAGE, self.image_features(images), role=role)

    def image_features(self, images: Photos) -> NDArray[np.float32]:
        """Encode one or more photos, as ``embed_image`` takes them, to the encoder's features (N, D) float32."""
        _opened(images[0])  # refuses a wrong path before the encoder is loaded, which takes seconds
        with OPENING:
            encoder = self.image_encoder
        crop = encoder.crop
        return encoder.encode(np.stack([crop(_opened(image)) for image in images]))

    def embed_text(self, texts: str | Sequence[str], lang: str | None = None, role: str = QUERY) -> NDArray[np.float32]:
        """Embed sentences. Returns (bits,) float32 of one sentence, (N, bits) of a list of N.

        lang: may be left out where there is one language; role: as of ``embed_image``. Raises UsageError for another
        type, an empty sentence, or a language that the run does not have.
        """
        _check_role(role)
        asked = [texts] if isinstance(texts, str) else list(texts)
        if wrong := [text for text in asked if not isinstance(text, str)]:
            raise UsageError(f"a text is a {type(wrong[0]).__name__}, not a str", None, "give strings")
        lang = self.language(lang)
        cleaned = [clean_text(text) for text in asked]
        if "" in cleaned:
            raise UsageError("an empty text", None, "give a text to search for")
        view = View.text(lang)
        if not cleaned:
            return np.empty((0, self.bits), np.float32)
        few = len(cleaned) <= FEW
        encoder = self.light_encoder(view) if few else self.text_encoder(view)
        found = self._embed(self.head_of(view), encoder.encode(cleaned), few, cleaned, role)
        return found[0] if isinstance(texts, str) else found

    def encode_image(self, images: Photo | Photos, role: str = QUERY) -> NDArray[np.uint8]:
        """Hash photos, as ``embed_image`` takes them, to packed codes (..., ceil(bits / 8)) uint8."""
        return _packed(self.embed_image(images, role))

    def encode_text(self, texts: str | Sequence[str], lang: str | None = None, role: str = QUERY) -> NDArray[np.uint8]:
        """Hash sentences, as ``embed_text`` takes them, to packed codes (..., ceil(bits / 8)) uint8."""
        return _packed(self.embed_text(texts, lang, role))

    def language(self, asked: str | None = None, text: str = "") -> str:
        """The language to use: the asked one, the only one, or the one that a text is likely of.

        Raises UsageError for one that is not there, or if it cannot be told.
        """
        if not self.langs:
            what = "this run takes no sentences: the encoder of its photos has no texts in the same space"
            fix = "search by a photo; for sentences, extract with a dual encoder (CLIP), or `index` with another run"
            raise UsageError(what, self.place, fix)
        asked = None if asked is None else known_language(asked, self.langs)
        if asked is not None and asked not in self.langs:
            raise UsageError(f"no language '{asked}'", self.place, f"choose one of {', '.join(self.langs)}")
        best = [asked] if asked is not None else self.langs if len(self.langs) == 1 else self.likely(text)
        if len(best) != 1:
            raise UsageError(
                "cannot detect the query language", None, f"choose one of {', '.join(self.langs)}", option="lang"
            )
        return best[0]

    def likely(self, text: str) -> Sequence[str]:
        """Languages that a text may be of; all of them where no captions tell."""
        return self.langs

    def _embed(
        self,
        head: View,
        x: NDArray[np.float32],
        light: bool = False,
        captions: Sequence[str] | None = None,
        role: str = QUERY,
    ) -> NDArray[np.float32]:
        if not np.isfinite(x).all():
            raise DataError("the encoder gave features that are not finite", None, 'try `dtype="float32"`')
        if light and head in self.light_heads:
            return self.light_heads[head].embed(x)
        import torch

        heads: Any = self.heads
        embedding: Tensor = heads[head].embed(torch.from_numpy(x), query=role == QUERY, captions=captions)
        return embedding.numpy()


def _check_role(role: str) -> None:
    if role not in (QUERY, DATABASE):
        raise UsageError(f"unknown role '{role}'", None, f"choose one of {QUERY}, {DATABASE}", option="role")


def _packed(embedding: NDArray[np.float32]) -> NDArray[np.uint8]:
    return pack(embedding[None])[0] if embedding.ndim == 1 else pack(embedding)


def whole_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Packed codes (Q, ceil(bits / 8)) uint8; raises UsageError for another shape or type."""
    if codes.dtype != np.uint8 or codes.shape[1] != -(-bits // 8):
        what = f"an array of shape {codes.shape} and type {codes.dtype} holds no codes of {bits} bits"
        raise UsageError(what, None, f"give uint8 with {-(-bits // 8)} columns, as `encode_text` returns it")
    return np.ascontiguousarray(codes)


def _is_pil(value: object) -> bool:
    return hasattr(value, "getexif") and hasattr(value, "convert")  # without importing Pillow


def is_photo(query: object) -> bool:
    """Whether a query is a photo: a Path, a str that names a file, bytes, a PIL image or an (H, W, 3) uint8 array."""
    if isinstance(query, str):
        return is_there(query) and Path(query).is_file()
    return isinstance(query, (Path, bytes)) or _is_pil(query) or (isinstance(query, np.ndarray) and query.ndim == 3)


def _opened(image: Photo) -> Image:
    """Open a photo as RGB, upright."""
    where = str(image) if isinstance(image, (str, Path)) else "the photo"
    try:
        if isinstance(image, (str, Path)):
            return decode(read_bytes(Path(image)))
        if isinstance(image, bytes):
            return decode(image)
        from PIL import Image, ImageOps

        if isinstance(image, np.ndarray):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                what = f"an image array of shape {image.shape} and type {image.dtype}"
                raise UsageError(what, None, "give (H, W, 3) uint8, RGB")
            return Image.fromarray(image)
        if not _is_pil(image):
            fix = "give a path, a PIL image, an (H, W, 3) uint8 array, or the bytes of a file"
            raise UsageError(f"a photo is a {type(image).__name__}", None, fix)
        return to_rgb(ImageOps.exif_transpose(image))
    except BadImage as bad:
        raise DataError(f"not a readable photo ({bad})", where, "give another file") from None
