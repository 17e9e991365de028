"""What follows the pretext task of a run: classifier, test, control. Each says what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful import (
    exhibits,
    metrics,
    networks,
    propagation,
)
from handful.confidence import Evidence, abstention
from handful.config import DownstreamConfig, RunConfig
from handful.exhibits import Arrays
from handful.finetune import finetune
from handful.images import ImageSet
from handful.metrics import Prior
from handful.networks import AnyEncoder, Encoder, ProjectionHead, classifier_head
from handful.partition import with_pool
from handful.predictor import Predictor
from handful.session import Member, Row, Session
from handful.splits import batches_per_epoch, folds


class Trained(NamedTuple):
    """A classifier on its encoder, what chose its length, and what that cost."""

    encoder: AnyEncoder
    classifier: nn.Linear
    temperature: float
    validation: metrics.Report | None
    step: int
    encoded: int
    """Images that passed the encoder in training, the choice of the length included."""
    learned_from: ImageSet | None = None
    """The images that taught it; of several members the first's."""
    evidence: Evidence | None = None
    """Answers to labelled images that none of the networks which gave them had learned from."""
    in_folds: int = 0
    """Images that passed the encoders which gave those answers, in training."""
    unfamiliar: int = 0
    """Unlabelled images that were left out for being like none with a label; of several members
    those that the first left out."""
    undecided: int = 0
    """Unlabelled images that lie between two classes; of several members as above."""
    between: Arrays | None = None
    """What `suggest` reads of these."""


def train_classifier(members: Sequence[Member]) -> Trained:
    """Of one member: its length chosen on validation, then trained on all labels for that length.

    Members are left as the pretext task left them.
    """
    return _together([_with_its_length(member) for member in members])


def representation(members: Sequence[Member]) -> Trained:
    """What the pretext task trained, with a classifier that knows nothing."""
    return _together(
        [
            Trained(encoder, _first_classifier(session, encoder), 1.0, None, 0, 0)
            for session, _, encoder, _ in members
        ]
    )


def _first_classifier(session: Session, encoder: Encoder) -> nn.Linear:
    with session.seeded("classifier"):
        classifier = classifier_head(encoder.dim, len(session.parts.final.class_names))
    return classifier.to(session.device)


def _together(trained: Sequence[Trained]) -> Trained:
    """Classifiers of one length as one; nothing calibrates several."""
    if len(trained) == 1:
        return trained[0]
    encoders = [cast(Encoder, one.encoder) for one in trained]
    encoder, classifier = networks.joined(encoders, [one.classifier for one in trained])
    encoded = sum(one.encoded for one in trained)
    return trained[0]._replace(encoder=encoder, classifier=classifier, encoded=encoded)


def _with_its_length(member: Member) -> Trained:
    session = member.session
    parts, config = session.parts, session.config.downstream
    fitted = fitting(member)
    if parts.validation is None:
        lessons = _lessons(member, parts.final, remember=True)
        trained = fitted(lessons.images, config, "downstream")
        trained = trained._replace(
            unfamiliar=lessons.unfamiliar, undecided=lessons.undecided, between=lessons.between
        )
        return _calibrated(member, fitted, trained)
    name = "selection" if config.refit else "downstream"
    chosen = fitted(parts.fit, config, name, validation=parts.validation)
    if not config.refit:
        return chosen
    last = fitted(parts.final, _of_length(config, chosen), "downstream")
    return last._replace(
        temperature=chosen.temperature,
        validation=chosen.validation,
        evidence=chosen.evidence,
        encoded=chosen.encoded + last.encoded,
    )


class Lessons(NamedTuple):
    """Images that a classifier learns from; how many of the pool are not among them, how many of
    it lie between two classes, and what `suggest` reads of these.
    """

    images: ImageSet
    unfamiliar: int = 0
    undecided: int = 0
    between: Arrays | None = None


