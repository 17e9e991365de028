"""What a benchmark is, and how it is timed: contestants take turns in one process.

A figure means little on a machine that does other things as well; the ratio of two that were taken
within the same seconds means the same on most.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).parents[1]
LEAST = 0.2
"""Seconds that a turn lasts at least; quicker calls are repeated within it."""

Row = dict[str, Any]
Call = Callable[[], object]
Times = dict[str, list[float]]
"""Seconds of one call by contestant, a value a round."""


@dataclass(frozen=True)
class Options:
    """What is asked of a benchmark."""

    quick: bool = False
    """Sizes and rounds so small that figures mean nothing: to see that all of it runs."""
    slow: bool = False
    """Also what takes minutes."""
    mnist: Path | None = None
    """Directory of the official idx files."""

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 5


class Benchmark(NamedTuple):
    title: str
    about: str
    """How it was measured and what is compared, for the page."""
    columns: dict[str, Callable[[Row], str]]
    """Heads of the page's table, and what stands under them."""
    run: Callable[[Options], Iterator[Row]]
    """Rows as soon as they are measured; each has a `case` of its own."""
    after: Callable[[list[Row]], str] | None = None
    """What else the page says of the rows, below the table."""


def alternate(
    calls: Mapping[str, Call],
    rounds: int,
    least: float = LEAST,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Time each call in turn, round after round, once all of them are warm."""
    repeats = {name: _repeats(call, least, clock) for name, call in calls.items()}
    times: Times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds_of(call, repeats[name], clock))
    return times


def _repeats(call: Call, least: float, clock: Callable[[], float]) -> int:
    """How often a call fits into `least` seconds; it is warm thereafter."""
    if seconds_of(call, 1, clock) >= least:
        return 1
    return max(1, math.ceil(least / max(seconds_of(call, 1, clock), 1e-6)))


def seconds_of(
    call: Call, repeats: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Of one call, by the mean of some in a row."""
    began = clock()
    for _ in range(repeats):
        call()
    return (clock() - began) / repeats


def median(times: Times, name: str) -> float:
    return statistics.median(times[name])


def duel(times: Times, ours: str, theirs: str) -> Row:
    """Median seconds of both, and how many times as long theirs took (median, range of rounds)."""
    ratios = [b / a for a, b in zip(times[ours], times[theirs], strict=True)]
    return {
        "ours": median(times, ours),
        "theirs": median(times, theirs),
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "rounds": len(ratios),
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for torch within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_fresh_process(module: str, *arguments: object) -> Row:
    """What `python -m MODULE ARGUMENTS` prints, as JSON; its memory has no past."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: Row = json.loads(done.stdout)
    return found
