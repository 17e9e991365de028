"""The assembler of commands: a configuration becomes a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from handful import datasets, devices, exhibits, maps, metrics, networks, report, runs, stages
from handful.config import RunConfig
from handful.exhibits import Arrays
from handful.images import ImageSet
from handful.networks import Encoder, ProjectionHead
from handful.partition import partition
from handful.predictor import Predictor
from handful.recipes import recipe_for, sized
from handful.splits import batches_per_epoch
from handful.stages import Row, Session, Trained

VALIDATION_OF = {
    True: "the model that chose the length, trained without the labels of these images",
    False: "the model itself: these images chose its length and did not train it",
}
"""Whose figure the validation accuracy is, by whether there was a refit on all labels."""


class Run(NamedTuple):
    """A finished run: where it is, and its summary."""

    path: Path
    summary: dict[str, Any]

    @property
    def report(self) -> Path:
        return runs.RunFolder(self.path).report


def train(
    source: str,
    *,
    out: str | Path,
    recipe: str | None = None,
    overwrite: bool = False,
    on_row: Callable[[Row], None] | None = None,
    **settings: Any,
) -> Run:
    """Train on `source` with a named recipe and leave a run folder at `out`.

    settings: fields of the configuration, nested ones with two underscores:
        `data__per_class=20, pretext__steps=100`.
    Raises ValueError for anything that a user can mend.
    """
    changes = {key.replace("__", "."): value for key, value in settings.items()}
    config = recipe_for(source, recipe).updated(changes)
    return run(config, Path(out), overwrite=overwrite, on_row=on_row)


def run(
    config: RunConfig,
    out: Path,
    *,
    overwrite: bool = False,
    on_row: Callable[[Row], None] | None = None,
    say: Callable[[str], None] | None = None,
    began: float | None = None,
) -> Run:
    """Carry out a configuration. What already is complete at `out` is not done again.

    on_row: called with every row of metrics.jsonl. say: called with lines for people.
    began: the `time.time()` that `seconds` counts from; now where it is None.
    Raises ValueError for anything that a user can mend.
    """
    began = time.time() if began is None else began
    say = say or (lambda line: None)
    device = devices.choose(config.device)
    dataset = datasets.load(config.data)
    for note in dataset.notes:
        say(note)
    parts = partition(config, dataset)
    config = sized(config, parts.final, len(parts.pretext))
    folder = runs.RunFolder(out)
    session = Session(config, device, dataset, parts, folder, on_row or (lambda row: None), say)
    # before the folder is claimed: a network that cannot be built leaves none behind
    encoder, head = stages.fresh_networks(session)
    claimed = runs.claim(out, config, overwrite)
    if isinstance(claimed, dict):
        say(f"{out} is complete: nothing to do")
        return Run(out, claimed)
    summary, arrays = _carry_out(session, encoder, head)
    folder.write_arrays(arrays)
    say("writing the report")
    with session.stage("report"):
        report.draw(out)
    summary |= {"stages": session.stages, "seconds": time.time() - began}
    report.write(out, summary)
    folder.write_summary(summary)
    return Run(out, folder.summary())


def _carry_out(
    session: Session, encoder: Encoder, head: ProjectionHead
) -> tuple[dict[str, Any], Arrays]:
    """All stages in their order: the summary, and the arrays that figures are drawn from."""
    config, parts = session.config, session.parts
    _announce(session, encoder)
    untrained = deepcopy(encoder)
    seen = stages.pretext_task(session, encoder, head)
    trained = stages.train_classifier(session, encoder, config.downstream)
    predictor = stages.predictor_of(session, trained)
    summary = _described(session, trained, seen)
    arrays = _pictures(session, encoder, head) if seen else {}
    if parts.test is not None:
        session.say(f"scoring {len(parts.test):,} test images")
        with session.stage("test"):
            found, shown, right = stages.score(session, predictor, parts.test)
        summary, arrays = summary | found, arrays | shown
        if config.control and seen:
            encoded = seen + trained.encoded
            summary |= stages.control(session, untrained, encoded, right)
            summary["images_through_encoder"]["control"] = summary.pop("control_images")
        if config.tsne:
            session.say("drawing maps of the representation")
            with session.stage("maps"):
                arrays |= _maps(session, parts.test, untrained, trained.encoder)
    if len(parts.everything) > len(parts.final):
        # the map is of the encoder that was tested; another one's h has no place on it
        arrays.pop("map_h", None)
        predictor = stages.kept(session, encoder, trained)
    predictor.save(session.folder.model)
    return summary, arrays


def _pictures(session: Session, encoder: Encoder, head: ProjectionHead) -> Arrays:
    views, images = session.config.pretext.views, session.parts.fit
    generator = session.generator("pictures")
    return exhibits.gallery(images, views, generator) | exhibits.pipeline(
        encoder, head, images.images[0], views, generator
    )


def _maps(session: Session, test: ImageSet, untrained: Encoder, trained: Encoder) -> Arrays:
    shown = exhibits.for_maps(test, session.generator("maps"))
    if len(shown) < 2:
        return {}
    before, after = (networks.represent(f, shown.images) for f in (untrained, trained))
    return exhibits.tsne(before, after, shown.labels, session.config.seed)


def _announce(session: Session, encoder: Encoder) -> None:
    """Say what there is to learn from, and about how long it will take."""
    config, parts = session.config, session.parts
    session.say(f"to learn from: {parts.final.describe()}")
    if config.data.validation and parts.validation is None:
        session.say("too few images for validation: the length of training is fixed")
    if parts.test is None:
        session.say("no test images: nothing will say how accurate the classifier is")
    pretext, downstream = config.pretext, config.downstream
    assert pretext.steps is not None and downstream.steps is not None
    keeping = len(parts.everything) > len(parts.final)
    first = 2 * pretext.steps * _batch(parts.pretext, pretext.batch_size)
    then = downstream.steps * _batch(parts.final, downstream.batch_size)
    then *= 1 + (parts.validation is not None and downstream.refit)
    then += downstream.steps * _batch(parts.everything, downstream.batch_size) * keeping
    images = (first + then) * (1 + config.control)
    seconds = images * networks.seconds_per_image(encoder, parts.final.images)
    session.say(f"training will take about {max(1, round(seconds / 60))} min")


def _batch(images: ImageSet, batch_size: int) -> float:
    """Images of a batch as they come: batches of an epoch are nearly equal."""
    return len(images) / batches_per_epoch(len(images), batch_size)


def _described(session: Session, trained: Trained, seen: int) -> dict[str, Any]:
    """What the run was and what its validation said."""
    config, parts, validation = session.config, session.parts, trained.validation
    refit = config.downstream.refit
    return {
        "recipe": config.recipe,
        "source": config.data.source,
        "per_class": config.data.per_class,
        "draw": config.data.draw if config.data.per_class else None,
        "seed": config.seed,
        "dev": config.data.dev,
        "labelled_images": parts.labelled,
        "unlabelled_images": parts.unlabelled,
        "class_names": list(parts.final.class_names),
        "test_of": parts.test_of,
        "test_accuracy": None,
        "test_interval": None,
        "control_test_accuracy": None,
        "validation_accuracy": validation.accuracy if validation else None,
        "validation_interval": validation.interval if validation else None,
        "validation_images": validation.images if validation else 0,
        "validation_of": None if validation is None else VALIDATION_OF[refit],
        "selected_step": trained.step,
        "images_through_encoder": {"pretext": seen, "downstream": trained.encoded},
        "encoder_parameters": networks.parameters(trained.encoder),
        "multiply_adds": networks.multiply_adds(trained.encoder, *parts.final.size),
        "device": devices.describe(session.device),
        "versions": devices.versions(),
    }


def evaluate(run: Path, source: str, device: str = "auto") -> dict[str, Any]:
    """Score the classifier of a run on labelled images: figures as plain values.

    Raises ValueError where there is no such run, no such source, or no image has a label.
    """
    predictor = Predictor.load(run, device)
    images = datasets.load_images(source, predictor.preparation, predictor.class_names).labelled()
    if not len(images):
        raise ValueError(f"no image in {source} has a label to score against")
    found = metrics.evaluate(predictor.logits(images), images.labels)
    return {"class_names": list(predictor.class_names), **found.as_dict()}


def embed(run: Path, source: str, out: Path, device: str = "auto") -> int:
    """Write representations of a source's images to `out`; how many there were.

    Classes that the run was not trained on are welcome: their images get the label -1.

    The archive holds h float32 (N, D), labels int64 (N,), class_names, paths where images were
    files, and, where the run has a t-SNE map, xy float32 (N, 2): their places on it.
    """
    predictor = Predictor.load(run, device)
    images = datasets.load_images(
        source, predictor.preparation, predictor.class_names, other_classes=True
    )
    h = predictor.embed(images)
    arrays: dict[str, Any] = {
        "h": h,
        "labels": images.labels.numpy(),
        "class_names": np.array(predictor.class_names),
    }
    if images.paths:
        arrays["paths"] = np.array(images.paths)
    drawn = runs.RunFolder(run).arrays()
    if "map_h" in drawn:
        arrays["xy"] = maps.Map(drawn["map_h"], drawn["map_xy"]).place(h)
    with out.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return len(images)
