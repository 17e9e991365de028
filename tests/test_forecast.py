"""Power laws, found again, and intervals that hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from handful.forecast import forecast

SIZES = [5, 5, 5, 10, 10, 10, 20, 20, 20]


def law(n: float) -> float:
    return 1 - 0.5 * n**-0.7


def test_a_power_law_is_found_again() -> None:
    found = forecast(SIZES, [law(n) for n in SIZES], [10**9] * 9, 40)
    assert found.per_class == 40
    assert found.accuracy == pytest.approx(law(40), abs=1e-6)
    assert found.low < found.accuracy < found.high


def test_eighty_per_cent_of_new_runs_lie_inside() -> None:
    """Of runs that scatter as trained networks do; where the law bends no more than is allowed."""
    random, inside = np.random.default_rng(0), 0
    for _ in range(1000):
        bend = random.normal(0, 0.15)

        def one(n: int, bend: float = bend) -> float:
            beyond = max(0.0, np.log(n / 20))
            error = 0.5 * n**-0.7 * np.exp(random.normal(0, 0.1) + bend * beyond)
            return 1 - random.binomial(2000, error) / 2000

        found = forecast(SIZES, [one(n) for n in SIZES], [2000] * 9, 80)
        inside += found.low <= one(80) <= found.high
    assert 760 <= inside <= 860


def test_the_further_ahead_the_less_is_known() -> None:
    accuracies = [law(n) for n in SIZES]
    near, far = (forecast(SIZES, accuracies, [1000] * 9, at) for at in (40, 160))
    assert far.high - far.low > 0
    assert (1 - far.low) / (1 - far.high) > (1 - near.low) / (1 - near.high)


def test_few_test_images_leave_more_open() -> None:
    accuracies = [law(n) for n in SIZES]
    few, many = (forecast(SIZES, accuracies, [images] * 9, 40) for images in (50, 5000))
    assert few.high - few.low > many.high - many.low


def test_no_error_is_no_reason_to_stop() -> None:
    found = forecast(SIZES, [1.0] * 9, [100] * 9, 40)
    assert 0.9 < found.low <= found.accuracy <= found.high <= 1


def test_errors_that_do_not_fall_are_taken_to_stay() -> None:
    found = forecast(SIZES, [0.95 - n / 1000 for n in SIZES], [1000] * 9, 40)
    assert found.accuracy == pytest.approx(
        1 - np.exp(np.mean(np.log([0.05 + n / 1000 for n in SIZES]))), abs=1e-3
    )
    assert found.low < found.accuracy < found.high


@pytest.mark.parametrize("sizes", [[5, 10, 20], [5, 5, 5, 5]])
def test_too_little_for_a_line_is_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="at least 4 runs at 2 numbers of labels, got"):
        forecast(sizes, [0.9] * len(sizes), [100] * len(sizes), 40)
