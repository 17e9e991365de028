"""The downstream task: a classifier on the encoder. Linear probe and fine-tuning are one loop."""

from __future__ import annotations

import math
import time
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from handful.config import DownstreamConfig, ViewsConfig
from handful.devices import autocast, keep_freed_memory, moved
from handful.images import ImageSet
from handful.losses import sup_con
from handful.metrics import fit_temperature
from handful.networks import Encoder, ProjectionHead, classify
from handful.optim import (
    OnRow,
    average,
    descend,
    optimizer,
    set_rate,
    training_row,
    warmup_cosine,
    within_memory,
)
from handful.splits import ROW_STEPS, batches_per_epoch, endless_batches
from handful.views import two_views, view

SURELY = 2
"""Standard errors of a difference beyond which it is taken for one."""


class Length(NamedTuple):
    """How long training went on."""

    step: int
    """The step whose weights were kept."""
    encoded: int
    """Images that passed the encoder in training."""


def finetune(
    encoder: Encoder,
    classifier: nn.Linear,
    images: ImageSet,
    config: DownstreamConfig,
    *,
    generator: Generator,
    stage: str,
    on_row: OnRow,
    validation: ImageSet | None = None,
    head: ProjectionHead | None = None,
    first_views: ViewsConfig | None = None,
    dtype: torch.dtype = torch.float32,
) -> Length:
    """Train the classifier, and the encoder unless it is frozen, in place.

    images: labelled. With `validation`, its cross-entropy is measured `config.checks` times, the
    last weights that it does not find worse than the best are restored (see `_Watch`), and training
    stops after `config.patience` checks in a row that are worse.

    head: what the contrast beside cross-entropy projects with, trained in place as well; it takes
        two views of each image. None leaves the contrast out.
    first_views: what `config.curriculum` begins with; None leaves that out.
    dtype: what encoder and classifier compute in; the loss is float32 whatever it is.

    A frozen encoder is in eval mode: not even its batch statistics move.
    Raises ValueError where the loss stops being a number.
    """
    assert config.steps is not None
    device = encoder.mean.device
    keep_freed_memory()
    images, validation = images.to(device), validation and validation.to(device)
    encoder.train(config.train_encoder).requires_grad_(config.train_encoder)
    contrast = head if config.contrasts else None
    network = nn.ModuleList([encoder, classifier, *([contrast] if contrast else [])])
    chosen = _optimizer(encoder, network[1:], config)
    averaged = average(network, config.ema)
    current = averaged.module if averaged else network  # updated in place
    watch = _Watch(config, validation)
    began = time.perf_counter()
    per_epoch, encoded = batches_per_epoch(len(images), config.batch_size), 0
    losses: list[Tensor] = []

    def learn(index: Tensor, views: ViewsConfig) -> Tensor:
        index = moved(index, device)
        x = _lesson(images.taken(index), views, generator, twice=contrast is not None)
        with autocast(device, dtype):
            with torch.set_grad_enabled(config.train_encoder):
                h = encoder(x)
            logits, z = classifier(h), contrast(h) if contrast else None
        loss = _loss(logits, z, images, index, config)
        descend(chosen, loss, network, averaged)
        return loss.detach()  # stays on the device: .item() would stall every step

    stream = endless_batches(len(images), config.batch_size, generator)
    for step, index in zip(range(1, config.steps + 1), stream, strict=False):
        rate = set_rate(chosen, warmup_cosine(step - 1, config.steps, config.warmup))
        lesson = partial(learn, views=_views_at(step, config, first_views))
        losses.append(within_memory(lesson, index, "downstream.batch_size", config.batch_size))
        encoded += len(index) * (2 if contrast else 1)
        if not (step == config.steps or step % per_epoch % ROW_STEPS == 0):
            continue
        row = training_row(stage, step, config.steps, per_epoch, began, losses, rate)
        losses = []
        _stop_if_ill(row)
        on_row(row | watch.check(current, step, last=step == config.steps))
        if watch.done:
            break
    encoder.requires_grad_(True)
    network.load_state_dict(watch.kept or current.state_dict())
    return Length(watch.kept_step if watch.kept else step, encoded)


