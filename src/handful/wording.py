"""Figures as people read them, the same in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Sequence


def percent(share: float, images: int | None = None) -> str:
    """98.62 %: two decimals where at least a thousand images carry them, else one."""
    return f"{100 * share:.{_decimals(images)}f} %"


def between(interval: Sequence[float], images: int | None = None) -> str:
    """98.37-98.83 %, with an en dash."""
    low, high = interval
    return f"{percent(low, images).removesuffix(' %')}–{percent(high, images)}"


def points(difference: float, images: int | None = None) -> str:
    """A difference of shares in percentage points, with its sign: +0.52."""
    return f"{100 * difference:+.{_decimals(images)}f}"


def _decimals(images: int | None) -> int:
    return 2 if (images or 0) >= 1000 else 1


def duration(seconds: float) -> str:
    """4 min 11 s; below ten seconds with a decimal."""
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
