"""Encoder f, projection head g and the classifier head."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import islice
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful import devices
from handful.config import NetworkConfig
from handful.geometry import upright
from handful.images import to_float

LARGEST_MAP = 40
"""Larger images are halved by strided convolutions before the first stage: full-resolution
convolutions at full width would cost most of the time and see mostly smooth surfaces."""


def _convolution(
    inputs: int,
    outputs: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    halved: bool = False,
) -> nn.Sequential:
    """Convolution, batch norm, ReLU; max-pooled before the norm, which then costs a quarter."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
        *_activation(outputs, halved),
    )


def _activation(channels: int, halved: bool) -> list[nn.Module]:
    pool = [nn.MaxPool2d(2)] if halved else []
    return [*pool, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


class Cosines(nn.Module):
    """Each channel of (N, C, H, W) under all k × k cosines of the DCT-II: (N, C · k², H', W').

    Fixed filters of unit norm, orthogonal to each other; `padding` pixels of zeros around.
    """

    weight: Tensor

    def __init__(self, channels: int, kernel: int, padding: int) -> None:
        super().__init__()
        # known without being read from a file, also where all else waits for one without memory
        frequency = torch.arange(kernel, dtype=torch.float64, device="cpu")
        waves = torch.cos(math.pi * (frequency + 0.5) * frequency[:, None] / kernel)
        waves = waves / waves.norm(dim=1, keepdim=True)
        filters = torch.einsum("uy,vx->uvyx", waves, waves).reshape(-1, 1, kernel, kernel)
        weight = channels_last(filters.float().repeat(channels, 1, 1, 1))
        self.register_buffer("weight", weight, persistent=False)
        self.channels, self.padding = channels, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=self.padding, groups=self.channels)


CONVOLUTIONS = (nn.Conv2d, Cosines)


def _harmonic(
    inputs: int, outputs: int, *, kernel: int, padding: int, halved: bool
) -> nn.Sequential:
    """As `_convolution`, from few images: its filters are mixed of cosines (Ulicny et al. 2019).

    Batch norm gives all frequencies one size before they are mixed: of strokes the low ones are
    many times as strong.
    """
    count = inputs * kernel**2
    return nn.Sequential(
        Cosines(inputs, kernel, padding),
        nn.BatchNorm2d(count, affine=False),
        nn.Conv2d(count, outputs, 1, bias=False),
        *_activation(outputs, halved),
    )


ENOUGH_IMAGES, ENOUGH_PIXELS = 10_000, 2**27
"""Mean and spread of so many are those of all, and of fewer where they are large."""


