"""The packages that benchmarks compare with, as they come, and our list of operations in each.

What our views do and a peer has no operation for, it is spared: thicker and thinner strokes, ink
that stays inside the frame, a size of its own on each axis.
"""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from handful.config import ViewsConfig
from handful.views import KNOT_WIDTH

MEAN, STD = 0.1307, 0.3081
"""MNIST's, as tutorials have them."""

TwoViews = Callable[[Image.Image], Any]
"""A picture to its two views, each float (1, H, W)."""


@cache
def prepare() -> None:
    """Import torchvision; the peers that need it can be imported from then on.

    Its wheel describes two operators at import and fails where compiled ones are not to be had, as
    over a CPU build of torch. They belong to object detection: nothing that is measured calls them.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _held.append(library)
        importlib.import_module("torchvision")


_held: list[Any] = []
"""A library of operators lives as long as it is held."""


def lightly_default() -> TwoViews:
    """Views of lightly's SimCLR at its defaults, its jitter as it recommends for small images."""
    prepare()
    from lightly.transforms.simclr_transform import SimCLRTransform

    normalize = {"mean": [MEAN], "std": [STD]}
    transform: TwoViews = SimCLRTransform(input_size=28, cj_strength=0.5, normalize=normalize)
    return transform


def simclr_default() -> TwoViews:
    """Views of the package `simclr` (Spijkervet), which has no settings but the size."""
    prepare()
    from simclr.modules.transformations import TransformsSimCLR

    transform: TwoViews = TransformsSimCLR(28)
    return transform


def lightly_with(config: ViewsConfig, side: int) -> TwoViews:
    """Our list in lightly's pipeline, from torchvision's operations and lightly's own blur.

    The older of torchvision's two interfaces is the quicker one here. A picture is affinely moved,
    blurred and changed in tone by Pillow, which is quicker than torchvision on tensors.
    """
    prepare()
    import torchvision.transforms as T
    from lightly.transforms.gaussian_blur import GaussianBlur
    from lightly.transforms.multi_view_transform import MultiViewTransform

    steps: list[Any] = [
        T.RandomAffine(**_affine(config), interpolation=T.InterpolationMode.BILINEAR)
    ]
    if config.blur:
        steps.append(GaussianBlur(prob=1, sigmas=_blur_sigmas(config)))
    if config.gamma:
        steps.append(_Gamma(config.gamma))
    steps.append(T.ToTensor())
    if config.elastic:
        sigma, spread = _elastic(config, side)
        alpha = 2 * config.elastic * side / spread
        steps.append(T.ElasticTransform(alpha=alpha, sigma=sigma))
    if config.cutout:
        steps.append(T.RandomErasing(p=1, scale=(config.cutout**2,) * 2, ratio=(1, 1)))
    view = T.Compose(steps)  # our encoder normalises
    transform: TwoViews = MultiViewTransform([view, view])
    return transform


def kornia_with(config: ViewsConfig, side: int) -> Callable[[Tensor], Tensor]:
    """Our list in kornia's operations, a batch of float (N, 1, H, W) at once, one view a call.

    A plain sequence of them, which is quicker than kornia's AugmentationSequential.
    """
    import kornia.augmentation as K

    steps: list[nn.Module] = [K.RandomAffine(**_affine(config), p=1.0)]
    if config.elastic:
        sigma, spread = _elastic(config, side)
        kernel = 2 * round(4 * sigma) + 1  # as wide as torchvision's
        alpha = 2 * config.elastic / spread
        steps.append(
            K.RandomElasticTransform((kernel, kernel), (sigma, sigma), (alpha, alpha), p=1.0)
        )
    if config.blur:
        steps.append(K.RandomGaussianBlur((3, 3), _blur_sigmas(config), p=1.0))
    if config.gamma:
        steps.append(K.RandomGamma((math.exp(-config.gamma), math.exp(config.gamma)), p=1.0))
    if config.cutout:
        steps.append(K.RandomErasing((config.cutout**2,) * 2, (1.0, 1.0), p=1.0))
    return nn.Sequential(*steps)


class _Gamma:
    """Random exponent of intensity; a class, so that worker processes can be handed it."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        from torchvision.transforms.functional import adjust_gamma

        self.adjust = adjust_gamma

    def __call__(self, picture: Image.Image) -> Any:
        return self.adjust(picture, math.exp(random.uniform(-self.strength, self.strength)))


def _affine(config: ViewsConfig) -> dict[str, Any]:
    """The same ranges of angle, place, size and slant, as torchvision and kornia name them."""
    return {
        "degrees": config.rotation,
        "translate": (config.translation, config.translation),
        "scale": (math.exp(-config.scale), math.exp(config.scale)),
        "shear": math.degrees(math.atan(config.shear)),
    }


def _blur_sigmas(config: ViewsConfig) -> tuple[float, float]:
    """Gaussians as wide as our blends with the binomial 1, 2, 1, whose variance is one half."""
    return 0.1, math.sqrt(config.blur / 2)


def _elastic(config: ViewsConfig, side: int) -> tuple[float, float]:
    """Width in pixels of the Gaussian that smooths as our knots do, and what it leaves of noise.

    The latter is the standard deviation of noise uniform in -1 to 1, once it is smoothed.
    """
    sigma = KNOT_WIDTH * side / config.elastic_cells
    return sigma, 1 / math.sqrt(3) / (2 * math.sqrt(math.pi) * sigma)
