from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from handful import pretrain as module
from handful.config import NetworkConfig, PretextConfig
from handful.images import ImageSet
from handful.losses import nt_xent, sup_con
from handful.networks import ConvNet, ProjectionHead
from handful.optim import warmup_cosine
from handful.pretrain import pretrain
from handful.recipes import RICH_DIGITS
from handful.views import expand

NETWORK = NetworkConfig(width=8, head_hidden=32, head_dim=16)
SHORT = PretextConfig(steps=4, batch_size=64)


def networks(config: NetworkConfig = NETWORK) -> tuple[ConvNet, ProjectionHead]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ConvNet(1, 28, config)
        return encoder, ProjectionHead(encoder.dim, config)


class Trained:
    """A short pretext task and everything that came out of it."""

    def __init__(
        self, images: ImageSet, config: PretextConfig = SHORT, seed: int = 0, **options: Any
    ) -> None:
        self.encoder, self.head = networks()
        self.encoder.normalise_to(images.images)
        self.rows: list[dict[str, Any]] = []
        self.encoded = pretrain(
            self.encoder,
            self.head,
            images,
            config,
            generator=torch.Generator().manual_seed(seed),
            on_row=options.pop("on_row", self.rows.append),
            **options,
        )

    @property
    def weights(self) -> Tensor:
        values = [*self.encoder.state_dict().values(), *self.head.state_dict().values()]
        return torch.cat([value.double().flatten() for value in values])


def changed(**values: Any) -> PretextConfig:
    return SHORT.model_copy(update=values)


def test_training_keeps_the_memory_it_frees(few: ImageSet) -> None:
    with mock.patch.object(module, "keep_freed_memory") as kept:
        Trained(few)
    kept.assert_called()


def test_rows_tell_how_training_went(few: ImageSet) -> None:
    trained = Trained(few, changed(steps=7, batch_size=20, warmup=0.3))
    assert [row["step"] for row in trained.rows] == [2, 4, 6, 7]
    assert [row["epoch"] for row in trained.rows] == [1, 2, 3, 4]
    assert trained.encoded == 7 * 2 * 20
    for row in trained.rows:
        assert row["stage"] == "pretext"
        assert row["steps"] == 7
        assert row["learning_rate"] == pytest.approx(3e-3 * warmup_cosine(row["step"] - 1, 7, 0.3))
    seconds = [row["seconds"] for row in trained.rows]
    assert seconds == sorted(seconds)


def test_long_epochs_report_on_the_way(few: ImageSet) -> None:
    with mock.patch.object(module, "ROW_STEPS", 3):
        rows = Trained(few, changed(steps=12, batch_size=5)).rows
    assert [row["step"] for row in rows] == [3, 6, 8, 11, 12]  # eight batches make an epoch
    assert [row["epoch"] for row in rows] == [1, 1, 1, 2, 2]


def test_the_pretext_task_is_learnt(few: ImageSet) -> None:
    losses = [row["loss"] for row in Trained(few, changed(steps=25)).rows]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.4


def test_both_views_pass_every_norm_in_one_batch(few: ImageSet) -> None:
    """Norms that see each view alone give gradients of another direction."""
    sizes: list[int] = []
    with mock.patch.object(
        nn.BatchNorm2d,
        "forward",
        autospec=True,
        side_effect=lambda norm, x: (sizes.append(len(x)), x)[1],
    ):
        Trained(few, changed(steps=2))
    assert set(sizes) == {2 * len(few)}


def test_copies_of_one_image_are_not_each_others_negatives(few: ImageSet) -> None:
    images = expand(few, 3, torch.Generator().manual_seed(0))
    given: list[Tensor] = []

    def spy(z_a: Tensor, z_b: Tensor, temperature: float, sources: Tensor) -> Tensor:
        given.append(sources)
        return nt_xent(z_a, z_b, temperature, sources)

    with mock.patch.object(module, "nt_xent", spy):
        Trained(images, changed(steps=1, batch_size=256))
    assert sorted(given[0].tolist()) == sorted(images.sources.tolist())


