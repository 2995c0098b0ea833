"""Batches to compute losses of."""

import torch


def batch(seed, size, bits, density, ties=False, dtype=torch.float64):
    """Embeddings and relevance; with ``ties`` the embeddings lie on a coarse grid, so that distances tie."""
    g = torch.Generator().manual_seed(seed)
    u, v = (torch.rand(size, bits, generator=g, dtype=dtype) * 2 - 1 for _ in range(2))
    if ties:
        u, v = (u * 2).round() / 2, (v * 2).round() / 2
    labels = torch.rand(size, 4, generator=g) < density
    relevant = (labels.float() @ labels.float().T > 0) | torch.eye(size, dtype=torch.bool)
    return u, v, relevant
