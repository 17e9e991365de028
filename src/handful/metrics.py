"""How good a classifier is, how sure one can be of it, and how healthy a representation is.

Tensors in, plain numbers out. Every rate is a share of one (0.98, not 98), and every interval
covers 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Z_95 = 1.959964
BINS = 15
# Rows of a similarity matrix held at once: 512 × 10,000 doubles are 40 MB.
ROWS = 512


def wilson(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927): its lower and upper limit.

    Never empty and never outside [0, 1], also where all or none succeed. Raises ValueError
    where there are no trials, or more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"an interval needs 0 ≤ successes ≤ n and n ≥ 1, got {successes} of {n}")
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def mean_interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean, sample standard deviation, and Student's 95 % interval of the mean: (mean, sd, lo, hi).

    One value says nothing about spread: the last three are then NaN. Raises ValueError for none.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a mean needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan, math.nan, math.nan
    from scipy.special import stdtrit

    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return mean, sd, mean - half, mean + half


def paired_difference(correct_a: Tensor, correct_b: Tensor) -> tuple[float, float, float]:
    """How much more often a is right than b on the same images: (difference, lo, hi).

    correct_a, correct_b: bool (N,), image by image. The interval is Wald's for paired proportions
    with the Laplace adjustment of Bonett and Price (2012): one image more on which only a is right
    and one on which only b is. It keeps a width where the two never disagree. Raises ValueError
    where the lengths differ or there is no image.
    """
    n = len(correct_a)
    if n == 0 or n != len(correct_b):
        raise ValueError(f"a paired difference needs the same images, got {n} and {len(correct_b)}")
    only_a = int((correct_a & ~correct_b).sum())
    only_b = int((correct_b & ~correct_a).sum())
    p_a, p_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = Z_95 * math.sqrt((p_a + p_b - (p_a - p_b) ** 2) / (n + 2))
    return (only_a - only_b) / n, max(-1.0, p_a - p_b - half), min(1.0, p_a - p_b + half)


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal-width bins of confidence; one list entry a bin.

    `confidence`, `accuracy`, `low` and `high` (Wilson's interval of the accuracy) are None where
    a bin holds no image. `ece` is the expected calibration error (Naeini et al. 2015).
    """

    edges: list[float]
    images: list[int]
    confidence: list[float | None]
    accuracy: list[float | None]
    low: list[float | None]
    high: list[float | None]
    ece: float


