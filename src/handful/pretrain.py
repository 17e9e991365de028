"""The pretext task: two views of one image shall agree, views of different images shall not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from handful.config import PretextConfig
from handful.images import ImageSet
from handful.losses import nt_xent, sup_con
from handful.metrics import alignment, effective_rank, knn_accuracy, uniformity
from handful.networks import Encoder, ProjectionHead, represent
from handful.optim import average, descend, optimizer, set_rate, training_row, warmup_cosine
from handful.splits import ROW_STEPS, batches_per_epoch, endless_batches
from handful.views import two_views

HEALTH_CHECKS = 12
"""How often the representation is examined over the whole length."""
KNN_BANK = 5000
COLLAPSED = -0.05
"""Uniformity above this means that all projections point the same way (0 is a single point)."""

OnRow = Callable[[dict[str, Any]], None]


def pretrain(
    encoder: Encoder,
    head: ProjectionHead,
    images: ImageSet,
    config: PretextConfig,
    *,
    generator: Generator,
    validation: ImageSet | None = None,
    on_row: OnRow,
) -> int:
    """Train encoder and head in place on the contrastive loss; the images that were encoded.

    images: their labels matter to `sup_con` alone; their sources keep copies of one image from
        being each other's negatives.
    validation: labelled images that a kNN over `images` classifies now and then, for the record.

    Raises ValueError with advice where fewer than two sources are given, where the loss stops
    being a number, and where the projections collapse into one point.
    """
    assert config.steps is not None
    sources = len(images.sources.unique())
    if sources < 2:
        raise ValueError(f"the pretext task contrasts images: it needs at least 2, got {sources}")
    device = encoder.mean.device
    network = nn.ModuleList([encoder, head])
    chosen = optimizer([(network, config.learning_rate)], config.optimizer, config.weight_decay)
    averaged = average(network, config.ema)
    images, began = images.to(device), time.perf_counter()
    per_epoch = batches_per_epoch(len(images), config.batch_size)
    check_every = max(1, config.steps // HEALTH_CHECKS)
    next_check, encoded = check_every, 0
    losses: list[Tensor] = []
    stream = endless_batches(len(images), config.batch_size, generator)
    for step, index in zip(range(1, config.steps + 1), stream, strict=False):
        network.train()
        rate = set_rate(chosen, warmup_cosine(step - 1, config.steps, config.warmup))
        loss, h, z = _loss(encoder, head, images, index.to(device), config, generator)
        descend(chosen, loss, network, averaged)
        losses.append(loss.detach())  # stays on the device: .item() would stall every step
        encoded += 2 * len(index)
        last = step == config.steps
        if not (last or step % per_epoch % ROW_STEPS == 0):
            continue
        row = training_row("pretext", step, config.steps, per_epoch, began, losses, rate)
        losses = []
        if (last or step >= next_check) and math.isfinite(row["loss"]):
            next_check += check_every
            row |= _health(h.detach().cpu(), z.detach().cpu())
            if validation is not None:
                row["knn_accuracy"] = _knn(encoder, images, validation)
        on_row(row)
        _stop_if_ill(row)
    if averaged:
        network.load_state_dict(averaged.module.state_dict())
    return encoded


def _loss(
    encoder: Encoder,
    head: ProjectionHead,
    images: ImageSet,
    index: Tensor,
    config: PretextConfig,
    generator: Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """The step itself: loss, representations (2N, D), projections (2N, K).

    Both views pass the network together, so batch norm sees one mixed batch.
    """
    x_a, x_b = two_views(images.images[index], config.views, generator)
    h = encoder(torch.cat([x_a, x_b]))
    z = head(h)
    z_a, z_b = z.chunk(2)
    sources = images.sources[index]
    if config.loss == "sup_con":
        loss = sup_con(z_a, z_b, images.labels[index], config.temperature, sources)
    else:
        loss = nt_xent(z_a, z_b, config.temperature, sources)
    return loss, h, z


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