def test_rows_of_views_and_sources_stay_together(few: ImageSet) -> None:
    """Each pair of siblings has a brightness of its own, by which its views know it."""
    brightness = torch.arange(40, dtype=torch.uint8) // 2 * 10 + 20
    flat = brightness.view(-1, 1, 1, 1).repeat(1, 1, 28, 28)
    images = replace(few, images=flat, sources=brightness.long())
    seen: dict[str, Tensor] = {}

    def forward(encoder: ConvNet, x: Tensor) -> Tensor:
        seen["brightness"] = (x.amax((1, 2, 3)) * 255).round().long()
        return real(encoder, x)

    def spy(z_a: Tensor, z_b: Tensor, temperature: float, sources: Tensor) -> Tensor:
        seen["sources"] = sources
        return nt_xent(z_a, z_b, temperature, sources)

    real = ConvNet.forward
    with (
        mock.patch.object(ConvNet, "forward", forward),
        mock.patch.object(module, "nt_xent", spy),
    ):
        Trained(images, changed(steps=1))
    assert torch.equal(seen["brightness"], seen["sources"].repeat(2))


def test_labels_matter_to_sup_con_alone(few: ImageSet) -> None:
    hidden = few.without_labels()
    assert torch.equal(Trained(few).weights, Trained(hidden).weights)
    labelled = changed(loss="sup_con")
    assert not torch.equal(Trained(few, labelled).weights, Trained(few).weights)
    torch.testing.assert_close(
        Trained(hidden, labelled).weights, Trained(hidden).weights, rtol=0.02, atol=0.02
    )


def test_sup_con_is_given_labels_and_sources(few: ImageSet) -> None:
    given: list[tuple[Tensor, Tensor]] = []

    def spy(
        z_a: Tensor, z_b: Tensor, labels: Tensor, temperature: float, sources: Tensor, classes: int
    ) -> Tensor:
        assert classes == 10
        given.append((labels, sources))
        return sup_con(z_a, z_b, labels, temperature, sources, classes)

    with mock.patch.object(module, "sup_con", spy):
        images = expand(few, 1, torch.Generator().manual_seed(0))
        Trained(images, changed(loss="sup_con", steps=1))
    label_of = dict(zip(few.sources.tolist(), few.labels.tolist(), strict=True))
    labels, sources = given[0]
    assert labels.tolist() == [label_of[source] for source in sources.tolist()]


@pytest.mark.parametrize(
    ("n", "batch_size"), [(2, 2), (2, 256), (3, 2), (7, 3), (39, 13), (40, 39), (40, 4096)]
)
def test_any_number_of_images_fits_any_batch(few: ImageSet, n: int, batch_size: int) -> None:
    """Smaller sets than a batch, and last batches of another size, are the normal case."""
    trained = Trained(few.select(torch.arange(n)), changed(batch_size=batch_size))
    assert trained.rows[-1]["step"] == 4
    assert torch.isfinite(trained.weights).all()


def test_every_image_is_seen_in_every_epoch(few: ImageSet) -> None:
    assert Trained(few, changed(steps=6, batch_size=15)).encoded == 2 * 2 * 40


def test_one_image_has_nothing_to_be_contrasted_with(few: ImageSet) -> None:
    with pytest.raises(ValueError, match="it needs at least 2, got 1"):
        Trained(few.select(torch.tensor([0])))
    nothing = few.select(torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="it needs at least 2, got 0"):
        pretrain(*networks(), nothing, SHORT, generator=torch.Generator(), on_row=print)


def test_copies_of_one_image_are_one_image(few: ImageSet) -> None:
    copies = expand(few.select(torch.tensor([0])), 5, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="the pretext task contrasts images"):
        Trained(copies)


def test_a_batch_of_siblings_alone_does_no_harm(few: ImageSet) -> None:
    images = expand(few.select(torch.arange(2)), 5, torch.Generator().manual_seed(0))
    assert torch.isfinite(Trained(images, changed(batch_size=2, steps=12)).weights).all()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(few: ImageSet) -> None:
    config = changed(views=RICH_DIGITS, batch_size=20)
    first = Trained(few, config, seed=1).weights
    assert torch.equal(first, Trained(few, config, seed=1).weights)
    assert not torch.equal(first, Trained(few, config, seed=2).weights)


def test_training_leaves_global_randomness_alone(few: ImageSet) -> None:
    state = torch.get_rng_state()
    Trained(few, changed(ema=0.9), validation=few)
    assert torch.equal(torch.get_rng_state(), state)


def test_health_is_examined_now_and_then_and_at_the_end(few: ImageSet) -> None:
    rows = Trained(few, changed(steps=50), validation=few).rows
    examined = [row for row in rows if "alignment" in row]
    assert 10 <= len(examined) <= 14
    assert "alignment" in rows[-1]
    for row in examined:
        assert 0 <= row["alignment"] <= 4
        assert row["uniformity"] < 0
        assert 1 <= row["effective_rank"] <= 64
        assert 0 <= row["knn_accuracy"] <= 1
    assert examined[-1]["knn_accuracy"] > 0.5  # the bank holds the validation images themselves


