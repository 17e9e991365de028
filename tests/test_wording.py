from __future__ import annotations

import pytest

from handful.wording import (
    between,
    duration,
    numbers,
    one_line,
    percent,
    points,
    points_between,
)


@pytest.mark.parametrize(
    ("images", "shown"),
    [(None, "98.6 %"), (999, "98.6 %"), (1000, "98.62 %"), (10_000, "98.62 %")],
)
def test_a_share_has_the_decimals_that_its_images_carry(images: int | None, shown: str) -> None:
    assert percent(0.98623, images) == shown


def test_intervals_and_differences_have_as_many() -> None:
    assert between([0.98371, 0.98829], 10_000) == "98.37–98.83 %"
    assert between([0.9, 1], 60) == "90.0–100.0 %"
    assert between([-0.02, 1.1], 60) == "0.0–100.0 %"
    assert points(0.0052, 10_000) == "+0.52"
    assert points(-0.05) == "-5.0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0.2 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (252, "4 min 12 s"),
        (7320, "2 h 2 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("text", ["", "5,", "x", "5-", "-5", "1.5", "9-5"])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="--per-class"):
        numbers("--per-class", text)


def test_numbers_come_once_and_in_order() -> None:
    assert numbers("--draws", "7, 3-5,4") == [7, 3, 4, 5]


def test_an_interval_of_differences_keeps_both_signs() -> None:
    assert points_between((-0.0034, 0.001), 10_000) == "-0.34 to +0.10"
    assert points_between((0.01, 0.02)) == "+1.0 to +2.0"


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("no  such\n thing"), "no such thing"), (AssertionError(), "AssertionError")],
)
def test_an_error_is_told_in_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line
