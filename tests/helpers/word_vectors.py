"""A few captions, a few word vectors, and files of them."""

from __future__ import annotations

from cmrhash.encoders import bag_and_vectors

TRAIN = {
    "en": ["A dog runs.", "a dog and a cat", "The cat sleeps", "two dogs, one cat!"],
    "de": ["Ein Hund rennt.", "ein Hund und eine Katze", "die Katze schläft"],
}
ALL = {"en": [*TRAIN["en"], "a zebra runs", "???"], "de": [*TRAIN["de"], "Ein Zebra rennt"]}
VECTORS = {"a": [1, 0, 0], "dog": [0, 2, 0], "cat": [0, 0, 4], "runs": [1, 1, 1], "Hund": [0, 2, 1], "hund": [9, 9, 9]}
VECTORS |= {"katze": [0.5, -0.25, 4], "ein": [1, 0.125, 0], "unused": [7, 7, 7]}


def text_of(vectors, header=False, end=""):
    lines = [f"{len(vectors)} 3\n"] if header else []
    return "".join(lines + [f"{word} {' '.join(map(str, v))}{end}\n" for word, v in vectors.items()]).encode()


def load(model, train=TRAIN, captions=ALL, vocabulary=2912, **options):
    return bag_and_vectors.load(str(model), train, captions, vocabulary=vocabulary, **options)