def reliability(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """How far stated confidence can be trusted.

    probabilities: float (N, Y), rows summing to 1. labels: int64 (N,). A bin holds the images
    whose highest probability lies in (lower edge, upper edge].
    """
    sure, predicted = probabilities.double().max(dim=1)
    right = (predicted == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    where = (torch.bucketize(sure, edges) - 1).clamp(0, bins - 1)
    count = torch.bincount(where, minlength=bins)
    sure_sum = torch.zeros(bins, dtype=torch.float64).scatter_add(0, where, sure)
    right_sum = torch.zeros(bins, dtype=torch.float64).scatter_add(0, where, right)
    images = [int(c) for c in count]

    def per_bin(value: Callable[[int], float]) -> list[float | None]:
        return [value(b) if images[b] else None for b in range(bins)]

    intervals = [wilson(int(right_sum[b]), images[b]) if images[b] else None for b in range(bins)]
    return Reliability(
        edges=edges.tolist(),
        images=images,
        confidence=per_bin(lambda b: float(sure_sum[b]) / images[b]),
        accuracy=per_bin(lambda b: float(right_sum[b]) / images[b]),
        low=[pair[0] if pair else None for pair in intervals],
        high=[pair[1] if pair else None for pair in intervals],
        ece=float((sure_sum - right_sum).abs().sum()) / max(len(labels), 1),
    )


@dataclass(frozen=True)
class Report:
    """What a set of labelled images says about a classifier.

    accuracy, interval: share right and its Wilson interval. nll: mean negative log-likelihood in
    nats. brier: mean squared error summed over classes, 0 to 2 (Brier 1950). ece: see Reliability.
    confusion: images of class row predicted as class column. per_class: precision, recall, f1 and
    images of each class, in class order; a rate without a denominator is 0.
    """

    accuracy: float
    interval: tuple[float, float]
    images: int
    nll: float
    brier: float
    ece: float
    confusion: list[list[int]]
    per_class: list[dict[str, float]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"interval": list(self.interval)}


def evaluate(logits: Tensor, labels: Tensor) -> Report:
    """Score logits float (N, Y) against labels int64 (N,).

    Raises ValueError where there is no image or a label is no class of the logits.
    """
    n, classes = logits.shape
    if n == 0 or n != len(labels):
        raise ValueError(f"{n} rows of logits cannot be scored against {len(labels)} labels")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"labels to score must lie between 0 and {classes - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}; leave unlabelled images out"
        )
    logits, labels = _exact(logits.detach()).cpu(), labels.cpu()
    log_p = F.log_softmax(logits, dim=1)
    p = log_p.exp()
    confusion = torch.bincount(labels * classes + p.argmax(dim=1), minlength=classes**2)
    confusion = confusion.view(classes, classes)
    right = int(confusion.trace())
    return Report(
        accuracy=right / n,
        interval=wilson(right, n),
        images=n,
        nll=float(F.nll_loss(log_p, labels)),
        brier=float((p - F.one_hot(labels, classes)).square().sum(dim=1).mean()),
        ece=reliability(p, labels).ece,
        confusion=confusion.tolist(),
        per_class=_per_class(confusion),
    )


def _per_class(confusion: Tensor) -> list[dict[str, float]]:
    hits = confusion.diagonal().double()
    truth, predicted = confusion.sum(dim=1), confusion.sum(dim=0)
    precision = hits / predicted.clamp(min=1)
    recall = hits / truth.clamp(min=1)
    f1 = 2 * hits / (truth + predicted).clamp(min=1)
    return [
        {"images": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
        for n, p, r, f in zip(truth, precision, recall, f1, strict=True)
    ]


def _exact(values: Tensor) -> Tensor:
    """In float64; MPS has none, so from there on the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()


class Prior(NamedTuple):
    """What is expected of a temperature before any answer is seen: log T is normal."""

    temperature: float
    spread: float
    """Standard deviation of log T."""


def fit_temperature(logits: Tensor, labels: Tensor, prior: Prior | None = None) -> float:
    """The T in [0.05, 20] for which logits / T have the lowest cross-entropy (Guo et al. 2017).

    logits: float (N, Y). labels: int64 (N,). Targets keep 1 / (N + 2) of their mass for the other
    classes (as Platt 1999 does for two): N images that are all classified correctly would
    otherwise ask for T → 0, certainty that N images cannot give. Of a classifier that is right more
    often than that it makes too little; where it is known what T to expect, a `prior` takes their
    place.
    Cross-entropy is convex in 1 / T, so it has one valley on the scale of log T, and golden-section
    search finds it.
    """
    logits = _exact(logits.detach())
    labels = labels.to(logits.device)
    n, classes = logits.shape
    # PyTorch spreads the mass it takes over all classes, the true one included
    doubt = 0.0 if prior else min(1.0, classes / max(1, classes - 1) / (n + 2))
    expected = math.log(prior.temperature) if prior else 0.0
    pull = 0.5 / (n * prior.spread**2) if prior else 0.0

    def loss(log_t: float) -> float:
        found = F.cross_entropy(logits / math.exp(log_t), labels, label_smoothing=doubt)
        return float(found) + pull * (log_t - expected) ** 2

    low, high = math.log(0.05), math.log(20.0)
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    loss_left, loss_right = loss(left), loss(right)
    while high - low > 1e-6:
        if loss_left <= loss_right:
            high, right, loss_right = right, left, loss_left
            left = high - golden * (high - low)
            loss_left = loss(left)
        else:
            low, left, loss_left = left, right, loss_right
            right = low + golden * (high - low)
            loss_right = loss(right)
    return math.exp((low + high) / 2)


def alignment(z_a: Tensor, z_b: Tensor) -> float:
    """Mean squared distance of two views of an image on the unit sphere; 0 is perfect, 4 the worst.

    z_a, z_b: float (N, K), row by row the same image. Wang and Isola (2020), alpha = 2.
    """
    a, b = F.normalize(z_a.double(), dim=1), F.normalize(z_b.double(), dim=1)
    return float((a - b).square().sum(dim=1).mean())


def uniformity(z: Tensor, t: float = 2.0) -> float:
    """Log of the mean Gaussian potential of all pairs on the unit sphere; lower is more spread.

    z: float (N, K). Wang and Isola (2020). 0 means that all points coincide, and is also what
    fewer than two points give.
    """
    n = len(z)
    if n < 2:
        return 0.0
    z = F.normalize(z.double(), dim=1)
    total = 0.0
    for start in range(0, n, ROWS):
        squared = (2 - 2 * z[start : start + ROWS] @ z.T).clamp(min=0)
        total += float(torch.exp(-t * squared).sum())
    # Each point is its own neighbour once, at distance 0 and potential 1.
    return math.log((total - n) / (n * (n - 1)))


def effective_rank(h: Tensor) -> float:
    """Over how many directions the rows of h (N, D) spread, between 1 and min(N - 1, D).

    The exponential of the entropy of the normalised singular values (Roy and Vetterli 2007) of h
    less its mean; 0 where all rows are equal.
    """
    h = h.double()
    singular = torch.linalg.svdvals(h - h.mean(dim=0))
    if float(singular.max()) <= 1e-12 * max(float(h.norm()), 1e-300):
        return 0.0
    p = singular / singular.sum()
    return float(torch.special.entr(p).sum().exp())


def knn_accuracy(
    bank_h: Tensor, bank_labels: Tensor, h: Tensor, labels: Tensor, k: int = 5
) -> float:
    """Share of rows whose k nearest rows of a labelled bank vote for their class.

    bank_h: float (M, D). bank_labels: int64 (M,), none of them -1. h: float (N, D). labels: int64
    (N,). Nearness is cosine similarity, which also weighs the votes (not below 0); a tie goes to
    the class with the nearest member. k is limited to the size of the bank. Raises ValueError
    where either side is empty.
    """
    if len(bank_h) == 0 or len(h) == 0:
        raise ValueError(f"kNN needs images on both sides, got {len(bank_h)} and {len(h)}")
    bank = F.normalize(_exact(bank_h), dim=1)
    bank_labels, labels = bank_labels.to(bank.device), labels.to(bank.device)
    classes = int(bank_labels.max()) + 1
    right = 0
    for rows, truth in zip(h.split(ROWS), labels.split(ROWS), strict=True):
        similarity = F.normalize(_exact(rows), dim=1) @ bank.T
        nearest, where = similarity.topk(min(k, len(bank)), dim=1)  # (R, k), nearest first
        voters = bank_labels[where]
        votes = nearest.new_zeros(len(rows), classes)
        votes.scatter_add_(1, voters, nearest.clamp(min=0))
        best = votes.amax(dim=1, keepdim=True)
        # The first voter whose class has the most votes: among tied classes, the nearest.
        winner = (votes.gather(1, voters) >= best - 1e-12).int().argmax(dim=1, keepdim=True)
        right += int((voters.gather(1, winner).squeeze(1) == truth).sum())
    return right / len(h)