def _lessons(
    member: Member, labelled: ImageSet, apart: Tensor | None = None, *, remember: bool = False
) -> Lessons:
    """The labelled images and, where that is asked for, the pool with the labels that spread to it.

    apart: sources int64 (K,) of which no image may teach. remember: also gather what `suggest`
        reads.
    SimCLRv2 (Chen et al. 2020, section 2.3) ends so, with the answers of a tuned network for
    labels; those that spread are right more often where there are few. Images that they hardly
    reach are of other classes and teach nothing.
    """
    session, parts = member.session, member.session.parts
    if not _spreads(session):
        return Lessons(labelled)
    pool = parts.pool
    if apart is not None:
        pool = pool.select(~torch.isin(pool.sources, apart))
    images = with_pool(labelled, pool)
    session.say(f"labels spread to {parts.unlabelled:,} unlabelled images")
    with session.stage("spread"):
        h = networks.represent(member.encoder, images.images)
        found = propagation.guess(h, images.labels, len(images.class_names))
    learned = replace(images, labels=found.classes).select(found.familiar)
    unfamiliar, undecided = len(images) - len(learned), int(found.undecided.sum())
    if unfamiliar:
        session.say(f"left out: {unfamiliar:,} of them, which are like none that has a label")
    if undecided:
        session.say(f"undecided: {undecided:,} of them, which lie between two classes")
    known = between(images, h, found) if remember else None
    return Lessons(learned, unfamiliar, undecided, known)


MOST_BETWEEN = 5000
"""Undecided images that a run folder remembers."""


