"""Encoders and the heads behind them: photos and sentences -> embeddings and packed codes, wherever both come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.items import clean_text
from cmrhash.data.view import View
from cmrhash.encoders.pixels import BadImage, decode, read_bytes, to_rgb
from cmrhash.errors import DataError, UsageError
from cmrhash.retrieval.codes import pack

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.nn import ModuleDict

    from cmrhash.encoders.image import ImageEncoder
    from cmrhash.features.captions import CaptionEncoder


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

    @abstractmethod
    def head_of(self, view: View) -> View:
        """The view whose head (and encoder) serves a view: another one for a borrowed language."""

    @property
    @abstractmethod
    def image_encoder(self) -> ImageEncoder:
        """The encoder of photos; EncoderError if its weights cannot be had."""

    @abstractmethod
    def text_encoder(self, view: View) -> CaptionEncoder:
        """The encoder of the texts of a language, likewise."""

    def embed_image(self, images: Sequence[str | Path | Image | bytes]) -> NDArray[np.float32]:
        """N photos -> (N, bits) float32 embeddings; the sign is the code. A photo: path, PIL image or a file's bytes.

        Raises DataError that names the first one that is no readable image.
        """
        crop = self.image_encoder.crop
        pixels = [crop(_opened(image)) for image in images]
        if not pixels:
            return np.empty((0, self.bits), np.float32)
        return self._embed(View.IMAGE, self.image_encoder.encode(np.stack(pixels)))

    def embed_text(self, texts: Sequence[str], lang: str | None = None) -> NDArray[np.float32]:
        """N sentences -> (N, bits) float32 embeddings. lang: may be left out where there is one language."""
        lang = self.language(lang)
        cleaned = [clean_text(text) for text in texts]
        if "" in cleaned:
            raise UsageError("an empty text", None, "say what you look for")
        view = View.text(lang)
        return self._embed(self.head_of(view), self.text_encoder(view).encode(cleaned))

    def encode_image(self, images: Sequence[str | Path | Image | bytes]) -> NDArray[np.uint8]:
        """N photos -> (N, ceil(bits / 8)) uint8 packed codes."""
        return pack(self.embed_image(images))

    def encode_text(self, texts: Sequence[str], lang: str | None = None) -> NDArray[np.uint8]:
        """N sentences -> (N, ceil(bits / 8)) uint8 packed codes."""
        return pack(self.embed_text(texts, lang))

    def language(self, asked: str | None = None, text: str = "") -> str:
        """The language to use: the asked one, the only one, or the one that a text is likely of.

        Raises UsageError for one that is not there, or if it cannot be told.
        """
        if asked is not None and asked not in self.langs:
            raise UsageError(f"no language '{asked}'", self.place, f"it has {', '.join(self.langs)}")
        best = [asked] if asked is not None else self.langs if len(self.langs) == 1 else self.likely(text)
        if len(best) != 1:
            raise UsageError("which language is it?", None, f"give --lang, one of {', '.join(self.langs)}")
        return best[0]

    def likely(self, text: str) -> Sequence[str]:
        """Languages that a text may be of; all of them where no captions tell."""
        return self.langs

    def _embed(self, head: View, x: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        if not np.isfinite(x).all():
            raise DataError("the encoder gave a query features that are no numbers", None, "try --dtype float32")
        heads: Any = self.heads
        embedding: NDArray[np.float32] = heads[head].embed(torch.from_numpy(x)).numpy()
        return embedding


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
