"""Views against scipy.ndimage, and what must hold of them whatever is drawn."""

from __future__ import annotations

import colorsys
import math
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy import ndimage
from torch import Tensor

from handful import views
from handful.config import ViewsConfig
from handful.geometry import affine, warp
from handful.images import ImageSet, to_float
from handful.recipes import MILD_DIGITS, PRESETS, RICH_DIGITS
from handful.views import dilate, expand, two_views, view

STILL = ViewsConfig(rotation=0, translation=0, scale=0, shear=0, keep_ink=False)
"""Changes nothing: for tests that switch on one thing."""
ALONE: dict[str, Any] = {
    "rotation": 20.0,
    "translation": 0.2,
    "scale": 0.3,
    "shear": 0.3,
    "elastic": 0.05,
    "stroke": 0.8,
    "blur": 0.9,
    "gamma": 0.5,
    "contrast": 0.5,
    "cutout": 0.4,
    "crop": 0.6,
}
presets = pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=f"{strength} {name}")
        for name, both in PRESETS.items()
        for strength, config in zip(("rich", "mild"), both, strict=True)
    ],
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, channels: int = 1, height: int = 12, width: int = 12, seed: int = 0) -> Tensor:
    """uint8 (n, channels, height, width) with something in every pixel."""
    shape = (n, channels, height, width)
    return torch.randint(1, 256, shape, generator=generator(seed), dtype=torch.uint8)


def only(**strengths: Any) -> ViewsConfig:
    return STILL.model_copy(update=strengths)


# --- one resampling, against scipy ---


@given(
    st.integers(1, 4),
    st.sampled_from([1, 3]),
    st.integers(8, 20),
    st.integers(8, 20),
    st.booleans(),
)
def test_a_view_of_no_strength_is_the_image(
    n: int, channels: int, height: int, width: int, keep_ink: bool
) -> None:
    images = noise(n, channels, height, width)
    images[..., [0, -1], :] = images[..., [0, -1]] = 0  # with a margin there is nothing to keep
    same = view(images, STILL.model_copy(update={"keep_ink": keep_ink}), generator())
    torch.testing.assert_close(same, to_float(images), rtol=0, atol=2e-5)
    assert torch.equal((same * 255).round().to(torch.uint8), images)


# --- strokes, blur, intensity ---


def erode(x: torch.Tensor) -> torch.Tensor:
    """As strokes are thinned: dilation of the negative."""
    return -dilate(-x)


@pytest.mark.parametrize("channels", [1, 3])
def test_thicker_and_thinner_strokes_are_scipys_morphology(channels: int) -> None:
    x = to_float(noise(3, channels, 10, 13))
    for ours, scipys in ((dilate, ndimage.grey_dilation), (erode, ndimage.grey_erosion)):
        expected = scipys(x.numpy(), size=(1, 1, 3, 3), mode="nearest")
        assert torch.equal(ours(x), torch.tensor(expected))


def test_some_strokes_become_thicker_and_some_thinner(few: ImageSet) -> None:
    x = to_float(few.images)
    seen = view(few.images, only(stroke=0.8), generator())
    tolerance = 1e-5
    assert (seen <= x.lerp(dilate(x), 0.8) + tolerance).all()
    assert (seen >= x.lerp(erode(x), 0.8) - tolerance).all()
    change = (seen - x).mean((1, 2, 3))
    assert (change > 0.01).any()
    assert (change < -0.01).any()


def test_a_blur_is_part_of_the_way_to_scipys(few: ImageSet) -> None:
    x = to_float(few.images)
    line = np.array([1, 2, 1]) / 4
    blurred = torch.tensor(
        ndimage.convolve(x.numpy(), np.outer(line, line)[None, None], mode="nearest")
    )
    seen = view(few.images, only(blur=0.6), generator())
    way = ((seen - x) * (blurred - x)).sum((1, 2, 3)) / (blurred - x).square().sum((1, 2, 3))
    assert way.min() >= 0
    assert 0.4 < way.max() <= 0.6 + 1e-4
    torch.testing.assert_close(seen, x.lerp(blurred, way.view(-1, 1, 1, 1)), rtol=0, atol=1e-4)