def between(images: ImageSet, h: Tensor, found: propagation.Guess) -> Arrays:
    """What `suggest` reads of undecided images, or of `MOST_BETWEEN` of them.

    Strangers are among them: to leave out what is like no label would also leave out much of what
    is worth one (docs/pool.md).
    Fingerprints uint64 (U,), directions of h float16 (U, D), and of all that reaches an image the
    shares of the classes, float32 (U, Y).
    """
    rows = found.undecided.nonzero().squeeze(1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    rows = rows[order[:MOST_BETWEEN].sort().values]
    directions = F.normalize(h[rows.to(h.device)].float(), dim=1)
    reached = found.reached[rows]
    return {
        "undecided_fingerprints": images.select(rows).fingerprints,
        "undecided_h": directions.cpu().half().numpy(),
        "undecided_shares": (reached / reached.sum(1, keepdim=True)).float().numpy(),
    }


def _spreads(session: Session) -> bool:
    """Whether there are unlabelled images that labels shall spread to."""
    return session.config.downstream.pseudo_labels and session.parts.unlabelled > 0


def fitting(member: Member) -> Callable[..., Trained]:
    """Downstream training, of images with settings and a name, that begins as `member` is now."""
    session, _, encoder, head = member
    # the contrast beside cross-entropy begins with the head of the pretext task
    return partial(_fitted, session, encoder, head=head)


class Fold(NamedTuple):
    """A network, and positions of the images that it did not learn from."""

    trained: Trained
    held: Tensor


def in_folds(
    fitted: Callable[..., Trained],
    images: ImageSet,
    config: DownstreamConfig,
    held: Tensor,
    stage: str = "folds",
) -> Iterator[Fold]:
    """For each fold a network that learned from the images of no source that is held out in it.

    held: int64 (N,), the fold of each image, -1 for never, as `splits.folds` has it.
    """
    for fold in held[held >= 0].unique().tolist():
        others = images.select(_elsewhere(held, images.sources, fold))
        trained = fitted(others, config, stage)
        yield Fold(trained, (held == fold).nonzero().squeeze(1))


PRIOR = Prior(1.0, 0.3)
"""Networks of folds are not the one that answers: only many answers of theirs change it by much."""
DECIDED, UNDECIDED = Prior(1.18, 0.08), Prior(1.5, 0.08)
"""Of a classifier that learned from labels that spread, which makes it too sure: the more so where
they leave many images between two classes. What suited development runs of `pool` on MNIST best
(docs/confidence.md)."""
FEW, MANY = 0.018, 0.025
"""Shares of the pool that lie between two classes: up to the first `DECIDED` is expected, from the
second on `UNDECIDED`."""
FLUKES = 100
"""Images that are added to the pool in thought, of which a share of `FEW` is undecided: of a small
pool one or two images say little."""
OTHER_RUNS = "other runs, on MNIST: no labelled image can be held out here"
"""What `UNDECIDED` was fitted to."""


def _expected(session: Session, trained: Trained) -> Prior:
    if not _spreads(session):
        return PRIOR
    share = (trained.undecided + FEW * FLUKES) / (session.parts.unlabelled + FLUKES)
    weight = min(1.0, max(0.0, (share - FEW) / (MANY - FEW)))
    temperature = DECIDED.temperature ** (1 - weight) * UNDECIDED.temperature**weight
    return DECIDED._replace(temperature=temperature)


def _calibrated(member: Member, fitted: Callable[..., Trained], trained: Trained) -> Trained:
    """The same network with the temperature that fits answers from outside of their own fold.

    Each fold is answered by a network that begins as `trained` did and learns from the other folds,
    and from the pool what spreads from those, for `fold_share` of its length. `encoder` and `head`,
    with which `fitted` begins, must not have seen the labels. Where no image can be held out, of
    one a class for example, the temperature is that of `UNDECIDED` if labels spread, or stays as it
    is.
    """
    session = member.session
    images, config = session.parts.final, session.config.downstream
    if not config.folds:
        return trained
    held = folds(images.labels, images.sources, config.folds, session.generator("folds"))
    held[repeated(images.sources)] = -1  # copies of an image say nothing that it does not
    assert config.steps is not None
    shorter = config.model_copy(update={"steps": max(1, round(config.steps * config.fold_share))})
    quiet = member._replace(session=replace(session, say=lambda line: None))

    def taught(labelled: ImageSet, config: DownstreamConfig, stage: str) -> Trained:
        apart = images.sources[~torch.isin(images.sources, labelled.sources)]
        return fitted(_lessons(quiet, labelled, apart).images, config, stage)

    looks, parts, encoded = [], [], 0
    for one, positions in in_folds(taught, images, shorter, held):
        part = images.select(positions)
        looks.append(networks.classify(one.encoder, one.classifier, part.images).cpu())
        parts.append((one._replace(learned_from=None), part))
        encoded += one.encoded
    if not parts:
        unsure = UNDECIDED.temperature
        return trained._replace(temperature=unsure) if _spreads(session) else trained
    prior = _expected(session, trained)
    labels = torch.cat([part.labels for _, part in parts])
    temperature = metrics.fit_temperature(torch.cat(looks), labels, prior)
    logits = [
        predictor_of(session, one._replace(temperature=temperature)).logits(part)
        for one, part in parts
    ]
    evidence = Evidence.of(torch.cat(logits), labels)
    return trained._replace(temperature=temperature, evidence=evidence, in_folds=encoded)


def repeated(sources: Tensor) -> Tensor:
    """Where a source occurs that occurred before: bool (N,)."""
    _, place = torch.unique(sources, return_inverse=True)
    first = torch.full((int(place.max()) + 1,), len(sources))
    first.scatter_reduce_(0, place, torch.arange(len(sources)), "amin")
    return first[place] != torch.arange(len(sources))


def _elsewhere(held: Tensor, sources: Tensor, fold: int) -> Tensor:
    """Positions of the images of no source that is held out in this fold."""
    return (~torch.isin(sources, sources[held == fold])).nonzero().squeeze(1)


def _of_length(config: DownstreamConfig, chosen: Trained) -> DownstreamConfig:
    """The same training with its schedule brought to an end where validation chose.

    Stopped on the longer schedule, at half its rate, it would be left unfinished.
    """
    return config.model_copy(update={"steps": chosen.step})


def _fitted(
    session: Session,
    encoder: Encoder,
    images: ImageSet,
    config: DownstreamConfig,
    stage: str,
    *,
    head: ProjectionHead | None = None,
    validation: ImageSet | None = None,
) -> Trained:
    """One downstream training from copies of `encoder` and `head`."""
    encoder, head = deepcopy(encoder), deepcopy(head)
    classifier = _first_classifier(session, encoder)
    with session.stage(stage), session.seeded(stage):
        length = finetune(
            encoder,
            classifier,
            images,
            config,
            generator=session.generator(stage),
            stage=stage,
            validation=validation,
            head=head,
            first_views=session.config.pretext.views,
            dtype=session.dtype,
            on_row=session.on_row,
        )
    trained = Trained(
        encoder, classifier, 1.0, None, length.step, length.encoded, learned_from=images
    )
    if validation is None:
        return trained
    # of one look: which images get further ones depends on the temperature
    looked = networks.classify(encoder, classifier, validation.images).cpu()
    calibrated = trained._replace(temperature=metrics.fit_temperature(looked, validation.labels))
    logits = predictor_of(session, calibrated).logits(validation)
    return calibrated._replace(
        validation=metrics.evaluate(logits, validation.labels),
        evidence=Evidence.of(logits, validation.labels),
    )


def from_the_start(config: RunConfig) -> DownstreamConfig:
    """How to train a network that had no pretext task.

    A lower rate protects what that learned, or given weights; drawn ones need the full one.
    """
    rate = 1.0 if config.network.weights is None else config.downstream.encoder_rate
    changes = {"train_encoder": True, "encoder_rate": rate}
    return config.downstream.model_copy(update=changes)


def predictor_of(session: Session, trained: Trained) -> Predictor:
    """What answers, and knows no image to compare new ones with."""
    return Predictor(
        trained.encoder,
        trained.classifier,
        session.parts.final.class_names,
        session.dataset.preparation,
        session.config.network,
        trained.temperature,
        session.config.test_views,
        trained.evidence,
        mirrored=not session.config.downstream.views.keep_ink,
    )


def acquainted(session: Session, trained: Trained) -> Predictor:
    """The same, which compares new images with those that taught it, or `MOST_KNOWN` of them."""
    assert trained.learned_from is not None
    known = _known(session, trained.learned_from)
    return predictor_of(session, trained).acquainted_with(known)


MOST_KNOWN = 2000
"""Images that new ones are compared with."""


def _known(session: Session, images: ImageSet) -> ImageSet:
    """Some of these and no copies: those with a label of their own first, others at random."""
    rows = (~repeated(images.sources)).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    own = torch.isin(images.sources[rows], session.parts.everything.sources)
    rows = torch.cat([rows[own], rows[~own]])
    return images.select(rows[:MOST_KNOWN].sort().values)


def score(
    session: Session, predictor: Predictor, test: ImageSet
) -> tuple[dict[str, Any], Arrays, Tensor]:
    """Open the test images, once: figures, arrays, and which answers are right, bool (T,)."""
    assert session.folder is not None
    logits, distances = predictor.answers(test)
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
        "test_accuracy_single_view": int(single.sum()) / len(single),
        "calibration": {
            "temperature": predictor.temperature,
            "ece": found.ece,
            "nll": found.nll,
            "brier": found.brier,
        },
        "abstention": _abstained(predictor, probabilities, right),
        "strangers": float((distances > 1).double().mean()),
        "per_class_report": named,
        "confusion": found.confusion,
    }
    return summary, exhibits.mistakes(test, probabilities), right