def test_knn_takes_fewer_neighbours_than_it_would_like(few: ImageSet) -> None:
    three = few.select(torch.arange(3))
    row = Trained(three, changed(steps=1), validation=few).rows[-1]
    assert 0 <= row["knn_accuracy"] <= 1


def test_without_validation_there_is_no_knn(few: ImageSet) -> None:
    assert "knn_accuracy" not in Trained(few).rows[-1]


def test_looking_at_validation_images_trains_nothing(few: ImageSet) -> None:
    config = changed(steps=12)
    assert torch.equal(Trained(few, config).weights, Trained(few, config, validation=few).weights)


def test_the_average_of_weights_is_kept(few: ImageSet) -> None:
    """By hand from the weights after each step; with one batch an epoch, each row is a step."""
    encoder, head = networks()
    encoder.normalise_to(few.images)
    course: list[dict[str, Tensor]] = []

    def remember(_: dict[str, Any]) -> None:
        course.append({name: value.clone() for name, value in encoder.state_dict().items()})

    pretrain(
        encoder,
        head,
        few,
        changed(ema=0.7),
        generator=torch.Generator().manual_seed(0),
        on_row=remember,
    )
    for name, value in encoder.state_dict().items():
        if value.is_floating_point():
            expected = course[0][name]
            for step in course[1:]:
                expected = 0.7 * expected + 0.3 * step[name]
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    assert not torch.equal(
        encoder.state_dict()["layers.0.0.weight"], course[-1]["layers.0.0.weight"]
    )


def test_lars_trains_as_well(few: ImageSet) -> None:
    before = torch.cat([p.detach().flatten() for p in networks()[0].parameters()])
    trained = Trained(few, changed(optimizer="lars", learning_rate=1.0))
    after = torch.cat([p.detach().flatten() for p in trained.encoder.parameters()])
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_a_loss_that_is_no_number_stops_with_advice(few: ImageSet) -> None:
    rows: list[dict[str, Any]] = []
    with pytest.raises(
        ValueError, match=r"the pretext task at step \d+ of 60: the loss is no longer a number; low"
    ) as caught:
        Trained(few, changed(steps=60, learning_rate=1e25, warmup=0.0), on_row=rows.append)
    assert "pretext.learning_rate" in str(caught.value)
    assert len(rows) < 10
    assert rows[-1]["step"] == rows[-1]["epoch"]


def test_a_loss_that_is_no_number_is_found_before_health_is_examined(few: ImageSet) -> None:
    with pytest.raises(ValueError, match="no longer a number"):
        Trained(few, changed(steps=2, learning_rate=1e25, warmup=0.0))


def test_a_collapsed_representation_stops_with_advice(few: ImageSet) -> None:
    blank = replace(few, images=torch.zeros_like(few.images))
    with pytest.raises(ValueError, match="the representation collapsed, all images look alike"):
        Trained(blank)


def test_no_collapse_where_images_differ(few: ImageSet) -> None:
    """That the alarm does not ring for a healthy run of the smallest size."""
    Trained(few.select(torch.arange(2)), changed(steps=30))


def test_images_without_siblings_need_no_mask(few: ImageSet) -> None:
    with mock.patch.object(module, "nt_xent", wraps=nt_xent) as spy:
        Trained(few, changed(steps=1))
    assert spy.call_args.args[3] is None


def test_half_precision_learns_about_the_same(few: ImageSet) -> None:
    whole, half = Trained(few), Trained(few, dtype=torch.bfloat16)
    assert next(half.encoder.parameters()).dtype == torch.float32
    assert not torch.equal(half.weights, whole.weights)
    assert half.rows[-1]["loss"] == pytest.approx(whole.rows[-1]["loss"], rel=0.05)


def test_out_of_memory_names_the_batch_that_fits(few: ImageSet) -> None:
    real = ConvNet.forward

    def forward(encoder: ConvNet, x: Tensor) -> Tensor:
        if len(x) > 24:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(encoder, x)

    with (
        mock.patch.object(ConvNet, "forward", forward),
        pytest.raises(ValueError, match=r"pretext\.batch_size = 40: 10 fits: --set pretext"),
    ):
        Trained(few, changed(batch_size=40))
