"""PretrainedHasher: an exported run that embeds and hashes without the run's data set.

FOLDER/                             as ``write.save`` writes it, locally or under an id of a model hub
    config.json                     bits, views, heads, encoders by recipe and digest; sha256 of every file below
    heads.safetensors               trained heads
    encoders/image.safetensors      weights of the image encoder, if bundled
    encoders/image/                 image tower of transformers or open_clip with its preparation of photos, if bundled
    encoders/text-<langs>/          transformer with its tokenizer and modules.json, or text tower, if bundled
    encoders/text-<langs>.safetensors   word encoder: words, weights and vectors
    README.md                       model card without a digest, because the author completes it
    image.onnx, text-<lang>.onnx, text-<lang>.tokenizer.json, onnx.json   with --onnx, see ``onnx``
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.checks import check_device
from cmrhash.config import RANDOM
from cmrhash.data.cleaning import known_language
from cmrhash.data.view import View, languages_of
from cmrhash.encoders import hub, packages
from cmrhash.errors import DamagedError, EncoderError, StaleError, UsageError
from cmrhash.retrieval.codes import check_k, pack
from cmrhash.retrieval.index import BinaryIndex
from cmrhash.retrieval.ranking import ASYMMETRIC, HAMMING, Rank, asymmetric_scores
from cmrhash.search.embedder import Embedder, is_photo
from cmrhash.storage import records
from cmrhash.storage.files import checked, read_json
from cmrhash.storage.recipes import canonical
from cmrhash.storage.staged import settle
from cmrhash.training.runs import EXPORT, Run

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.nn import ModuleDict

    from cmrhash.encoders.image import ImageEncoder
    from cmrhash.encoders.numpy_text import NumpyTextEncoder
    from cmrhash.features.captions import CaptionEncoder
    from cmrhash.training.numpy_heads import NumpyHead

CONFIG, HEADS, CARD = "config.json", "heads.safetensors", "README.md"
VERSION = 1
RUN = "exported run"  # kind of download, for messages
AGAIN = "download it again (after hf cache rm model/OWNER/NAME), or run `export` again"
MODEL = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")  # a transformer's files
TOWER = ("config.json", "model.safetensors", "preprocessor_config.json")  # a transformers image model's files
OPEN_CLIP = ("open_clip_config.json", "model.safetensors")  # files of a tower of open_clip
PART = re.compile(r"encoders/(image(\.safetensors)?|text-[\w+-]+(\.safetensors)?)")
MODULES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")  # of sentence-transformers
LAYERS = r"\d{1,2}_(Pooling|Dense|Normalize)/config\.json|\d{1,2}_Dense/model\.safetensors"
NAMES = "|".join(map(re.escape, sorted({*MODEL, *MODULES, *TOWER, *OPEN_CLIP})))
FILE = re.compile(rf"heads\.safetensors|encoders/[\w+-]+(\.safetensors|/({NAMES}|{LAYERS}))")
# a torchvision enum entry, a hub id or a model of open_clip; never a path
SOURCE = re.compile(r"(open_clip:)?\w[\w.-]*(/\w[\w.-]*)?")
NAMED = re.compile(r"image|text-[\w-]+")  # views
RECIPE: dict[str, Any] = {  # types of an encoder's settings, as far as it has them
    **dict.fromkeys(("encoder", "weights", "weights_sha256", "dtype", "pooling"), str),
    **dict.fromkeys(("layer", "tokenizer_sha256"), str | None),
    "crop": Mapping[str, Any],
    "max_length": int | None,
    "weights_seed": int,
    "mirror": bool,
}
KINDS = ("image", "transformer", "words")


class PretrainedHasher(Embedder):
    """Hash photos and sentences; search codes that the caller gives.

    The export contains no database.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        device: str = "auto",
        image_weights: str | None = None,
        text_models: Mapping[str, str] | None = None,
        offline: bool = False,
    ) -> None:
        check_device(device)
        self.folder, self.config = folder, config
        self._device, self._offline = device, offline
        self._given: dict[View, str | None] = {View.IMAGE: image_weights}
        given = {known_language(lang, self.langs): model for lang, model in (text_models or {}).items()}
        self._given |= {View.text(lang): given.get(lang, given.get("")) for lang in self.langs}
        self._text_encoders: dict[str, CaptionEncoder] = {}
        self._light_encoders: dict[str, CaptionEncoder | NumpyTextEncoder] = {}

    @classmethod
    def load(cls, source: str | Path, *, revision: str | None = None, **options: Any) -> PretrainedHasher:
        """Open a folder that ``Hasher.save_pretrained`` wrote, locally or from the hub.

        revision: branch, tag or commit on the hub, None for main. options: arguments of the class; image_weights and
        text_models locate encoders that are not bundled. An existing folder comes first, then the hub's local cache,
        then the network unless ``offline`` or the environment forbids it; cached files are not updated. Raises
        EncoderError if nothing can be fetched, UsageError for a folder without an export or with a revision, StaleError
        for a newer version, DamagedError for any file that does not match its digest.
        """
        folder = _folder(str(source), revision, options.get("offline", False))
        return cls(folder, read_config(folder), **options)

    def __repr__(self) -> str:
        return f"PretrainedHasher({str(self.folder)!r}, {self.bits} bits, {', '.join(self.langs)})"

    @property
    def bits(self) -> int:
        """Code length."""
        return int(self.config["bits"])

    @property
    def langs(self) -> tuple[str, ...]:
        """Languages of the queries."""
        return tuple(languages_of(map(View, self.config["views"])))

    @property
    def place(self) -> Path:
        """Folder of the export."""
        return self.folder

    def head_of(self, view: View) -> View:
        """View whose head hashes a view, another one for a borrowed language."""
        return View(self.config["views"][view])

    def search(
        self,
        query: str | Path | Image | bytes,
        codes: NDArray[np.uint8] | None = None,
        *,
        lang: str | None = None,
        k: int = 10,
        rank: str | Rank = HAMMING,
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Find the k nearest of ``codes`` (N, ceil(bits / 8)) uint8, made by encode_image and encode_text.

        Give these ``role="database"``: for methods such as krr-ap it makes a difference.
        query: a sentence (str), or a photo (a Path, a PIL image, a file's bytes). rank: "hamming" returns distances in
        bits (int32) and rows, "asymmetric" scores (float64, see ``retrieval.ranking``) and rows, each (min(k, N),),
        nearest first, equal ones in the order of the rows. Raises UsageError without codes and for another rank.
        """
        if codes is None:
            what = "an exported run contains no database"
            raise UsageError(
                what, self.folder, 'give codes=..., made by its encode_image or encode_text with `role="database"`'
            )
        order = Rank.parse(rank)
        if order.kind not in (HAMMING, ASYMMETRIC):
            what = f"the given codes cannot be ranked by {order}: they hold no real numbers"
            raise UsageError(what, self.folder, "choose hamming or asymmetric", option="rank")
        index = BinaryIndex.build(np.ascontiguousarray(codes), self.bits)
        embedding = self.embed_image([query]) if is_photo(query) else self.embed_text([str(query)], lang)
        if order.kind == HAMMING:
            distances, rows = index.search(pack(embedding), k)
            return distances[0], rows[0]
        scores = asymmetric_scores(embedding, index.packed)[0]
        nearest = np.argsort(-scores, kind="stable")[: check_k(k)]
        return scores[nearest], nearest

    @cached_property
    def heads(self) -> ModuleDict:
        """Trained heads by view."""
        from torch.nn import ModuleDict

        from cmrhash.training.checkpoint import fill, read_tensors
        from cmrhash.training.methods import build_head

        path = self._file(HEADS)
        dims = {view: entry["dim"] for view, entry in self.config["encoders"].items()}
        heads = ModuleDict({view: build_head(dim, self.bits, self.config["head"], view) for view, dim in dims.items()})
        fill(heads, read_tensors(path, AGAIN), path, AGAIN)
        return heads.eval()

    @cached_property
    def light_heads(self) -> Mapping[View, NumpyHead]:
        """Trained heads by view without torch."""
        from cmrhash.training.numpy_heads import read_heads

        return read_heads(self._file(HEADS), map(View, self.config["encoders"]), self.config["head"])

    @cached_property
    def image_encoder(self) -> ImageEncoder:
        """Image encoder."""
        from cmrhash.features import reopen

        entry = self.config["encoders"][View.IMAGE]
        source = self._source(View.IMAGE, entry, '`image_weights="FILE"`')
        return reopen.image_from(entry["recipe"], source, self.folder, self._device, self._offline)

    def text_encoder(self, view: View) -> CaptionEncoder:
        """Text encoder of a view; views with equal encoders share one."""
        entry, source, key = self._text_entry(view)
        if key not in self._text_encoders:
            self._text_encoders[key] = self._open_text(entry, source)
        return self._text_encoders[key]

    def light_encoder(self, view: View) -> CaptionEncoder | NumpyTextEncoder:
        """The same for a few texts: without torch if possible."""
        from cmrhash.features import reopen

        entry, source, key = self._text_entry(view)
        if key not in self._light_encoders:
            light = None if entry["kind"] == "words" else reopen.light_text_from(entry["recipe"], source, self._device)
            self._light_encoders[key] = light or self.text_encoder(view)
        return self._light_encoders[key]

    def _text_entry(self, view: View) -> tuple[Mapping[str, Any], str, str]:
        """Entry of a view's text encoder, its source, and a key for both."""
        entry = self.config["encoders"][self.head_of(view)]
        source = self._source(view, entry, f'`text_models={{"{view.lang}": "DIR"}}`')
        return entry, source, f"{source} {canonical(entry['recipe']).decode()}"

    def _open_text(self, entry: Mapping[str, Any], source: str) -> CaptionEncoder:
        from cmrhash.encoders.bag_and_vectors import rebuild
        from cmrhash.features import reopen

        if entry["kind"] == "words":
            from safetensors.numpy import load_file

            return rebuild(entry["name"], entry["recipe"], load_file(self._file(entry["part"])))
        return reopen.text_from(entry["recipe"], source, self.folder, self._device, self._offline)

    def _source(self, view: View, entry: Mapping[str, Any], option: str) -> str:
        """Source of an encoder's weights: the caller's, the bundled one or the public name."""
        if self._given.get(view) and entry["kind"] != "words":
            return str(self._given[view])
        if entry["part"]:
            return str(self.folder / entry["part"])
        if not entry["source"]:
            digest = str(entry["recipe"]["weights_sha256"])[:12]
            what = f"the weights of its {view} encoder ({entry['name']}, {digest}...) are not included"
            raise EncoderError(what, self.folder, f"give {option}, or run `export` with `with_encoders=True`")
        return str(entry["source"])

    def _file(self, name: str) -> Path:
        return checked(self.folder, name, self.config["files"].get(name), AGAIN)


def applied_by(run: Run, moved: Mapping[str, Any], **options: Any) -> PretrainedHasher:
    """The exported run that a run applies to another collection.

    moved: image_weights and text_models, present places of its encoders; by default those that the run records.
    """
    known = {View(view): source for view, source in run.record.get("sources", {}).items()}
    texts = {str(view.lang): source for view, source in known.items() if not view.is_image}
    models = {**({} if "" in moved["text_models"] else texts), **moved["text_models"]}
    image = moved["image_weights"] or known.get(View.IMAGE)
    return PretrainedHasher.load(run.folder / run.record[EXPORT], image_weights=image, text_models=models, **options)


def _folder(source: str, revision: str | None, offline: bool) -> Path:
    """Folder of an export, downloaded if it is on the hub.

    The config comes first, then the files that it names from the same commit, so that no weights are downloaded of
    anything but an export.
    """
    fix = "give a folder made by `export`"
    folder = hub.locate(source, (CONFIG,), offline, RUN, fix, revision)
    if folder == Path(source).expanduser():
        return folder
    if not (folder / CONFIG).is_file():
        raise UsageError(f"not an exported run: it has no {CONFIG}", f"'{source}' on the hub", fix)
    return hub.locate(source, (CONFIG, *_fields(folder)["files"]), offline, RUN, fix, folder.name)


def read_config(folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of an exported run and check every file that it names.

    Raises UsageError, StaleError or DamagedError. An export may come from strangers: it may name no file but those
    above.
    """
    settle(folder)
    config = _fields(folder)
    for name, digest in config["files"].items():
        checked(folder, name, digest, AGAIN)
    there = {p.relative_to(folder).as_posix() for p in (folder / "encoders").rglob("*") if not p.is_dir()}
    if unknown := sorted(there - set(config["files"])):
        raise DamagedError("a file that its config does not name", folder / unknown[0], "delete it, or " + AGAIN)
    return config


def _fields(folder: Path) -> dict[str, Any]:
    """Read and check the config alone."""
    path, fix = folder / CONFIG, "create one with `export`"
    if not path.is_file():
        raise UsageError("not an exported run", folder, fix)
    if b'"cmrhash"' not in path.read_bytes():
        raise UsageError(f"not an exported run: its {CONFIG} is of another program", folder, fix)
    config = read_json(path, AGAIN)
    if not isinstance(config, dict):
        raise DamagedError("not the config of an exported run", path, AGAIN)
    if config.get("version") != VERSION:
        fix = f"this cmrhash reads version {VERSION}: upgrade it"
        raise StaleError(f"export format version {config.get('version')}", path, fix)
    try:
        _check_fields(config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DamagedError(f"not the config of an exported run ({reason})", path, AGAIN) from None
    return config


def _check_fields(config: Mapping[str, Any]) -> None:
    """Raise ValueError, or the error of a missing field, unless every field is valid."""
    for name in ("dataset", "method", "source", "relevance", "cmrhash"):
        records.typed(str, config[name], name)
    views = records.typed(Mapping[View, View], config["views"], "views")
    encoders = records.typed(Mapping[View, Mapping[str, Any]], config["encoders"], "encoders")
    files = records.typed(Mapping[str, str], config["files"], "files")
    if odd := [name for name in files if not FILE.fullmatch(name)]:
        raise ValueError(f"names the file {odd[0]!r}")
    if HEADS not in files or View.IMAGE not in views or not set(views.values()) == set(encoders):
        raise ValueError("views, heads and encoders do not fit")
    if odd := [view for view in views if not NAMED.fullmatch(view)]:
        raise ValueError(f"names the view {odd[0]!r}")
    _whole("bits", config["bits"], 4096)
    _whole("hidden", config["head"]["hidden"], 1 << 16, 0)
    if set(config["head"]) - {"rows", "near", "words"} != {"hidden", "bounded"}:
        raise ValueError("a head of unknown fields")
    _whole("rows", config["head"].get("rows", 1), 1 << 20)
    _whole("near", config["head"].get("near", 1), 1 << 22)
    words = records.typed(Mapping[View, int], config["head"].get("words", {}), "words")
    for view, entry in encoders.items():
        _whole("dim", entry["dim"], 1 << 20)
        _whole("words", words.get(view, 1), entry["dim"])
        _check_encoder(View(view), entry, files)


def _check_encoder(view: View, entry: Mapping[str, Any], files: Mapping[str, str]) -> None:
    recipe, part, source = entry["recipe"], entry["part"], entry["source"]
    if entry["kind"] not in KINDS or (entry["kind"] == "image") != view.is_image:
        raise ValueError(f"{view} has an encoder of the kind {entry['kind']!r}")
    way = "layer" if "layer" in recipe else "pooling"  # of a tower, of another transformer
    needs = ["encoder", "weights", "weights_sha256", way, "max_length", "dtype", "tokenizer_sha256"]
    for name, typed in RECIPE.items():
        if name in recipe:
            records.typed(typed, recipe[name], f"{view}.{name}")
    _whole("max_length", recipe.get("max_length") or 1, 1 << 16)
    for field in {"image": [*needs[:3], "dtype", "crop"], "words": ["pooling"], "transformer": needs}[entry["kind"]]:
        recipe[field]
    if source is not None and (not SOURCE.fullmatch(source) or ".." in source):
        raise ValueError(f"{view} comes from {source!r}")
    if part is None and (entry["kind"] == "words" or (source == RANDOM and not view.is_image)):
        raise ValueError(f"{view} has no part")
    kind = MODEL if entry["kind"] == "transformer" else TOWER if part == "encoders/image" else ()
    folder: tuple[str, ...] = OPEN_CLIP if packages.is_open_clip(recipe) else kind
    held = [f"{part}/{name}" for name in folder] or [part]
    if part is not None and (not PART.fullmatch(part) or not set(held) <= set(files)):
        raise ValueError(f"{view} has the part {part!r}")


def _whole(name: str, value: Any, most: int, least: int = 1) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}")
