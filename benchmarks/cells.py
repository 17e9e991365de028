"""Cells of the page's tables: a row of figures to the text that stands under a head."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measure import Row

Cell = Callable[[Row], str]


def times_as_fast(row: Row) -> str:
    """`12 × (11–13)`: the ratio's median and its range over the rounds."""
    low, high = row["range"]
    return f"{_short(row['ratio'])} × ({_short(low)}–{_short(high)})"


def _short(value: float) -> str:
    """Two or three figures that count."""
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 5 else f"{value:.2f}"


def milliseconds(key: str) -> Cell:
    return lambda row: f"{1000 * row[key]:,.1f}" if row[key] < 0.1 else f"{1000 * row[key]:,.0f}"


def seconds(key: str) -> Cell:
    return lambda row: f"{row[key]:.2f}"


def number(key: str) -> Cell:
    return lambda row: f"{row[key]:,.0f}"


def text(key: str) -> Cell:
    return lambda row: str(row[key])


def percent(key: str) -> Cell:
    return lambda row: f"{100 * row[key]:.0f} %"
