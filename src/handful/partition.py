"""Who may look at which images: the honest core of a run.

Sources are split first and copied after, so no copy of a validation or test image ever trains.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from handful import devices
from handful.config import RunConfig
from handful.datasets import Dataset
from handful.images import ImageSet, concatenate
from handful.splits import draw, split
from handful.views import EXPANSION, expand

NOT_DRAWN = "labelled images that were not drawn"
HELD_OUT = "labelled images held out; the model that is kept was then trained on these as well"


class Partition(NamedTuple):
    """The images of a run, by what they are for."""

    fit: ImageSet
    """Labelled, copies included: trains the model whose length validation chooses."""
    validation: ImageSet | None
    """Labelled originals that choose that length and the temperature."""
    final: ImageSet
    """Labelled, copies included: trains the model that is tested."""
    pretext: ImageSet
    """What the pretext task sees. Labels of validation images are not among it."""
    everything: ImageSet
    """Labelled, copies included, and those held out for a test: trains the model that is kept."""
    test: ImageSet | None
    test_of: str
    """What the test images are, in words."""
    labelled: int
    """Labelled originals, those held out for a test apart."""
    pool: ImageSet
    """Images of the pretext task that nobody labelled, or whose labels are not used."""

    @property
    def unlabelled(self) -> int:
        return len(self.pool)

    @property
    def kept_apart(self) -> bool:
        """Whether the model that is kept learns from more than the one that is tested."""
        return len(self.everything) > len(self.final)


def partition(config: RunConfig, dataset: Dataset) -> Partition:
    """Divide a data set as the configuration says.

    Everything depends on `data.draw`, `data.split_seed` and `seed` alone. Raises ValueError where a
    class has too few images for `data.per_class`.
    """
    data, images = config.data, dataset.train
    if data.per_class:
        drawn = draw(images.labels, data.per_class, data.draw)
    else:
        drawn = (images.labels >= 0).nonzero().squeeze(1)
    labelled, given = _labelled(config, dataset, drawn)
    generator = devices.generator(data.split_seed, "split")
    kept, held_out = labelled, None
    left_over = _left_over(config, dataset, labelled)
    if dataset.test is None and left_over is None and data.holdout:
        kept, held_out = _split(labelled, data.holdout, generator)
    fit, validation = (kept, given) if given else _split(kept, data.validation, generator)
    labels = len(fit) + len(validation or ())

    copies = devices.generator(config.seed, "copies")
    # of photographs nothing is ink: what turns out of the frame is mirrored in
    views = EXPANSION.model_copy(update={"keep_ink": config.downstream.views.keep_ink})

    def expanded(some: ImageSet) -> ImageSet:
        return expand(some, data.copies, copies, views)

    fit = expanded(fit)
    final = fit
    if validation is not None and config.downstream.refit:
        more = expanded(validation)
        final = concatenate([fit, more])
        seen = concatenate([fit, more.without_labels()])
    else:
        seen = fit
    judging = [part.sources for part in (validation, held_out, left_over) if part is not None]
    pool = _pool(config, images, drawn, torch.cat([*judging, drawn[:0]]))
    pretext = with_pool(seen, pool) if len(pool) else seen
    everything = final
    if held_out is not None:
        everything = concatenate([final, expanded(held_out)])
    test, test_of = held_out, HELD_OUT if held_out is not None else ""
    if dataset.test is not None:
        test, test_of = dataset.test.labelled(), dataset.test_of
    elif left_over is not None:
        test, test_of = left_over, NOT_DRAWN
    return Partition(
        fit=fit,
        validation=validation,
        final=final,
        pretext=pretext,
        everything=everything,
        test=test,
        test_of=test_of,
        labelled=labels,
        pool=pool,
    )


def with_pool(labelled: ImageSet, pool: ImageSet) -> ImageSet:
    """Both, in an order that the draw has no part in: of the same images the same is learned."""
    both = concatenate([labelled, pool])
    return both.select(both.sources.argsort(stable=True))


def _labelled(
    config: RunConfig, dataset: Dataset, drawn: Tensor
) -> tuple[ImageSet, ImageSet | None]:
    """Labelled images, and those that the source sets apart to validate in place of some of them.

    Where nothing is to validate, these are labelled images like the others; else none of them is a
    copy of one. With `--per-class` neither: the labels are those drawn.
    """
    labelled, given = dataset.train.select(drawn), dataset.validation
    if given is None or config.data.per_class:
        return labelled, None
    given = given.labelled()
    if not config.data.validation:
        return concatenate([labelled, given]), None
    return labelled, given.select(~torch.isin(given.sources, labelled.sources))


def _split(
    images: ImageSet, share: float, generator: torch.Generator
) -> tuple[ImageSet, ImageSet | None]:
    """What stays and what is held out: None where every class has one source, which it keeps."""
    keep, held = split(images.labels, images.sources, share, generator)
    return images.select(keep), images.select(held) if len(held) else None


def _left_over(config: RunConfig, dataset: Dataset, labelled: ImageSet) -> ImageSet | None:
    """Labelled images that nobody drew, where no others can test and all classes have some.

    None also where they join the pretext task, or where no test is wanted.
    """
    data = config.data
    if dataset.test is not None or not data.per_class or not data.holdout or data.unlabelled:
        return None
    drawn = torch.isin(dataset.train.sources, labelled.sources)
    rest = dataset.train.select((~drawn).nonzero().squeeze(1)).labelled()
    classes = len(dataset.train.class_names)
    return rest if len(rest.labels.unique()) == classes else None


def _pool(config: RunConfig, images: ImageSet, drawn: Tensor, judging: Tensor) -> ImageSet:
    """Images that join the pretext task without their labels.

    An image without a label always does; one with a label that was not drawn, with `--unlabelled`;
    none that shares a source with those that validate or test.
    """
    apart = ~torch.isin(images.sources, judging)
    apart[drawn] = False
    if not config.data.unlabelled:
        apart &= images.labels < 0
    return images.select(apart).without_labels()
