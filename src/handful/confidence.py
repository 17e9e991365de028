"""When to answer: what known answers say of new ones, and which images are like nothing known.

Tensors in, plain numbers out. Every rate is a share of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SURELY = 0.95
"""Of cases in which a certified limit holds."""
USUAL = 0.99
"""Share of the images that taught which are no stranger to the others than this makes one."""
SHRUNK = 0.1
"""Share of the covariance of styles that is taken for independence: images may be few."""
ROWS = 512


@dataclass(frozen=True, eq=False)
class Evidence:
    """Answers to labelled images by networks that did not learn from them.

    probability: float64 (M,), calibrated, of each answer. right: bool (M,).
    """

    probability: Tensor
    right: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Evidence:
        """From calibrated logits (M, Y) and labels int64 (M,)."""
        probability, answer = logits.detach().double().softmax(1).max(1)
        return cls(probability, answer == labels)

    def __post_init__(self) -> None:
        if len(self.probability) != len(self.right):
            raise ValueError(f"{len(self.probability)} answers, of which {len(self.right)} judged")

    def as_dict(self) -> dict[str, list[float] | list[bool]]:
        """Plain values, ready for JSON."""
        return {"probability": self.probability.tolist(), "right": self.right.tolist()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Evidence:
        """What `as_dict` gave. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            torch.tensor(stored["probability"], dtype=torch.float64),
            torch.tensor(stored["right"], dtype=torch.bool),
        )


@dataclass(frozen=True)
class Abstention:
    """Where to stop answering, and what the evidence says of the answers that are left."""

    error: float
    """The largest expected share of wrong answers that was asked for."""
    threshold: float
    """Least probability of an answer that is given."""
    known: int
    """Labelled images that speak for it."""
    answered: int
    """Of these, how many reach the threshold."""
    wrong: int
    """Of those, how many answers are wrong."""
    limit: float
    """Their error is below this in 95 of 100 cases (`upper_limit`)."""

    @property
    def certified(self) -> bool:
        """Whether so few labelled images can vouch for what was asked for."""
        return self.limit <= self.error


def abstention(evidence: Evidence, error: float) -> Abstention:
    """The threshold above which answers are expected to be wrong in a share of at most `error`.

    The lowest one at which neither the mean of what probabilities leave open nor the share of wrong
    answers in the evidence is above `error`. Where there is none, 1 - `error`, from which on each
    single answer should keep to it, or, where the evidence says otherwise, above the surest wrong
    answer. Raises ValueError unless 0 < error < 1.
    """
    if not 0 < error < 1:
        raise ValueError(f"an expected error lies between 0 and 1, such as 0.01, got {error:g}")
    order = evidence.probability.argsort(descending=True, stable=True)
    probability, right = evidence.probability[order], evidence.right[order]
    count = torch.arange(1, len(order) + 1)
    expected = (1 - probability).cumsum(0) / count
    observed = (~right).cumsum(0) / count
    # of equal probabilities all are answered or none: the last of them speaks for all
    last = torch.ones(len(order), dtype=torch.bool)
    last[:-1] = probability[1:] < probability[:-1]
    fits = (last & (expected <= error) & (observed <= error)).nonzero()
    if len(fits):
        threshold = float(probability[fits[-1, 0]])
    else:
        threshold = 1 - error
        sure = probability >= threshold
        if int((sure & ~right).sum()) > error * int(sure.sum()):
            threshold = math.nextafter(float(probability[~right][0]), math.inf)
    reached = probability >= threshold
    answered, wrong = int(reached.sum()), int((reached & ~right).sum())
    limit = upper_limit(wrong, answered)
    return Abstention(error, threshold, len(order), answered, wrong, limit)


def upper_limit(wrong: int, n: int) -> float:
    """The exact one-sided 95 % limit of a share of which `wrong` of n were seen.

    Clopper and Pearson (1934). Without trials nothing is excluded: 1.
    """
    if wrong >= n:
        return 1.0
    from scipy.special import betaincinv

    return float(betaincinv(wrong + 1, n - wrong, SURELY))