ERRORS = (0.01, 0.005)
"""Expected errors of whose answers the report says what became of them."""


def _abstained(predictor: Predictor, probabilities: Tensor, right: Tensor) -> list[Row]:
    """For each of `ERRORS`: the threshold, what speaks for it, and what the test then shows."""
    if predictor.evidence is None:
        return []
    sure, rows = probabilities.amax(1), []
    for error in ERRORS:
        found = abstention(predictor.evidence, error)
        given = right[sure >= found.threshold]
        rows.append(
            {
                **asdict(found),
                "coverage": len(given) / len(right),
                "test_error": float((~given).double().mean()) if len(given) else None,
            }
        )
    return rows


def control(members: Sequence[Member], encoded: int, right: Tensor) -> dict[str, Any]:
    """The same networks, first weights and labels, trained by cross-entropy alone.

    No pretext task, and no contrast beside cross-entropy where the run has one. Its length is fixed
    so that as many images pass its encoder as passed ours in all stages, on a schedule that ends
    there: nothing that it could have learned is cut off.
    encoded: how many those were. right: bool (T,), our answers.
    """
    session = members[0].session
    config, parts = session.config.downstream, session.parts
    assert parts.test is not None
    batches = batches_per_epoch(len(parts.final), config.batch_size)
    steps = -(-encoded * batches // (len(parts.final) * len(members)))
    config = from_the_start(session.config).model_copy(update={"steps": steps})
    trained = _together(
        [_fitted(one.session, one.untrained, parts.final, config, "control") for one in members]
    )
    logits = predictor_of(session, trained).logits(parts.test)
    found = metrics.evaluate(logits, parts.test.labels)
    ours, theirs = right, logits.argmax(1) == parts.test.labels
    difference, low, high = metrics.paired_difference(ours, theirs)
    return {
        "control_test_accuracy": found.accuracy,
        "control_interval": found.interval,
        "control_difference": {"difference": difference, "interval": [low, high]},
        "control_images": trained.encoded,
    }


def kept(members: Sequence[Member], tested: Trained) -> tuple[Predictor, Arrays | None]:
    """What stays when the test images came out of the labelled ones: trained on those as well.

    With it what `suggest` reads, now that those labels spread too.
    """
    session = members[0].session
    images, config = session.parts.everything, _of_length(session.config.downstream, tested)

    def taught(one: Member) -> Trained:
        lessons = _lessons(one, images, remember=True)
        return fitting(one)(lessons.images, config, "keeping")._replace(between=lessons.between)

    last = _together([taught(one) for one in members])
    last = last._replace(temperature=tested.temperature, evidence=tested.evidence)
    return acquainted(session, last), last.between
