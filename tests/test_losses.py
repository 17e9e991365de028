"""The losses against loops that are written down from the papers, one similarity at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from handful import losses
from handful.losses import nt_xent, sup_con

temperatures = pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
sizes = pytest.mark.parametrize("n", [2, 3, 8])


def projections(n: int, k: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views' projections, float64 (n, k), that gradients can be asked of."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, n, k, generator=generator, dtype=torch.float64)
    return z[0].clone().requires_grad_(), z[1].clone().requires_grad_()


def interleaved(z_a: Tensor, z_b: Tensor) -> list[Tensor]:
    """z_1 … z_2N as Algorithm 1 numbers them: views of one image next to each other."""
    return [z for pair in zip(z_a, z_b, strict=True) for z in pair]


def similarity(u: Tensor, v: Tensor) -> Tensor:
    return u.dot(v) / (u.dot(u).sqrt() * v.dot(v).sqrt())


def nt_xent_by_loops(
    z_a: Tensor, z_b: Tensor, temperature: float, sources: Tensor | None = None
) -> Tensor:
    """Algorithm 1 of Chen et al. (2020), as printed; with sources, their negatives left out."""
    z = interleaved(z_a, z_b)
    n = len(z_a)

    def ell(i: int, j: int) -> Tensor:
        numerator = torch.exp(similarity(z[i], z[j]) / temperature)
        denominator = torch.zeros((), dtype=z[i].dtype)
        for k in range(2 * n):
            sibling = sources is not None and bool(sources[k // 2] == sources[i // 2])
            if k != i and (k == j or not sibling):
                denominator = denominator + torch.exp(similarity(z[i], z[k]) / temperature)
        return -torch.log(numerator / denominator)

    total = torch.zeros((), dtype=z_a.dtype)
    for k in range(n):
        total = total + ell(2 * k, 2 * k + 1) + ell(2 * k + 1, 2 * k)
    return total / (2 * n)


def sup_con_by_loops(
    z_a: Tensor, z_b: Tensor, labels: Tensor, temperature: float, sources: Tensor | None = None
) -> Tensor:
    """Equation 2 of Khosla et al. (2020): L_out, the sum over P(i) outside the logarithm.

    An image without a label has its other view as P(i), and its siblings are not in A(i).
    """
    z, total = interleaved(z_a, z_b), torch.zeros((), dtype=z_a.dtype)
    for i in range(len(z)):
        positives, compared = [], []
        for k in range(len(z)):
            same_image = k // 2 == i // 2
            same_class = bool(labels[i // 2] >= 0) and bool(labels[i // 2] == labels[k // 2])
            sibling = sources is not None and bool(sources[i // 2] == sources[k // 2])
            if k == i:
                continue
            if same_image or same_class:
                positives.append(k)
            if same_image or same_class or not sibling:
                compared.append(k)
        everything = sum(torch.exp(similarity(z[i], z[a]) / temperature) for a in compared)
        terms = [
            torch.log(torch.exp(similarity(z[i], z[p]) / temperature) / everything)
            for p in positives
        ]
        total = total - sum(terms) / len(positives)
    return total / len(z)


def assert_same_loss_and_gradient(
    fast: Callable[[Tensor, Tensor], Tensor], slow: Callable[[Tensor, Tensor], Tensor], n: int
) -> None:
    z_a, z_b = projections(n)
    values = fast(z_a, z_b), slow(z_a, z_b)
    torch.testing.assert_close(*values)
    gradients = [torch.autograd.grad(value, (z_a, z_b)) for value in values]
    assert gradients[1][0].abs().max() > 0
    torch.testing.assert_close(*gradients)


@temperatures
@sizes
def test_nt_xent_is_algorithm_1(n: int, temperature: float) -> None:
    assert_same_loss_and_gradient(
        lambda a, b: nt_xent(a, b, temperature), lambda a, b: nt_xent_by_loops(a, b, temperature), n
    )


@temperatures
@pytest.mark.parametrize(
    "sources", [[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2], [7, 3, 7, 7, 3, 1], [0, 1, 1, 1, 1, 1]]
)
def test_nt_xent_takes_no_sibling_for_a_negative(sources: list[int], temperature: float) -> None:
    source = torch.tensor(sources)
    assert_same_loss_and_gradient(
        lambda a, b: nt_xent(a, b, temperature, source),
        lambda a, b: nt_xent_by_loops(a, b, temperature, source),
        len(sources),
    )


def test_images_of_their_own_sources_have_no_siblings() -> None:
    z_a, z_b = projections(6)
    torch.testing.assert_close(nt_xent(z_a, z_b, 0.5, torch.arange(6)), nt_xent(z_a, z_b, 0.5))


def test_a_batch_of_siblings_alone_teaches_nothing() -> None:
    z_a, z_b = projections(3)
    loss = nt_xent(z_a, z_b, 0.5, torch.zeros(3, dtype=torch.int64))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert z_a.grad is not None
    assert float(z_a.grad.abs().max()) < 1e-12


@pytest.mark.parametrize("n", [2, 5, 256])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_equal_embeddings_leave_it_to_chance(n: int, temperature: float) -> None:
    """Every view is as near as the partner: one of 2N − 1."""
    z = torch.ones(n, 4)
    expected = pytest.approx(math.log(2 * n - 1), rel=1e-5)
    assert float(nt_xent(z, z, temperature)) == expected
    labels = torch.arange(n) % 2
    assert float(sup_con(z, z, labels, temperature)) == expected


def test_two_images_are_enough() -> None:
    """By hand: views of one image coincide, the others are orthogonal to them."""
    z = torch.eye(2)
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    assert float(nt_xent(z, z, 0.5)) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("labelled", [False, True])
def test_finite_at_low_temperature(dtype: torch.dtype, labelled: bool) -> None:
    """exp(1 / 0.01) overflows float32, and 1 / 0.01 squared overflows float16."""
    a, b = projections(16)
    z_a, z_b = (z.detach().to(dtype).requires_grad_() for z in (a, b))
    labels = torch.arange(16) % 3
    loss = sup_con(z_a, z_b, labels, 0.01) if labelled else nt_xent(z_a, z_b, 0.01)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float32
    assert z_a.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(z_a.grad).all()
    exact = sup_con(a, b, labels, 0.01) if labelled else nt_xent(a, b, 0.01)
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.1)


def test_finite_where_an_embedding_is_zero() -> None:
    z_a, z_b = projections(4)
    assert torch.isfinite(nt_xent(z_a * 0, z_b, 0.5))


seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(2, 12))
def test_it_does_not_matter_which_view_is_which(seed: int, n: int) -> None:
    z_a, z_b = projections(n, seed=seed)
    torch.testing.assert_close(nt_xent(z_a, z_b, 0.3), nt_xent(z_b, z_a, 0.3))


@given(seeds, st.data())
def test_it_does_not_matter_in_which_order_images_come(seed: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 12))
    order = torch.tensor(data.draw(st.permutations(range(n))))
    sources = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    z_a, z_b = projections(n, seed=seed)
    torch.testing.assert_close(
        nt_xent(z_a, z_b, 0.3, sources), nt_xent(z_a[order], z_b[order], 0.3, sources[order])
    )
    labels = sources - 1
    torch.testing.assert_close(
        sup_con(z_a, z_b, labels, 0.3), sup_con(z_a[order], z_b[order], labels[order], 0.3)
    )


@given(seeds, st.lists(st.floats(1e-3, 1e3), min_size=8, max_size=8))
def test_only_directions_count(seed: int, lengths: list[float]) -> None:
    z_a, z_b = projections(4, seed=seed)
    scale = torch.tensor(lengths, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        nt_xent(z_a * scale[:4], z_b * scale[4:], 0.3), nt_xent(z_a, z_b, 0.3)
    )


def test_agreement_of_partners_lowers_the_loss() -> None:
    z_a, z_b = projections(8)
    assert nt_xent(z_a, z_a, 0.5) < nt_xent(z_a, z_b, 0.5)
    assert nt_xent(z_a, z_a, 0.5) < nt_xent(z_a, z_a.roll(1, 0), 0.5)


@temperatures
@pytest.mark.parametrize(
    "labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 1], [0, -1, 0, -1, 1, -1], [3, 1, 2, 0, 4, 5]]
)
@pytest.mark.parametrize("sources", [None, [0, 1, 0, 1, 2, 1], [0, 0, 0, 0, 0, 0]])
def test_sup_con_is_equation_2(
    labels: list[int], sources: list[int] | None, temperature: float
) -> None:
    label = torch.tensor(labels)
    source = None if sources is None else torch.tensor(sources)
    assert_same_loss_and_gradient(
        lambda a, b: sup_con(a, b, label, temperature, source),
        lambda a, b: sup_con_by_loops(a, b, label, temperature, source),
        len(labels),
    )


@given(seeds, st.lists(st.integers(0, 4), min_size=2, max_size=9))
def test_sup_con_without_labels_is_nt_xent(seed: int, sources: list[int]) -> None:
    z_a, z_b = projections(len(sources), seed=seed)
    labels = torch.full((len(sources),), -1)
    source = torch.tensor(sources)
    torch.testing.assert_close(sup_con(z_a, z_b, labels, 0.4), nt_xent(z_a, z_b, 0.4))
    torch.testing.assert_close(
        sup_con(z_a, z_b, labels, 0.4, source), nt_xent(z_a, z_b, 0.4, source)
    )


def test_sup_con_rewards_a_class_that_lies_together() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    together = torch.eye(2)[labels]
    apart = torch.eye(2)[torch.tensor([0, 1, 0, 1])]
    assert sup_con(together, together, labels, 0.5) < sup_con(apart, apart, labels, 0.5)


def test_inputs_stay_as_they_are() -> None:
    z_a, z_b = (z.detach() for z in projections(4))
    sources = torch.tensor([0, 0, 1, 2])
    before = z_a.clone(), z_b.clone(), sources.clone()
    nt_xent(z_a, z_b, 0.5, sources)
    sup_con(z_a, z_b, sources, 0.5, sources)
    for now, then in zip((z_a, z_b, sources), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("tile", [1, 3, 4, 8])
@pytest.mark.parametrize("sources", [None, [0, 1, 1, 2, 3, 0, 4, 1]])
def test_tiles_of_any_size_are_algorithm_1(tile: int, sources: list[int] | None) -> None:
    source = None if sources is None else torch.tensor(sources)
    with mock.patch.object(losses, "TILE_CPU", tile):
        assert_same_loss_and_gradient(
            lambda a, b: nt_xent(a, b, 0.2, source),
            lambda a, b: nt_xent_by_loops(a, b, 0.2, source),
            8,
        )


@pytest.mark.parametrize("tile", [1, 3, 8])
def test_tiles_of_any_size_are_equation_2(tile: int) -> None:
    labels, source = (
        torch.tensor([0, 1, -1, -1, 0, 2, 1, -1]),
        torch.tensor([0, 1, 2, 2, 0, 3, 4, 2]),
    )
    with mock.patch.object(losses, "TILE_CPU", tile):
        assert_same_loss_and_gradient(
            lambda a, b: sup_con(a, b, labels, 0.2, source),
            lambda a, b: sup_con_by_loops(a, b, labels, 0.2, source),
            8,
        )


@pytest.mark.parametrize(("largest", "kept"), [(16, True), (15, False)])
def test_no_larger_matrix_than_allowed_waits_for_the_backward_pass(
    largest: int, kept: bool
) -> None:
    with mock.patch.object(losses, "LARGEST_KEPT", largest):
        pairs = losses._Pairs(*projections(8), None, 0.2, None)
        assert len(list(pairs)) == (1 if kept else 3)
        assert (pairs.kept is not None) == kept
        assert_same_loss_and_gradient(
            lambda a, b: nt_xent(a, b, 0.2), lambda a, b: nt_xent_by_loops(a, b, 0.2), 8
        )


@given(seeds, st.sampled_from([1, 2, 1024]), st.data())
def test_processes_together_are_one_batch(seed: int, tile: int, data: st.DataObject) -> None:
    """Each has its own rows against all: the joint loss and gradient are their weighted mean."""
    z_a, z_b = projections(8, seed=seed)
    sources = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=8, max_size=8)))
    parts = data.draw(st.sampled_from([[4, 4], [1, 3, 4], [2, 2, 2, 2]]))
    shares = []
    with mock.patch.object(losses, "TILE_CPU", tile):
        for mine in torch.arange(8).split(parts):
            rest = torch.tensor([i for i in range(8) if i not in mine])
            loss = nt_xent(
                z_a[mine],
                z_b[mine],
                0.2,
                sources[mine],
                others=torch.cat([z_a[rest], z_b[rest]]),
                other_sources=sources[rest].repeat(2),
            )
            shares.append(loss * len(mine) / 8)
        joint = sum(shares, torch.zeros(()))
        alone = nt_xent(z_a, z_b, 0.2, sources)
    torch.testing.assert_close(joint, alone, check_dtype=False)
    found, expected = (torch.autograd.grad(value, (z_a, z_b)) for value in (joint, alone))
    torch.testing.assert_close(found, expected)


def test_sources_are_of_all_views_or_of_none() -> None:
    z_a, z_b = projections(4)
    with pytest.raises(ValueError, match="sources of all views"):
        nt_xent(z_a, z_b, 0.2, torch.arange(4), others=z_a)
    with pytest.raises(ValueError, match="sources of all views"):
        nt_xent(z_a, z_b, 0.2, others=z_a, other_sources=torch.arange(4))


def test_a_callers_half_precision_stops_at_the_loss() -> None:
    z_a, z_b = (z.detach().float().requires_grad_() for z in projections(16))
    labels = torch.arange(16) % 3
    plain = nt_xent(z_a, z_b, 0.05), sup_con(z_a, z_b, labels, 0.05)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            inside = nt_xent(z_a, z_b, 0.05), sup_con(z_a, z_b, labels, 0.05)
        torch.testing.assert_close(inside, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiles_are_as_exact_as_their_type(dtype: torch.dtype) -> None:
    z_a, z_b = projections(300, k=16)
    exact = dense(z_a, z_b, 0.1)
    expected = torch.cat(torch.autograd.grad(exact, (z_a, z_b)))
    rough = [z.detach().to(dtype).requires_grad_() for z in (z_a, z_b)]
    with mock.patch.object(losses, "TILE_CPU", 64):
        loss = nt_xent(*rough, 0.1)
        found = torch.cat(torch.autograd.grad(loss, rough))
    allowed = 1e-5 if dtype == torch.float32 else 1e-10
    assert float((loss - exact).abs().detach()) < allowed * float(exact.detach())
    assert float((found - expected).norm()) < allowed * float(expected.norm())


def dense(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    z = torch.nn.functional.normalize(torch.cat([z_a, z_b]), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(z)).roll(len(z_a)))


def test_gradients_have_the_type_of_what_was_given() -> None:
    z_a, z_b = (z.detach().to(torch.bfloat16).requires_grad_() for z in projections(4))
    nt_xent(z_a, z_b, 0.2, others=torch.ones(3, 6, dtype=torch.bfloat16)).backward()  # type: ignore[no-untyped-call]
    assert z_a.grad is not None
    assert z_a.grad.dtype == torch.bfloat16


def test_a_temperature_that_no_type_can_bear_is_refused() -> None:
    z_a, z_b = projections(4)
    with pytest.raises(ValueError, match=r"temperature 0\.001 is too low: at least 0\.002"):
        nt_xent(z_a, z_b, 0.001)


@pytest.mark.parametrize("n", [8, 9000])  # one tile, and several
@pytest.mark.parametrize("labelled", [False, True])
def test_a_gpu_finds_the_same_loss_and_gradient(n: int, labelled: bool, gpu: torch.device) -> None:
    labels = torch.arange(n) % 10

    def found(device: torch.device) -> tuple[Tensor, Tensor]:
        z_a, z_b = (z.detach().float().to(device) for z in projections(n))
        z_a.requires_grad_()
        with torch.autocast(device.type, torch.bfloat16):
            loss = (
                sup_con(z_a, z_b, labels.to(device), 0.3, classes=10)
                if labelled
                else nt_xent(z_a, z_b, 0.3, labels.to(device))
            )
        loss.backward()
        assert z_a.grad is not None
        return loss.detach().cpu(), z_a.grad.cpu()

    (loss, gradient), (expected, to_expect) = found(gpu), found(torch.device("cpu"))
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradient, to_expect, atol=1e-3 / n, rtol=1e-3)
