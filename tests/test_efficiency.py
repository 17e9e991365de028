"""What rows of runs say of accuracy against the number of labels."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from handful import efficiency
from handful.efficiency import Point
from handful.forecast import Forecast
from handful.recipes import recipe_for


def row(per_class: int, accuracy: float, control: float | None, images: int) -> dict[str, Any]:
    return {
        "per_class": per_class,
        "test_accuracy": accuracy,
        "test_images": images,
        "control_test_accuracy": control,
        "control_difference": control and {"difference": accuracy - control},
    }


def test_points_gather_the_rows_of_each_number_of_labels() -> None:
    rows = [row(10, 0.97, 0.95, 100), row(5, 0.94, None, 200), row(10, 0.96, None, 90)]
    five, ten = efficiency.points(rows)
    assert (five.per_class, ten.per_class) == (5, 10)
    assert (five.accuracies, ten.accuracies) == ([0.94], [0.97, 0.96])
    assert (five.controls, ten.controls) == ([], [0.95])
    assert ten.gains == pytest.approx([0.02])
    assert (five.images, ten.images) == (200, 90)


def test_what_is_expected_is_of_the_rows() -> None:
    rows = [row(n, 1 - 0.5 * n**-0.7, None, 10**9) for n in (5, 10, 20, 20)]
    found = efficiency.expected(rows, 40)
    assert found.per_class == 40
    assert found.accuracy == pytest.approx(1 - 0.5 * 40**-0.7, abs=1e-6)


@pytest.mark.parametrize("controls", [[0.97, 0.96], []])
def test_the_figure_is_a_picture(controls: list[float]) -> None:
    points = [
        Point(n, 1000, [1 - 1 / n, 1 - 2 / n], controls, [0.0] * len(controls)) for n in (5, 50)
    ]
    expected = Forecast(100, 0.98, 0.97, 0.985)
    for on_mnist, ahead in ((False, None), (True, None), (False, expected)):
        drawn = efficiency.figure(points, "fast", on_mnist=on_mnist, ahead=ahead)
        assert Image.open(io.BytesIO(drawn)).format == "PNG"


def test_one_run_has_no_interval() -> None:
    assert efficiency._mean(5, [0.9]) == (5, 0.9, None)
    per_class, mean, interval = efficiency._mean(5, [0.9, 0.92])
    assert (per_class, mean) == (5, pytest.approx(0.91))
    assert interval is not None
    assert all(math.isfinite(bound) for bound in interval)


def test_an_interval_of_shares_ends_at_nothing_and_at_all() -> None:
    assert efficiency._mean(5, [0.1, 0.9])[2] == (0.0, 1.0)


def test_figures_of_others_stand_beside_the_same_labels_and_images_alone(
    idx_folder: Callable[[int, int], Path],
) -> None:
    bundled = recipe_for("mnist50")
    assert efficiency.comparable(bundled)
    assert not efficiency.comparable(bundled.updated({"data.unlabelled": True}))
    assert not efficiency.comparable(bundled.updated({"data.pool": "more/"}))
    assert not efficiency.comparable(recipe_for(str(idx_folder(3, 5))))
