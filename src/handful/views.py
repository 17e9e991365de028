"""Views of images: whole batches at once, every parameter drawn per image.

All geometry (rotation, scale, shear, shift, elastic displacement) is one resampling, so an image is
interpolated once however much is asked for. Parameters are drawn on the CPU from an explicit
generator: the same generator gives the same views on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from handful.config import ViewsConfig
from handful.devices import moved
from handful.geometry import affine, places_read, sampled, warp
from handful.images import ImageSet, room, to_float

KNOT_WIDTH = 0.7
"""Width of an elastic knot's Gaussian, in knot spacings: neighbouring knots blend smoothly."""


def two_views(images: Tensor, config: ViewsConfig, generator: Generator) -> tuple[Tensor, Tensor]:
    """Two independent views of each image: uint8 (N, C, H, W) to two float32 (N, C, H, W)."""
    x_a, x_b = view(torch.cat([images, images]), config, generator).chunk(2)
    return x_a, x_b


def view(images: Tensor, config: ViewsConfig, generator: Generator) -> Tensor:
    """One view of every image: uint8 (N, C, H, W) to float32 (N, C, H, W) in 0-1."""
    x = to_float(images)
    x = _mirrored(x, config, generator)
    x = _geometry(x, config, generator)
    x = _stroke(x, config, generator)
    x = _blur(x, config, generator)
    x = _intensity(x, config, generator)
    x = _colour(x, config, generator)
    return _cutout(x, config, generator)


