"""Which labels are likely wrong, and what is far out: numbers in, an order of doubt out.

Confident learning (Northcutt, Jiang and Chuang 2021, section 3), from probabilities that networks
gave to images which they had not learned from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FENCE = 3.0
"""Of quartile ranges, beyond which Tukey (1977) calls a value far out."""


class Doubts(NamedTuple):
    """How far each of N labels is to be believed."""

    score: Floats
    """(N,) from 0, surely wrong, to 1, surely right: half of 1 + the normalised margin, which is
    the label's probability less the largest of the others."""
    suggested: NDArray[np.int64]
    """(N,) the class that answers it best: another one where `wrong`."""
    wrong: NDArray[np.bool_]
    """(N,) whether confident learning counts it as an error."""

    @property
    def order(self) -> NDArray[np.int64]:
        """Positions, the most doubtful first."""
        return np.argsort(self.score, kind="stable")


def of_labels(probabilities: Floats, labels: NDArray[np.int64]) -> Doubts:
    """Doubts about labels (N,) from probabilities (N, Y) of networks that did not know them.

    A class is confidently the answer where its probability reaches the mean that it has over the
    images which bear its label; a label is wrong where the most probable such class is another one.
    """
    p = np.asarray(probabilities, np.float64)
    rows, (_, classes) = np.arange(len(p)), p.shape
    own = p[rows, labels]
    others = p.copy()
    others[rows, labels] = -np.inf
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=own, minlength=classes)
    # a class that no label names can be nobody's answer
    thresholds = np.divide(sums, counts, out=np.full(classes, np.inf), where=counts > 0)
    confident = np.where(p >= thresholds, p, -np.inf)
    answer = confident.argmax(1)
    wrong = np.isfinite(confident.max(1)) & (answer != labels)
    suggested = np.where(wrong, answer, p.argmax(1))
    return Doubts((1 + own - others.max(1)) / 2, suggested, wrong)


def far_out(distances: Floats) -> float:
    """The distance above which one of these (N,) is an outlier: Tukey's outer fence."""
    low, high = np.quantile(distances, (0.25, 0.75))
    return float(high + FENCE * (high - low))
