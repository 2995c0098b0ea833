"""Encoders and heads of a run: those that made the features of its data set, opened when a query needs them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmrhash.checks import check_device
from cmrhash.data.cleaning import known_language
from cmrhash.data.view import View
from cmrhash.evaluation.run_codes import ViewCodes, load_heads, load_light_heads
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.search.embedder import Embedder
from cmrhash.search.exported.hasher import PretrainedHasher, applied_by
from cmrhash.training.runs import Run

if TYPE_CHECKING:
    from torch.nn import ModuleDict

    from cmrhash.encoders.numpy_text import NumpyTextEncoder
    from cmrhash.encoders.own import Encoder
    from cmrhash.features.captions import CaptionEncoder
    from cmrhash.features.images import PhotoEncoder
    from cmrhash.training.numpy_heads import NumpyHead


class RunEmbedder(Embedder):
    """Embeds photos and sentences as a run's data set was embedded."""

    run: Run
    data: ExtractedDataset
    folder: Path
    views: Mapping[View, ViewCodes]

    def _take(
        self,
        device: str,
        image_weights: str | None,
        text_models: Mapping[str, str],
        offline: bool,
        image_encoder: Encoder[Any] | None,
        text_encoder: Encoder[Any] | Mapping[str, Encoder[Any]] | None,
    ) -> None:
        """Remember where the encoders are, as ``Hasher`` takes it; run, data and views are set before."""
        check_device(device)
        self._device, self._offline = device, offline
        self._image_weights = image_weights
        self._own_image, self._own_text = image_encoder, text_encoder
        self._text_models = {known_language(lang, self.langs): model for lang, model in text_models.items()}
        self._image_encoders: dict[str, PhotoEncoder] = {}  # path of the feature file -> encoder
        self._text_encoders: dict[str, CaptionEncoder] = {}
        self._light_encoders: dict[str, CaptionEncoder | NumpyTextEncoder] = {}

    @cached_property
    def _lender(self) -> PretrainedHasher | None:
        """The exported run that this run applies, None for a trained run."""
        if not self.run.is_applied:
            return None
        moved = {"image_weights": self._image_weights, "text_models": self._text_models}
        return applied_by(self.run, moved, device=self._device, offline=self._offline)

    @cached_property
    def heads(self) -> ModuleDict:
        """view -> its trained head."""
        return self._lender.heads if self._lender else load_heads(self.run)

    @cached_property
    def light_heads(self) -> Mapping[View, NumpyHead]:
        """view -> its trained head without torch."""
        return self._lender.light_heads if self._lender else load_light_heads(self.run)

    def head_of(self, view: View) -> View:
        """Another view for a borrowed language, which went through the encoder of the language it borrows from."""
        if self._lender:
            return self._lender.head_of(view)
        return self.views[view].head if view in self.views else view

    @cached_property
    def image_encoder(self) -> PhotoEncoder:
        """The encoder of the database's photos."""
        from cmrhash.features import reopen

        if self._lender:
            return self._lender.image_encoder
        path = self.folder / self.run.features[View.IMAGE].file
        if str(path) not in self._image_encoders:
            encoder = reopen.image_encoder(path, self._device, self._image_weights, self._offline, self._own_image)
            self._image_encoders[str(path)] = encoder
        return self._image_encoders[str(path)]

    def text_encoder(self, view: View) -> CaptionEncoder:
        """The encoder of the database's captions in a language."""
        from cmrhash.features import reopen

        if self._lender:
            return self._lender.text_encoder(view)
        made = self.run.features[self.head_of(view)]
        path = self.folder / made.file
        if str(path) not in self._text_encoders:
            model, device = self._text_model(view), self._device
            given = self._own_text
            own = given.get(str(view.lang)) if isinstance(given, Mapping) else given
            if made.sha256:
                encoder = reopen.text_encoder(path, self.data.dataset, device, model, self._offline, own)
            else:  # photos without captions
                images = self.folder / self.run.features[View.IMAGE].file
                encoder = reopen.text_of_space(images, device, model or self._image_weights, self._offline, own)
            self._text_encoders[str(path)] = encoder
        return self._text_encoders[str(path)]

    def light_encoder(self, view: View) -> CaptionEncoder | NumpyTextEncoder:
        """The same for a few texts: without torch if possible."""
        from cmrhash.features import reopen

        if self._lender:
            return self._lender.light_encoder(view)
        made = self.run.features[self.head_of(view)]
        if made.file not in self._light_encoders:
            encoder: CaptionEncoder | NumpyTextEncoder | None = None
            if made.sha256 and not self._own_text:
                encoder = reopen.light_text_encoder(self.folder / made.file, self._device, self._text_model(view))
            self._light_encoders[made.file] = encoder or self.text_encoder(view)
        return self._light_encoders[made.file]

    def _text_model(self, view: View) -> str | None:
        """The place of a text model that the caller gave."""
        return self._text_models.get(str(view.lang), self._text_models.get(""))
