"""Tuned encoders: what a fine-tuning leaves behind, and encoders that take their weights from it.

    cache/<dataset>/tuned/<image encoder>/
        config.json       recipe, the chosen epoch, which file holds which weights, sha256 of every file; written last
        image.safetensors the image encoder, as --image-weights takes it
        text-<lang>/      a text encoder with its tokenizer, as --text-model takes it; text-de+en/ if two share one
        history.jsonl     one line an epoch, as a run has it

An encoder that was left as it was (learning rate 0) has no file here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch

from cmrhash.data.view import View
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.text import TextEncoder
from cmrhash.encoders.weights import state_digest
from cmrhash.errors import DamagedError
from cmrhash.storage.files import checked, remove, sha256, sync, write_bytes
from cmrhash.storage.recipes import fingerprint
from cmrhash.training import runs
from cmrhash.training.checkpoint import State, fill, read_tensors
from cmrhash.training.runs import Outcome

SUFFIX = "-tuned"  # of an encoder's name, and so of its feature files
IMAGE = "image.safetensors"
ANEW = "tune anew with cmrhash extract --finetune --overwrite"
E = TypeVar("E", ImageEncoder, TextEncoder)


@dataclass(frozen=True)
class Tuned:
    """A finished fine-tuning: its folder, and what ``config.json`` records of it.

    recipe: all that decides the result; weights: view -> file of the tuned weights; files: sha256 of every file;
    fresh: it was made by this call.
    """

    folder: Path
    recipe: Mapping[str, Any]
    weights: Mapping[View, str]
    files: Mapping[str, str]
    outcome: Outcome
    fresh: bool

    @classmethod
    def read(cls, folder: Path, record: Mapping[str, Any], fresh: bool) -> Tuned:
        """The fine-tuning of a stored record; raises DamagedError if a field is missing or of another type."""
        try:
            weights = {View(name): str(file) for name, file in record["weights"].items()}
            return cls(folder, dict(record["recipe"]), weights, dict(record["files"]), Outcome.read(record), fresh)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DamagedError("tuned encoders: not what was written", folder / runs.CONFIG, ANEW) from None

    @property
    def digest(self) -> str:
        """What the features of its encoders are known by."""
        return fingerprint(self.recipe)

    def apply(
        self, image: ImageEncoder, texts: Mapping[str, TextEncoder]
    ) -> tuple[ImageEncoder, dict[str, TextEncoder]]:
        """The encoders that it started from, with its weights; languages that share one go on sharing it.

        The modules are the given ones, changed. Raises DamagedError if a file is not what was written.
        """
        for name, digest in self.files.items():
            checked(self.folder, name, digest, ANEW)
        if View.IMAGE in self.weights:
            image = self._load(image, self.weights[View.IMAGE])
        done: dict[str, TextEncoder] = {}
        for lang, encoder in texts.items():
            file = self.weights.get(View.text(lang))
            same = [other for other in done if file and self.weights[View.text(other)] == file]
            done[lang] = done[same[0]] if same else self._load(encoder, file) if file else encoder
        return image, done

    def _load(self, encoder: E, name: str) -> E:
        path = checked(self.folder, name, self.files.get(name), ANEW)
        fill(encoder.module, read_tensors(path, ANEW), path, ANEW)
        encoder.module.eval()
        made = {"tuned": self.digest, **encoder.recipe}
        made |= {"weights": "tuned", "weights_sha256": state_digest(encoder.module)}
        # below the data set's folder, which may move: a text encoder is a folder, an image encoder's weights a file
        source = (path if name == IMAGE else path.parent).relative_to(self.folder.parent.parent).as_posix()
        return replace(encoder, name=encoder.name + SUFFIX, recipe=made, source=source)


def find(folder: Path) -> Tuned | None:
    """The finished fine-tuning in that folder, None if there is none; raises DamagedError, or StaleError for a newer
    version.
    """
    if not (folder / runs.CONFIG).exists():
        return None
    try:
        return Tuned.read(folder, runs.read_record(folder), fresh=False)
    except DamagedError:
        raise DamagedError("tuned encoders: not what was written", folder / runs.CONFIG, ANEW) from None


def write(
    folder: Path, recipe: dict[str, Any], state: State, image: ImageEncoder | None, texts: dict[str, TextEncoder]
) -> Tuned:
    """Write the encoders that were tuned, as they are in ``state.best`` below "encoders.<view>."; the config goes first
    and comes last, so that it never speaks of other weights than there are.
    """
    remove(folder / runs.CONFIG)
    for old in folder.glob("text-*"):
        shutil.rmtree(old)
    (folder / IMAGE).unlink(missing_ok=True)
    weights = {}
    if image is not None:
        write_bytes(folder / IMAGE, _weights(state, View.IMAGE))
        weights[View.IMAGE] = IMAGE
    for lang, encoder in texts.items():
        sharing = [other for other in texts if texts[other] is encoder]
        part = View.text("+".join(sharing))
        weights[View.text(lang)] = f"{part}/model.safetensors"
        if lang == sharing[0]:
            write_bytes(folder / part / "model.safetensors", _weights(state, View.text(lang)))
            encoder.module.config.save_pretrained(folder / part)  # type: ignore[union-attr, operator]
            encoder.tokenizer.save_pretrained(folder / part)
    runs.write_lines(folder / runs.HISTORY, state.history)
    there = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".part")
    made = [path for path in there if not path.name.startswith((".", "checkpoint"))]
    for path in sorted({*made, *(path.parent for path in made)}):  # what transformers wrote is not on disk yet
        sync(path)
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(made)}
    content = {"recipe": recipe, "weights": weights, **state.result(), "files": files}
    return Tuned.read(folder, runs.write_record(folder, content), fresh=True)


def _weights(state: State, view: View) -> bytes:
    start = f"encoders.{view}."
    own = {name.removeprefix(start): t for name, t in state.best.items() if name.startswith(start)}
    return safetensors.torch.save(own, {"format": "pt"})
