"""What of a source deserves a second look: copies, leaks, doubtful labels, outliers.

No test label is looked at, and test images are only compared with those that train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from handful import datasets, devices, doubts, networks, stages, twins
from handful.audit import tables
from handful.audit.found import FEWER, Audit, Finding, Judged
from handful.config import RunConfig, assignment, flat, name_of
from handful.datasets import Dataset
from handful.images import ImageSet
from handful.recipes import compose, recipe_for
from handful.report import findings as page
from handful.report.findings import Kind
from handful.runs import RunFolder
from handful.session import Row, Session, members_of, plan
from handful.splits import folds, mean_batch
from handful.twins import Twin
from handful.wording import percent

RECIPE = "fast"
FOLDS = 5
PER_IMAGE, MOST_LESSONS = 20, 300_000
"""Times that a recipe of fixed length lets a network see each image, at least, up to so many."""
LEVELS, SHARE = 8, 0.005
"""A picture is blank where at most this share of its pixels is that far from its own median."""
ENLARGED = 2
"""Times by which a file smaller than this was blown up."""
FIXED = {
    "pretext.steps": 0, "control": False, "tsne": False, "members": 1, "data.copies": 0,
    "data.validation": 0.0, "data.holdout": 0.0, "downstream.pseudo_labels": False,
}  # fmt: skip
"""Labels must not reach a network before its fold is held out, and nothing else is held out."""


def setting(
    given: str, recipe: str | None, assignments: Sequence[str] = (), device: str = "auto"
) -> tuple[RunConfig, frozenset[str]]:
    """The configuration of an audit, and the dotted keys that somebody set.

    given: a source, or the folder of a run, whose images, network and views it then takes.
    Raises ValueError as `compose`, and for what an audit cannot have.
    """
    for key in flat(dict(map(assignment, assignments))):
        if key in FIXED:
            raise ValueError(f"--set {key}: an audit trains one network a fold and no more")
    options: dict[str, Any] = {"downstream.folds": FOLDS, "device": device}
    source = given
    if RunFolder(given).is_run:
        if recipe:
            raise ValueError(f"--recipe {recipe}: {given} is a run and has its own; leave it out")
        run = RunFolder(given).config()
        source = run.data.source
        taken = {"data": run.data, "network": run.network, "pretext.views": run.pretext.views}
        taken["downstream.views"] = run.downstream.views
        options |= {f"{part}.{key}": value for part, held in taken.items() for key, value in held}
        options |= {"preset": run.preset, "seed": run.seed}
        columns = run.network.columns
    else:
        columns = recipe_for(source, recipe or RECIPE).network.columns
    options |= {"network.columns": columns[:1]} if len(columns) > 1 else {}
    if recipe and recipe_for(source, recipe).downstream.steps is None:
        options["downstream.steps"] = recipe_for(source, RECIPE).downstream.steps
    return compose(source, recipe or RECIPE, None, options | FIXED, assignments)


def place(given: str) -> Path:
    """Where an audit goes by default: beside the run, or where runs of the source go."""
    if RunFolder(given).is_run:
        run = Path(given).resolve()
        return run.with_name(f"{run.name}-audit")
    return Path("runs") / f"{name_of(given)}-audit"


def run(
    config: RunConfig,
    out: Path,
    *,
    chosen: frozenset[str] = frozenset(),
    on_row: Callable[[Row], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Audit:
    """Audit a source and leave audit.html, audit.csv and, where it trained, labels.csv at `out`.

    config, chosen: as `setting` gives them; with `downstream.folds` = 0 nothing is trained.
    on_row, say: as `experiment.run` has them. An earlier audit at `out` is replaced.
    Raises ValueError for anything that a user can mend.
    """
    say, on_row = say or (lambda line: None), on_row or (lambda row: None)
    tables.check(out)
    device = devices.choose(config.device)
    dataset = datasets.load(config.data, on_row)
    for note in dataset.notes:
        say(note)
    found = examined(config, dataset, device, chosen=chosen, on_row=on_row, say=say)
    tables.write(found, out)
    return found


def examined(
    config: RunConfig,
    dataset: Dataset,
    device: torch.device,
    *,
    chosen: frozenset[str] = frozenset(),
    on_row: Callable[[Row], None] = lambda row: None,
    say: Callable[[str], None] = lambda line: None,
) -> Audit:
    """The same of images that are loaded, without a folder."""
    files = bool(dataset.train.paths)
    dataset = _named(dataset)
    config, parts = plan(config, dataset, chosen)
    images, test = parts.pretext, dataset.test
    blank = blanks(images.images)
    judgeable = (~blank).nonzero().squeeze(1)
    say(f"looking for copies among {len(images):,} images")
    pairs = [
        Twin(int(judgeable[first]), int(judgeable[second]), alike)
        for first, second, alike in twins.within(images.select(judgeable))
    ]
    found = [*_leaks(images, test, judgeable), *_copies(images, pairs)]
    found += [Finding("blank", i) for i in blank.nonzero().squeeze(1).tolist()]
    found += _tiny(images, dataset.preparation.size) if files else ()
    found += [Finding("unreadable", note=line) for line in dataset.skipped]
    found += _imbalance(images)
    judged = None
    if config.downstream.folds:
        # a copy of an image would tell the network that answers for it what its label is
        apart = replace(images, sources=twins.groups(len(images), pairs))
        positions = (~blank & (images.labels >= 0)).nonzero().squeeze(1)
        session = Session(config, device, dataset, parts, None, on_row, say)
        judged = _judged(session, apart, positions)
    if judged is not None:
        found += _wrong(images, judged)
        found += _outliers(judged)
    order = list(page.TITLES)
    found.sort(key=lambda finding: order.index(finding.kind))  # stable: each kind has its order
    labelled = [
        finding._replace(label=int(images.labels[finding.image])) if finding.image >= 0 else finding
        for finding in found
    ]
    return Audit(config, images, test, files, tuple(labelled), judged)


def _named(dataset: Dataset) -> Dataset:
    """The same with a name for every image: its file, else the number that it has in its part."""
    train, validation, test = dataset.train, dataset.validation, dataset.test
    return replace(
        dataset,
        train=_called(train, dataset.numbered or _numbers("train", train)),
        validation=validation and _called(validation, _numbers("validation", validation)),
        test=test and _called(test, _numbers("test", test)),
    )


def _called(images: ImageSet, numbers: Iterable[str]) -> ImageSet:
    paths = images.paths or ("",) * len(images)
    names = (path or number for path, number in zip(paths, numbers, strict=True))
    return replace(images, paths=tuple(names))


def _numbers(part: str, images: ImageSet) -> list[str]:
    return [f"{part} {i}" for i in range(len(images))]


def blanks(images: Tensor) -> Tensor:
    """Which of uint8 (N, C, H, W) show nothing: bool (N,)."""
    found = [torch.zeros(0, dtype=torch.bool)]
    for part in images.split(512):
        pixels = part.flatten(2).short()
        away = (pixels - pixels.median(2, keepdim=True).values).abs() > LEVELS
        found.append(away.float().mean((1, 2)) <= SHARE)
    return torch.cat(found)


def _leaks(images: ImageSet, test: ImageSet | None, judgeable: Tensor) -> list[Finding]:
    if test is None:
        return []
    pairs = twins.across(images.select(judgeable), test)
    pairs.sort(key=lambda twin: -twin.alike)
    return [
        Finding("leak", int(judgeable[twin.first]), twin.second, score=twin.alike, note=_how(twin))
        for twin in pairs
    ]


def _copies(images: ImageSet, pairs: Sequence[Twin]) -> Iterator[Finding]:
    labels = images.labels.tolist()
    for twin in sorted(pairs, key=lambda twin: -twin.alike):
        first, second = labels[twin.first], labels[twin.second]
        differ = first >= 0 and second >= 0 and first != second
        kind: Kind = "conflict" if differ else "duplicate"
        suggested = first if differ else -1
        yield Finding(kind, twin.second, twin.first, -1, suggested, twin.alike, _how(twin))


def _how(twin: Twin) -> str:
    return "all pixels equal" if twin.exact else f"correlation {twin.alike:.3f}"


def _tiny(images: ImageSet, size: int) -> Iterator[Finding]:
    for i, path in enumerate(images.paths):
        try:
            with Image.open(path) as picture:  # reads its head alone
                sides = picture.size
        except OSError:  # an image of a pool of arrays has no file
            continue
        if ENLARGED * max(sides) < size:
            width, height = sides
            score = max(sides) / size
            yield Finding("tiny", i, score=score, note=f"{width} × {height} pixels")


def _imbalance(images: ImageSet) -> Iterator[Finding]:
    counts = images.class_counts.tolist()
    most = max(counts)
    for label in sorted(range(len(counts)), key=lambda label: counts[label]):
        if counts[label] * FEWER <= most:
            note = f"{counts[label]:,} labelled images, {images.class_names[counts.index(most)]} "
            note += f"has {most:,}"
            yield Finding("imbalance", label=label, score=counts[label] / most, note=note)


def _judged(session: Session, images: ImageSet, positions: Tensor) -> Judged | None:
    """images: all of them, copies of one under one source. positions: those with a label."""
    labelled = images.select(positions)
    config = session.config.downstream
    assert config.steps is not None
    batches = -(-len(labelled) // config.batch_size)
    lessons = min(PER_IMAGE * len(labelled), MOST_LESSONS)
    steps = max(config.steps, lessons * batches // max(1, len(labelled)))
    config = config.model_copy(update={"steps": steps})
    held = folds(labelled.labels, labelled.sources, config.folds, session.generator("audit"))
    alone = int((held < 0).sum())
    if alone:
        session.say(f"{alone:,} images are alone in their class: nothing can judge their labels")
    if alone == len(held):
        return None
    member = members_of(session)[0]
    batch = mean_batch(len(labelled) - len(labelled) // config.folds, config.batch_size)
    count = len(held[held >= 0].unique())
    each = networks.seconds_per_image(member.encoder, labelled.images, batch)
    minutes = max(1, round(count * steps * batch * each / 60))
    session.say(f"training {count} networks, about {minutes} min")
    probabilities = torch.zeros(len(labelled), len(labelled.class_names), dtype=torch.float64)
    distances = torch.zeros(len(labelled), dtype=torch.float64)
    for fold in stages.in_folds(stages.fitting(member), labelled, config, held, "audit"):
        part = labelled.select(fold.held)
        predictor = stages.acquainted(session, fold.trained)
        logits, far = predictor.answers(part)
        probabilities[fold.held], distances[fold.held] = logits.double().softmax(1), far.double()
    answered = (held >= 0).nonzero().squeeze(1)
    labels = labelled.labels[answered].numpy()
    p = probabilities[answered].numpy()
    return Judged(
        positions[answered],
        doubts.of_labels(p, labels),
        p[np.arange(len(p)), labels],
        distances[answered].numpy(),
    )


def _wrong(images: ImageSet, judged: Judged) -> Iterator[Finding]:
    for k in judged.doubts.order.tolist():
        if judged.doubts.wrong[k]:
            position, suggested = int(judged.positions[k]), int(judged.doubts.suggested[k])
            note = f"its label has a probability of {percent(judged.probability[k])}"
            score = float(judged.doubts.score[k])
            yield Finding("wrong label", position, suggested=suggested, score=score, note=note)


def _outliers(judged: Judged) -> Iterator[Finding]:
    # what is no further than the labelled images are from each other is no stranger
    fence = max(doubts.far_out(judged.distances), 1.0)
    for k in np.argsort(-judged.distances, kind="stable").tolist():
        distance = float(judged.distances[k])
        if distance > fence:
            note = f"{distance:.1f} times the usual distance to the other images"
            yield Finding("outlier", int(judged.positions[k]), score=distance, note=note)
