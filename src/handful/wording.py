"""Figures and errors as people read them, the same in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Sequence


def percent(share: float, images: int | None = None) -> str:
    """98.62 %: two decimals where at least a thousand images carry them, else one."""
    return f"{100 * share:.{_decimals(images)}f} %"


def between(interval: Sequence[float], images: int | None = None) -> str:
    """98.37-98.83 %, with an en dash; bounds beyond 0 and 100 %, as Student's may be, end there."""
    low, high = (min(max(bound, 0.0), 1.0) for bound in interval)
    return f"{percent(low, images).removesuffix(' %')}–{percent(high, images)}"


def points(difference: float, images: int | None = None) -> str:
    """A difference of shares in percentage points, with its sign: +0.52."""
    return f"{100 * difference:+.{_decimals(images)}f}"


def points_between(interval: Sequence[float], images: int | None = None) -> str:
    """+0.10 to +0.52."""
    low, high = interval
    return f"{points(low, images)} to {points(high, images)}"


def one_line(error: BaseException) -> str:
    """What an error says, without its line breaks; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


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


def numbers(option: str, text: str) -> list[int]:
    """`5,10,20-22` as whole numbers, in that order, each once."""
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise ValueError(f"{option} {text}: expected whole numbers, such as 5,10 or 100-104")
        found |= dict.fromkeys(range(int(first), int(last or first) + 1))
    if not found:
        raise ValueError(f"{option} {text}: the range is empty, give the smaller number first")
    return list(found)
