"""The pretext task: two views of one image shall agree, views of different images shall not."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from handful.config import PretextConfig
from handful.devices import autocast, keep_freed_memory, moved
from handful.images import ImageSet
from handful.losses import nt_xent, sup_con
from handful.metrics import alignment, effective_rank, knn_accuracy, uniformity
from handful.networks import Encoder, ProjectionHead, represent
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
from handful.views import two_views

HEALTH_CHECKS = 12
"""How often the representation is examined over the whole length."""
COLLAPSED = -0.05
"""Uniformity above this means that all projections point the same way (0 is a single point)."""


def pretrain(
    encoder: Encoder,
    head: ProjectionHead,
    images: ImageSet,
    config: PretextConfig,
    *,
    generator: Generator,
    validation: ImageSet | None = None,
    dtype: torch.dtype = torch.float32,
    on_row: OnRow,
) -> int:
    """Train encoder and head in place on the contrastive loss; the images that were encoded.

    images: their labels matter to `sup_con` alone; their sources keep copies of one image from
        being each other's negatives.
    dtype: what encoder and head compute in; the loss is float32 whatever it is.
    validation: labelled images that a kNN over `images` classifies now and then, for the record.

    Raises ValueError with advice where fewer than two sources are given, where the loss stops
    being a number, and where the projections collapse into one point.
    """
    assert config.steps is not None
    siblings = _have_siblings(images)
    keep_freed_memory()
    device = encoder.mean.device
    network = nn.ModuleList([encoder, head]).train()
    chosen = optimizer([(network, config.learning_rate)], config.optimizer, config.weight_decay)
    averaged = average(network, config.ema)
    images, began = images.to(device), time.perf_counter()
    per_epoch = batches_per_epoch(len(images), config.batch_size)
    check_every = max(1, config.steps // HEALTH_CHECKS)
    next_check, encoded = check_every, 0
    losses: list[Tensor] = []

    def learn(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = moved(index, device)
        views = torch.cat(two_views(images.taken(index), config.views, generator))
        with autocast(device, dtype):  # both views together: batch norm sees one mixed batch
            h = encoder(views)
            z = head(h)
        loss = _loss(z, images, index, config, siblings)
        descend(chosen, loss, network, averaged)
        # stays on the device: .item() would stall every step
        return loss.detach(), h.detach(), z.detach()

    stream = endless_batches(len(images), config.batch_size, generator)
    for step, index in zip(range(1, config.steps + 1), stream, strict=False):
        rate = set_rate(chosen, warmup_cosine(step - 1, config.steps, config.warmup))
        loss, h, z = within_memory(learn, index, "pretext.batch_size", config.batch_size)
        losses.append(loss)
        encoded += 2 * len(index)
        last = step == config.steps
        if not (last or step % per_epoch % ROW_STEPS == 0):
            continue
        row = training_row("pretext", step, config.steps, per_epoch, began, losses, rate)
        losses = []
        if (last or step >= next_check) and math.isfinite(row["loss"]):
            next_check += check_every
            row |= _health(h.cpu(), z.cpu())
            if validation is not None:
                row["knn_accuracy"] = _knn(encoder, images, validation)
        on_row(row)
        _stop_if_ill(row)
    if averaged:
        network.load_state_dict(averaged.module.state_dict())
    return encoded


def _have_siblings(images: ImageSet) -> bool:
    """Whether any two images come from one source."""
    distinct = len(images.sources.unique())
    if distinct < 2:
        raise ValueError(f"the pretext task contrasts images: it needs at least 2, got {distinct}")
    return distinct < len(images)


def _loss(
    z: Tensor, images: ImageSet, index: Tensor, config: PretextConfig, siblings: bool
) -> Tensor:
    """Scalar, of projections (2N, K). siblings: whether any two images have one source."""
    z_a, z_b = z.chunk(2)
    sources = images.sources[index] if siblings else None
    if config.loss == "sup_con":
        labels, classes = images.labels[index], len(images.class_names)
        return sup_con(z_a, z_b, labels, config.temperature, sources, classes)
    return nt_xent(z_a, z_b, config.temperature, sources)


def _health(h: Tensor, z: Tensor) -> dict[str, float]:
    """Figures of the last batch: no further pass is needed."""
    z_a, z_b = F.normalize(z.float(), dim=1).chunk(2)
    return {
        "alignment": alignment(z_a, z_b),
        "uniformity": uniformity(z_a),
        "effective_rank": effective_rank(h.float()),
    }


def _stop_if_ill(row: dict[str, Any]) -> None:
    where = f"the pretext task at step {row['step']} of {row['steps']}"
    if not math.isfinite(row["loss"]):
        raise ValueError(
            f"{where}: the loss is no longer a number; lower pretext.learning_rate "
            "or raise pretext.temperature"
        )
    if row.get("uniformity", -math.inf) > COLLAPSED:
        raise ValueError(
            f"{where}: the representation collapsed, all images look alike to it; "
            "lower pretext.learning_rate"
        )


def _knn(encoder: Encoder, images: ImageSet, validation: ImageSet) -> float:
    bank = images.labelled()
    return knn_accuracy(
        represent(encoder, bank.images), bank.labels,
        represent(encoder, validation.images), validation.labels,
    )  # fmt: skip
