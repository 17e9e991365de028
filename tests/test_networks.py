from __future__ import annotations

import pytest
import torch
from scipy.fft import dctn
from torch import Tensor, nn

from handful.config import NetworkConfig
from handful.datasets import Dataset
from handful.geometry import affine, warp
from handful.images import ImageSet, to_float
from handful.networks import (
    INFERENCE_BATCH,
    ConvNet,
    Cosines,
    ProjectionHead,
    classifier_head,
    classify,
    fitting_stages,
    in_parts,
    joined,
    multiply_adds,
    parameters,
    represent,
    seconds_per_image,
)

SMALL = NetworkConfig(width=8)


def noise(n: int, channels: int = 1, size: int = 28) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (n, channels, size, size)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def trained(channels: int = 1, size: int = 28, config: NetworkConfig = SMALL) -> ConvNet:
    """An encoder whose running statistics have met images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ConvNet(channels, size, config)
    images = noise(32, channels, size)
    encoder.normalise_to(images)
    with torch.no_grad():
        for _ in range(20):
            encoder(to_float(images))
    return encoder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 9, 28, 32, 41, 64, 127, 224])
def test_any_small_image_becomes_a_representation(channels: int, size: int) -> None:
    encoder = ConvNet(channels, size, NetworkConfig(width=4))
    h = encoder(to_float(noise(3, channels, size)))
    assert h.shape == (3, encoder.dim)
    assert h.dtype == torch.float32
    assert torch.isfinite(h).all()


@pytest.mark.parametrize(("stages", "dim"), [(1, 8), (2, 32), (3, 64), (None, 64)])
def test_every_stage_has_more_channels(stages: int | None, dim: int) -> None:
    assert ConvNet(1, 28, NetworkConfig(width=8, stages=stages)).dim == dim


@pytest.mark.parametrize(
    ("size", "dim"), [(5, 8), (7, 8), (10, 8), (11, 32), (14, 32), (22, 64), (24, 64), (28, 64)]
)
def test_the_border_that_is_left_out_costs_no_stage(size: int, dim: int) -> None:
    assert ConvNet(1, size, NetworkConfig(width=8)).dim == dim


@pytest.mark.parametrize("size", [1, 4])
def test_images_smaller_than_the_first_convolution_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"images of {size} pixels a side .* at least 5"):
        ConvNet(1, size, NetworkConfig(width=8))


@pytest.mark.parametrize(("size", "stages"), [(8, 1), (10, 1), (14, 2), (28, 3), (40, 3), (80, 4)])
def test_stages_end_at_about_seven_places(size: int, stages: int) -> None:
    assert fitting_stages(size) == stages


def test_images_are_normalised_once() -> None:
    """By hand, from bytes: divide by 255, take off the mean, divide by the spread, and no more."""
    encoder = trained(3).eval()
    images = noise(6, 3)
    x = images.double() / 255
    x = (x - encoder.mean.double()) / encoder.std.double()
    with torch.no_grad():
        expected = encoder.layers(x.float()).amax((2, 3))
    torch.testing.assert_close(represent(encoder, images), expected, rtol=1e-4, atol=1e-4)


def test_the_encoder_takes_mean_and_spread_of_each_channel() -> None:
    images = noise(50, 3)
    images[:, 1] //= 4
    encoder = ConvNet(3, 28, SMALL)
    encoder.normalise_to(images)
    x = images.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(encoder.mean.flatten().double(), x.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.std.flatten().double(), x.std(1), rtol=1e-4, atol=1e-5)
    seen: list[Tensor] = []
    encoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    represent(encoder, images)
    assert seen[0].mean((0, 2, 3)).abs().max() < 1e-3
    assert (seen[0].std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_images_of_one_colour_do_not_divide_by_zero() -> None:
    encoder = ConvNet(1, 28, SMALL)
    encoder.normalise_to(torch.full((4, 1, 28, 28), 7, dtype=torch.uint8))
    assert torch.isfinite(represent(encoder, noise(2))).all()


def test_mean_and_spread_travel_with_the_weights() -> None:
    encoder, other = trained(), ConvNet(1, 28, SMALL)
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(represent(encoder, noise(3)), represent(other, noise(3)))


def test_no_representation_depends_on_what_else_is_in_the_batch(few: ImageSet) -> None:
    encoder = trained()
    together = represent(encoder, few.images)
    for place in (0, 17, 39):
        alone = represent(encoder, few.images[place : place + 1])[0]
        torch.testing.assert_close(alone, together[place], rtol=1e-4, atol=1e-5)


def test_no_image_is_dropped_from_a_ragged_last_batch() -> None:
    images = noise(1).repeat(INFERENCE_BATCH + 1, 1, 1, 1)
    images[-1] = 255 - images[-1]
    h = represent(trained(), images)
    assert len(h) == INFERENCE_BATCH + 1
    torch.testing.assert_close(h[-2], h[0], rtol=1e-4, atol=1e-5)
    assert (h[-1] - h[0]).abs().max() > 1e-3


def test_an_ensemble_gives_the_mean_of_its_members_logits() -> None:
    encoders = [trained(), ConvNet(1, 28, SMALL), ConvNet(1, 28, SMALL)]
    heads = [classifier_head(encoder.dim, 4) for encoder in encoders]
    images = noise(5)
    each = torch.stack(
        [classify(encoder, head, images) for encoder, head in zip(encoders, heads, strict=True)]
    )
    encoder, head = joined(encoders, heads)
    torch.testing.assert_close(classify(encoder, head, images), each.mean(0))
    assert represent(encoder, images).shape == (5, encoder.dim) == (5, 3 * encoders[0].dim)
    assert multiply_adds(encoder, 28, 28) == 3 * multiply_adds(encoders[0], 28, 28)


def test_an_ensemble_of_one_is_that_one() -> None:
    encoder, head = trained(), classifier_head(64, 4)
    assert joined([encoder], [head]) == (encoder, head)


def test_cosines_are_those_of_the_dct_at_every_place() -> None:
    x = torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    found = Cosines(channels=3, kernel=5, padding=0)(x).unflatten(1, (3, 5, 5))
    patches = x.unfold(2, 5, 1).unfold(3, 5, 1)  # (2, 3, 5, 4, 5, 5)
    expected = dctn(patches.double().numpy(), type=2, norm="ortho", axes=(4, 5))
    torch.testing.assert_close(found.permute(0, 1, 4, 5, 2, 3), torch.tensor(expected).float())


@pytest.mark.parametrize("size", [28, 64])
def test_a_harmonic_encoder_begins_with_cosines_of_one_strength(size: int) -> None:
    config = NetworkConfig(width=4, columns=("harmonic",))
    encoder = ConvNet(1, size, config)
    first = next(layer for layer in encoder.layers if isinstance(layer[0], Cosines))
    x = torch.rand(16, 4 if size == 64 else 1, 28, 28)
    mixed = torch.stack([strength.std() for strength in first[:2](x).unbind(1)])
    torch.testing.assert_close(mixed, torch.ones_like(mixed), rtol=0, atol=0.01)
    assert multiply_adds(encoder, size, size) > multiply_adds(
        ConvNet(1, size, NetworkConfig(width=4)), size, size
    )
    assert not list(first[0].parameters())


def test_members_take_columns_in_turn() -> None:
    config = NetworkConfig(width=4, columns=("plain", "upright", "upright_harmonic"))
    members = [ConvNet(1, 28, config, number=number) for number in range(4)]
    assert [one.upright for one in members] == [False, True, True, False]
    harmonic = [isinstance(one.layers[0][0], Cosines) for one in members]
    assert harmonic == [False, False, True, False]


def test_an_upright_column_sees_no_slant(bundled: Dataset) -> None:
    """The change that a slant makes to h is a fraction of what it makes in the same plain one."""
    digits = to_float(bundled.train.images[:100])
    none = torch.zeros(len(digits))
    slanted = warp(
        digits, affine(none, torch.zeros(len(digits), 2), none + 0.3), torch.zeros(len(digits), 2)
    )
    plain = trained()
    upright = ConvNet(1, 28, NetworkConfig(width=8, columns=("upright",)))
    upright.load_state_dict(plain.state_dict())
    changes = []
    for encoder in (plain.eval(), upright.eval()):
        with torch.inference_mode():
            changes.append(float((encoder(slanted) - encoder(digits)).square().mean()))
    assert changes[1] < 0.2 * changes[0]


def test_no_images_give_no_rows() -> None:
    assert represent(trained(), noise(0)).shape == (0, trained().dim)


@pytest.mark.parametrize("training", [True, False])
def test_looking_changes_nothing(training: bool) -> None:
    encoder = trained().train(training)
    classifier = classifier_head(encoder.dim, 3)
    classifier.train(not training)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    logits = classify(encoder, classifier, noise(5))
    assert logits.shape == (5, 3)
    assert encoder.training is training
    assert classifier.training is not training
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_error_while_looking_leaves_the_mode_as_it_was() -> None:
    encoder = trained().train()

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        in_parts(broken, noise(2), encoder)
    assert encoder.training


def test_classify_is_the_head_on_the_representation() -> None:
    encoder = trained()
    classifier = classifier_head(encoder.dim, 3)
    with torch.no_grad():
        expected = classifier(represent(encoder, noise(5)))
    torch.testing.assert_close(classify(encoder, classifier, noise(5)), expected)


@pytest.mark.parametrize("layers", [2, 3])
def test_the_projection_head_has_simclrs_layers(layers: int) -> None:
    config = NetworkConfig(head_layers=layers, head_hidden=20, head_dim=5)
    head = ProjectionHead(32, config)
    linear = [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)]
    assert linear == [(32, 20), *[(20, 20)] * (layers - 2), (20, 5)]
    assert isinstance(head[-1], nn.Linear)  # neither norm nor ReLU after the last layer
    z = head(torch.randn(7, 32, generator=torch.Generator().manual_seed(0)))
    assert z.shape == (7, 5)
    assert z.min() < 0


def test_parameters_and_multiply_adds_by_hand() -> None:
    encoder = ConvNet(1, 28, NetworkConfig(width=8, stages=2))
    convolutions = [(25, 1, 8, 24), (9, 8, 32, 12), (9, 32, 32, 12)]
    assert multiply_adds(encoder, 28, 28) == sum(k * i * o * s * s for k, i, o, s in convolutions)
    assert parameters(encoder) == sum(k * i * o + 2 * o for k, i, o, _ in convolutions)
    assert encoder.training


def test_strides_make_large_images_affordable() -> None:
    small, large = (ConvNet(3, size, SMALL) for size in (32, 128))
    assert multiply_adds(large, 128, 128) < 6 * multiply_adds(small, 32, 32)


@pytest.mark.parametrize(("batch", "timed"), [(62.5, 62), (1, 2), (1000, 128)])
def test_a_step_is_timed_with_as_many_images_as_training_takes(batch: float, timed: int) -> None:
    seen: list[int] = []
    encoder = trained()
    encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    seconds_per_image(encoder, noise(3), batch)
    assert set(seen) == {timed}


@pytest.mark.parametrize("n", [1, 3])
def test_timing_a_step_leaves_everything_as_it_was(n: int) -> None:
    encoder = trained().eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    assert 0 < seconds_per_image(encoder, noise(n), 4) < 10
    assert torch.equal(torch.get_rng_state(), state)
    assert not encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_more_stages_than_an_image_has_halvings_are_refused() -> None:
    ConvNet(1, 28, NetworkConfig(width=4, stages=5))(noise(2))
    with pytest.raises(ValueError, match=r"network\.stages = 6 .* 28 pixels away: at most 5"):
        ConvNet(1, 28, NetworkConfig(width=4, stages=6))
