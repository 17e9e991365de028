"""The only assembler of commands: a configuration becomes a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from handful import checkpoints, datasets, devices, exhibits, maps, metrics, networks, report, runs
from handful.config import DownstreamConfig, RunConfig
from handful.datasets import Dataset
from handful.exhibits import Arrays
from handful.finetune import finetune
from handful.images import ImageSet
from handful.networks import Encoder, ProjectionHead, classifier_head
from handful.partition import Partition, partition
from handful.predictor import Predictor
from handful.pretrain import pretrain
from handful.recipes import recipe_for, sized

Row = dict[str, Any]


class Run(NamedTuple):
    """A finished run: where it is, and its summary."""

    path: Path
    summary: dict[str, Any]

    @property
    def report(self) -> Path:
        return runs.RunFolder(self.path).report


class Trained(NamedTuple):
    """A classifier on its encoder, what chose its length, and what that cost."""

    encoder: Encoder
    classifier: nn.Linear
    temperature: float
    validation: metrics.Report | None
    step: int
    encoded: int
    """Images that passed the encoder in training, the choice of the length included."""


@dataclass
class Session:
    """One run while it works: what every stage needs, and what is measured on the way."""

    config: RunConfig
    device: torch.device
    dataset: Dataset
    parts: Partition
    folder: runs.RunFolder
    show: Callable[[Row], None]
    say: Callable[[str], None]
    stages: dict[str, float] = field(default_factory=dict)

    def on_row(self, row: Row) -> None:
        self.folder.append(row)
        self.show(row)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.stages[name] = time.perf_counter() - began

    def generator(self, stage: str) -> torch.Generator:
        return devices.generator(self.config.seed, stage)


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
    claimed = runs.claim(out, config, overwrite)
    if isinstance(claimed, dict):
        say(f"{out} is complete: nothing to do")
        return Run(out, claimed)
    session = Session(
        config, device, dataset, parts, claimed, on_row or (lambda row: None), say
    )
    summary, arrays = _carry_out(session)
    claimed.write_arrays(arrays)
    with session.stage("report"):
        report.draw(out)
    summary |= {"stages": session.stages, "seconds": time.time() - began}
    report.write(out, summary)
    claimed.write_summary(summary)
    return Run(out, claimed.summary())


def _carry_out(session: Session) -> tuple[dict[str, Any], Arrays]:
    """All stages in their order: the summary, and the arrays that figures are drawn from."""
    config, parts = session.config, session.parts
    encoder, head = _networks(session)
    _announce(session, encoder)
    untrained = deepcopy(encoder)
    seen = _pretext(session, encoder, head)
    trained = _classifier(session, encoder, config.downstream)
    predictor = _predictor(session, trained)
    summary = _described(session, trained, seen)
    arrays = _pictures(session, encoder, head) if seen else {}
    if parts.test is not None:
        with session.stage("test"):
            found, shown, right = _tested(session, predictor, parts.test)
        summary, arrays = summary | found, arrays | shown
        if config.control and seen:
            summary |= _control(session, untrained, seen, right)
            summary["images_through_encoder"]["control"] = summary.pop("control_images")
        if config.tsne:
            with session.stage("maps"):
                arrays |= _maps(session, parts.test, untrained, trained.encoder)
    if len(parts.everything) > len(parts.final):
        predictor = _kept(session, encoder, trained)
    predictor.save(session.folder.model)
    return summary, arrays


def _networks(session: Session) -> tuple[Encoder, ProjectionHead]:
    """Encoder and projection head with first weights that depend on the seed alone."""
    images, config = session.parts.pretext, session.config.network
    with _seeded(session.generator("weights")):
        encoder = Encoder(images.channels, images.size[0], config)
        head = ProjectionHead(encoder.dim, config)
    encoder.normalise_to(session.parts.final.images)
    return encoder.to(session.device), head.to(session.device)


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """PyTorch's layers draw their first weights from global randomness: lend it, give it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        yield


def _pretext(session: Session, encoder: Encoder, head: ProjectionHead) -> int:
    """Images that passed the encoder in the pretext task."""
    config = session.config.pretext
    if not config.steps:
        return 0
    with session.stage("pretext"):
        encoded = pretrain(
            encoder,
            head,
            session.parts.pretext,
            config,
            generator=session.generator("pretext"),
            validation=session.parts.validation,
            on_row=session.on_row,
        )
    meta = {"holds": "encoder and projection head after the pretext task"}
    weights = nn.ModuleDict({"encoder": encoder, "head": head}).state_dict()
    checkpoints.save(session.folder.checkpoints / "pretext", weights, meta)
    return encoded


def _classifier(
    session: Session,
    encoder: Encoder,
    config: DownstreamConfig,
    choosing: str = "selection",
    name: str = "downstream",
) -> Trained:
    """Choose the length on validation, then train on all labels for that length.

    `encoder` is left as it is. choosing, name: what the two stages are called.
    """
    parts = session.parts
    if parts.validation is None:
        return _fitted(session, encoder, parts.final, config, name)
    choosing = choosing if config.refit else name
    chosen = _fitted(session, encoder, parts.fit, config, choosing, validation=parts.validation)
    if not config.refit:
        return chosen
    last = _fitted(session, encoder, parts.final, config, name, stop_at=chosen.step)
    return last._replace(
        temperature=chosen.temperature,
        validation=chosen.validation,
        encoded=chosen.encoded + last.encoded,
    )


