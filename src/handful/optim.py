"""Optimisers, the learning rate's course, and averaging of weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from handful.devices import out_of_memory

Found = TypeVar("Found")
OnRow = Callable[[dict[str, Any]], None]
"""What both training loops call with each row of metrics.jsonl."""


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman & Ginsburg 2017), with momentum.

    Groups with `adapt=False` (biases and norms) take plain momentum steps.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"trust": trust, "adapt": True})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return None

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        step = gradient.add(parameter, alpha=group["weight_decay"])
        if group["adapt"]:
            size, slope = parameter.norm(), step.norm()
            ratio = torch.where((size > 0) & (slope > 0), group["trust"] * size / slope, 1.0)
            step = step * ratio
        velocity = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        velocity.mul_(group["momentum"]).add_(step)
        parameter.add_(velocity, alpha=-group["lr"])


def optimizer(
    rates: Sequence[tuple[nn.Module, float]],
    kind: Literal["adamw", "lars"],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """An optimiser over modules, each with its own learning rate.

    Biases and norms (parameters of fewer than two dimensions) are neither decayed nor adapted.
    """
    groups: list[dict[str, Any]] = []
    for module, rate in rates:
        weights = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
        common = {"lr": rate, "peak": rate}
        groups.append({**common, "params": weights, "weight_decay": weight_decay, "adapt": True})
        groups.append({**common, "params": others, "weight_decay": 0.0, "adapt": False})
    groups = [group for group in groups if group["params"]]
    if kind == "lars":
        return LARS(groups, lr=groups[0]["lr"])
    return torch.optim.AdamW(groups, lr=groups[0]["lr"], fused=True)


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at `step` of `steps`: a linear rise, then half a cosine.

    The rise takes `warmup` of all steps. Never zero at the first step, nearly zero at the last.
    """
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def set_rate(chosen: torch.optim.Optimizer, share: float) -> float:
    """Give every group its share of its peak; the first group's rate is returned."""
    for group in chosen.param_groups:
        group["lr"] = group["peak"] * share
    return float(chosen.param_groups[0]["lr"])


def average(module: nn.Module, decay: float) -> AveragedModel | None:
    """Exponential moving average of a module's weights and statistics, or None at decay 0."""
    if decay == 0:
        return None
    mean = get_ema_multi_avg_fn(decay)

    def update(ours: Any, theirs: Any, updates: Any) -> None:
        """Of tensors of one type: counts and places are no quantities, and are copied."""
        if ours[0].is_floating_point():
            mean(ours, theirs, updates)
        else:
            for own, new in zip(ours, theirs, strict=True):
                own.copy_(new)

    return AveragedModel(module, multi_avg_fn=update, use_buffers=True)


def descend(
    chosen: torch.optim.Optimizer, loss: Tensor, network: nn.Module, averaged: AveragedModel | None
) -> None:
    """One step of the optimiser down the gradient of `loss`, and the average brought up to date."""
    chosen.zero_grad()
    loss.backward()
    chosen.step()
    if averaged:
        averaged.update_parameters(network)


def within_memory(
    step: Callable[[Tensor], Found], index: Tensor, setting: str, batch_size: int
) -> Found:
    """What `step` finds of the batch `index`, positions int64 (B,).

    Where memory runs out, raises ValueError naming `setting`, whose value is `batch_size`, and a
    batch size that fits.
    """
    try:
        return step(index)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    # out here nothing keeps the tensors of the failed step alive
    size, fits = len(index), False
    while size >= 4 and not fits:  # a single image has nothing to be normalised by
        size //= 2
        try:
            step(index[:size])
            fits = True
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
    advice = f"{size} fits: --set {setting}={size}" if fits else "make the images smaller"
    raise ValueError(f"out of memory with {setting} = {batch_size}: {advice}")


def training_row(
    stage: str,
    step: int,
    steps: int,
    per_epoch: int,
    began: float,
    losses: list[Tensor],
    rate: float,
) -> dict[str, Any]:
    """A row of metrics.jsonl: `losses` are scalars of the steps since the row before.

    began: `time.perf_counter()` at the first step. per_epoch: steps of an epoch.
    """
    return {
        "stage": stage,
        "step": step,
        "steps": steps,
        "epoch": -(-step // per_epoch),
        "seconds": time.perf_counter() - began,
        "loss": float(torch.stack(losses).mean()),
        "learning_rate": rate,
    }
