"""The downstream task: a classifier on the encoder. Linear probe and fine-tuning are one loop."""

from __future__ import annotations

import math
import time
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from handful.config import DownstreamConfig
from handful.devices import autocast, keep_freed_memory
from handful.images import ImageSet
from handful.networks import Encoder, classify
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
from handful.views import view


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
    stop_at: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Length:
    """Train the classifier, and the encoder unless it is frozen, in place.

    images: labelled. With `validation`, its cross-entropy is measured `config.checks` times, the
    best weights are restored, and training stops after `config.patience` checks without a better
    one. Without it, training ends at `stop_at` steps, on the schedule of `config.steps`.

    dtype: what encoder and classifier compute in; the loss is float32 whatever it is.

    A frozen encoder is in eval mode: not even its batch statistics move.
    Raises ValueError where the loss stops being a number.
    """
    assert config.steps is not None
    device = encoder.mean.device
    keep_freed_memory()
    images, validation = images.to(device), validation and validation.to(device)
    network = nn.ModuleList([encoder, classifier])
    encoder.train(config.train_encoder).requires_grad_(config.train_encoder)
    chosen = _optimizer(encoder, classifier, config)
    averaged = average(network, config.ema)
    current = averaged.module if averaged else network  # updated in place
    watch = _Watch(config, validation)
    end, began = min(stop_at or config.steps, config.steps), time.perf_counter()
    per_epoch, encoded = batches_per_epoch(len(images), config.batch_size), 0
    losses: list[Tensor] = []

    def learn(index: Tensor) -> Tensor:
        index = index.to(device)
        x = view(images.images[index], config.views, generator)
        with autocast(device, dtype):
            with torch.set_grad_enabled(config.train_encoder):
                h = encoder(x)
            logits = classifier(h)
        loss = F.cross_entropy(
            logits.float(), images.labels[index], label_smoothing=config.label_smoothing
        )
        descend(chosen, loss, network, averaged)
        return loss.detach()  # stays on the device: .item() would stall every step

    stream = endless_batches(len(images), config.batch_size, generator)
    for step, index in zip(range(1, end + 1), stream, strict=False):
        rate = set_rate(chosen, warmup_cosine(step - 1, config.steps, config.warmup))
        losses.append(within_memory(learn, index, "downstream.batch_size", config.batch_size))
        encoded += len(index)
        if not (step == end or step % per_epoch % ROW_STEPS == 0):
            continue
        row = training_row(stage, step, config.steps, per_epoch, began, losses, rate)
        losses = []
        if not math.isfinite(row["loss"]):
            raise ValueError(
                f"{stage} at step {step} of {config.steps}: the loss is no longer a number; "
                "lower downstream.learning_rate"
            )
        on_row(row | watch.check(current, step, last=step == end))
        if watch.done:
            break
    encoder.requires_grad_(True)
    if watch.best:
        network.load_state_dict(watch.best)
        return Length(watch.best_step, encoded)
    network.load_state_dict(current.state_dict())
    return Length(step, encoded)


def _optimizer(
    encoder: Encoder, classifier: nn.Linear, config: DownstreamConfig
) -> torch.optim.Optimizer:
    encoder_rate = config.learning_rate * config.encoder_rate
    rates = [(classifier, config.learning_rate), (encoder, encoder_rate)]
    return optimizer(rates, config.optimizer, config.weight_decay)


class _Watch:
    """Early stopping: remembers the weights of the lowest validation cross-entropy."""

    def __init__(self, config: DownstreamConfig, validation: ImageSet | None) -> None:
        assert config.steps is not None
        self.validation = validation
        self.every = max(1, config.steps // config.checks)
        self.patience = config.patience
        self.due = self.every
        self.lowest = math.inf
        self.without_gain = 0
        self.best: dict[str, Tensor] = {}
        self.best_step = 0

    @property
    def done(self) -> bool:
        return self.without_gain >= self.patience

    def check(self, network: nn.Module, step: int, *, last: bool) -> dict[str, Any]:
        """Measure where a check is due; the figures, else nothing."""
        if self.validation is None or (step < self.due and not last):
            return {}
        self.due = step + self.every
        encoder, classifier = network.children()
        assert isinstance(encoder, Encoder) and isinstance(classifier, nn.Linear)
        logits = classify(encoder, classifier, self.validation.images)
        labels = self.validation.labels
        loss = float(F.cross_entropy(logits, labels))
        figures: dict[str, Any] = {
            "validation_loss": loss,
            "validation_accuracy": float((logits.argmax(1) == labels).float().mean()),
        }
        if loss < self.lowest:
            self.lowest, self.without_gain, self.best_step = loss, 0, step
            self.best = deepcopy(network.state_dict())
            return figures | {"best": True}
        self.without_gain += 1
        return figures