def _fitted(
    session: Session,
    encoder: Encoder,
    images: ImageSet,
    config: DownstreamConfig,
    stage: str,
    *,
    validation: ImageSet | None = None,
    stop_at: int | None = None,
) -> Trained:
    """One downstream training from a copy of `encoder`."""
    encoder = deepcopy(encoder)
    with _seeded(session.generator("classifier")):
        classifier = classifier_head(encoder.dim, len(images.class_names)).to(session.device)
    with session.stage(stage):
        length = finetune(
            encoder,
            classifier,
            images,
            config,
            generator=session.generator(stage),
            stage=stage,
            validation=validation,
            stop_at=stop_at,
            on_row=session.on_row,
        )
    trained = Trained(encoder, classifier, 1.0, None, length.step, length.encoded)
    if validation is None:
        return trained
    logits = _predictor(session, trained).logits(validation)
    temperature = metrics.fit_temperature(logits, validation.labels)
    scored = metrics.evaluate(logits / temperature, validation.labels)
    return trained._replace(temperature=temperature, validation=scored)


def _predictor(session: Session, trained: Trained) -> Predictor:
    return Predictor(
        trained.encoder,
        trained.classifier,
        session.parts.final.class_names,
        session.dataset.preparation,
        session.config.network,
        trained.temperature,
        session.config.test_views,
    )


def _tested(
    session: Session, predictor: Predictor, test: ImageSet
) -> tuple[dict[str, Any], Arrays, Tensor]:
    """Open the test images, once: figures, arrays, and which answers are right, bool (T,)."""
    logits = predictor.logits(test)
    found = metrics.evaluate(logits, test.labels)
    probabilities = logits.double().softmax(1)
    session.folder.write_predictions(test, probabilities.numpy())
    right = logits.argmax(1) == test.labels
    single = right
    if predictor.test_views > 1:
        once = networks.classify(predictor.encoder, predictor.head, test.images)
        single = once.argmax(1).cpu() == test.labels
    named = [
        {"name": name, **row} for name, row in zip(test.class_names, found.per_class, strict=True)
    ]
    summary = {
        "test_accuracy": found.accuracy,
        "test_interval": found.interval,
        "test_images": found.images,
        "test_accuracy_single_view": float(single.float().mean()),
        "calibration": {
            "temperature": predictor.temperature,
            "ece": found.ece,
            "nll": found.nll,
            "brier": found.brier,
        },
        "per_class_report": named,
        "confusion": found.confusion,
    }
    return summary, exhibits.mistakes(test, probabilities), right


def _control(session: Session, untrained: Encoder, seen: int, right: Tensor) -> dict[str, Any]:
    """The same network and views without the pretext task, for as many images more.

    seen: images that the pretext task passed through the encoder. right: bool (T,), ours.
    """
    config, test = session.config.downstream, session.parts.test
    assert test is not None and config.steps is not None
    more = round(seen / min(config.batch_size, len(session.parts.final)))
    longer = config.model_copy(update={"steps": config.steps + more, "train_encoder": True})
    trained = _classifier(session, untrained, longer, "control-selection", "control")
    logits = _predictor(session, trained).logits(test)
    found = metrics.evaluate(logits, test.labels)
    difference, low, high = metrics.paired_difference(right, logits.argmax(1) == test.labels)
    validation = trained.validation
    return {
        "control_test_accuracy": found.accuracy,
        "control_interval": found.interval,
        "control_validation_accuracy": validation.accuracy if validation else None,
        "control_difference": {"difference": difference, "interval": [low, high]},
        "control_images": trained.encoded,
    }


def _kept(session: Session, encoder: Encoder, tested: Trained) -> Predictor:
    """What stays when the test images came out of the labelled ones: trained on those as well."""
    images = session.parts.everything
    config = session.config.downstream
    last = _fitted(session, encoder, images, config, "keeping", stop_at=tested.step)
    return _predictor(session, last._replace(temperature=tested.temperature))


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
    pretext, downstream = config.pretext, config.downstream
    assert pretext.steps is not None and downstream.steps is not None
    first = 2 * pretext.steps * min(pretext.batch_size, len(parts.pretext))
    then = downstream.steps * min(downstream.batch_size, len(parts.final))
    then *= 1 + (parts.validation is not None and downstream.refit)
    images = (first + then) * (1 + config.control)
    seconds = images * networks.seconds_per_image(encoder, parts.final.images)
    session.say(f"training will take about {max(1, round(seconds / 60))} min at most")


def _described(session: Session, trained: Trained, seen: int) -> dict[str, Any]:
    """What the run was and what its validation said."""
    config, parts, validation = session.config, session.parts, trained.validation
    refit = config.downstream.refit
    return {
        "recipe": config.recipe,
        "source": config.data.source,
        "per_class": config.data.per_class,
        "draw": config.data.draw,
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
        "validation_of": "the model that chose the length, trained without these images"
        if refit
        else "the model itself: these images chose its length and did not train it",
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

    The archive holds h float32 (N, D), labels int64 (N,), class_names, paths where images were
    files, and, where the run has a t-SNE map, xy float32 (N, 2): their places on it.
    """
    predictor = Predictor.load(run, device)
    images = datasets.load_images(source, predictor.preparation, predictor.class_names)
    h = predictor.embed(images)
    arrays: dict[str, Any] = {
        "h": h,
        "labels": images.labels.numpy(),
        "class_names": np.array(predictor.class_names),
    }
    if images.paths:
        arrays["paths"] = np.array(images.paths)
    drawn = runs.RunFolder(run).arrays()
    if "map_xy" in drawn:
        arrays["xy"] = maps.Map(drawn["map_h"], drawn["map_xy"]).place(h)
    with out.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return len(images)
