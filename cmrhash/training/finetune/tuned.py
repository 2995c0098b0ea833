"""Tuned encoders: files of a fine-tuning, and encoders that load their weights from them.

    cache/<dataset>/tuned/<image encoder>/
        config.json       recipe, selected epoch, weights file of each view, sha256 of every file; written last
        image.safetensors image encoder, as --image-weights accepts it; or image/, as --image-model accepts it, of a
                          tower of transformers or (after "open_clip:") of open_clip
        text-<lang>/      text encoder with tokenizer, as --text-model accepts it, with the modules of a directory of
                          sentence-transformers; text-de+en/ if two languages share it
        history.jsonl     one line per epoch, as in a run

An encoder that was not tuned (learning rate 0) has no file here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from cmrhash.data.view import View
from cmrhash.encoders import copies, sentence_files
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.text import TextEncoder
from cmrhash.encoders.weights import state_digest
from cmrhash.errors import DamagedError
from cmrhash.storage import records
from cmrhash.storage.files import checked, sha256
from cmrhash.storage.recipes import fingerprint
from cmrhash.storage.staged import settle, staged
from cmrhash.training import runs
from cmrhash.training.checkpoint import TrainingState, fill, read_tensors
from cmrhash.training.runs import Outcome

SUFFIX = "-tuned"  # of a tuned encoder's name
IMAGE = "image.safetensors"
TOWER = "image"  # folder
TOGETHER = "one_head"  # field of a recipe: views that were tuned through one head, and share a space
ANEW = "tune again: run `extract` with `finetune=True` and `overwrite=True`"
E = TypeVar("E", ImageEncoder, TextEncoder)


@dataclass(frozen=True)
class Tuned:
    """A finished fine-tuning: its folder and the content of its ``config.json``.

    recipe: all that decides the result; weights: view -> file of the tuned weights; files: sha256 of every file; fresh:
    made by this call.
    """

    folder: Path
    recipe: Mapping[str, Any]
    weights: Mapping[View, str]
    files: Mapping[str, str]
    outcome: Outcome
    fresh: bool

    @classmethod
    def read(cls, folder: Path, record: Mapping[str, Any], fresh: bool) -> Tuned:
        """Build a fine-tuning from its record; raises DamagedError for missing fields or wrong types."""
        try:
            tuned: Tuned = records.read(cls, record, folder=folder, outcome=Outcome.read(record), fresh=fresh)
            return tuned
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DamagedError("the files of the tuned encoders were changed", folder / runs.CONFIG, ANEW) from None

    @property
    def digest(self) -> str:
        """Fingerprint of the recipe, by which features identify the tuned encoders."""
        return fingerprint(self.recipe)

    def apply(
        self, image: ImageEncoder, texts: Mapping[str, TextEncoder]
    ) -> tuple[ImageEncoder, dict[str, TextEncoder]]:
        """Load the tuned weights into the original encoders; shared encoders stay shared.

        The given modules are changed. Raises DamagedError if a file does not match its digest.
        """
        for name, digest in self.files.items():
            checked(self.folder, name, digest, ANEW)
        if View.IMAGE in self.weights:
            image = self._load(image, View.IMAGE)
        done: dict[str, TextEncoder] = {}
        for lang, encoder in texts.items():
            file = self.weights.get(View.text(lang))
            same = [other for other in done if file and self.weights[View.text(other)] == file]
            done[lang] = done[same[0]] if same else self._load(encoder, View.text(lang)) if file else encoder
        return image, done

    def _load(self, encoder: E, view: View) -> E:
        name = self.weights[view]
        path = checked(self.folder, name, self.files.get(name), ANEW)
        folder = path.parent
        files = [path] if name == IMAGE else self._within(name)
        state = sentence_files.joined({f.relative_to(folder).as_posix(): read_tensors(f, ANEW) for f in files})
        fill(copies.network_of(encoder.module), state, path, ANEW)
        encoder.module.eval()
        # towers that were tuned for heads of their own give no common space any more
        made = {"tuned": self.digest, **{field: value for field, value in encoder.recipe.items() if field != "space"}}
        made |= {"space": self.digest} if view in self.recipe.get(TOGETHER, ()) else {}
        made |= {"weights": "tuned", "weights_sha256": state_digest(encoder.module)}
        # relative to the data set's folder, which may move: a file for images, a folder for texts
        source = (path if name == IMAGE else folder).relative_to(self.folder.parent.parent).as_posix()
        return replace(encoder, name=encoder.name + SUFFIX, recipe=made, source=source)

    def _within(self, name: str) -> list[Path]:
        """Weight files of a text encoder: the transformer's, and those of its layers."""
        start = name.partition("/")[0] + "/"
        return [self.folder / file for file in self.files if file.startswith(start) and file.endswith(".safetensors")]


def find(folder: Path) -> Tuned | None:
    """Finished fine-tuning in a folder, None if there is none; raises DamagedError or StaleError."""
    settle(folder)
    if not (folder / runs.CONFIG).exists():
        return None
    try:
        return Tuned.read(folder, runs.read_record(folder), fresh=False)
    except DamagedError:
        raise DamagedError("the files of the tuned encoders were changed", folder / runs.CONFIG, ANEW) from None


def write(
    folder: Path,
    recipe: dict[str, Any],
    state: TrainingState,
    image: ImageEncoder | None,
    texts: dict[str, TextEncoder],
) -> Tuned:
    """Write the tuned encoders, the tensors "encoders.<view>." of ``state.best``.

    They take the place of former ones in one step.
    """
    with staged(folder, runs.CONFIG, (IMAGE, f"{TOWER}/**/*", f"{View.ANY_TEXT}/**/*")) as aside:
        record = _write(aside, recipe, state, image, texts)
    return Tuned.read(folder, record, fresh=True)


def _write(
    folder: Path,
    recipe: dict[str, Any],
    state: TrainingState,
    image: ImageEncoder | None,
    texts: dict[str, TextEncoder],
) -> dict[str, Any]:
    """Write the files of a fine-tuning; returns its record."""
    weights = {}
    if image is not None:
        weights[View.IMAGE] = _write_image(folder, state, image)
    for lang, encoder in texts.items():
        sharing = [other for other in texts if texts[other] is encoder]
        part = View.text("+".join(sharing))
        weights[View.text(lang)] = f"{part}/model.safetensors"
        if lang == sharing[0]:
            copies.write(encoder, _tensors(state, View.text(lang), encoder.module), folder / part)
    runs.write_lines(folder / runs.HISTORY, state.history)
    made = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in made}
    return runs.write_record(folder, {"recipe": recipe, "weights": weights, **state.result(), "files": files})


def _write_image(folder: Path, state: TrainingState, image: ImageEncoder) -> str:
    """Write the image encoder, a file or a directory; returns the name of its weights."""
    name = TOWER if copies.is_folder(image) else IMAGE
    copies.write(image, _tensors(state, View.IMAGE, image.module), folder / name)
    return f"{TOWER}/model.safetensors" if name == TOWER else IMAGE


def _tensors(state: TrainingState, view: View, module: nn.Module) -> dict[str, Tensor]:
    """Tensors of the encoder of a view, by their names in its file."""
    start = f"encoders.{view}." + ("network." if copies.network_of(module) is not module else "")
    return {name.removeprefix(start): t for name, t in state.best.items() if name.startswith(start)}