def risk_coverage(probability: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Share answered, and of those the share wrong, the surest first: float64 (T,) each.

    probability: float (T,) of each answer. right: bool (T,). Geifman and El-Yaniv (2017).
    """
    order = probability.argsort(descending=True, stable=True)
    count = torch.arange(1, len(order) + 1, dtype=torch.float64)
    return count / max(1, len(order)), (~right[order]).cumsum(0) / count


class Familiar:
    """Images that taught: how far new ones are from them, in what they show and in how it is drawn.

    h: float (M, D), M ≥ 1; style: float (M, S), of the same images, as `Encoder.looked` has it.
    The distance is the geometric mean of two: in h to the nearest image, its square being
    1 - cosine similarity, and in style to all of them, Mahalanobis' with a covariance that is
    shrunk a little (Lee et al. 2018, for one class). A stranger that looks like a class in the one
    gives itself away in the other.

    What is usual is told by these images' own distances, each to the others. The encoder learned
    from them and draws them together: of new images of the same kind somewhat more than a hundredth
    are strangers.
    """

    def __init__(self, h: Tensor, style: Tensor) -> None:
        self.h, self.style = h, style
        self.known = F.normalize(h.float(), dim=1)
        self.drawn = _Gaussian(style)
        own = _mean_of(self._nearest(self.known, itself=True), self.drawn.own)
        self.usual = float(torch.quantile(own, USUAL)) if len(h) > 1 else 0.0

    def distance(self, h: Tensor, style: Tensor) -> Tensor:
        """(N,) of h (N, D) and style (N, S), multiples of what is usual: above 1 is a stranger."""
        near = self._nearest(F.normalize(h.float(), dim=1))
        return _mean_of(near, self.drawn.distance(style)) / max(self.usual, 1e-6)

    def _nearest(self, units: Tensor, *, itself: bool = False) -> Tensor:
        found = []
        for start in range(0, len(units), ROWS):
            similar = units[start : start + ROWS] @ self.known.T
            if itself:
                rows = torch.arange(len(similar))
                similar[rows, start + rows] = -1.0
            found.append(1 - similar.amax(1))
        return torch.cat(found) if found else units.new_zeros(0)


def _mean_of(first: Tensor, second: Tensor) -> Tensor:
    """The geometric mean of distances, from their squares; rounding may make these negative."""
    return (first.clamp(min=0) * second).sqrt().sqrt()


class _Gaussian:
    """Squared Mahalanobis distances to rows float (M, S), `own` those of each row to the others."""

    def __init__(self, rows: Tensor) -> None:
        count = len(rows)
        double = rows.detach().cpu().double()  # MPS has none
        centre = double.mean(0)
        spread = double.std(0, correction=0)
        scale = spread.clamp(min=1e-3 * float(spread.max()) or 1.0)
        units = (double - centre) / scale
        covariance = units.T @ units / max(1, count - 1)
        covariance = (1 - SHRUNK) * covariance + SHRUNK * torch.eye(len(scale), dtype=torch.float64)
        whiten = torch.linalg.cholesky(torch.linalg.inv(covariance)) / scale[:, None]
        squared = ((double - centre) @ whiten).square().sum(1)
        # without the row itself: its share of the mean, and of the covariance (Sherman, Morrison)
        others = max(1, count - 1)
        share = (1 - SHRUNK) * count / others**2
        own = squared * (count / others) ** 2 / (1 - share * squared).clamp(min=1e-3)
        self.centre, self.whiten = (part.float().to(rows.device) for part in (centre, whiten))
        self.own = own.float().to(rows.device)

    def distance(self, rows: Tensor) -> Tensor:
        return ((rows.float() - self.centre) @ self.whiten).square().sum(1)