class Encoder(nn.Module, ABC):
    """f: float images (N, C, H, W) in 0-1 to representations h (N, dim).

    Normalisation lives here and nowhere else: `mean` and `std`, one number per channel, travel with
    the weights. So does what else is done to an image first: `upright` ones are centred and lose
    their slant.
    """

    mean: Tensor
    std: Tensor
    dim: int
    style_dim: int

    def __init__(self, channels: int, *, upright: bool = False) -> None:
        super().__init__()
        self.channels, self.upright = channels, upright
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def normalise_to(self, images: Tensor) -> None:
        """Take mean and spread of uint8 images (N, C, H, W), channel by channel."""
        enough = max(1, min(ENOUGH_IMAGES, ENOUGH_PIXELS // math.prod(images.shape[1:])))
        x = to_float(images[:: -(-len(images) // enough)])
        self.mean.copy_(x.mean((0, 2, 3)).view(-1, 1, 1))
        self.std.copy_(x.std((0, 2, 3)).clamp(min=1e-3).view(-1, 1, 1))

    @abstractmethod
    def looked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Representations h, and style (N, style_dim): how an image is drawn, whatever it shows."""

    def normalised(self, x: Tensor) -> Tensor:
        if self.upright:
            with torch.autocast(
                x.device.type, enabled=False
            ):  # places need more than half precision
                x = upright(x)
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def style_of(maps: Tensor) -> Tensor:
    """Mean and spread over all places of maps (N, C, H, W): (N, 2 · C).

    As in style transfer (Huang and Belongie 2017, section 5).
    """
    return torch.cat([maps.mean((2, 3)), maps.std((2, 3), correction=0)], 1)


class ConvNet(Encoder):
    """The encoder of handful itself, for small images.

    One convolution of few channels on all pixels (5 × 5, without a border around the image; of
    large ones, which strides made smaller, 3 × 3 with one), then 3 × 3 convolutions, one a stage
    and two in the last, which a global maximum ends. Each stage sees half the side of the one
    before.
    Most multiplications are so spent where few places and many channels are left: of 28 pixels,
    6 × 6 places where a border would leave 7 × 7;
    docs/performance.md compares that, at equal seconds, with spending them at full resolution.

    Its style is that of the first channels. `number` is which of an ensemble's members this one is,
    and `config.columns` says how that one looks at images.
    """

    def __init__(self, channels: int, size: int, config: NetworkConfig, *, number: int = 0) -> None:
        column = config.columns[number % len(config.columns)]
        super().__init__(channels, upright="upright" in column)
        layers: list[nn.Module] = []
        inputs, width, given = channels, config.width, size
        while size > LARGEST_MAP:
            layers.append(_convolution(inputs, width, stride=2))
            inputs, size = width, (size + 1) // 2
        stages = config.stages or fitting_stages(size)
        kernel, padding = (5, 0) if size == given else (3, 1)
        size -= kernel - 1 - 2 * padding
        if size < 1:
            raise ValueError(f"images of {given} pixels a side are too small: at least {kernel}")
        if size >> (stages - 1) == 0:
            most = size.bit_length()
            raise ValueError(
                f"network.stages = {stages} halves images of {given} pixels away: at most {most}"
            )
        halved = stages > 1
        first = _harmonic if "harmonic" in column else _convolution
        layers.append(first(inputs, width, kernel=kernel, padding=padding, halved=halved))
        for stage in range(1, stages):
            outputs = width * (4 if stage == 1 else 2)
            layers.append(_convolution(width, outputs, halved=stage < stages - 1))
            width = outputs
        layers.append(_convolution(width, width))
        self.layers = nn.Sequential(*layers)
        self.dim, self.style_dim = width, 2 * config.width
        for parameter in self.parameters():
            parameter.data = channels_last(parameter.data)

    def forward(self, x: Tensor) -> Tensor:
        return self._shown(self._drawn(x))

    def looked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self._drawn(x)
        style = style_of(maps)
        return self._shown(maps), style

    def _drawn(self, x: Tensor) -> Tensor:
        """The maps of the first channels."""
        maps: Tensor = self.layers[0](self.normalised(x))
        return maps

    def _shown(self, maps: Tensor) -> Tensor:
        for layer in islice(self.layers, 1, None):
            maps = layer(maps)
        return maps.amax((2, 3))  # (N, D, h, w) → (N, D)


class Ensemble(nn.Module):
    """Several encoders as one: their representations side by side, h (N, M · D)."""

    def __init__(self, members: Sequence[Encoder]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.channels = members[0].channels
        self.dim = sum(member.dim for member in members)
        self.style_dim = sum(member.style_dim for member in members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([member(x) for member in self.members], 1)

    def looked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `Encoder.looked`, of all members side by side."""
        both = [cast(Encoder, member).looked(x) for member in self.members]
        return torch.cat([h for h, _ in both], 1), torch.cat([style for _, style in both], 1)


AnyEncoder = Encoder | Ensemble


def joined(
    encoders: Sequence[Encoder], classifiers: Sequence[nn.Linear]
) -> tuple[AnyEncoder, nn.Linear]:
    """One encoder and one head that give the mean of all members' logits; of one, itself.

    The mean of linear functions is linear in all representations side by side, so that whatever
    takes an encoder and a head takes an ensemble.
    """
    if len(encoders) == 1:
        return encoders[0], classifiers[0]
    head = deepcopy(classifiers[0])
    head.in_features = sum(one.in_features for one in classifiers)
    head.weight = nn.Parameter(torch.cat([one.weight for one in classifiers], 1) / len(encoders))
    head.bias = nn.Parameter(torch.stack([one.bias for one in classifiers]).mean(0))
    return Ensemble(encoders), head


def channels_last(weights: Tensor) -> Tensor:
    """Weights of a convolution laid out as CPUs and GPUs compute it fastest; others as they are.

    A clone: of one channel `contiguous` sees no difference between the formats and leaves the
    strides that make PyTorch choose the slow one.
    """
    return weights.clone(memory_format=torch.channels_last) if weights.ndim == 4 else weights


def fitting_stages(size: int) -> int:
    """Stages after which about 7 × 7 of size × size places are left: 3 of 28.

    Of small images the border that the first convolution leaves out is among those places.
    """
    stages = 1
    while size > 10 and stages < 4:
        size, stages = size // 2, stages + 1
    return stages


class ProjectionHead(nn.Sequential):
    """g: representations h (N, D) to projections z (N, K), used by the contrastive loss alone.

    Two layers as in SimCLR (Chen et al. 2020, section 2.1: W2 · ReLU(W1 · h)) or three as in
    SimCLRv2 (Chen et al. 2020, section 3), batch norm after every hidden layer.
    """

    def __init__(self, dim: int, config: NetworkConfig) -> None:
        layers: list[nn.Module] = []
        for _ in range(config.head_layers - 1):
            layers += [
                nn.Linear(dim, config.head_hidden, bias=False),
                nn.BatchNorm1d(config.head_hidden),
                nn.ReLU(inplace=True),
            ]
            dim = config.head_hidden
        super().__init__(*layers, nn.Linear(dim, config.head_dim))


def classifier_head(dim: int, classes: int) -> nn.Linear:
    """Representations h (N, D) to logits (N, Y)."""
    return nn.Linear(dim, classes)


INFERENCE_BATCH = 256


def in_parts(function: Callable[[Tensor], Tensor], images: Tensor, *modules: nn.Module) -> Tensor:
    """`function` of uint8 images (N, C, H, W), given as floats in 0-1, some hundred at a time.

    The modules are in eval mode meanwhile, so that no image's result depends on its neighbours,
    and memory stays bounded however many images there are. Returns (N, …) on the modules' device.
    """
    modes = [module.training for module in modules]
    device = next(modules[0].parameters()).device
    for module in modules:
        module.eval()
    try:
        with torch.inference_mode():
            parts = torch.split(images, INFERENCE_BATCH)
            return torch.cat([function(to_float(part.to(device))) for part in parts])
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def represent(encoder: AnyEncoder, images: Tensor) -> Tensor:
    """Representations h (N, D) of uint8 images (N, C, H, W)."""
    return in_parts(encoder, images, encoder)


def classify(encoder: AnyEncoder, classifier: nn.Linear, images: Tensor) -> Tensor:
    """Logits (N, Y) of uint8 images (N, C, H, W), each looked at once."""
    return in_parts(lambda x: classifier(encoder(x)), images, encoder, classifier)


def parameters(module: nn.Module) -> int:
    """Trainable numbers in a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(encoder: AnyEncoder, height: int, width: int) -> int:
    """Multiply-adds of one forward pass of one image, convolutions alone."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, CONVOLUTIONS)
        total += module.weight.numel() * output.shape[2] * output.shape[3]

    hooks = [
        m.register_forward_hook(count) for m in encoder.modules() if isinstance(m, CONVOLUTIONS)
    ]
    was_training = encoder.training
    try:
        with torch.inference_mode():
            device = next(encoder.parameters()).device
            encoder.eval()(torch.zeros(1, encoder.channels, height, width, device=device))
    finally:
        encoder.train(was_training)
        for hook in hooks:
            hook.remove()
    return total


def seconds_per_image(encoder: Encoder, images: Tensor, batch: float) -> float:
    """Measured time of one image's forward and backward pass, for saying how long training takes.

    images: uint8 (N, C, H, W), repeated to fill a `batch`: an image of a small one takes longer.
    Costs a few steps of at most 128 images; a copy is trained, `encoder` is left alone.
    """
    trial = deepcopy(encoder).train()
    wanted = torch.arange(min(max(round(batch), 2), 128)) % len(images)
    x = to_float(images[wanted]).to(encoder.mean.device)
    taken = math.inf
    with devices.seeded(0, x.device):
        # the first passes pay for set-up, on a GPU more than one
        for _ in range(2 if x.device.type == "cpu" else 6):
            began = time.perf_counter()
            loss = trial(x).sum()
            loss.backward()
            loss.item()  # waits for the device
            taken = min(taken, time.perf_counter() - began)
    return taken / len(x)
