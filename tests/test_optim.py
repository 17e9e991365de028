from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from handful.config import NetworkConfig
from handful.networks import ConvNet
from handful.optim import LARS, average, optimizer, set_rate, warmup_cosine, within_memory


def layer() -> nn.Linear:
    """W = [[3, 4]], b = [2]."""
    linear = nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[3.0, 4.0]]))
        linear.bias.fill_(2.0)
    return linear


def pull(module: nn.Linear, weight: list[float], bias: float) -> None:
    module.weight.grad = torch.tensor([weight])
    module.bias.grad = torch.tensor([bias])


def test_lars_by_hand() -> None:
    """Two steps with momentum 0.9, trust 0.001, weight decay 0.1 and learning rate 10."""
    linear = layer()
    chosen = optimizer([(linear, 10.0)], "lars", weight_decay=0.1)
    assert isinstance(chosen, LARS)

    pull(linear, [0.3, -0.4], 0.5)
    chosen.step()
    # g + λw = (0.6, 0), |w| = 5: local rate 0.001 · 5 / 0.6
    velocity = 0.001 * 5 / 0.6 * 0.6
    first = 3 - 10 * velocity
    torch.testing.assert_close(linear.weight.detach(), torch.tensor([[first, 4.0]]))
    torch.testing.assert_close(linear.bias.detach(), torch.tensor([2 - 10 * 0.5]))

    pull(linear, [0.0, 0.0], 0.5)
    chosen.step()
    # now g + λw = 0.1 w, so the local step is 0.001 · |w| / |0.1 w| · 0.1 w = 0.001 w
    expected = [first - 10 * (0.9 * velocity + 0.001 * first), 4 - 10 * 0.001 * 4]
    torch.testing.assert_close(linear.weight.detach(), torch.tensor([expected]))
    torch.testing.assert_close(linear.bias.detach(), torch.tensor([-3 - 10 * (0.9 * 0.5 + 0.5)]))


def test_lars_steps_as_far_however_steep_the_loss_is() -> None:
    moved = []
    for slope in (1e-3, 1e3):
        linear = layer()
        pull(linear, [slope, slope], 0.0)
        optimizer([(linear, 1.0)], "lars", weight_decay=0.0).step()
        moved.append(linear.weight.detach())
    torch.testing.assert_close(moved[0], moved[1])


