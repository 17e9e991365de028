"""One run while it works: its images, its networks, and what is measured on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from handful import backbones, devices
from handful.backbones import Backbone
from handful.config import RunConfig
from handful.datasets import Dataset
from handful.images import ImageSet
from handful.networks import Encoder, ProjectionHead
from handful.partition import Partition, partition
from handful.recipes import sized, suited
from handful.runs import RunFolder
from handful.tracking import Board

Row = dict[str, Any]


@dataclass
class Session:
    """One run while it works: what every stage needs, and what is measured on the way."""

    config: RunConfig
    device: torch.device
    dataset: Dataset
    parts: Partition
    folder: RunFolder | None
    """Where its files go; None leaves none anywhere."""
    show: Callable[[Row], None]
    say: Callable[[str], None]
    board: Board | None = None
    member: int = 0
    """Which of an ensemble's networks it is at."""
    stages: dict[str, float] = field(default_factory=dict)
    tried: dict[str, float] = field(default_factory=dict)
    """Kinds of views that were tried, and the cross-entropy with each."""
    taken: float = 0.0
    """Seconds that a pretext task took in another run, from which this one has it."""

    def on_row(self, row: Row) -> None:
        row = row | {"member": self.member} if self.member else row
        if self.folder is not None:
            self.folder.append(row)
        if self.board is not None:
            self.board.row(row)
        self.show(row)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - began

    @property
    def dtype(self) -> torch.dtype:
        return devices.precision(self.config.precision, self.device)

    def generator(self, stage: str) -> torch.Generator:
        return devices.generator(self.config.seed, f"{stage}{self.suffix}")

    def seeded(self, stage: str) -> AbstractContextManager[None]:
        """In which global randomness is that of the stage."""
        return devices.seeded(self.generator(stage).initial_seed(), self.device)

    @property
    def suffix(self) -> str:
        """Of a name that each member has one of."""
        return f"-{self.member}" if self.member else ""


def plan(
    config: RunConfig, dataset: Dataset, chosen: Collection[str] = ()
) -> tuple[RunConfig, Partition]:
    """Who may look at which images, and the configuration with what was left open fitted to them.

    chosen: dotted keys that somebody set; fitting the views to the images leaves these alone.
    """
    config = suited(config, _looked_at(config, dataset), chosen)
    parts = partition(config, dataset)
    return sized(config, len(parts.final), len(parts.pretext)), parts


def _looked_at(config: RunConfig, dataset: Dataset) -> ImageSet:
    """The kind of images is a choice like others: made by labelled ones that no test will use."""
    parts = partition(config.updated({"data.copies": 0}), dataset)
    return parts.final if len(parts.final) else parts.pretext


class Member(NamedTuple):
    """One network of a run. The pretext task trains encoder and head in place."""

    session: Session
    untrained: Encoder
    encoder: Encoder
    head: ProjectionHead


def members_of(session: Session) -> list[Member]:
    """Networks with first weights that depend on the seed and on their number alone."""
    return [member_of(replace(session, member=number)) for number in range(session.config.members)]


def member_of(session: Session) -> Member:
    """The network that the session is at."""
    parts, config = session.parts, session.config.network
    images = parts.pretext if session.config.pretext.steps else parts.final
    with session.seeded("weights"):
        encoder = backbones.encoder_of(
            images.channels, images.size[0], config, number=session.member
        )
        encoder.normalise_to(images.images)
        if config.weights is not None:
            assert isinstance(encoder, Backbone)
            encoder.begin_with(Path(config.weights).expanduser())
        head = ProjectionHead(encoder.dim, config)
    encoder = encoder.to(session.device)
    return Member(session, deepcopy(encoder), encoder, head.to(session.device))