def _optimizer(
    encoder: Encoder, heads: nn.Module, config: DownstreamConfig
) -> torch.optim.Optimizer:
    encoder_rate = config.learning_rate * config.encoder_rate
    rates = [(heads, config.learning_rate), (encoder, encoder_rate)]
    return optimizer(rates, config.optimizer, config.weight_decay)


def _stop_if_ill(row: dict[str, Any]) -> None:
    if not math.isfinite(row["loss"]):
        raise ValueError(
            f"{row['stage']} at step {row['step']} of {row['steps']}: the loss is no longer a "
            "number; lower downstream.learning_rate"
        )


def _views_at(step: int, config: DownstreamConfig, first: ViewsConfig | None) -> ViewsConfig:
    """Views of one step, counted from 1."""
    assert config.steps is not None
    if first is None or not config.curriculum:
        return config.views
    return first.towards(config.views, min(1.0, (step - 1) / (config.curriculum * config.steps)))


def _lesson(images: Tensor, views: ViewsConfig, generator: Generator, *, twice: bool) -> Tensor:
    """One view of each of uint8 (B, C, H, W), or both of two: float (B or 2B, C, H, W)."""
    return (
        torch.cat(two_views(images, views, generator)) if twice else view(images, views, generator)
    )


def _loss(
    logits: Tensor, z: Tensor | None, images: ImageSet, index: Tensor, config: DownstreamConfig
) -> Tensor:
    """Cross-entropy of logits (B, Y); with projections z (2B, K) both are of two views each.

    What is added then is SupCon, weighted: cross-entropy asks where a class lies, the contrast that
    it lies together.
    """
    labels = images.labels[index]
    targets = labels if z is None else labels.repeat(2)
    loss = F.cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing)
    if z is None:
        return loss
    z_a, z_b = z.chunk(2)
    # no sources: only copies whose labels contradict each other would be negatives
    classes = len(images.class_names)
    return loss + config.contrast * sup_con(z_a, z_b, labels, config.temperature, classes=classes)


class _Watch:
    """Early stopping: remembers the last weights that validation does not find worse than the best.

    Worse is what has a higher cross-entropy by more than two standard errors of the difference,
    image by image: a hundred images tell no smaller ones. Of two lengths that they cannot tell the
    longer is taken; that it is the better one on average is an assumption, made by a few
    development draws of MNIST. Logits are calibrated first, as answers will be: else a check would
    choose the least sure network, not the one that knows most.
    """

    def __init__(self, config: DownstreamConfig, validation: ImageSet | None) -> None:
        assert config.steps is not None
        self.validation = validation
        self.every = max(1, config.steps // config.checks)
        self.patience = config.patience
        self.due = self.every
        self.lowest: Tensor | None = None  # loss of each image, (M,)
        self.worse = 0
        self.kept: dict[str, Tensor] = {}
        self.kept_step = 0

    @property
    def done(self) -> bool:
        return self.worse >= self.patience

    def check(self, network: nn.Module, step: int, *, last: bool) -> dict[str, Any]:
        """Measure where a check is due; the figures, else nothing."""
        if self.validation is None or (step < self.due and not last):
            return {}
        self.due = step + self.every
        encoder, classifier, *_ = network.children()
        assert isinstance(encoder, Encoder) and isinstance(classifier, nn.Linear)
        logits = classify(encoder, classifier, self.validation.images)
        labels = self.validation.labels
        calibrated = logits / fit_temperature(logits, labels)
        losses = F.cross_entropy(calibrated, labels, reduction="none")
        figures: dict[str, Any] = {
            "validation_loss": float(losses.mean()),
            "validation_accuracy": float((logits.argmax(1) == labels).float().mean()),
        }
        if self._is_worse(losses):
            self.worse += 1
            return figures
        if self.lowest is None or losses.mean() <= self.lowest.mean():
            self.lowest = losses
        self.worse, self.kept_step = 0, step
        self.kept = deepcopy(network.state_dict())
        return figures | {"kept": True}

    def _is_worse(self, losses: Tensor) -> bool:
        if self.lowest is None:
            return False
        more = losses - self.lowest
        doubt = float(more.std()) / math.sqrt(len(more)) if len(more) > 1 else 0.0
        return not float(more.mean()) <= SURELY * doubt  # what is no number is worse
