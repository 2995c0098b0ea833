"""One linear map for images and texts of one space: ITQ, and random rotations. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmrhash.errors import UsageError

Matrix = NDArray[np.float64]

ITERATIONS = 50  # of ITQ, as in the paper
BLOCK = 65_536  # rows that are held in double precision at a time


def itq(x: NDArray[np.floating], bits: int, seed: int) -> Matrix:
    """Fit principal components of images, turned until they lie near their signs.

    x: (n, D) centred features. Returns (D, bits) with orthonormal columns. Gong & Lazebnik (CVPR 2011), section 2:
    from a random rotation R on, B = sign(V R) of the components V, then R = S_right S_left^T of the SVD
    B^T V = S_left W S_right^T, 50 times. Raises UsageError for more bits than directions in which the images differ.
    """
    dim = x.shape[1]
    scatter = sum((_double(part).T @ _double(part) for part in _blocks(x)), np.zeros((dim, dim)))
    values, vectors = np.linalg.eigh(scatter)
    most = int((values > 1e-10 * values[-1]).sum())
    if bits > most:
        what = f"itq allows at most {most} bits here: {len(x)} images of {dim} features differ in {most} directions"
        raise UsageError(what, None, 'use fewer bits, or `method="sign"`', option="bits")
    leading = vectors[:, ::-1][:, :bits]  # (D, bits)
    leading = leading * np.where(leading.sum(0) < 0, -1, 1)  # fix the arbitrary sign of an eigenvector
    components = np.concatenate([_double(part) @ leading for part in _blocks(x)])  # (n, bits)
    return leading @ turn(components, np.random.default_rng(seed))


def turn(components: Matrix, rng: np.random.Generator) -> Matrix:
    """Fit the rotation (K, K) that brings components (n, K) near their signs, from a random one on, as `itq` does."""
    found = _orthonormal(rng, components.shape[1])
    for _ in range(ITERATIONS):
        near = (np.where(part @ found >= 0, 1.0, -1.0).T @ part for part in _blocks(components))
        left, _, right = np.linalg.svd(sum(near, np.zeros_like(found)))
        found = right.T @ left.T
    return found


def sign(x: NDArray[np.floating], bits: int, seed: int) -> Matrix:
    """Draw a rotation; more bits than features take several, side by side.

    x: (n, D) features, of which only D is used. Returns (D, bits), each D columns orthonormal. Charikar (STOC 2002);
    rotations in place of independent directions: Ji et al. (NIPS 2012).
    """
    rng, dim = np.random.default_rng(seed), x.shape[1]
    return np.concatenate([_orthonormal(rng, dim) for _ in range(-(-bits // dim))], axis=1)[:, :bits]


def _orthonormal(rng: np.random.Generator, dim: int) -> Matrix:
    """Draw an orthonormal matrix (dim, dim), all of them equally likely."""
    q, r = np.linalg.qr(rng.standard_normal((dim, dim)))
    turned: Matrix = q * np.where(np.diag(r) < 0, -1, 1)
    return turned


def _blocks(x: NDArray[np.floating]) -> list[NDArray[np.floating]]:
    return [x[first : first + BLOCK] for first in range(0, len(x), BLOCK)]


def _double(part: NDArray[np.floating]) -> Matrix:
    return part.astype(np.float64, copy=False)
