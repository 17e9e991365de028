"""The assembler of commands: a configuration becomes a run folder."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handful import (
    datasets,
    devices,
    exhibits,
    maps,
    metrics,
    networks,
    presets,
    report,
    runs,
    stages,
)
from handful.config import TIMM, RunConfig, flat
from handful.exhibits import Arrays
from handful.images import ImageSet
from handful.networks import AnyEncoder, Encoder, ProjectionHead
from handful.partition import Partition
from handful.predictor import Predictor
from handful.pretext import place_of_pretext, pretext_task
from handful.recipes import laid_over, recipe_for, sized, suited
from handful.session import Member, Row, Session, members_of, plan
from handful.splits import mean_batch
from handful.stages import Trained
from handful.tracking import Board

CHOSE = "the model that chose the length, trained without the labels of these images"
ITSELF = "the model itself: these images chose its length and did not train it"
TESTED = "the model that was tested: these images chose its length and did not train it"
"""Whose figure the validation accuracy is: `TESTED` where another one is kept."""


class Run(NamedTuple):
    """A finished run: where it is, and its summary."""

    path: Path
    summary: dict[str, Any]

    @property
    def report(self) -> Path:
        return runs.RunFolder(self.path).report

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        return report.notebook(self.path, self.summary)


def train(
    source: str,
    *,
    out: str | Path,
    recipe: str | None = None,
    overwrite: bool = False,
    on_row: Callable[[Row], None] | None = None,
    track: str | None = None,
    **settings: Any,
) -> Run:
    """Train on `source` with a named recipe and leave a run folder at `out`.

    settings: fields of the configuration, nested ones with two underscores, or dictionaries of
        them: `data__per_class=20, pretext={"steps": 100}`.
    Raises ValueError for anything that a user can mend.
    """
    changes = flat({key.replace("__", "."): value for key, value in settings.items()})
    changes["data.source"] = source
    config = laid_over(recipe_for(source, recipe), changes)
    chosen = frozenset(changes)
    return run(config, Path(out), chosen=chosen, overwrite=overwrite, on_row=on_row, track=track)


def run(
    config: RunConfig,
    out: Path,
    *,
    chosen: Collection[str] = (),
    overwrite: bool = False,
    on_row: Callable[[Row], None] | None = None,
    say: Callable[[str], None] | None = None,
    began: float | None = None,
    track: str | None = None,
) -> Run:
    """Carry out a configuration. What already is complete at `out` is not done again.

    chosen: dotted keys that somebody set; fitting the views to the images leaves these alone.
    on_row: called with every row of metrics.jsonl, and with rows that tell how far the reading of
    many files is. say: called with lines for people.
    began: the `time.time()` that `seconds` counts from; now where it is None.
    track: `tensorboard` also writes what that shows, into the run folder.
    Raises ValueError for anything that a user can mend.
    """
    began = time.time() if began is None else began
    say = say or (lambda line: None)
    on_row = on_row or (lambda row: None)
    board = None if track is None else Board(track, out)
    if config.data.draw is not None and config.data.per_class is None:
        raise ValueError(
            f"--draw {config.data.draw} needs --per-class: without it every label is used"
        )
    device = devices.choose(config.device)
    runs.check(out, overwrite)
    dataset = datasets.load(config.data, on_row)
    for note in dataset.notes:
        say(note)
    asked, known = config, runs.preset_there(out) if config.preset == "auto" else None
    if known is not None and not overwrite:  # what was found once is not looked for again
        asked, chosen = asked.updated({"preset": known}), {*chosen, "preset"}
    folder = runs.RunFolder(out)
    planned = plan(asked, dataset, chosen)
    session = Session(planned[0], device, dataset, planned[1], folder, on_row, say, board)
    del planned  # its images may be many, and others may take their place
    for note in _leaks(session.config, session.parts):
        say(note)
    if asked.preset == "auto" and session.config.preset != "digits":
        session = _with_views_tried(session, asked, chosen)
    config = session.config
    # before the folder is claimed: a network that cannot be built leaves none behind; what is
    # complete needs none, nor the weights that it began with
    done = folder.state() == "complete" and not overwrite
    members = [] if done else members_of(session)
    claimed = runs.claim(out, config, overwrite)
    if isinstance(claimed, dict):
        _check_same(claimed, dataset, out)
        say(f"{out} is complete: nothing to do" + ", and nothing to track" * (board is not None))
        return Run(out, claimed)
    summary, arrays = _carry_out(session, members)
    folder.write_arrays(arrays)
    say("writing the report")
    with session.stage("report"):
        report.draw(folder, summary)
    summary |= {"stages": session.stages, "seconds": time.time() - began}
    report.write(folder, summary)
    if board is not None:
        board.finish(summary, config.to_toml(), folder.figures)
    folder.write_summary(summary)
    return Run(out, folder.summary())


def _with_views_tried(session: Session, asked: RunConfig, chosen: Collection[str]) -> Session:
    """The same with the kind of views that labelled images speak for."""
    trial = presets.tried(replace(session, folder=None), asked, chosen)
    if trial is None:
        session.say(f"views: {session.config.preset}")
        return session
    told = ", ".join(f"{name} {loss:.3f}" for name, loss in trial.losses.items())
    session.say(
        f"views: {trial.preset}, by {trial.images:,} labelled images held out in turn "
        f"(cross-entropy: {told})"
    )
    asked, chosen = asked.updated({"preset": trial.preset}), {*chosen, "preset"}
    parts = session.parts
    config = sized(suited(asked, parts.fit, chosen), len(parts.final), len(parts.pretext))
    return replace(session, config=config, tried=trial.losses)


def _check_same(summary: Mapping[str, Any], dataset: datasets.Dataset, out: Path) -> None:
    """Raises ValueError where a complete run is of other images, or of other labels."""
    if summary.get("content", dataset.content) != dataset.content:
        raise ValueError(
            f"{out} holds a run of other images or labels than there are now: "
            "--overwrite replaces it, or choose another --out"
        )


def _leaks(config: RunConfig, parts: Partition) -> Iterator[str]:
    if leaked := _leaked(config, parts):
        images = "image is" if leaked == 1 else "images are"
        yield (
            f"note: {leaked:,} test {images} also among those that train, so the accuracy will be "
            f"too good: `handful audit {config.data.source}` shows which"
        )


def _leaked(config: RunConfig, parts: Partition) -> int:
    """How many images that are scored are also ones that train, pixel by pixel."""
    if parts.test is None:
        return 0
    learned = [parts.final, *([parts.pretext] if config.pretext.steps else [])]
    learned += [] if parts.validation is None else [parts.validation]
    known = np.concatenate([images.fingerprints for images in learned])
    return int(np.isin(parts.test.fingerprints, known).sum())


def _carry_out(session: Session, members: Sequence[Member]) -> tuple[dict[str, Any], Arrays]:
    """All stages in their order: the summary, and the arrays that figures are drawn from."""
    config, parts = session.config, session.parts
    first = members[0]
    _announce(first)
    seen = sum(map(pretext_task, members))
    trained = stages.train_classifier(members)
    predictor = stages.acquainted(session, trained)
    trained = trained._replace(learned_from=None)  # which may be many
    summary = _described(members, trained, seen)
    arrays = {"labelled_fingerprints": _labelled(session)}
    if parts.test is not None:
        arrays["tested_fingerprints"] = np.unique(parts.test.fingerprints)
    undecided = trained.between
    if seen:
        arrays |= _pictures(session, first.encoder, first.head)
    if parts.test is not None:
        session.say(f"scoring {len(parts.test):,} images")
        with session.stage("test"):
            found, shown, right = stages.score(session, predictor, parts.test)
        summary, arrays = summary | found, arrays | shown
        if _has_control(session):
            encoded = seen + trained.encoded
            summary |= stages.control(members, encoded, right)
            summary["images_through_encoder"]["control"] = summary.pop("control_images")
        if config.tsne and len(parts.test) >= maps.FEWEST:
            session.say("drawing maps of the representation")
            with session.stage("maps"):
                arrays |= _maps(session, parts.test, first.untrained, trained.encoder)
    if parts.kept_apart:
        # the map is of the encoder that was tested; another one's h has no place on it
        arrays.pop("map_h", None)
        predictor, undecided = stages.kept(members, trained)
    arrays |= undecided or {}
    assert session.folder is not None
    predictor.save(session.folder.model)
    return summary, arrays


def _has_control(session: Session) -> bool:
    """Whether there is a contrast to leave out, and images to compare on."""
    config, parts = session.config, session.parts
    return config.control and config.contrasts and parts.test is not None


def _labelled(session: Session) -> NDArray[np.uint64]:
    """Fingerprints of all images whose labels the run made use of, its copies of them included."""
    parts = session.parts
    used = [parts.everything] if parts.validation is None else [parts.everything, parts.validation]
    return np.unique(np.concatenate([images.fingerprints for images in used]))


def _pictures(session: Session, encoder: Encoder, head: ProjectionHead) -> Arrays:
    views, images = session.config.pretext.views, session.parts.fit
    generator = session.generator("pictures")
    return exhibits.gallery(images, views, generator) | exhibits.pipeline(
        encoder, head, images.images[0], views, generator
    )


def _maps(session: Session, test: ImageSet, untrained: Encoder, trained: AnyEncoder) -> Arrays:
    shown = exhibits.for_maps(test, session.generator("maps"))
    before, after = (networks.represent(f, shown.images) for f in (untrained, trained))
    return exhibits.tsne(before, after, shown.labels, session.config.seed)


def _announce(member: Member) -> None:
    """Say what there is to learn from, and about how long it will take."""
    session, _, encoder, _ = member
    config, parts = session.config, session.parts
    session.say(f"to learn from: {parts.final.describe()}")
    for line in _without_effect(config, parts):
        session.say(line)
    pretext, downstream = config.pretext, config.downstream
    assert pretext.steps is not None and downstream.steps is not None
    keeping = parts.kept_apart
    first = 2 * pretext.steps * mean_batch(len(parts.pretext), pretext.batch_size)
    kept = place_of_pretext(member)
    if kept is not None and kept.is_dir():
        first = 0
    lessons = parts.pretext if downstream.pseudo_labels else parts.final
    batch = mean_batch(len(lessons), downstream.batch_size)
    then = downstream.steps * batch
    then *= 1 + (parts.validation is not None and downstream.refit)
    if parts.validation is None:
        then *= 1 + downstream.folds * downstream.fold_share
    kept_of = parts.pretext if downstream.pseudo_labels else parts.everything
    then += downstream.steps * mean_batch(len(kept_of), downstream.batch_size) * keeping
    views = 2 if downstream.contrasts else 1
    then *= views
    images = (first + then) * (1 + _has_control(session)) * config.members
    seconds = images * networks.seconds_per_image(encoder, parts.final.images, views * batch)
    session.say(f"training will take about {max(1, round(seconds / 60))} min")


def _without_effect(config: RunConfig, parts: Partition) -> Iterator[str]:
    """A line for each thing that was asked for and that cannot be had of these images."""
    if config.data.validation and parts.validation is None:
        yield "too few images for validation: the length of training is fixed"
    if parts.test is None:
        yield "no test images: nothing will say how accurate the classifier is"
    if config.control and not config.contrasts:
        yield "no control: without any contrast it would be this run itself"
    elif config.control and parts.test is None:
        yield "no control: it would be compared on test images"
    if config.tsne and parts.test is not None and len(parts.test) < maps.FEWEST:
        yield f"no maps: they take at least {maps.FEWEST} test images"
    if config.downstream.folds:
        yield from _idle_folds(parts)
    if config.downstream.contrast and not config.downstream.contrasts:
        yield "downstream.contrast adds nothing: the encoder is frozen"
    yield from _idle_pool(config, parts)


def _idle_pool(config: RunConfig, parts: Partition) -> Iterator[str]:
    if config.downstream.pseudo_labels and not parts.unlabelled:
        yield "no unlabelled images: no label spreads; --per-class leaves some, --pool brings some"
    elif config.data.unlabelled and not parts.unlabelled:
        yield "--unlabelled adds nothing: every training image is used with its label"
    elif parts.unlabelled and not config.pretext.steps:
        yield (
            f"{parts.unlabelled:,} unlabelled images stay unused: they are for the pretext task, "
            "and there is none"
        )


def _idle_folds(parts: Partition) -> Iterator[str]:
    if parts.validation is not None:
        yield "downstream.folds adds nothing: validation images calibrate"
    elif int(parts.final.class_counts.max()) < 2:
        yield "downstream.folds can hold nothing out: no class has two labelled images"


def _described(members: Sequence[Member], trained: Trained, seen: int) -> dict[str, Any]:
    """What the run was and what its validation said."""
    session = members[0].session
    config, parts, validation = session.config, session.parts, trained.validation
    return {
        "recipe": config.recipe,
        "preset": config.preset,
        "presets_tried": session.tried,
        "source": config.data.source,
        "pool": config.data.pool,
        "content": session.dataset.content,
        "per_class": config.data.per_class,
        "draw": config.data.draw if config.data.per_class else None,
        "seed": config.seed,
        "dev": config.data.dev,
        "labelled_images": parts.labelled,
        "unlabelled_images": parts.unlabelled,
        "unfamiliar_images": trained.unfamiliar,
        "undecided_images": trained.undecided,
        "class_names": list(parts.final.class_names),
        "test_of": parts.test_of,
        "test_images_that_train": _leaked(config, parts),
        "calibrated_by": _calibrated_by(trained),
        "test_accuracy": None,
        "test_interval": None,
        "control_test_accuracy": None,
        "control_difference": None,
        "validation_accuracy": validation.accuracy if validation else None,
        "validation_interval": validation.interval if validation else None,
        "validation_images": validation.images if validation else 0,
        "validation_of": None if validation is None else _validation_of(config, parts),
        "selected_step": trained.step,
        "images_through_encoder": {"pretext": seen, "downstream": trained.encoded}
        | ({"folds": trained.in_folds} if trained.in_folds else {}),
        "pretext_taken": sum(one.session.taken for one in members) or None,
        "members": config.members,
        "encoder_parameters": networks.parameters(trained.encoder),
        # of timm's, attention and linear layers would count as well
        "multiply_adds": None
        if config.network.encoder.startswith(TIMM)
        else networks.multiply_adds(trained.encoder, *parts.final.size),
        "device": devices.describe(session.device),
        "precision": str(session.dtype).removeprefix("torch."),
        "versions": devices.versions(),
    }


def _validation_of(config: RunConfig, parts: Partition) -> str:
    if config.downstream.refit:
        return CHOSE
    return TESTED if parts.kept_apart else ITSELF


def _calibrated_by(trained: Trained) -> str | None:
    """What the temperature of the probabilities was fitted to, for people."""
    if trained.evidence is None:
        unheld = trained.temperature == stages.UNDECIDED.temperature
        return stages.OTHER_RUNS if unheld else None
    images = f"{len(trained.evidence.right):,} labelled images"
    if trained.validation:
        return f"{images} held out for validation"
    return f"{images}, answered by networks that learned from others"


def evaluate(
    run: Path, source: str, device: str = "auto", on_row: Callable[[Row], None] | None = None
) -> dict[str, Any]:
    """Score the classifier of a run on labelled images: figures as plain values.

    `scored` says which images of the source those are, `learned_from` how many of them are labelled
    images of the run itself (of a model without its run folder, that is not known: 0).
    on_row: called with rows that tell how far the reading of many files is.
    Raises ValueError where there is no such run, no such source, or no image has a label.
    """
    predictor = Predictor.load(run, device)
    names = predictor.class_names
    images, scored = datasets.load_images(source, predictor.preparation, names, on_row=on_row)
    images = images.labelled()
    if not len(images):
        raise ValueError(f"no image in {source} has a label to score against")
    known = runs.RunFolder(run).arrays().get("labelled_fingerprints", np.array([], np.uint64))
    learned_from = int(np.isin(images.fingerprints, known).sum())
    found = metrics.evaluate(predictor.logits(images), images.labels).as_dict()
    return {"scored": scored, "learned_from": learned_from, "class_names": list(names), **found}


def embed(
    run: Path,
    source: str,
    out: Path,
    device: str = "auto",
    on_row: Callable[[Row], None] | None = None,
) -> tuple[int, str]:
    """Write representations of a source's images to `out`; how many and which of it those are.

    Classes that the run was not trained on are welcome: their images get the label -1.

    The archive holds h float32 (N, D), labels int64 (N,), class_names, paths where images were
    files, and, where the run has a t-SNE map by the model that is kept, xy float32 (N, 2): their
    places on it. A run that held out its test images has none: its map is of the model before.
    on_row: as `evaluate` has it.
    """
    predictor = Predictor.load(run, device)
    out = out.resolve()  # what a link leads to is written, not the link
    if not out.parent.is_dir() or (out.exists() and not out.is_file()):
        raise ValueError(f"cannot write {out}: name a file in a folder that exists")
    images, taken = datasets.load_images(
        source, predictor.preparation, predictor.class_names, other_classes=True, on_row=on_row
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
    archive = io.BytesIO()
    np.savez_compressed(archive, allow_pickle=False, **arrays)
    runs.RunFolder(out.parent).write(out.name, archive.getvalue())
    return len(images), taken