@pytest.mark.parametrize(("weight", "slope"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_lars_stays_finite_where_a_norm_is_zero(weight: float, slope: float) -> None:
    linear = layer()
    nn.init.constant_(linear.weight, weight)
    pull(linear, [slope, slope], 0.0)
    optimizer([(linear, 0.5)], "lars", weight_decay=0.0).step()
    torch.testing.assert_close(
        linear.weight.detach(), torch.full((1, 2), weight - 0.5 * slope), rtol=0, atol=1e-6
    )


def test_lars_leaves_alone_what_has_no_gradient() -> None:
    linear = layer()
    optimizer([(linear, 1.0)], "lars", weight_decay=0.5).step()
    assert linear.weight.tolist() == [[3, 4]]


@pytest.mark.parametrize("kind", ["adamw", "lars"])
def test_biases_and_norms_are_neither_decayed_nor_adapted(kind: Literal["adamw", "lars"]) -> None:
    encoder = ConvNet(1, 28, NetworkConfig(width=4))
    network = nn.ModuleList([encoder, nn.Linear(encoder.dim, 3)])
    chosen = optimizer([(network, 0.1)], kind, weight_decay=0.3)
    treated = {parameter: group for group in chosen.param_groups for parameter in group["params"]}
    assert set(treated) == set(network.parameters())
    for module in network.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.BatchNorm2d):
            spared = [own["weight"], own["bias"]]
        else:
            spared = [own["bias"]] if own.get("bias") is not None else []
        for parameter in own.values():
            is_spared = any(parameter is other for other in spared)
            assert treated[parameter]["weight_decay"] == (0 if is_spared else 0.3)
            assert treated[parameter]["adapt"] == (not is_spared)


def test_a_bias_keeps_its_size_where_weights_decay() -> None:
    linear = layer()
    pull(linear, [0.0, 0.0], 0.0)
    optimizer([(linear, 0.1)], "adamw", weight_decay=0.5).step()
    torch.testing.assert_close(linear.weight.detach(), torch.tensor([[2.85, 3.8]]))
    assert linear.bias.tolist() == [2]


def test_frozen_parameters_are_in_no_group() -> None:
    linear = layer()
    linear.weight.requires_grad_(False)
    chosen = optimizer([(linear, 0.1)], "adamw", weight_decay=0.5)
    assert [group["params"] for group in chosen.param_groups] == [[linear.bias]]


def test_each_module_has_its_rate_and_shares_one_course() -> None:
    head, encoder = layer(), layer()
    chosen = optimizer([(head, 0.2), (encoder, 0.02)], "adamw", weight_decay=0.1)
    for _ in range(2):  # a share of the peak, not of the rate before
        assert set_rate(chosen, 0.5) == pytest.approx(0.1)
    rates = {p: group["lr"] for group in chosen.param_groups for p in group["params"]}
    assert rates[head.weight] == rates[head.bias] == pytest.approx(0.1)
    assert rates[encoder.weight] == rates[encoder.bias] == pytest.approx(0.01)


@given(st.integers(1, 2000), st.floats(0, 0.99))
def test_the_rate_rises_once_and_falls_once(steps: int, warmup: float) -> None:
    course = [warmup_cosine(step, steps, warmup) for step in range(steps)]
    assert course[0] > 0
    assert max(course) <= 1
    peak = course.index(max(course))
    assert all(a < b for a, b in pairwise(course[: peak + 1]))
    assert all(a >= b for a, b in pairwise(course[peak:]))
    assert min(course) >= 0


@given(st.integers(50, 2000), st.floats(0, 0.5))
def test_the_rate_reaches_its_peak_and_ends_near_zero(steps: int, warmup: float) -> None:
    course = [warmup_cosine(step, steps, warmup) for step in range(steps)]
    assert max(course) > 0.97
    assert course[-1] < 0.01
    assert abs(course.index(max(course)) - warmup * steps) <= 1


def test_without_warmup_training_starts_at_the_peak_and_is_half_way_down_in_the_middle() -> None:
    assert warmup_cosine(0, 100, 0.0) == 1
    assert warmup_cosine(50, 100, 0.0) == pytest.approx(0.5)
    assert warmup_cosine(25, 100, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert warmup_cosine(0, 1, 0.5) > 0


def test_no_average_without_decay() -> None:
    assert average(layer(), 0.0) is None


def test_the_average_follows_weights_and_statistics() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    averaged = average(network, 0.8)
    assert averaged is not None
    expected: dict[str, Tensor] = {}
    for number in range(4):
        with torch.no_grad():
            network[0].weight.fill_(float(number))
        network(torch.full((3, 2), float(number)) * torch.arange(3.0)[:, None])
        averaged.update_parameters(network)
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                old = expected.get(name, value)
                expected[name] = (0.8 * old + 0.2 * value).clone()
    state = averaged.module.state_dict()
    assert "1.running_mean" in expected
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value)
    assert not torch.equal(state["0.weight"], network[0].weight)


def refuses_more_than(most: int) -> Callable[[Tensor], int]:
    def step(index: Tensor) -> int:
        if len(index) > most:
            raise RuntimeError("MPS backend out of memory")
        return len(index)

    return step


def test_a_step_within_memory_is_taken_once() -> None:
    assert within_memory(refuses_more_than(8), torch.arange(8), "pretext.batch_size", 8) == 8


def test_out_of_memory_says_what_fits() -> None:
    with pytest.raises(ValueError, match=r"with x\.y = 120: 25 fits: --set x\.y=25$"):
        within_memory(refuses_more_than(30), torch.arange(100), "x.y", 120)


@pytest.mark.parametrize("n", [2, 3, 16])
def test_where_nothing_fits_it_says_so(n: int) -> None:
    with pytest.raises(ValueError, match="make the images smaller"):
        within_memory(refuses_more_than(0), torch.arange(n), "x.y", 16)


def test_another_fault_of_a_step_stays_what_it_is() -> None:
    def step(index: Tensor) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        within_memory(step, torch.arange(4), "x.y", 4)


def test_what_is_no_quantity_is_not_averaged() -> None:
    network = nn.Linear(1, 1)
    network.register_buffer("places", torch.arange(300))
    averaged = average(network, 0.95)
    assert averaged is not None
    for _ in range(3):
        network.weight.data += 1
        averaged.update_parameters(network)
    assert torch.equal(averaged.module.get_buffer("places"), torch.arange(300))
    assert not torch.equal(averaged.module.get_parameter("weight"), network.weight)
