"""Two views of each image: whole batches at once against pipelines and batched operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from PIL import Image
from torch import Tensor

from benchmarks import cells, peers
from benchmarks.measure import Benchmark, Call, Options, Row, alternate, duel, threads
from handful import datasets
from handful.config import DataConfig, ViewsConfig
from handful.images import to_float
from handful.recipes import MILD_DIGITS, RICH_DIGITS
from handful.views import two_views

AS_LIGHTLY = ViewsConfig(
    rotation=0.0,
    shear=0.0,
    scale=0.63,
    translation=0.25,
    flip=True,
    contrast=0.4,
    blur=0.99,
    keep_ink=False,
)
"""What our views can do of lightly's default list; sizes span as much as its crops do."""
AS_SIMCLR = AS_LIGHTLY.model_copy(update={"contrast": 0.8, "blur": 0.0})


def pictures(images: Tensor) -> list[Image.Image]:
    """uint8 (N, 1, H, W) as grey pictures."""
    return [Image.fromarray(pixels) for pixels in images[:, 0].numpy()]


def run(options: Options) -> Iterator[Row]:
    images = datasets.load(DataConfig()).train.images[: 20 if options.quick else 250]
    with threads(1):
        times = alternate(_contestants(images), options.rounds)
        for case, (ours, theirs) in CASES.items():
            yield {"case": case, "images": len(images), "threads": 1, **duel(times, ours, theirs)}


CASES = {
    "rich digits, lightly": ("rich", "rich in lightly"),
    "rich digits, kornia": ("rich", "rich in kornia"),
    "mild digits, lightly": ("mild", "mild in lightly"),
    "mild digits, kornia": ("mild", "mild in kornia"),
    "lightly's default, lightly": ("as lightly", "lightly"),
    "simclr's default, simclr": ("as simclr", "simclr"),
}
"""List of operations and peer, by whose calls are compared."""


def _contestants(images: Tensor) -> dict[str, Call]:
    side = images.shape[-1]
    x, opened = to_float(images), pictures(images)
    generator = torch.Generator().manual_seed(0)

    def ours(config: ViewsConfig) -> Call:
        return lambda: two_views(images, config, generator)

    def one_by_one(transform: peers.TwoViews) -> Call:
        return lambda: [transform(picture) for picture in opened]

    def batched(transform: Callable[[Tensor], Tensor]) -> Call:
        return lambda: (transform(x), transform(x))

    return {
        "rich": ours(RICH_DIGITS),
        "rich in lightly": one_by_one(peers.lightly_with(RICH_DIGITS, side)),
        "rich in kornia": batched(peers.kornia_with(RICH_DIGITS, side)),
        "mild": ours(MILD_DIGITS),
        "mild in lightly": one_by_one(peers.lightly_with(MILD_DIGITS, side)),
        "mild in kornia": batched(peers.kornia_with(MILD_DIGITS, side)),
        "as lightly": ours(AS_LIGHTLY),
        "lightly": one_by_one(peers.lightly_default()),
        "as simclr": ours(AS_SIMCLR),
        "simclr": one_by_one(peers.simclr_default()),
    }


def _rate(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row['images'] / row[key]:,.0f}"


BENCHMARK = Benchmark(
    title="Views",
    about="""Two views of each of 250 grey images of 28 × 28 pixels, images a second (an image
counts once), one thread in one process, no loader.

*Rich* and *mild digits* are the recipes' lists. In lightly's pipeline they are torchvision's
`RandomAffine` (bilinear), lightly's `GaussianBlur`, `adjust_gamma`, `ElasticTransform`,
`RandomErasing`; in kornia, in batches of the same size, `RandomAffine`,
`RandomElasticTransform`, `RandomGaussianBlur`, `RandomGamma` and `RandomErasing`; all at our
strengths. Left out for both, which have no such operation: blending with the dilation or erosion of
strokes, keeping ink inside the frame, and a size of its own on each axis.

*Defaults* are `SimCLRTransform(input_size=28, cj_strength=0.5)` with one channel's normalisation,
and `TransformsSimCLR(28)`. Ours express them as size and shift for the random resized crop, flip,
contrast and brightness for the colour jitter (saturation, hue and conversion to grey change nothing
in a grey image), and for lightly a 3 × 3 blur of every image where it blurs half of them, more
widely.""",
    columns={
        "list, peer": cells.text("case"),
        "ours, images/s": _rate("ours"),
        "peer, images/s": _rate("theirs"),
        "times as fast": cells.times_as_fast,
    },
    run=run,
)
