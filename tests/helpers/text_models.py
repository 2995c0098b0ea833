"""A small vocabulary, captions, and changes of a text model's folder."""

from __future__ import annotations

from safetensors.torch import load_file, save_file

from cmrhash.encoders import text as text_encoders

WORDS = ["a", "the", "dog", "cat", "tree", "house", "runs", "under", "near", "red", "old", "and", "in", "of", "man"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [mark + letter for mark in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz[]"]
CAPTIONS = [
    "a dog",
    "the old man and the cat in the tree",
    "dog",
    "",
    "a red house near the tree",
    "zebra",
    "狗",
    "a dog",
]
LIMIT = 48  # word pieces that the small model can take


def load(folder, **options):
    return text_encoders.load(str(folder), dtype="float32", **options)


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
