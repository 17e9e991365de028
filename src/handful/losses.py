"""Contrastive losses. Tensors in, a scalar out; they know nothing of processes or networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(z_a: Tensor, z_b: Tensor, temperature: float, sources: Tensor | None = None) -> Tensor:
    """NT-Xent, the normalised temperature-scaled cross-entropy: a scalar, the mean over 2N views.

    SimCLR (Chen et al. 2020), equation 1 and Algorithm 1: each view must tell its partner from all
    other views by cosine similarity over `temperature`.

    z_a, z_b: projections (N, K) of two views of the same images, row by row.
    sources: int64 (N,). Images made of one source are not each other's negatives; without it,
        every other image is a negative, as in the paper.
    """
    n = len(z_a)
    logits, itself = _similarities(z_a, z_b, temperature)
    partner = torch.arange(2 * n, device=logits.device).roll(n)
    hidden = itself
    if sources is not None:
        hidden = _siblings(sources)
        hidden[torch.arange(2 * n, device=hidden.device), partner] = False
    return F.cross_entropy(logits.masked_fill(hidden, -torch.inf), partner)


def sup_con(
    z_a: Tensor,
    z_b: Tensor,
    labels: Tensor,
    temperature: float,
    sources: Tensor | None = None,
) -> Tensor:
    """The labelled form of NT-Xent: every view of the same class is a partner.

    SupCon (Khosla et al. 2020), equation 2 (the sum over partners outside the logarithm), as the
    mean over 2N views. An unlabelled image (-1) has its own other view as its only partner, and
    images of its source are hidden from it; without any label this is `nt_xent`.

    z_a, z_b: (N, K). labels: int64 (N,). sources: int64 (N,) or None.
    """
    n = len(z_a)
    logits, itself = _similarities(z_a, z_b, temperature)
    label = labels.repeat(2)
    partners = (label[:, None] == label) & (label >= 0)[:, None]
    index = torch.arange(2 * n, device=logits.device)
    partners[index, index.roll(n)] = True
    partners &= ~itself
    hidden = itself if sources is None else _siblings(sources) & ~partners
    log_share = logits - logits.masked_fill(hidden, -torch.inf).logsumexp(1, keepdim=True)
    per_view = (log_share * partners).sum(1) / partners.sum(1)
    return -per_view.mean()


def _similarities(z_a: Tensor, z_b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cosines over temperature (2N, 2N) in at least float32, and the mask of the diagonal.

    Half precision overflows at low temperatures, so it stops here.
    """
    z = torch.cat([z_a, z_b])  # (2N, K)
    z = F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)
    return z @ z.T / temperature, torch.eye(len(z), dtype=torch.bool, device=z.device)


def _siblings(sources: Tensor) -> Tensor:
    """(2N, 2N): whether two views come from one source; every view is its own sibling."""
    source = sources.repeat(2)
    return source[:, None] == source