def _uniform(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform in -1 to 1."""
    return torch.rand(shape, generator=generator) * 2 - 1


def _geometry(x: Tensor, config: ViewsConfig, generator: Generator) -> Tensor:
    n, _, height, width = x.shape
    matrix = affine(
        _uniform((n,), generator) * math.radians(config.rotation),
        _uniform((n, 2), generator) * config.scale,
        _uniform((n,), generator) * config.shear,
    )
    matrix = moved(matrix, x.device)
    shift = moved(_uniform((n, 2), generator) * 2 * config.translation, x.device)
    if config.crop:
        matrix, shift = _cropped(matrix, shift, config.crop, generator)
    field = _elastic_field(n, height, width, config, generator, x.device)
    if config.keep_ink:
        matrix, shift = _inside_frame(x, matrix, shift, field)
    return warp(x, matrix, shift, field, _beyond(not config.keep_ink))


ASPECT = 4 / 3
"""Of a cut, at most, width to height and height to width (Chen et al. 2020, appendix A)."""


def _cropped(
    matrix: Tensor, shift: Tensor, crop: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """The affine map, and after it a part of its picture that fills the frame."""
    n = len(matrix)
    area = 1 - crop * torch.rand((n, 1), generator=generator)
    aspect = (_uniform((n, 1), generator) * math.log(ASPECT)).exp()
    aspect = aspect.maximum(area).minimum(1 / area)  # no side longer than the frame's
    size = torch.cat([area * aspect, area / aspect], 1).sqrt()  # (N, 2), x and y
    centre = moved(_uniform((n, 2), generator) * (1 - size), matrix.device)
    size = moved(size, matrix.device)
    return matrix / size[:, :, None], (shift - centre) / size


def _elastic_field(
    n: int,
    height: int,
    width: int,
    config: ViewsConfig,
    generator: Generator,
    device: torch.device,
) -> Tensor | None:
    """Smooth random displacements (N, H, W, 2), normal with the configured standard deviation."""
    if config.elastic == 0:
        return None
    cells = config.elastic_cells
    # the frame is two units wide
    knots = torch.randn((n, 2, cells, cells), generator=generator) * (2 * config.elastic)
    # x and y of a knot side by side, as a grid wants them
    knots = moved(knots.permute(0, 2, 3, 1).reshape(n, cells, cells * 2), device)
    rows, columns = _knot_weights(height, cells, device), _knot_weights(width, cells, device)
    both = columns.new_zeros(cells, 2, width, 2)
    both[:, 0, :, 0] = both[:, 1, :, 1] = columns.T
    return (rows @ knots @ both.view(cells * 2, width * 2)).view(n, height, width, 2)


@lru_cache(maxsize=16)
def _knot_weights(side: int, cells: int, device: torch.device) -> Tensor:
    """(side, cells): weight of each knot at each pixel; rows have unit norm.

    Independent normal knots therefore give the same standard deviation at every pixel.
    """
    position = (torch.arange(side) + 0.5) / side * cells - 0.5
    distance = (position[:, None] - torch.arange(cells)) / KNOT_WIDTH
    weights = torch.exp(-0.5 * distance**2)
    return F.normalize(weights, dim=1).to(device)


def _inside_frame(
    x: Tensor, matrix: Tensor, shift: Tensor, field: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Shrink and shift less where the warp would carry ink over the frame.

    One pixel is left free on every side, which interpolation and a thicker stroke may fill.
    """
    low, high = _ink_box(x)  # (N, 2) each, as (x, y)
    if field is not None:
        n, height, width, _ = field.shape
        columns = _largest(field.abs().view(n, height, width * 2))  # (N, W·2)
        reach = _largest(columns.view(n, width, 2))  # (N, 2)
        low, high = low - reach, high + reach
    corners = torch.stack(
        [
            torch.stack([xs[:, 0], ys[:, 1]], 1)
            for xs, ys in ((low, low), (low, high), (high, low), (high, high))
        ],
        1,
    )  # (N, 4, 2)
    turned = corners @ matrix.transpose(1, 2)
    limit = _limit(x.shape[2], x.shape[3], x.device)
    extent = (turned.amax(1) - turned.amin(1)) / 2
    shrink = (limit / extent).amin(1).clamp(max=1)[:, None]
    turned = turned * shrink[:, None]
    shift = torch.minimum(torch.maximum(shift, -limit - turned.amin(1)), limit - turned.amax(1))
    return matrix * shrink[:, None], shift


@lru_cache(maxsize=16)
def _limit(height: int, width: int, device: torch.device) -> Tensor:
    """How far ink may be from the centre, (2,) as (x, y); at two pixels a side there is no room."""
    return (1 - 2 / torch.tensor([width, height])).clamp(min=0.1).to(device)


def _largest(x: Tensor) -> Tensor:
    """(N, M, …) to (N, …), by halving: whole slices are compared, faster than torch's reduction."""
    while x.shape[1] > 1:
        half = -(-x.shape[1] // 2)
        x = torch.maximum(x[:, :half], x[:, -half:])
    return x[:, 0]


def _ink_box(x: Tensor) -> tuple[Tensor, Tensor]:
    """Corners (N, 2) of the box around all that is not black; the centre point where all is."""
    ink = x.sum(1)  # nothing is below black
    low, high = [], []
    for axis in (1, 2):  # columns give x, rows give y
        line = ink.sum(axis) > 0  # (N, side)
        side = line.shape[1]
        first = line.float().argmax(1)
        last = side - line.flip(1).float().argmax(1)
        empty = ~line.any(1)
        low.append((first * 2 / side - 1).masked_fill(empty, 0))
        high.append((last * 2 / side - 1).masked_fill(empty, 0))
    return torch.stack(low, 1), torch.stack(high, 1)


def _per_image(n: int, strength: float, generator: Generator, device: torch.device) -> Tensor:
    """(N, 1, 1, 1), uniform in -strength to strength."""
    return moved(_uniform((n, 1, 1, 1), generator) * strength, device)


def _mirrored(x: Tensor, config: ViewsConfig, generator: Generator) -> Tensor:
    """Mirrored left and right; for all symmetries also up and down, and rows made columns."""
    ways: list[Callable[[Tensor], Tensor]] = []
    if config.flip or config.symmetries:
        ways.append(lambda x: x.flip(3))
    if config.symmetries:
        ways.append(lambda x: x.flip(2))
        if x.shape[2] == x.shape[3]:
            ways.append(lambda x: x.transpose(2, 3))
    for way in ways:  # three halves are eight ways, each as likely
        chosen = torch.rand((len(x), 1, 1, 1), generator=generator) < 0.5
        x = torch.where(moved(chosen, x.device), way(x), x)
    return x


def dilate(x: Tensor) -> Tensor:
    """Largest value of each 3 × 3 neighbourhood: thicker light strokes. Of -x, the thinner ones."""
    return _largest_of_three(_largest_of_three(x, 3), 2)


def _largest_of_three(x: Tensor, axis: int) -> Tensor:
    """Along one axis, border included: whole shifted images are compared, faster than pooling."""
    length = x.shape[axis] - 1
    found = x.clone()
    for at, neighbour in ((1, 0), (0, 1)):
        inner = found.narrow(axis, at, length)
        torch.maximum(inner, x.narrow(axis, neighbour, length), out=inner)
    return found


def _stroke(x: Tensor, config: ViewsConfig, generator: Generator) -> Tensor:
    if config.stroke == 0:
        return x
    amount = _per_image(len(x), config.stroke, generator, x.device)
    # erosion is dilation of the negative: one pass does for images of either kind
    sign = torch.where(amount < 0, -1.0, 1.0)
    return torch.lerp(x, dilate(x * sign) * sign, amount.abs())


def _blur(x: Tensor, config: ViewsConfig, generator: Generator) -> Tensor:
    if config.blur == 0:
        return x
    amount = _per_image(len(x), config.blur, generator, x.device).abs()
    return torch.lerp(x, _binomial(_binomial(x, 3), 2), amount)


def _binomial(x: Tensor, axis: int) -> Tensor:
    """Weights 1/4, 1/2, 1/4 along one axis; what lies outside is as at the border."""
    length = x.shape[axis] - 1
    steps = x.narrow(axis, 1, length) - x.narrow(axis, 0, length)
    found = x.clone()
    found.narrow(axis, 0, length).add_(steps, alpha=0.25)
    found.narrow(axis, 1, length).sub_(steps, alpha=0.25)
    return found


def _intensity(x: Tensor, config: ViewsConfig, generator: Generator) -> Tensor:
    if config.gamma:
        x = x ** _per_image(len(x), config.gamma, generator, x.device).exp()
    if config.contrast:
        mean = x.mean((1, 2, 3), keepdim=True)
        gain = 1 + _per_image(len(x), config.contrast, generator, x.device)
        brightness = _per_image(len(x), config.contrast / 2, generator, x.device)
        x = ((x - mean) * gain + mean + brightness).clamp(0, 1)
    return x


TO_YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)
"""Red, green and blue to brightness and two axes of colour (NTSC)."""


def _colour(x: Tensor, config: ViewsConfig, generator: Generator) -> Tensor:
    """Colours turned and made stronger or weaker, their brightness kept: one matrix an image."""
    if x.shape[1] != 3 or not (config.saturation or config.hue or config.grey):
        return x
    n = len(x)
    strength = 1 + _uniform((n,), generator) * config.saturation
    strength[torch.rand((n,), generator=generator) < config.grey] = 0
    angle = _uniform((n,), generator) * (2 * math.pi * config.hue)
    turn = torch.zeros(n, 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = strength * angle.cos()
    turn[:, 2, 1] = strength * angle.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    mixed = moved(torch.linalg.inv(TO_YIQ) @ turn @ TO_YIQ, x.device)  # (N, 3, 3)
    return (mixed @ x.flatten(2)).view_as(x).clamp(0, 1)


def _cutout(x: Tensor, config: ViewsConfig, generator: Generator) -> Tensor:
    if config.cutout == 0:
        return x
    n, _, height, width = x.shape
    centre = torch.rand((n, 2, 1), generator=generator)
    rows, columns = (
        ((torch.arange(side) + 0.5) / side - centre[:, axis]).abs() < config.cutout / 2
        for axis, side in enumerate((height, width))
    )  # (N, H), (N, W)
    rows, columns = moved(rows, x.device).float(), moved(columns, x.device).float()
    hole = rows[:, None, :, None] * columns[:, None, None, :]  # (N, 1, H, W)
    if config.keep_ink:  # on black, as where no ink is
        return x * (1 - hole)
    # black stands out of any other image, and hardly anything is learned beside it
    return torch.lerp(x, x.mean((2, 3), keepdim=True), hole)


EXPANSION = ViewsConfig(rotation=15.0, translation=0.1, scale=0.0, shear=0.0)
"""What the course project's copies vary: angle and place, nothing that bends a digit."""


SOURCES_AT_ONCE = 1000


def expand(
    images: ImageSet, copies: int, generator: Generator, config: ViewsConfig = EXPANSION
) -> ImageSet:
    """Each image followed by `copies` rotated and shifted copies: N to N · (1 + copies) images.

    Labels and sources go along, so that a split by source never separates a copy from its image.
    """
    if copies == 0:
        return images
    shape = images.images.shape[1:]
    found = room(len(images), 1 + copies, *shape)
    groups = zip(images.images.split(SOURCES_AT_ONCE), found.split(SOURCES_AT_ONCE), strict=True)
    for originals, both in groups:  # copies as floats need much memory
        copied = view(originals.repeat_interleave(copies, 0), config, generator)
        both[:, 0] = originals
        both[:, 1:] = (copied * 255).round().to(torch.uint8).view(-1, copies, *shape)
    times = 1 + copies
    return replace(
        images,
        images=found.view(-1, *shape),
        labels=images.labels.repeat_interleave(times),
        sources=images.sources.repeat_interleave(times),
        paths=tuple(path for path in images.paths for _ in range(times)),
    )


def test_views(x: Tensor, count: int, *, mirrored: bool) -> Tensor:
    """`count` fixed views of each image: float (N, C, H, W) to (count, N, C, H, W).

    The first is the image itself; the others turn, scale, slant and shift it a little, all images
    alike, so that an image's prediction does not depend on its neighbours in a batch.
    mirrored: what turns out of the frame is mirrored in, as by views without `keep_ink`.
    """
    grids = test_grids(count, x.shape[2], x.shape[3], x.device)
    return torch.stack([x, *through(grids, x, mirrored=mirrored)])


def test_grids(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """Where the test views after the first read an image: (count - 1, H, W, 2)."""
    generator = torch.Generator().manual_seed(0)
    grids = [torch.empty(0, height, width, 2, device=device)]
    for _ in range(count - 1):
        matrix = affine(
            _uniform((1,), generator) * math.radians(8),
            _uniform((1, 2), generator) * 0.08,
            _uniform((1,), generator) * 0.1,
        ).to(device)
        shift = (_uniform((1, 2), generator) * 0.08).to(device)
        grids.append(places_read(matrix, shift, height, width))
    return torch.cat(grids)


def through(grids: Tensor, x: Tensor, *, mirrored: bool) -> list[Tensor]:
    """A view of all images through each of the grids (V, H, W, 2): V of float (N, C, H, W)."""
    return [sampled(x, grid, _beyond(mirrored)) for grid in grids]


def _beyond(mirrored: bool) -> str:
    """What grid_sample finds beyond the frame."""
    return "reflection" if mirrored else "zeros"
