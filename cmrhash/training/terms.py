"""Words and character n-grams of captions as sparse tf-idf vectors (Salton & Buckley, IPM 1988)."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from cmrhash.encoders.bag_and_vectors import lower_words

LEAST, MOST = 3, 10_000  # captions that a term occurs in; terms of a kind
LENGTHS = (4, 5)  # of n-grams
GRAM = "#"  # first character of an n-gram, which no word has
DENSE = 50  # speed of a dense product, as a multiple of a sparse one
NORM = 1e-6  # of the shortest vector that is scaled to 1


def words(caption: str) -> set[str]:
    """Words of a caption in lower case."""
    return set(lower_words(caption))


def grams(caption: str) -> set[str]:
    """Character n-grams of its words, whose ends count as characters.

    >>> sorted(grams("Hund"))
    ['#<hun', '#<hund', '#hund', '#hund>', '#und>']
    """
    marked = [f"<{word}>" for word in lower_words(caption)]
    return {GRAM + word[at : at + n] for word in marked for n in LENGTHS for at in range(len(word) - n + 1)}


KINDS: dict[str, Callable[[str], set[str]]] = {"words": words, "grams": grams}


class Vocabulary:
    """Terms of one or both KINDS and their inverse document frequencies. terms: V strings; idf: (V,) float32."""

    def __init__(self, terms: Sequence[str], idf: Tensor) -> None:
        self.terms, self.idf = list(terms), idf.cpu()
        self._row = {term: row for row, term in enumerate(self.terms)}
        are_grams = {term.startswith(GRAM) for term in self.terms}
        self._kinds = [find for kind, find in KINDS.items() if (kind == "grams") in are_grams]

    @classmethod
    def learn(cls, captions: Sequence[str], kind: str) -> Vocabulary:
        """Terms of a kind in at least LEAST of the captions: the MOST frequent ones, ties in alphabetical order."""
        counts = Counter(term for caption in captions for term in KINDS[kind](caption))
        known = sorted((term for term, n in counts.items() if n >= LEAST), key=lambda term: (-counts[term], term))
        idf = [math.log(len(captions) / counts[term]) for term in known[:MOST]]
        return cls(known[:MOST], torch.tensor(idf, dtype=torch.float32))

    @classmethod
    def decode(cls, stored: Tensor, idf: Tensor) -> Vocabulary:
        """The vocabulary of ``encoded`` terms; ValueError for other bytes."""
        terms = bytes(stored.cpu().numpy()).decode().split("\n") if len(stored) else []
        if len(terms) != len(idf):
            raise ValueError(f"{len(terms)} terms with {len(idf)} weights")
        return cls(terms, idf)

    @property
    def encoded(self) -> Tensor:
        """The terms as UTF-8, one a line, (bytes,) uint8."""
        return torch.tensor(list("\n".join(self.terms).encode()), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.terms)

    def __add__(self, other: Vocabulary) -> Vocabulary:
        return Vocabulary(self.terms + other.terms, torch.cat([self.idf, other.idf]))

    def vectors(self, captions: Sequence[str]) -> Tensor:
        """Sparse tf-idf vectors (N, V) float32; the part of each kind has length 1, or 0 without a known term."""
        idf = self.idf.tolist()
        counts, columns, values = array("q"), array("i"), array("f")  # a tenth of the memory of lists
        for caption in captions:
            before = len(columns)
            for find in self._kinds:
                known = self._known(find(caption))
                norm = math.sqrt(sum(idf[row] ** 2 for row in known))
                if norm > NORM:
                    columns.extend(known)
                    values.extend([idf[row] / norm for row in known])
            counts.append(len(columns) - before)
        places = torch.empty(2, len(columns), dtype=torch.int64)
        places[0] = torch.arange(len(captions)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        places[1] = torch.from_numpy(np.array(columns, np.int32))
        found, shape = torch.from_numpy(np.array(values, np.float32)), (len(captions), len(self))
        return torch.sparse_coo_tensor(places, found, shape, check_invariants=True, is_coalesced=True)

    def _known(self, terms: Iterable[str]) -> list[int]:
        return sorted(self._row[term] for term in terms if term in self._row)


def dots(x: Tensor, y: Tensor, block: int = 2048) -> Tensor:
    """Dot products of sparse rows x (B, V) and y (C, V), (B, C); ``block`` rows are dense at a time.

    Of whole articles a sparse product takes longer than a dense one.
    """
    if x._nnz() * DENSE > x.shape[0] * x.shape[1]:
        lefts = [x.index_select(0, part).to_dense() for part in _blocks(x, block)]
    else:
        lefts = [x]
    rights = (y.index_select(0, part).to_dense().T for part in _blocks(y, block))
    return torch.cat([torch.cat([left @ right for left in lefts]) for right in rights], 1)


def _blocks(x: Tensor, block: int) -> tuple[Tensor, ...]:
    return torch.split(torch.arange(x.shape[0], device=x.device), block)
