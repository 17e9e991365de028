"""Which kind of views fits images: told by labelled ones that are held out in turn."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from handful import networks, stages
from handful.config import RunConfig
from handful.metrics import fit_temperature
from handful.recipes import suited
from handful.session import Session, member_of
from handful.splits import folds, mean_batch
from handful.wording import duration

TRIED = ("letters", "general", "natural", "texture")
"""Of two that do as well the earlier one is taken. A letter has any colour and is not mirrored; the
next two are; of the last no side is up."""
FOLDS = 2
LESSONS = (6000, 24_000)
"""Images that each of a trial's networks learns from, at most: most kinds of images are told apart
by the first number, after which 48,000 passed an encoder in all, four fifths of those of the recipe
`fast`. Where no kind of views has taught anything by then, all are tried once more, for longer."""
LEARNED = 0.8
"""Share of a guess's cross-entropy below which something was learned."""
LEFT = 0.1
"""Of the average of weights at most so much may still be what it began with when a trial ends."""
FEWEST = 20
"""Labelled images that can be held out, below which nothing is tried."""


class Trial(NamedTuple):
    """The kind that was taken, and the cross-entropy of the held-out images with each."""

    preset: str
    losses: dict[str, float]
    images: int


def tried(session: Session, asked: RunConfig, chosen: Collection[str]) -> Trial | None:
    """Train short with each kind of views and see which answers images best that it did not see.

    A later kind is taken only where it is better by more than a standard error, image by image.
    asked: the configuration before anything was fitted to the images. chosen: dotted keys that
    somebody set. None where too few images have a label to hold some out, and where no kind has
    taught anything.
    """
    images = session.parts.fit  # nothing that validates may choose
    held = folds(images.labels, images.sources, FOLDS, session.generator("presets"))
    held[stages.repeated(images.sources)] = -1  # copies of an image say nothing that it does not
    count = int((held >= 0).sum())
    if count < FEWEST:
        return None
    batch = mean_batch(len(images) - count // FOLDS, session.config.downstream.batch_size)
    each = networks.seconds_per_image(member_of(session).encoder, images.images, batch)
    guess = _guess(images.labels[held >= 0])
    for lessons in LESSONS:
        seconds = max(1, round(each * lessons * FOLDS * len(TRIED)))
        session.say(
            f"trying which views fit, at most {duration(seconds)}: {', '.join(TRIED)} "
            "(--set preset=… spares that)"
        )
        losses = _each(session, asked, chosen, held, lessons)
        means = {name: float(loss.mean()) for name, loss in losses.items()}
        if min(means.values()) < LEARNED * guess:
            return Trial(_best(losses), means, count)
        session.say("no kind of views has taught anything by then")
        if session.config.downstream.steps == _steps(session.config, lessons):
            break  # longer ones would be the same again
    return None


def _guess(labels: Tensor) -> float:
    """Cross-entropy of answers that know how frequent each class is and nothing else."""
    shares = labels.bincount().double() / len(labels)
    return float(-torch.special.xlogy(shares, shares).sum())


def _each(
    session: Session, asked: RunConfig, chosen: Collection[str], held: Tensor, lessons: int
) -> dict[str, Tensor]:
    """What `_losses` finds with each kind of views."""
    losses = {}
    with session.stage("presets"):
        for preset in TRIED:
            config = suited(
                asked.updated({"preset": preset}), session.parts.fit, {*chosen, "preset"}
            )
            losses[preset] = _losses(session, config, held, lessons)
    return losses


def _best(losses: Mapping[str, Tensor]) -> str:
    best = TRIED[0]
    for preset in TRIED[1:]:
        gain = losses[best] - losses[preset]
        if float(gain.mean()) > float(gain.std()) / math.sqrt(len(gain)):
            best = preset
    return best


def _steps(config: RunConfig, lessons: int) -> int:
    """Of a trial: no more than the run itself will make."""
    most = max(1, lessons // config.downstream.batch_size)
    return min(most, config.downstream.steps or most)


def _losses(session: Session, config: RunConfig, held: Tensor, lessons: int) -> Tensor:
    """Calibrated cross-entropy of each image that is held out, (M,), fold by fold."""
    # both kinds of views of a preset have their say, those of the pretext task first; frozen, an
    # encoder that nothing has trained would say nothing
    steps = _steps(config, lessons)
    ema = min(config.downstream.ema, LEFT ** (1 / steps))
    changes = {"steps": steps, "curriculum": 1.0, "ema": ema}
    short = stages.from_the_start(config).model_copy(update=changes)
    quiet = replace(session, config=config, show=lambda row: None, board=None, stages={})
    member = member_of(quiet)
    images = session.parts.fit
    logits, labels = [], []
    for fold in stages.in_folds(stages.fitting(member), images, short, held, "presets"):
        part = images.select(fold.held)
        one = fold.trained
        logits.append(networks.classify(one.encoder, one.classifier, part.images).cpu())
        labels.append(part.labels)
    answers, truth = torch.cat(logits), torch.cat(labels)
    return F.cross_entropy(answers / fit_temperature(answers, truth), truth, reduction="none")
