"""A run in a notebook: its figures of merit and two pictures, as a fragment of HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from handful.report.page import embed
from handful.wording import between, duration, percent, points, points_between


def card(name: str, summary: Mapping[str, Any], figures: Mapping[str, bytes]) -> str:
    """HTML that needs nothing else. figures: PNG files by what they show."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(head)}</th><td>{escape(text)}</td></tr>"
        for head, text in _rows(summary)
    )
    pictures = "".join(
        f"<img src='{picture.uri}' alt='{escape(shows)}' width='{picture.width * 3 // 4}' "
        "style='display:block;margin-top:1em'>"
        for shows, picture in ((shows, embed(data)) for shows, data in figures.items())
    )
    return f"<div><strong>{escape(name)}</strong><table>{rows}</table>{pictures}</div>"


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "recipe", f"{summary['recipe']}, {summary['labelled_images']:,} labelled images"
    for kind in ("test", "validation"):
        accuracy, interval = summary[f"{kind}_accuracy"], summary[f"{kind}_interval"]
        if accuracy is not None:
            n = summary[f"{kind}_images"]
            told = f"{percent(accuracy, n)} (95 % interval {between(interval, n)}, {n:,} images)"
            yield f"{kind} accuracy", told
    difference = summary["control_difference"]
    if difference is not None:
        gain, interval, n = difference["difference"], difference["interval"], summary["test_images"]
        yield "over the control", f"{points(gain, n)} points ({points_between(interval, n)})"
    yield "time", duration(summary["seconds"])
