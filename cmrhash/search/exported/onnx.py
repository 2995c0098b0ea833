"""ONNX graphs of encoders with their heads: pixels or token ids -> embeddings and packed codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cmrhash.data.view import View
from cmrhash.encoders import packages
from cmrhash.encoders.graphs import ONE_FILE, OPSET, export, need_onnx, open_graph, sample_pixels
from cmrhash.encoders.image import ImageEncoder
from cmrhash.encoders.regions import Regions
from cmrhash.encoders.text import TextEncoder
from cmrhash.errors import CmrhashError
from cmrhash.retrieval.codes import pack
from cmrhash.search.embedder import Embedder
from cmrhash.search.exported.hasher import CARD
from cmrhash.search.exported.write import ONNX
from cmrhash.storage.files import sha256, write_bytes, write_json
from cmrhash.training.heads import Head, KernelHead

NEAR = 1e-5  # embeddings this close to 0 may flip their bit if summed in another order
SEED = 0  # of the pixels that check a graph
SENTENCES = ("a dog", "two people on a beach", "a red car in front of an old house")  # that do where no captions are
OUTPUTS = ("embedding", "codes", "database_embedding", "database_codes")  # the last two where they differ


class ImageGraph(nn.Module):
    """Graph of an image encoder with its head.

    (B, S, S, 3) uint8 RGB crops -> (B, bits) float32 embeddings, (B, ceil(bits / 8)) uint8 codes; a head that embeds
    database items in another way gives both a second time, as such.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: ImageEncoder, head: Head) -> None:
        super().__init__()
        self.module, self.head, self.features = encoder.module, head, encoder.features
        self.register_buffer("mean", torch.tensor(encoder.crop.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(encoder.crop.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Compute as ``ImageEncoder.forward`` and the head do."""
        batch = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return _with_codes(self.head.by_role(self.features(batch)))


class TextGraph(nn.Module):
    """Graph of a text encoder with its head.

    Token ids and attention mask, both (B, T) int64 -> outputs as of ImageGraph.
    """

    def __init__(self, encoder: TextEncoder, head: Head) -> None:
        super().__init__()
        self.module, self.head, self.pooled = encoder.module, head, encoder.pooled

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Compute as ``TextEncoder.forward`` and the head do."""
        out = self.module(input_ids=input_ids, attention_mask=attention_mask)
        feature = out if isinstance(out, Tensor) else self.pooled(out.last_hidden_state, attention_mask)
        return _with_codes(self.head.by_role(feature))


def _with_codes(embeddings: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(part for embedding in embeddings for part in (embedding, packed(embedding)))


def packed(embedding: Tensor) -> Tensor:
    """Pack (B, bits) as ``codes.pack`` does, with ONNX operations: (B, ceil(bits / 8)) uint8."""
    bits = embedding.shape[1]
    ones = nn.functional.pad((embedding >= 0).int(), (0, -bits % 8))
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.int32)  # the lowest bit first
    return (ones.reshape(-1, -(-bits // 8), 8) * powers).sum(2, dtype=torch.int32).to(torch.uint8)


def write(hasher: Embedder, folder: Path, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Write the ONNX graphs of a hasher, and ``onnx.json``, which describes their inputs.

    The hasher's encoders must be on the CPU. texts: language -> a few sentences to check its graph on. Graphs compute
    in float32, whatever dtype the encoders ran in; onnxruntime runs each at once, and its bits must equal torch's
    wherever the embedding is not within 1e-5 of 0. Word encoders and detectors are left out, with the reason. Returns
    the content of ``onnx.json``.

    Raises UsageError without the packages of ``cmrhash[onnx]``, CmrhashError for a graph that gives other bits.
    """
    need_onnx()
    graphs: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    heads: Any = hasher.heads
    if isinstance(hasher.image_encoder.module, Regions):
        left_out[View.IMAGE] = "region features cannot be a graph of fixed operations"
    else:
        assert isinstance(hasher.image_encoder, ImageEncoder)  # of no export it is one of the user's own
        graphs["image.onnx"] = _image(hasher.image_encoder, heads[View.IMAGE], folder)
    for lang in hasher.langs:
        view = View.text(lang)
        encoder = hasher.text_encoder(view)
        if hasher.head_of(view) != view:
            left_out[view] = f"{hasher.head_of(view)}.onnx serves it"
        elif getattr(heads[view], "vocabulary", ()):
            left_out[view] = "its head also compares the words of a text, which a graph of token ids does not know"
        elif isinstance(encoder, TextEncoder) and encoder.tokenizer_file() is None:
            left_out[view] = "its tokenizer is no file of the tokenizers library"
        elif isinstance(encoder, TextEncoder):
            graphs[f"{view}.onnx"] = _text(encoder, heads[view], folder, view, texts[lang] or SENTENCES)
        else:
            left_out[view] = "a word encoder is a table: its words are in encoders, its head in heads.safetensors"
    about = {"version": 1, "bits": hasher.bits, "packing": "bit j = embedding[j] >= 0, in byte j // 8 at place j % 8"}
    about |= {"graphs": graphs, "left_out": left_out}
    write_json(folder / ONNX, about)
    card = (folder / CARD).read_text(encoding="utf-8")
    write_bytes(folder / CARD, (card + _chapter(graphs)).encode())
    return about


def _image(encoder: ImageEncoder, head: Head, folder: Path) -> dict[str, Any]:
    graph = ImageGraph(encoder, head).eval()
    size = encoder.crop.size
    inputs = {"pixels": sample_pixels(size)}
    path = folder / "image.onnx"
    _export(graph, {"pixels": torch.from_numpy(inputs["pixels"][:2])}, {"pixels": {0: "batch"}}, path)
    about = {"inputs": {"pixels": f"(batch, {size}, {size}, 3) uint8, RGB"}, "crop": encoder.crop.recipe()}
    return {
        **_about(path, graph, encoder),
        **about,
        **_checked(path, graph, [inputs, {"pixels": inputs["pixels"][:1]}]),
    }


def _text(encoder: TextEncoder, head: Head, folder: Path, view: View, texts: Sequence[str]) -> dict[str, Any]:
    graph = TextGraph(encoder, head).eval()
    feeds = [_tokens(encoder, some) for some in (texts, texts[:1], [text * 2 for text in texts[:3]])]
    path = folder / f"{view}.onnx"
    names, of_open_clip = ("input_ids", "attention_mask"), packages.is_open_clip(encoder.recipe)
    shape = {0: "batch"} | ({} if of_open_clip else {1: "length"})
    inputs = {name: torch.from_numpy(x) for name, x in _two_or_more(feeds[0]).items()}
    _export(graph, inputs, dict.fromkeys(names, shape), path)
    tokenizer = folder / f"{view}.tokenizer.json"
    write_bytes(tokenizer, encoder.tokenizer_file().to_str(pretty=True).encode())
    special = {"special_tokens_in_texts": "are text: set encode_special_tokens where a tokenizer has it"}
    about = {
        "inputs": dict.fromkeys(names, f"(batch, {encoder.max_length if of_open_clip else 'length'}) int64"),
        "tokenizer": tokenizer.name,
        **({"texts": "without HTML entities and broken encodings"} if of_open_clip else special),
        "max_length": encoder.max_length,
        "pooling": encoder.pooling or encoder.recipe["layer"],
        **({"prompt": encoder.prompt} if encoder.prompt else {}),  # to be put before each text
    }
    return {**_about(path, graph, encoder), **about, **_checked(path, graph, feeds)}


def _tokens(encoder: TextEncoder, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Token ids and mask, padded to the longest text."""
    pieces = encoder.pieces(texts)
    width = encoder.padded_to or max(map(len, pieces))
    pad = getattr(encoder.tokenizer, "pad_token_id", None) or 0
    ids = np.array([piece + [pad] * (width - len(piece)) for piece in pieces], np.int64)  # (B, T)
    mask = np.array([[1] * len(piece) + [0] * (width - len(piece)) for piece in pieces], np.int64)
    return {"input_ids": ids, "attention_mask": mask}


def _two_or_more(feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Repeat a single row, because the exporter makes a batch of one a constant."""
    return {name: np.concatenate([x, x])[: max(2, len(x))] for name, x in feed.items()}


def _export(graph: nn.Module, inputs: Mapping[str, Tensor], shapes: Mapping[str, Any], path: Path) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    for old in (path, path.with_name(path.name + ".data")):
        old.unlink(missing_ok=True)
    program = export(graph, inputs, _outputs(graph), shapes)
    program.save(path, external_data=size >= ONE_FILE)


def _outputs(graph: nn.Module) -> tuple[str, ...]:
    return OUTPUTS if isinstance(graph.head, KernelHead) else OUTPUTS[:2]


def _about(path: Path, graph: nn.Module, encoder: ImageEncoder | TextEncoder) -> dict[str, Any]:
    files = [path, path.with_name(path.name + ".data")]
    head: Any = graph.head
    shapes = {"embedding": f"(batch, {head.bits}) float32", "codes": f"(batch, {-(-head.bits // 8)}) uint8"}
    return {
        "files": {file.name: sha256(file) for file in files if file.exists()},
        "opset": OPSET,
        "dtype": {"graph": "float32", "run": encoder.recipe["dtype"]},  # if they differ, some bits may differ
        "outputs": {name: shapes[name.removeprefix("database_")] for name in _outputs(graph)},
    }


def _checked(path: Path, graph: nn.Module, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
    """Compare a graph's outputs with torch's; returns the report.

    Raises CmrhashError where a bit differs and the embedding is not near 0.
    """
    session = open_graph(path)
    rows = bits = near = differing = 0
    apart = 0.0
    for feed in feeds:
        outputs = session.run(list(_outputs(graph)), dict(feed))
        with torch.inference_mode():
            expected = graph(**{name: torch.from_numpy(x) for name, x in feed.items()})
        found, wanted = np.concatenate(outputs[::2]), torch.cat(expected[::2]).numpy()
        codes = np.concatenate(outputs[1::2])
        close = np.abs(wanted) < NEAR
        rows, bits, near = rows + len(expected[0]), bits + wanted.size, near + int(close.sum())
        apart = max(apart, float(np.abs(found - wanted).max()))
        differing += int(((found >= 0) != (wanted >= 0)).sum())
        if (((found >= 0) != (wanted >= 0)) & ~close).any() or not np.array_equal(pack(found), codes):
            raise CmrhashError("the graph gives other bits than PyTorch", path, "report it with the encoder's name")
    words = f"{bits - differing} of {bits} bits as torch has them on {rows} inputs, {near} values within {NEAR:g} of 0"
    return {"checked": words, "max_abs_difference": apart}


def _chapter(graphs: Mapping[str, Any]) -> str:
    lines = ["\n## Without Python\n"]
    lines.append(
        "`onnx.json` names inputs, outputs, tokenizers and the preparation of photos. Checked by onnxruntime:\n"
    )
    lines += [f"- `{name}`: {graph['checked']}" for name, graph in graphs.items()]
    if "image.onnx" in graphs:
        crop = graphs["image.onnx"]["crop"]
        ways = {"letterbox": "in a letterbox", "squash": "both sides to `squash`, centre square of `size`"}
        usual = "short side to `resize`, centre square of `size`"
        how = next((words for name, words in ways.items() if name in crop), usual)
        lines.append(f"- photos: upright, on white, RGB, {how} ({crop['interpolation']}), uint8; no normalisation")
    if any(name != "image.onnx" for name in graphs):
        lines.append("- texts: ids and attention mask of `text-<lang>.tokenizer.json`, which cuts and pads")
    return "\n".join(lines) + "\n"
