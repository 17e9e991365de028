"""Maps of a representation: t-SNE to two dimensions, and new points placed on a map there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]

COMPONENTS = 50
PERPLEXITY = 30.0
FEWEST = 10
# Maps have a few thousand points: a second thread wins little, and where another process holds a
# core its spinning makes the whole fit six times slower.
THREADS = 1


@dataclass(frozen=True, eq=False)
class Map:
    """Points and where they lie: all that it takes to place further ones.

    h: float32 (M, D), the representation. xy: float32 (M, 2), row by row.
    """

    h: Points
    xy: Points

    def place(self, h: Points) -> Points:
        """Where new rows h (N, D) belong, float32 (N, 2); the map and each other stay unmoved.

        Raises ValueError where h has another number of columns than the map.
        """
        if h.ndim != 2 or h.shape[1] != self.h.shape[1]:
            raise ValueError(f"this map takes rows of {self.h.shape[1]} values, got {h.shape}")
        if len(h) == 0:
            return np.zeros((0, 2), np.float32)
        plane = _Principal(self.h)
        from openTSNE import TSNEEmbedding

        affinities = _affinities(plane(self.h), seed=0)
        reference = TSNEEmbedding(
            self.xy.astype(np.float64), affinities, n_jobs=THREADS, random_state=0
        )
        placed = reference.transform(plane(h), perplexity=min(5.0, affinities.perplexity))
        return np.asarray(placed, dtype=np.float32)


def fit(h: Points, seed: int) -> Map:
    """Lay out the rows of h float32 (M, D) so that near neighbours stay near (t-SNE).

    Rows are scaled to unit length, so distances order as cosine similarity does, and reduced to at
    most 50 principal components. The same h and seed give the same map. Raises ValueError for fewer
    than `FEWEST` rows: they have too few neighbours to be laid out by.
    """
    if h.ndim != 2 or len(h) < FEWEST:
        raise ValueError(f"a map needs at least {FEWEST} rows of values, got an array of {h.shape}")
    h = np.ascontiguousarray(h, dtype=np.float32)
    reduced = _Principal(h)(h)
    from openTSNE import TSNE

    affinities = _affinities(reduced, seed)
    start = reduced[:, :2] / max(float(reduced[:, 0].std()), 1e-12) * 1e-4
    tsne = TSNE(initialization=start, n_jobs=THREADS, random_state=seed)
    return Map(h, np.asarray(tsne.fit(affinities=affinities), dtype=np.float32))


class _Principal:
    """Projection of unit-length rows on the leading principal components of a reference."""

    def __init__(self, reference: Points) -> None:
        unit = _unit(reference)
        self.mean = unit.mean(axis=0)
        _, _, axes = np.linalg.svd(unit - self.mean, full_matrices=False)
        # A component's sign is arbitrary: let its largest entry be positive.
        largest = np.abs(axes).argmax(axis=1)
        signs = np.sign(axes[np.arange(len(axes)), largest])
        self.axes = (axes * signs[:, None])[:COMPONENTS]

    def __call__(self, h: Points) -> Points:
        """(N, max(2, components)) float32; a second column of zeros where D is 1."""
        reduced = (_unit(h) - self.mean) @ self.axes.T
        missing = max(0, 2 - reduced.shape[1])
        return np.pad(reduced, ((0, 0), (0, missing))).astype(np.float32)


def _unit(h: Points) -> NDArray[np.float64]:
    wide = h.astype(np.float64)
    length: NDArray[np.float64] = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.maximum(length, 1e-12)


def _affinities(reduced: Points, seed: int) -> Any:
    from openTSNE.affinity import PerplexityBasedNN

    return PerplexityBasedNN(
        reduced,
        perplexity=min(PERPLEXITY, (len(reduced) - 1) / 3),
        metric="euclidean",
        n_jobs=THREADS,
        random_state=seed,
    )
