"""What more labels would bring: a power law through measured errors, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BEND = 0.15
"""Standard deviation of the exponent beyond the last measured number of labels. An assumption:
curves flatten where what is left are images that nobody could tell, and a straight line through
few points does not see that come."""


SHARE = 0.8
"""Of cases in which an interval should hold."""
FEWEST_RUNS, FEWEST_SIZES = 4, 2
"""What a line with an interval takes."""


class Forecast(NamedTuple):
    """Accuracy of one more run, as shares of one."""

    per_class: int
    accuracy: float
    low: float
    high: float


def check(per_class: Sequence[int]) -> None:
    """Raises ValueError where runs with so many labels are too few for a forecast."""
    if len(per_class) < FEWEST_RUNS or len(set(per_class)) < FEWEST_SIZES:
        raise ValueError(
            f"a forecast takes at least {FEWEST_RUNS} runs at {FEWEST_SIZES} numbers of labels, "
            f"got {len(per_class)} at {len(set(per_class))}"
        )


def forecast(
    per_class: Sequence[int],
    accuracies: Sequence[float],
    images: Sequence[int],
    at: int,
) -> Forecast:
    """What `at` labels per class would give, with an interval that should hold in `SHARE` of cases.

    The logarithm of the error is taken to be linear in that of the number of labels, as learning
    curves are over wide ranges (Cortes et al. 1993; Hestness et al. 2017), fitted by least squares.
    The interval is Student's for a new run of that line, with the error of its slope and with
    `BEND` beyond the last measured number. Where errors do not fall, they are taken to stay.

    per_class, accuracies, images: of each run, images those that it was tested on.
    Raises ValueError as `check`.
    """
    check(per_class)
    from scipy.special import stdtrit

    x = np.log(np.array(per_class, float))
    # half an image more on each side: no error is no logarithm
    tested = np.array(images, float)
    wrong = (1 - np.array(accuracies)) * tested
    y = np.log((wrong + 0.5) / (tested + 1))
    slope = min(0.0, float(np.polyfit(x, y, 1)[0]))
    level = float(np.mean(y - slope * x))
    freedom = len(x) - 2
    counting = float(np.mean(1 / (wrong + 0.5)))  # what the test images alone would scatter
    scatter = max(float(np.sum((y - level - slope * x) ** 2)) / freedom, counting)
    there, centre = math.log(at), float(x.mean())
    spread = float(np.sum((x - centre) ** 2))
    variance = scatter * (1 + 1 / len(x) + (there - centre) ** 2 / spread)
    variance += (BEND * max(0.0, there - float(x.max()))) ** 2
    half = float(stdtrit(freedom, (1 + SHARE) / 2)) * math.sqrt(variance)
    expected = level + slope * there
    best, mean, worst = (1 - min(math.exp(expected + d), 1.0) for d in (-half, 0.0, half))
    return Forecast(at, mean, worst, best)
