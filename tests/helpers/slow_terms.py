"""tf-idf vectors of captions by plain loops, from the terms that a head stores."""

import re

import numpy as np


def slow_terms(caption):
    """Words, and n-grams of 4 and 5 characters of each word with its ends, which start with #."""
    words = re.findall(r"\w+", caption.lower())
    grams = [f"<{word}>"[at : at + n] for word in words for n in (4, 5) for at in range(len(word) + 3 - n)]
    return {*words}, {f"#{gram}" for gram in grams}


def slow_tf_idf(caption, terms, idf):
    """(V,) float64; the words and the n-grams of the caption each have length 1."""
    vector = np.zeros(len(terms))
    for found in slow_terms(caption):
        part = np.array([weight if term in found else 0 for term, weight in zip(terms, idf, strict=True)])
        vector += part / np.linalg.norm(part) if part.any() else part
    return vector
