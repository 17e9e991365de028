"""What an audit finds: findings, judged labels, and both together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from handful.config import RunConfig
from handful.doubts import Doubts
from handful.images import ImageSet
from handful.report import findings as page
from handful.report.findings import Kind

FEWER = 3
"""A class has too few labels where another has this many times as many."""


class Finding(NamedTuple):
    """One thing to look at. Numbers are positions in the images that train; -1 says none."""

    kind: Kind
    image: int = -1
    other: int = -1
    """Of a leak, a position among the test images."""
    label: int = -1
    suggested: int = -1
    score: float | None = None
    note: str = ""


class Judged(NamedTuple):
    """M labelled images, each answered by a network that did not learn from it."""

    positions: Tensor
    doubts: Doubts
    probability: NDArray[np.float64]
    """(M,) of the label that each has."""
    distances: NDArray[np.float64]
    """(M,) to the images that the network learned from, in multiples of what is usual."""

    @property
    def agreeing(self) -> float:
        """Share of the labels that are also the most probable class."""
        return float((self.doubts.score > 0.5).mean())


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found, the most serious first, and in what: every image has its name as its path."""

    config: RunConfig
    images: ImageSet
    test: ImageSet | None
    files: bool
    """Whether images are named by their files; else by the numbers that they have in a part."""
    findings: tuple[Finding, ...]
    judged: Judged | None

    @property
    def counts(self) -> dict[Kind, int]:
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in page.TITLES if found[kind]}

    @property
    def titled(self) -> dict[str, int]:
        """The same for people."""
        return {page.TITLES[kind]: count for kind, count in self.counts.items()}
