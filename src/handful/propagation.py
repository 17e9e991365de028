"""Labels that spread from few images to many, along a graph of nearest neighbours in h."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from handful.images import UNLABELLED

NEIGHBOURS = 10
SPREAD = 0.99
"""Share of an image's label that comes from its neighbours (α of Zhou et al.)."""
SHARPNESS = 3.0
"""Power of the cosine similarity that weighs an edge, as Iscen et al. have it."""
FAMILIAR, USUAL = 0.4, 0.9
"""Of what reaches the tenth of a class that is reached most, the share below which an image is
taken for none of the classes. Strangers are reached least: they move it only where they are nearly
all that a class was guessed for. Chosen on development draws 0 and 1 of MNIST (docs/pool.md)."""
CONTESTED = 0.5
"""An image is undecided where a second class reaches it with this much of what the first has."""
ROWS = 1024


class Guess(NamedTuple):
    """What labels spread to: classes int64 (N,), the given ones kept; bool (N,) each, which images
    are like the labelled ones, and which lie between two classes; float64 (N, Y), how much of each
    class reaches each image.
    """

    classes: Tensor
    familiar: Tensor
    undecided: Tensor
    reached: Tensor


def guess(h: Tensor, labels: Tensor, classes: int) -> Guess:
    """A class for every image, from few that have a label.

    h: float (N, D). labels: int64 (N,), -1 where unknown. classes: how many there are, at least 2;
    what has no label at all is never guessed. As much is sent out by each class, however many
    labels it has: where a class is rare in the pool, its images are reached by more, not taken by
    others.
    """
    reached = spread(h, labels, classes)
    reached = reached / reached.sum(0).clamp(min=torch.finfo(reached.dtype).tiny)
    known = labels != UNLABELLED
    guessed, total = reached.argmax(1), reached.sum(1)
    familiar = known.clone()
    for label in range(classes):  # of a large class each image gets less
        own = (guessed == label) & ~known & (total > 0)
        if own.any():
            usual = np.quantile(total[own].numpy(), USUAL)
            familiar |= own & (total >= FAMILIAR * usual)
    first, second = reached.topk(2, dim=1).values.T
    undecided = ~known & (first > 0) & (second >= CONTESTED * first)
    return Guess(torch.where(known, labels, guessed), familiar, undecided, reached)


def spread(h: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How much of each class reaches each image: float64 (N, Y), not normalised.

    Solves (I - α S) F = Y with S the normalised weights of a graph of nearest neighbours (Zhou et
    al. 2004, section 2, its limit), on representations as Iscen et al. (2019) do. An image with
    many neighbours is reached by more: that is taken out. Costs N² · D multiplications for the
    neighbours.
    """
    weights = _graph(h)
    degree: NDArray[np.float64] = np.asarray(weights.sum(axis=1)).ravel().clip(min=1e-12)
    root = sparse.diags_array(degree**-0.5)
    system = sparse.eye_array(len(h)) - SPREAD * (root @ weights @ root)
    found = np.zeros((len(h), classes))
    for label in labels[labels != UNLABELLED].unique().tolist():
        known = (labels == label).numpy().astype(np.float64)
        # symmetric and positive definite: α is below 1
        found[:, label] = sparse.linalg.cg(system, known, rtol=1e-6)[0]
    return torch.from_numpy(root @ found.clip(min=0))


def _graph(h: Tensor) -> sparse.csr_array:
    """Weights (N, N) between each image and its nearest ones, the same in both directions."""
    units = F.normalize(h.float(), dim=1)
    count = min(NEIGHBOURS, len(h) - 1)
    weights, places = [], []
    for start, rows in zip(range(0, len(h), ROWS), units.split(ROWS), strict=True):
        similar = rows @ units.T
        own = torch.arange(len(rows))
        similar[own, start + own] = -1.0  # no image is its own neighbour
        near, where = similar.topk(count, dim=1)
        weights.append(near.clamp(min=0) ** SHARPNESS)
        places.append(where)
    columns = torch.cat(places).cpu().numpy().ravel()
    starts = np.arange(len(h) + 1) * count
    values = torch.cat(weights).cpu().double().numpy().ravel()  # MPS has no float64
    one_way = sparse.csr_array((values, columns, starts), shape=(len(h), len(h)))
    return one_way + one_way.T
