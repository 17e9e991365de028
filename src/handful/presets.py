"""Which kind of views fits images: told by labelled ones that are held out in turn."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from handful import networks, stages
from handful.config import RunConfig
from handful.metrics import fit_temperature
from handful.recipes import suited
from handful.splits import folds
from handful.stages import Session
from handful.wording import duration

TRIED = ("letters", "general", "natural", "texture")
"""Of two that do as well the earlier one is taken: it claims less. A letter may have any colour but
is not mirrored; the next two are; of the last no side is up."""
FOLDS = 2
LESSONS = (6000, 24_000)
"""Images that each of a trial's networks learns from, at most: most kinds of images are told apart
by the first number, after which 48,000 passed an encoder in all, four fifths of those of the recipe
`fast`. Where no kind of views has taught anything by then, all are tried once more, for longer."""
LEARNED = 0.8
"""Share of a guess's cross-entropy below which something was learned."""
FEWEST = 20
"""Labelled images that can be held out, below which nothing is tried."""


class Trial(NamedTuple):
    """The kind that was taken, and the cross-entropy of the held-out images with each."""

    preset: str
    losses: dict[str, float]
    images: int


def tried(session: Session, asked: RunConfig, chosen: Collection[str]) -> Trial | None:
    """Train short with each kind of views and see which answers images best that it did not see.

    A kind that claims more is taken only where it is better by more than a standard error, image
    by image. asked: the configuration before anything was fitted to the images. chosen: dotted keys
    that somebody set. None where too few images have a label to hold some out.
    """
    images = session.parts.fit  # nothing that validates may choose
    held = folds(images.labels, images.sources, FOLDS, session.generator("presets"))
    held[stages.repeated(images.sources)] = -1  # copies of an image say nothing that it does not
    count = int((held >= 0).sum())
    if count < FEWEST:
        return None
    each = networks.seconds_per_image(stages.members(session)[0].encoder, images.images)
    guess = math.log(len(images.class_names))
    for lessons in LESSONS:
        seconds = max(1, round(each * lessons * FOLDS * len(TRIED)))
        session.say(
            f"trying which views fit, at most {duration(seconds)}: {', '.join(TRIED)} "
            "(--set preset=… spares that)"
        )
        losses: dict[str, Tensor] = {}
        with session.stage("presets"):
            for preset in TRIED:
                config = suited(asked.updated({"preset": preset}), images, {*chosen, "preset"})
                losses[preset] = _losses(session, config, held, lessons)
        if min(float(loss.mean()) for loss in losses.values()) < LEARNED * guess:
            break
    best = TRIED[0]
    for preset in TRIED[1:]:
        gain = losses[best] - losses[preset]
        if float(gain.mean()) > float(gain.std()) / math.sqrt(len(gain)):
            best = preset
    return Trial(best, {name: float(loss.mean()) for name, loss in losses.items()}, count)


def _losses(session: Session, config: RunConfig, held: Tensor, lessons: int) -> Tensor:
    """Calibrated cross-entropy of each image that is held out, (M,), fold by fold."""
    downstream = config.downstream
    most = max(1, lessons // downstream.batch_size)
    steps = min(most, downstream.steps or most)
    # both kinds of views of a preset have their say, those of the pretext task first; frozen, an
    # encoder that nothing has trained would say nothing
    changes = {"steps": steps, "curriculum": 1.0, "train_encoder": True, "encoder_rate": 1.0}
    short = downstream.model_copy(update=changes)
    quiet = replace(session, config=config, show=lambda row: None, board=None, stages={})
    member = stages.members(quiet)[0]
    images = session.parts.fit
    logits, labels = [], []
    for fold in stages.in_folds(stages.fitting(member), images, short, held, "presets"):
        part = images.select(fold.held)
        one = fold.trained
        logits.append(networks.classify(one.encoder, one.classifier, part.images).cpu())
        labels.append(part.labels)
    answers, truth = torch.cat(logits), torch.cat(labels)
    return F.cross_entropy(answers / fit_temperature(answers, truth), truth, reduction="none")