def test_gamma_keeps_black_white_and_the_order_between() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(6, 1, 1, 1)
    seen = view(images, only(gamma=0.7), generator()).view(6, 256)
    assert (seen.diff() > -1e-6).all()
    torch.testing.assert_close(seen[:, 0], torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[:, -1], torch.ones(6), rtol=0, atol=1e-5)
    exponent = seen[:, 128].log() / math.log(128 / 255)
    assert (exponent.log().abs() <= 0.7 + 1e-3).all()
    assert exponent.std() > 0.1


def test_contrast_moves_the_mean_no_further_than_asked() -> None:
    images = noise(40, 3) // 4 + 90  # grey enough that nothing is cut off
    seen = view(images, only(contrast=0.3), generator())
    x = to_float(images)
    moved = seen.mean((1, 2, 3)) - x.mean((1, 2, 3))
    gain = seen.std((1, 2, 3)) / x.std((1, 2, 3))
    assert moved.abs().max() <= 0.15 + 1e-4
    assert moved.std() > 0.03
    assert gain.min() >= 0.7 - 1e-3
    assert gain.max() <= 1.3 + 1e-3
    assert gain.std() > 0.05


def test_a_hole_has_the_mean_colour_of_an_image_that_is_not_ink_on_black() -> None:
    images = torch.zeros((30, 3, 20, 20), dtype=torch.uint8)
    images[:, 0], images[:, 1, :10], images[:, 2] = 204, 102, 51
    seen = view(images, only(cutout=0.4, keep_ink=False), generator())
    changed = (seen[:, 1] - to_float(images)[:, 1]).abs() > 1e-3
    assert changed.sum((1, 2)).max() == 64
    mean = torch.tensor([0.8, 0.2, 0.2])
    torch.testing.assert_close(
        seen.movedim(1, -1)[changed], mean.expand(int(changed.sum()), 3), rtol=0, atol=1e-5
    )


def test_cutout_blanks_one_square_of_the_size_asked_for() -> None:
    images = torch.full((50, 3, 20, 20), 255, dtype=torch.uint8)
    config = only(cutout=0.4, keep_ink=True)
    blank = views._cutout(to_float(images), config, generator()) < 0.5
    assert (blank == blank[:, :1]).all()  # all channels alike
    places = set()
    for hole in blank[:, 0]:
        rows, columns = hole.any(1).nonzero()[:, 0], hole.any(0).nonzero()[:, 0]
        assert hole.sum() == len(rows) * len(columns)
        assert rows.tolist() == list(range(int(rows[0]), int(rows[-1]) + 1))
        assert max(len(rows), len(columns)) <= 0.4 * 20
        places.add((int(rows[0]), int(columns[0])))
    sizes = blank[:, 0].sum((1, 2))
    assert sizes.max() == 64
    assert len(places) > 25


