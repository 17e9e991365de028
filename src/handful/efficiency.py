"""Label efficiency: what rows of runs say of accuracy against the number of labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from handful import datasets, plots
from handful.config import RunConfig
from handful.forecast import SHARE, Forecast, forecast
from handful.metrics import mean_interval

Row = Mapping[str, Any]

PUBLISHED = (
    (30, 0.9629, "harmonic net 2019"),
    (100, 0.9816, "harmonic net"),
    (200, 0.9879, "harmonic net"),
)
"""MNIST's test accuracy from 300, 1,000 and 2,000 labelled images in all and no others, as arXiv
1905.00135 is quoted: not every figure that there is."""


def comparable(asked: RunConfig) -> bool:
    """Whether `PUBLISHED` was measured with the same kind of labels on the same test images."""
    data = asked.data
    return not (data.dev or data.unlabelled or data.pool) and datasets.scores_on_mnist(data.source)


class Point(NamedTuple):
    """All rows of one number of labels: shares of one, in the order of the rows."""

    per_class: int
    images: int
    """Test images of a run; of the smallest where runs left different ones over."""
    accuracies: list[float]
    controls: list[float]
    """Empty where no control was run, as are the gains over it."""
    gains: list[float]


def points(rows: Sequence[Row]) -> list[Point]:
    """By numbers of labels, ascending."""
    found = []
    for per_class in sorted({row["per_class"] for row in rows}):
        some = [row for row in rows if row["per_class"] == per_class]
        compared = [row for row in some if row["control_test_accuracy"] is not None]
        found.append(
            Point(
                per_class,
                min(row["test_images"] for row in some),
                [row["test_accuracy"] for row in some],
                [row["control_test_accuracy"] for row in compared],
                [row["control_difference"]["difference"] for row in compared],
            )
        )
    return found


def expected(rows: Sequence[Row], at: int) -> Forecast:
    """What one more run, of `at` labels per class, should give. Raises ValueError as `forecast`."""
    return forecast(
        [row["per_class"] for row in rows],
        [row["test_accuracy"] for row in rows],
        [row["test_images"] for row in rows],
        at,
    )


def figure(
    found: Sequence[Point],
    recipe: str,
    *,
    on_mnist: bool = False,
    ahead: Forecast | None = None,
) -> bytes:
    """PNG of accuracy against labels, beside other people's figures where `on_mnist`.

    ahead: what is expected beyond them.
    """
    lines = {recipe: [_mean(point.per_class, point.accuracies) for point in found]}
    if all(point.controls for point in found):
        control = [_mean(point.per_class, point.controls) for point in found]
        lines["control, no contrast"] = control
    beyond = None
    if ahead:
        there = (ahead.per_class, ahead.accuracy, (ahead.low, ahead.high))
        beyond = f"expected, {100 * SHARE:.0f} % interval", there
    runs = [(point.per_class, accuracy) for point in found for accuracy in point.accuracies]
    return plots.png(plots.labels(lines, runs, PUBLISHED if on_mnist else (), beyond))


def _mean(per_class: int, accuracies: list[float]) -> tuple[int, float, tuple[float, float] | None]:
    mean, _, low, high = mean_interval(accuracies)
    return per_class, mean, None if math.isnan(low) else (max(low, 0.0), min(high, 1.0))
