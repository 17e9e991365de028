from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handful import finetune as module
from handful.config import DownstreamConfig, NetworkConfig, ViewsConfig
from handful.finetune import Length, finetune
from handful.images import ImageSet
from handful.losses import sup_con
from handful.metrics import fit_temperature
from handful.networks import ConvNet, ProjectionHead, classifier_head, classify, represent
from handful.optim import warmup_cosine
from handful.splits import endless_batches
from handful.views import two_views

STILL = ViewsConfig(rotation=0, translation=0, scale=0, shear=0, keep_ink=False)
SHORT = DownstreamConfig(steps=6, batch_size=64)


class Trained:
    """A short downstream task and everything that came out of it."""

    def __init__(
        self, images: ImageSet, config: DownstreamConfig = SHORT, seed: int = 0, **options: Any
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = ConvNet(1, 28, NetworkConfig(width=8))
            self.classifier = classifier_head(self.encoder.dim, 10)
            self.head = ProjectionHead(self.encoder.dim, NetworkConfig(head_hidden=16, head_dim=8))
        self.encoder.normalise_to(images.images)
        self.before = state(self.encoder), state(self.classifier)
        self.untrained = deepcopy([self.encoder, self.classifier, self.head])
        self.rows: list[dict[str, Any]] = []
        self.length: Length = finetune(
            self.encoder,
            self.classifier,
            images,
            config,
            generator=torch.Generator().manual_seed(seed),
            stage="downstream",
            on_row=options.pop("on_row", self.rows.append),
            head=self.head,
            **options,
        )

    def copies(self) -> list[Any]:
        """Encoder, classifier and projection head as they were before, ready to be trained."""
        return [network.train() for network in deepcopy(self.untrained)]

    def head_before_and_after(self) -> list[tuple[Tensor, Tensor]]:
        before = self.untrained[2].state_dict().values()
        return list(zip(before, self.head.state_dict().values(), strict=True))

    @property
    def weights(self) -> Tensor:
        values = [*self.encoder.state_dict().values(), *self.classifier.state_dict().values()]
        return torch.cat([value.double().flatten() for value in values])

    def validation_loss(self, validation: ImageSet) -> float:
        logits = classify(self.encoder, self.classifier, validation.images)
        temperature = fit_temperature(logits, validation.labels)
        return float(F.cross_entropy(logits / temperature, validation.labels))


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(**values: Any) -> DownstreamConfig:
    return SHORT.model_copy(update=values)


@pytest.fixture
def misleading(few: ImageSet) -> ImageSet:
    """Validation images whose labels are wrong: the better the training, the worse they fare."""
    return replace(few, labels=(few.labels + 1) % 10)


def test_training_keeps_the_memory_it_frees(few: ImageSet) -> None:
    with mock.patch.object(module, "keep_freed_memory") as kept:
        Trained(few)
    kept.assert_called()


def test_rows_tell_how_training_went(few: ImageSet) -> None:
    trained = Trained(few, changed(steps=7, batch_size=20, warmup=0.3))
    assert [row["step"] for row in trained.rows] == [2, 4, 6, 7]
    assert trained.length == Length(step=7, encoded=7 * 20)
    for row in trained.rows:
        assert row["stage"] == "downstream"
        assert row["steps"] == 7
        assert row["learning_rate"] == pytest.approx(3e-3 * warmup_cosine(row["step"] - 1, 7, 0.3))
        assert "validation_loss" not in row


def test_the_images_are_learnt(few: ImageSet) -> None:
    trained = Trained(few, changed(steps=40, views=STILL))
    right = classify(trained.encoder, trained.classifier, few.images).argmax(1) == few.labels
    assert right.float().mean() > 0.95


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_frozen_encoder_is_the_same_to_the_last_bit(few: ImageSet, ema: float) -> None:
    """Running statistics included: batch norm moves them in training mode, gradient or not."""
    trained = Trained(
        few, changed(train_encoder=False, weight_decay=0.5, ema=ema, batch_size=16), validation=few
    )
    encoder_before, classifier_before = trained.before
    assert any("running_mean" in name for name in encoder_before)
    for name, value in trained.encoder.state_dict().items():
        assert torch.equal(value, encoder_before[name]), name
    for name, value in trained.classifier.state_dict().items():
        assert not torch.equal(value, classifier_before[name]), name


def test_a_frozen_encoder_costs_no_backward_pass_and_is_in_eval_mode(few: ImageSet) -> None:
    modes, gradients = set(), set()

    def forward(encoder: ConvNet, x: Tensor) -> Tensor:
        h = real(encoder, x)
        modes.update(m.training for m in encoder.modules() if isinstance(m, nn.BatchNorm2d))
        gradients.add(h.requires_grad)
        return h

    real = ConvNet.forward
    with mock.patch.object(ConvNet, "forward", forward):
        Trained(few, changed(train_encoder=False), validation=few)
    assert modes == {False}
    assert gradients == {False}


def test_a_probe_leaves_an_encoder_that_can_be_trained(few: ImageSet) -> None:
    trained = Trained(few, changed(train_encoder=False))
    assert all(parameter.requires_grad for parameter in trained.encoder.parameters())


def test_fine_tuning_moves_the_encoder_and_its_statistics(few: ImageSet) -> None:
    trained = Trained(few)
    before = trained.before[0]
    for name, value in trained.encoder.state_dict().items():
        assert torch.equal(value, before[name]) == (name in ("mean", "std")), name


def test_the_first_loss_by_hand(few: ImageSet) -> None:
    """Bytes to smoothed cross-entropy: one division by 255, one normalisation, eval-mode norms."""
    trained = Trained(few, changed(train_encoder=False, views=STILL, label_smoothing=0.3, steps=1))
    with torch.no_grad():
        trained.classifier.load_state_dict(trained.before[1])
        logits = trained.classifier(represent(trained.encoder, few.images)).double()
    log_p = logits.log_softmax(1)
    target = torch.full((40, 10), 0.3 / 10, dtype=torch.float64)
    target[torch.arange(40), few.labels] += 0.7
    expected = -(target * log_p).sum(1).mean()
    assert trained.rows[0]["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_images_and_labels_stay_together(few: ImageSet) -> None:
    brightness = torch.arange(40, dtype=torch.uint8) * 5 + 20
    flat = brightness.view(-1, 1, 1, 1).repeat(1, 1, 28, 28)
    label_of = dict(zip(brightness.tolist(), few.labels.tolist(), strict=True))
    seen: list[tuple[Tensor, Tensor]] = []

    def view(images: Tensor, config: ViewsConfig, generator: torch.Generator) -> Tensor:
        seen.append((images.amax((1, 2, 3)), torch.empty(0)))
        return images.float() / 255

    def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        seen[-1] = (seen[-1][0], labels)
        return real(logits, labels, label_smoothing=label_smoothing)

    real = F.cross_entropy
    with (
        mock.patch.object(module, "view", view),
        mock.patch.object(module.F, "cross_entropy", cross_entropy),
    ):
        Trained(replace(few, images=flat), changed(batch_size=16))
    assert len(seen) == 6
    for values, labels in seen:
        assert labels.tolist() == [label_of[value] for value in values.tolist()]


def test_the_encoder_may_learn_more_slowly(few: ImageSet) -> None:
    def moved(rate: float) -> tuple[Tensor, Tensor]:
        trained = Trained(few, changed(encoder_rate=rate, steps=1, weight_decay=0.0))
        encoder, classifier = trained.before
        return (
            trained.encoder.state_dict()["layers.0.0.weight"] - encoder["layers.0.0.weight"],
            trained.classifier.weight.detach() - classifier["weight"],
        )

    whole, tenth = moved(1.0), moved(0.1)
    torch.testing.assert_close(tenth[0], whole[0] * 0.1, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(tenth[1], whole[1])


def test_early_stopping_restores_the_best_weights(few: ImageSet, misleading: ImageSet) -> None:
    config = changed(steps=60, checks=30, patience=4)
    trained = Trained(few, config, validation=misleading)
    checked = [row for row in trained.rows if "validation_loss" in row]
    kept = [row for row in checked if row.get("kept")][-1]
    assert kept is not checked[-1]
    assert trained.validation_loss(misleading) == pytest.approx(kept["validation_loss"], rel=1e-5)
    assert trained.length.step == kept["step"]


@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping_stops_after_its_patience(
    few: ImageSet, misleading: ImageSet, patience: int
) -> None:
    config = changed(steps=60, checks=30, patience=patience)
    trained = Trained(few, config, validation=misleading)
    checked = [row for row in trained.rows if "validation_loss" in row]
    places = [i for i, row in enumerate(checked) if row.get("kept")]
    assert len(checked) - 1 - places[-1] == patience
    assert max(b - a for a, b in zip([-1, *places], places, strict=False)) <= patience
    assert trained.rows[-1] is checked[-1]
    assert trained.rows[-1]["step"] < 60
    assert trained.length.encoded == 40 * trained.rows[-1]["step"]


def test_early_stopping_watches_cross_entropy_not_accuracy(few: ImageSet) -> None:
    """Logits that stay right but by less before the runner-up must count as worse."""
    fading = iter([4.0, 5.0, 1.4, 1.2, 1.1, 1.05])
    runner_up = torch.rand(40, 10, generator=torch.Generator().manual_seed(0))

    def answers(encoder: ConvNet, classifier: nn.Linear, images: Tensor) -> Tensor:
        return F.one_hot(few.labels, 10).float() * next(fading) + runner_up

    with mock.patch.object(module, "classify", answers):
        trained = Trained(few, changed(checks=6, patience=3), validation=few)
    assert [row["validation_accuracy"] for row in trained.rows] == [1.0] * 5
    assert [bool(row.get("kept")) for row in trained.rows] == [True, True, False, False, False]
    assert trained.length.step == 2


def test_of_lengths_that_validation_cannot_tell_the_longest_is_kept(few: ImageSet) -> None:
    """Of 40 images 8 are wrong, then 2, 2, 3 and 9: it is the 9 alone that are clearly more."""
    wrong = iter([(0, 1, 2, 3, 4, 5, 6, 7), (0, 1), (2, 3), (1, 4, 5), tuple(range(9))])

    def answers(encoder: ConvNet, classifier: nn.Linear, images: Tensor) -> Tensor:
        labels = few.labels.clone()
        missed = list(next(wrong))
        labels[missed] = (labels[missed] + 1) % 10
        return F.one_hot(labels, 10).float() * 4

    with mock.patch.object(module, "classify", answers):
        trained = Trained(few, changed(steps=5, checks=5, patience=99), validation=few)
    assert [bool(row.get("kept")) for row in trained.rows] == [True, True, True, True, False]
    assert trained.length.step == 4


def test_how_sure_a_network_is_chooses_no_length(few: ImageSet) -> None:
    """A temperature is fitted later: logits that only shrink know as much as before."""
    sure = iter([4.0, 8.0, 2.0, 1.0, 0.5, 0.25])
    known = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))

    def answers(encoder: ConvNet, classifier: nn.Linear, images: Tensor) -> Tensor:
        return (F.one_hot(few.labels, 10).float() * 2 + known) * next(sure)

    with mock.patch.object(module, "classify", answers):
        trained = Trained(few, changed(checks=6, patience=99), validation=few)
    losses = [row["validation_loss"] for row in trained.rows]
    assert losses == pytest.approx([losses[0]] * 6, rel=1e-4)


def test_validation_is_measured_as_often_as_asked_and_at_the_end(few: ImageSet) -> None:
    trained = Trained(few, changed(steps=31, checks=5, patience=99), validation=few)
    steps = [row["step"] for row in trained.rows if "validation_loss" in row]
    assert steps == [6, 12, 18, 24, 30, 31]


def test_validation_figures_are_those_of_the_classifier(few: ImageSet) -> None:
    half = few.select(torch.arange(0, 40, 2))
    trained = Trained(few, changed(steps=3, checks=1), validation=half)
    logits = classify(trained.encoder, trained.classifier, half.images)
    row = trained.rows[-1]
    assert row["validation_loss"] == pytest.approx(trained.validation_loss(half), rel=1e-5)
    accuracy = float((logits.argmax(1) == half.labels).float().mean())
    assert row["validation_accuracy"] == pytest.approx(accuracy)


def test_validation_images_train_nothing(few: ImageSet, misleading: ImageSet) -> None:
    """What they choose is the step alone."""
    alone = Trained(few, changed(steps=12))
    watched = Trained(few, changed(steps=12, patience=99), validation=misleading)
    assert [row["loss"] for row in watched.rows] == [row["loss"] for row in alone.rows]


@pytest.mark.parametrize("n", [1, 2, 3, 39, 40])
@pytest.mark.parametrize("batch_size", [1, 2, 13, 4096])
def test_any_number_of_images_fits_any_batch(few: ImageSet, n: int, batch_size: int) -> None:
    images = few.select(torch.arange(n))
    trained = Trained(images, changed(batch_size=batch_size), validation=images)
    assert trained.rows[-1]["step"] == 6
    assert torch.isfinite(trained.weights).all()


def test_the_average_of_weights_is_what_is_measured_and_kept(few: ImageSet) -> None:
    trained = Trained(few, changed(steps=10, ema=0.8, checks=1), validation=few)
    assert trained.rows[-1]["validation_loss"] == pytest.approx(
        trained.validation_loss(few), rel=1e-5
    )
    averaged, plain = Trained(few, changed(steps=10, ema=0.8)), Trained(few, changed(steps=10))
    assert torch.equal(averaged.weights, trained.weights)
    assert not torch.equal(averaged.weights, plain.weights)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(few: ImageSet) -> None:
    config = changed(batch_size=20)
    first = Trained(few, config, seed=1).weights
    assert torch.equal(first, Trained(few, config, seed=1).weights)
    assert not torch.equal(first, Trained(few, config, seed=2).weights)


def test_training_leaves_global_randomness_alone(few: ImageSet) -> None:
    random = torch.get_rng_state()
    Trained(few, changed(ema=0.9), validation=few)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("validation", [False, True])
def test_a_loss_that_is_no_number_stops_with_advice(few: ImageSet, validation: bool) -> None:
    rows: list[dict[str, Any]] = []
    with pytest.raises(
        ValueError, match=r"downstream at step \d+ of 30: the loss is no longer a number"
    ) as caught:
        Trained(
            few,
            changed(steps=30, learning_rate=1e25, warmup=0.0),
            validation=few if validation else None,
            on_row=rows.append,
        )
    assert "lower downstream.learning_rate" in str(caught.value)
    assert len(rows) < 10


JOINT = changed(contrast=0.5, temperature=0.2, batch_size=40)


def test_the_contrast_adds_sup_con_of_two_views_to_their_cross_entropy(few: ImageSet) -> None:
    trained = Trained(few, JOINT.model_copy(update={"steps": 1}))
    encoder, classifier, head = trained.copies()
    generator = torch.Generator().manual_seed(0)
    index = next(endless_batches(len(few), 40, generator))
    with torch.no_grad():
        h = encoder(torch.cat(two_views(few.images[index], JOINT.views, generator)))
        z_a, z_b = head(h).chunk(2)
        labels = few.labels[index]
        expected = F.cross_entropy(
            classifier(h), labels.repeat(2), label_smoothing=JOINT.label_smoothing
        ) + 0.5 * sup_con(z_a, z_b, labels, 0.2)
    assert trained.rows[0]["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert trained.length == Length(1, 80)


def test_the_contrast_trains_its_head_and_ends_with_the_same_three(few: ImageSet) -> None:
    joint, plain = Trained(few, JOINT), Trained(few)
    assert joint.length == Length(6, 6 * 80)
    assert any(not torch.equal(v, w) for v, w in joint.head_before_and_after())
    assert all(torch.equal(v, w) for v, w in plain.head_before_and_after())
    assert not torch.equal(joint.weights, plain.weights)


def test_a_frozen_encoder_has_nothing_to_contrast(few: ImageSet) -> None:
    probe = Trained(few, JOINT.model_copy(update={"train_encoder": False}))
    assert probe.length == Length(6, 6 * 40)
    assert all(torch.equal(v, w) for v, w in probe.head_before_and_after())


def test_early_stopping_looks_past_the_head_of_the_contrast(few: ImageSet) -> None:
    trained = Trained(few, JOINT, validation=few)
    best = min(row["validation_loss"] for row in trained.rows)
    assert trained.validation_loss(few) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize(("curriculum", "strong"), [(0.0, 0), (0.5, 3), (1.0, 6)])
def test_views_weaken_over_the_curriculum(few: ImageSet, curriculum: float, strong: int) -> None:
    with mock.patch.object(module, "view", side_effect=module.view) as seen:
        Trained(few, changed(curriculum=curriculum), first_views=ViewsConfig(rotation=90))
    angles = [call.args[1].rotation for call in seen.call_args_list]
    assert len(angles) == 6
    assert angles == sorted(angles, reverse=True)
    assert angles[strong:] == [SHORT.views.rotation] * (6 - strong)
    if strong:
        assert angles[0] == 90
        assert angles[strong - 1] > SHORT.views.rotation