def test_flips_mirror_about_half_of_the_images() -> None:
    images = noise(200)
    seen = (view(images, only(flip=True), generator()) * 255).round().to(torch.uint8)
    same = (seen == images).flatten(1).all(1)
    mirrored = (seen == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 60 < mirrored.sum() < 140


def test_symmetries_are_all_eight_and_each_as_likely() -> None:
    images = noise(1).repeat(800, 1, 1, 1)
    seen = (view(images, only(symmetries=True), generator()) * 255).round().to(torch.uint8)
    turned = [images[0].rot90(k, (1, 2)) for k in range(4)]
    counts = [
        int((seen == one).flatten(1).all(1).sum())
        for one in [*turned, *(one.flip(2) for one in turned)]
    ]
    assert sum(counts) == 800
    assert all(60 < count < 140 for count in counts)


def test_what_is_no_square_keeps_its_shape_under_symmetries() -> None:
    images = noise(100, height=8, width=12)
    seen = (view(images, only(symmetries=True), generator()) * 255).round().to(torch.uint8)
    ways = [images, images.flip(3), images.flip(2), images.flip(2, 3)]
    assert all((seen == way).flatten(1).all(1).sum() > 10 for way in ways)


def test_a_crop_is_a_part_of_the_image_that_fills_the_frame() -> None:
    ramp = torch.arange(64.0).view(1, 1, 1, 64).repeat(1, 1, 64, 1) * 4  # brightness is the place
    images = ramp.to(torch.uint8).repeat(500, 1, 1, 1)
    seen = view(images, only(crop=0.8), generator()) * 255 / 4
    left, right = seen[:, 0, 0, 0], seen[:, 0, 0, -1]
    assert left.min() >= -0.5
    assert right.max() <= 63.5
    width = (right - left) / 63
    torch.testing.assert_close(seen[:, 0, 0], seen[:, 0, -1], rtol=0, atol=1e-3)
    assert width.min() >= math.sqrt(0.2 * 3 / 4) - 0.03
    assert width.max() <= 1 + 1e-3
    assert 0.6 < width.mean() < 0.9
    middle = (left + right) / 2
    assert middle.std() > 3
    straight = seen[:, 0, 0].diff(dim=1)
    torch.testing.assert_close(straight[:, 5:-5].std(1), torch.zeros(500), rtol=0, atol=0.05)


def test_the_area_of_a_crop_is_as_asked() -> None:
    _, matrix, shift, *_ = warped_with(noise(4000), only(crop=0.8))
    size = 1 / torch.diagonal(matrix, dim1=1, dim2=2)
    area, aspect = size.prod(1), size[:, 0] / size[:, 1]
    assert area.min() >= 0.2 - 1e-5
    assert aspect.log().abs().max() <= math.log(4 / 3) + 1e-4
    whole = (size < 1).all(1)  # where none is wider or higher than the frame
    torch.testing.assert_close(area[whole].amin(), torch.tensor(0.2), rtol=0, atol=0.01)
    # each cut lies in the frame: its corners, moved, are the frame's
    corner = (1 - shift) * size  # of the image, what lands at the frame's corner
    other = (-1 - shift) * size
    assert corner.max() <= 1 + 1e-4
    assert other.min() >= -1 - 1e-4


@pytest.mark.parametrize("crop", [0.05, 0.3, 0.8])
def test_no_more_is_cut_away_than_asked(crop: float) -> None:
    _, matrix, *_ = warped_with(noise(4000), only(crop=crop))
    size = 1 / torch.diagonal(matrix, dim1=1, dim2=2)
    assert size.prod(1).min() >= 1 - crop - 1e-5
    assert size.prod(1).min() < 1 - 0.95 * crop
    assert size.max() <= 1 + 1e-5


def test_hue_turns_colours_as_colorsys_does() -> None:
    image = (noise(1, 3) // 3 + 80).repeat(30, 1, 1, 1)  # no colour is cut off
    seen = view(image, only(hue=0.5), generator())
    before = np.array([colorsys.rgb_to_yiq(*c) for c in to_float(image[0]).flatten(1).T.tolist()])
    for one in seen[:5]:
        after = np.array([colorsys.rgb_to_yiq(*colour) for colour in one.flatten(1).T.tolist()])
        np.testing.assert_allclose(after[:, 0], before[:, 0], atol=2e-2)
        plain, other = (colours[:, 1] + 1j * colours[:, 2] for colours in (before, after))
        turned = np.exp(1j * (np.angle(other) - np.angle(plain)))
        strong = np.abs(plain) > 0.1
        assert abs(turned[strong].mean()) > 0.99  # all by the same angle
    assert (seen - seen[:1]).abs().amax((1, 2, 3)).median() > 0.1


def test_saturation_is_pillows() -> None:
    image = noise(1, 3) // 3 + 80
    seen = view(image.repeat(40, 1, 1, 1), only(saturation=0.9), generator())
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    grey = to_float(torch.from_numpy(np.array(picture.convert("L"))))
    colour = to_float(image[0]) - grey
    for one in seen:
        factor = float(((one - grey) * colour).sum() / colour.square().sum())
        assert 0.1 - 1e-2 <= factor <= 1.9 + 1e-2
        expected = np.array(ImageEnhance.Color(picture).enhance(factor)).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(one.numpy(), expected, atol=0.02)


def test_a_share_of_the_views_has_no_colour() -> None:
    seen = view(noise(300, 3), only(grey=0.25), generator())
    colourless = (seen.amax(1) - seen.amin(1)).flatten(1).amax(1) < 5e-3
    assert 50 < colourless.sum() < 100
    grey = noise(5)
    assert torch.equal(view(grey, only(grey=1.0), generator()), view(grey, STILL, generator()))


# --- parameters per image and per view, from the generator alone ---


@pytest.mark.parametrize("name", ALONE)
def test_every_image_has_its_own_parameters(name: str, few: ImageSet) -> None:
    images = few.images[:1].repeat(12, 1, 1, 1)
    seen = view(images, only(**{name: ALONE[name]}), generator())
    distance = torch.cdist(seen.flatten(1), seen.flatten(1))
    distance.fill_diagonal_(math.inf)
    different = (distance > 1e-3).float().mean()
    assert different > (0.5 if name == "cutout" else 0.99)  # a hole may lie where all is black


@presets
def test_two_views_of_one_image_differ(config: ViewsConfig, few: ImageSet) -> None:
    x_a, x_b = two_views(few.images, config, generator())
    assert x_a.shape == x_b.shape == few.images.shape
    assert ((x_a - x_b).abs().amax((1, 2, 3)) > 0.05).all()


def test_two_views_are_views_of_the_same_image() -> None:
    """Row by row: an image of one brightness keeps it, whatever its shape becomes."""
    images = torch.arange(20, 220, 10, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 16, 16)
    x_a, x_b = two_views(images, MILD_DIGITS, generator())
    for x in (x_a, x_b):
        torch.testing.assert_close(x.amax((1, 2, 3)), to_float(images)[:, 0, 0, 0])


@presets
def test_a_generator_gives_the_same_views_again(config: ViewsConfig, few: ImageSet) -> None:
    first = two_views(few.images, config, generator(1))
    again = two_views(few.images, config, generator(1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    other = two_views(few.images, config, generator(2))
    assert not torch.equal(first[0], other[0])


def test_a_generator_goes_on(few: ImageSet) -> None:
    """No epoch sees the views of the one before."""
    rng = generator()
    first = view(few.images, RICH_DIGITS, rng)
    assert not torch.equal(first, view(few.images, RICH_DIGITS, rng))


@presets
def test_views_leave_images_and_global_randomness_alone(config: ViewsConfig, few: ImageSet) -> None:
    state, before = torch.get_rng_state(), few.images.clone()
    two_views(few.images, config, generator())
    expand(few, 2, generator())
    views.test_views(to_float(few.images), 3, mirrored=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(few.images, before)


@presets
@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (2, 3, 16, 24), (3, 1, 9, 9)])
def test_views_are_floats_from_zero_to_one_of_the_same_shape(
    config: ViewsConfig, shape: tuple[int, int, int, int]
) -> None:
    seen = view(noise(*shape), config, generator())
    assert seen.shape == shape
    assert seen.dtype == torch.float32
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert torch.isfinite(seen).all()


@presets
def test_blank_images_stay_finite(config: ViewsConfig) -> None:
    blank = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    seen = view(blank, config, generator())
    assert torch.isfinite(seen).all()
    if config.contrast == 0:
        assert seen.abs().max() == 0


def warped_with(images: Tensor, config: ViewsConfig, seed: int = 0) -> tuple[Any, ...]:
    """What `view` asks of `warp`: x, matrix, shift, field, padding."""
    with mock.patch.object(views, "warp", wraps=warp) as spy:
        view(images, config, generator(seed))
    spy.assert_called_once()  # all geometry is one resampling
    return tuple(spy.call_args.args)


def test_geometry_stays_within_what_the_configuration_allows() -> None:
    config = ViewsConfig(
        rotation=30, translation=0.2, scale=0.4, shear=0.3, elastic=0.04, keep_ink=False
    )
    _, matrix, shift, field, padding = warped_with(noise(2000), config)
    assert padding == "reflection"
    turn = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])
    assert math.radians(29) < turn.abs().max() <= math.radians(30) + 1e-5
    upright = affine(-turn, torch.zeros(2000, 2), torch.zeros(2000)) @ matrix
    for axis in (0, 1):
        assert 0.38 < upright[:, axis, axis].log().abs().max() <= 0.4 + 1e-4
    assert 0.28 < (upright[:, 0, 1] / upright[:, 1, 1]).abs().max() <= 0.3 + 1e-4
    assert 0.38 < shift.abs().max() <= 0.4  # of half a side
    for values in (turn, upright[:, 0, 0].log(), shift[:, 0], shift[:, 1]):
        assert abs(float(values.mean())) < 0.1 * float(values.abs().max())
    # everywhere alike: the frame is two units wide
    assert field.std(0).amin() > 0.9 * 0.08
    assert field.std(0).amax() < 1.1 * 0.08


def test_an_elastic_field_is_smooth() -> None:
    _, _, _, field, _ = warped_with(noise(50, 1, 28, 28), only(elastic=0.05, elastic_cells=5))
    for axis in (1, 2):
        assert field.diff(dim=axis).abs().max() < 0.5 * field.abs().max()


# --- ink ---


@st.composite
def drawings(draw: st.DrawFn) -> Tensor:
    """uint8 (6, 1, 28, 28): light strokes on black, some of them up to the edge."""
    images = torch.zeros(6, 1, 28, 28, dtype=torch.uint8)
    place = st.integers(0, 27)
    for image in images:
        for _ in range(draw(st.integers(0, 3))):
            top, left = draw(place), draw(place)
            height, width = draw(st.integers(1, 28)), draw(st.integers(1, 28))
            image[0, top : top + height, left : left + width] = draw(st.integers(1, 255))
    return images


strong_views = st.builds(
    ViewsConfig,
    rotation=st.floats(0, 45),
    translation=st.floats(0, 0.9),
    scale=st.floats(0, 0.4),
    shear=st.floats(0, 0.4),
    elastic=st.sampled_from([0.0, 0.02, 0.06]),
)


def ink_beyond(images: Tensor, config: ViewsConfig, seed: int) -> Tensor:
    """Share of each image's ink that its view carries over the frame.

    The same warp on a canvas twice as wide shows what left the frame; its middle is the view.
    """
    x, matrix, shift, field, padding = warped_with(images, config, seed)
    assert padding == "zeros"
    inside = warp(x, matrix, shift, field)
    if field is not None:
        outward = F.pad(field.permute(0, 3, 1, 2), (14, 14, 14, 14), mode="replicate")
        field = outward.permute(0, 2, 3, 1) / 2
    wide = warp(F.pad(x, (14, 14, 14, 14)), matrix, shift / 2, field)
    torch.testing.assert_close(wide[..., 14:-14, 14:-14], inside, rtol=0, atol=1e-3)
    everything = wide.sum((1, 2, 3))
    return (everything - inside.sum((1, 2, 3))) / everything.clamp(min=1)


@given(drawings(), st.sampled_from([MILD_DIGITS, RICH_DIGITS, views.EXPANSION]), st.integers(0, 99))
def test_ink_stays_inside_the_frame(images: Tensor, config: ViewsConfig, seed: int) -> None:
    assert ink_beyond(images, config, seed).abs().max() < 1e-3


@settings(max_examples=50)
@given(drawings(), strong_views, st.integers(0, 99))
def test_ink_stays_inside_the_frame_however_strong_the_views(
    images: Tensor, config: ViewsConfig, seed: int
) -> None:
    assert ink_beyond(images, config, seed).abs().max() < 0.02


def test_ink_leaves_the_frame_where_nobody_keeps_it(few: ImageSet) -> None:
    """That the measure above can fail."""
    config = ViewsConfig(translation=0.4)
    x = to_float(few.images)
    with mock.patch.object(views, "_inside_frame", lambda x, matrix, shift, field: (matrix, shift)):
        assert ink_beyond(few.images, config, 0).max() > 0.1
    assert ink_beyond(few.images, config, 0).max() < 1e-3
    assert x.sum() > 0


def test_keeping_ink_costs_a_small_drawing_no_freedom() -> None:
    dot = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    dot[..., 13:15, 13:15] = 255
    kept = warped_with(dot, RICH_DIGITS)
    free = warped_with(dot, RICH_DIGITS.model_copy(update={"keep_ink": False}))
    torch.testing.assert_close(kept[1], free[1])
    torch.testing.assert_close(kept[2], free[2])


# --- the expansion ---


@pytest.fixture(scope="module")
def expanded(bundled: Any) -> ImageSet:
    paths = tuple(f"{i}.png" for i in range(500))
    return expand(replace(bundled.train, paths=paths), 10, generator())


def test_five_hundred_images_become_five_thousand_five_hundred(
    bundled: Any, expanded: ImageSet
) -> None:
    original = bundled.train
    assert len(expanded) == 5500
    groups = expanded.images.view(500, 11, 1, 28, 28)
    assert torch.equal(groups[:, 0], original.images)
    for of_copies, of_originals in (
        (expanded.labels, original.labels),
        (expanded.sources, original.sources),
    ):
        assert torch.equal(of_copies, of_originals.repeat_interleave(11))
    assert expanded.paths[:12] == ("0.png",) * 11 + ("1.png",)


def test_every_copy_is_another_with_the_ink_of_its_original(expanded: ImageSet) -> None:
    groups = to_float(expanded.images).view(500, 11, -1)
    assert len(torch.unique(groups[:50].flatten(0, 1), dim=0)) == 550
    mass = groups.sum(2)
    assert ((mass[:, 1:] / mass[:, :1] - 1).abs() < 0.2).all()


def test_a_copy_follows_its_own_original() -> None:
    """Images of one brightness each keep it, whatever their shape becomes."""
    brightness = torch.arange(20, 220, 10, dtype=torch.uint8)
    images = ImageSet.of(brightness.view(-1, 1, 1, 1).repeat(1, 3, 16, 16))
    copies = expand(images, 4, generator())
    assert torch.equal(copies.images.amax((1, 2, 3)), brightness.repeat_interleave(5))


def test_copies_follow_the_generator(few: ImageSet) -> None:
    first, again = expand(few, 2, generator(1)), expand(few, 2, generator(1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, expand(few, 2, generator(2)).images)


def test_no_copies_are_no_change(few: ImageSet) -> None:
    assert expand(few, 0, generator()) is few


# --- views at prediction ---


def test_the_first_test_view_is_the_image_itself(few: ImageSet) -> None:
    x = to_float(few.images)
    assert torch.equal(views.test_views(x, 1, mirrored=False), x[None])
    seen = views.test_views(x, 5, mirrored=False)
    assert seen.shape == (5, *x.shape)
    assert torch.equal(seen[0], x)


def test_test_views_are_mild_and_all_different(few: ImageSet) -> None:
    seen = views.test_views(to_float(few.images), 6, mirrored=False)
    for i in range(6):
        for j in range(i):
            assert (seen[i] - seen[j]).abs().amax((1, 2, 3)).min() > 0.05
    mass = seen.sum((2, 3, 4))
    assert ((mass / mass[0] - 1).abs() < 0.25).all()


@given(st.integers(0, 39), st.integers(1, 6))
def test_an_images_test_views_do_not_depend_on_its_neighbours(
    few: ImageSet, place: int, count: int
) -> None:
    x = to_float(few.images)
    alone = views.test_views(x[place : place + 1], count, mirrored=False)[:, 0]
    torch.testing.assert_close(
        views.test_views(x, count, mirrored=False)[:, place], alone, rtol=0, atol=1e-6
    )


def test_test_views_never_change(few: ImageSet) -> None:
    x = to_float(few.images)
    assert torch.equal(
        views.test_views(x, 4, mirrored=False), views.test_views(x, 4, mirrored=False)
    )
    assert torch.equal(
        views.test_views(x, 4, mirrored=False), views.test_views(x, 8, mirrored=False)[:4]
    )


@given(st.integers(0, 2**32 - 1))
def test_no_view_is_below_black(few: ImageSet, seed: int) -> None:
    """Gamma would make a power of a negative number of it, which is not a number."""
    strongest = RICH_DIGITS.model_copy(update={"stroke": 1.0, "blur": 1.0, "gamma": 0.0})
    assert view(few.images, strongest, generator(seed)).min() >= 0


def test_copies_are_made_some_sources_at_a_time(few: ImageSet) -> None:
    calls: list[int] = []

    def spy(images: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(len(images))
        return view(images, *rest)

    with mock.patch.object(views, "SOURCES_AT_ONCE", 16), mock.patch.object(views, "view", spy):
        copies = expand(few, 2, generator())
    assert calls == [32, 32, 16]
    assert torch.equal(copies.images[::3], few.images)
    assert torch.equal(copies.sources, few.sources.repeat_interleave(3))


@pytest.mark.parametrize("shape", [(5, 1, 1, 1), (5, 1, 2, 2), (5, 3, 2, 7), (5, 1, 9, 1)])
def test_the_smallest_images_have_views(shape: tuple[int, ...]) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator())
    for config, _ in PRESETS.values():
        seen = view(images, config, generator())
        assert seen.shape == shape
        assert torch.isfinite(seen).all()


@presets
def test_a_gpu_sees_the_same_views(config: ViewsConfig, gpu: torch.device) -> None:
    images = noise(16, 3)
    here, there = generator(), generator()
    expected, found = view(images, config, here), view(images.to(gpu), config, there)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=0)
    assert torch.equal(here.get_state(), there.get_state())


@pytest.mark.parametrize("mirrored", [False, True])
def test_test_views_find_beyond_the_frame_what_training_found_there(mirrored: bool) -> None:
    seen = views.test_views(torch.ones(2, 3, 16, 16), 4, mirrored=mirrored)
    assert torch.allclose(seen, torch.ones(())) == mirrored
