from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from handful import pictures
from handful.pictures import (
    Preparation,
    is_grey,
    is_prepared_digit,
    legible,
    open_image,
    to_pixels,
)

DIGITS = Preparation("digits", 28, 1)
GREY = Preparation("letterbox", 32, 1)
COLOUR = Preparation("letterbox", 32, 3)

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def digits() -> Iterator[Pixels]:
    """Forty test digits, uint8 (40, 28, 28)."""
    path = resources.files("handful") / "data" / "mnist50.npz"
    with resources.as_file(path) as file, np.load(file) as stored:
        yield stored["test_images"][:40]


def photograph(
    digit: Pixels, *, dark: bool = True, side: int = 280, scale: int = 6, seed: int = 0
) -> Pixels:
    """A digit on paper under light from one side, somewhere in the picture: uint8 (side, side)."""
    rng = np.random.default_rng(seed)
    large = Image.fromarray(digit).resize((28 * scale,) * 2, Image.Resampling.BICUBIC)
    ink = np.zeros((side, side))
    top, left = rng.integers(0, side - 28 * scale + 1, 2)
    ink[top : top + 28 * scale, left : left + 28 * scale] = np.asarray(large) / 255
    y, x = np.mgrid[0:side, 0:side] / side
    light = 140 + 90 * x + 20 * y if dark else 30 + 40 * x
    grey = light * (1 - 0.75 * ink) if dark else light + 160 * ink
    return np.clip(grey + rng.normal(0, 4, grey.shape), 0, 255).astype(np.uint8)


def likeness(found: Pixels, expected: Pixels) -> float:
    """The best correlation of two digits within one pixel's shift.

    A centre of mass near the edge between two pixels may be rounded to either.
    """
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    moved = [np.roll(found, shift, (0, 1)).ravel() for shift in shifts]
    return max(float(np.corrcoef(pixels, expected.ravel())[0, 1]) for pixels in moved)


def assert_same_digits(found: Pixels, expected: Pixels) -> None:
    assert min(likeness(a, b) for a, b in zip(found, expected, strict=True)) > 0.85


def prepared(pictures: list[Pixels]) -> Pixels:
    return np.stack([to_pixels(Image.fromarray(pixels), DIGITS)[0] for pixels in pictures])


def test_a_digit_written_to_png_comes_back_unchanged(digits: Pixels, tmp_path: Path) -> None:
    for i, digit in enumerate(digits):
        Image.fromarray(digit).save(tmp_path / f"{i}.png")
        np.testing.assert_array_equal(
            to_pixels(open_image(tmp_path / f"{i}.png"), DIGITS)[0], digit
        )


def test_dark_on_light_scans_become_light_on_dark(digits: Pixels) -> None:
    assert_same_digits(prepared([255 - digit for digit in digits]), digits)


@pytest.mark.parametrize("dark", [True, False])
def test_photographs_under_uneven_light(digits: Pixels, dark: bool) -> None:
    photographs = [photograph(x, dark=dark, seed=i) for i, x in enumerate(digits)]
    found = prepared(photographs)
    assert_same_digits(found, digits)
    assert (found == 0).mean() > 0.6  # the paper is gone, not merely darker


def test_a_small_digit_in_a_large_photograph(digits: Pixels) -> None:
    photographs = [photograph(x, side=700, scale=4, seed=i) for i, x in enumerate(digits[:10])]
    assert_same_digits(prepared(photographs), digits[:10])


def test_dust_does_not_move_the_digit(digits: Pixels) -> None:
    dusty = photograph(digits[0])
    dusty[4:7, 270:273] = 20
    clean = photograph(digits[0])
    found = prepared([dusty, clean])
    np.testing.assert_allclose(found[0], found[1], atol=8)


def test_digits_are_placed_as_mnist_places_them(digits: Pixels) -> None:
    for digit in prepared([photograph(x, seed=i) for i, x in enumerate(digits)]):
        rows, columns = np.flatnonzero(digit.any(1)), np.flatnonzero(digit.any(0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
        mass = digit.astype(float)
        centre = [float((mass.sum(axis) @ np.arange(28)) / mass.sum()) for axis in (1, 0)]
        assert centre == pytest.approx([14, 14], abs=0.75)


def test_other_sizes_are_in_proportion(digits: Pixels) -> None:
    found = to_pixels(Image.fromarray(photograph(digits[0])), Preparation("digits", 56, 1))
    assert found.shape == (1, 56, 56)
    assert max(np.ptp(np.flatnonzero(found[0].any(axis))) + 1 for axis in (0, 1)) == 40


@pytest.mark.parametrize("level", [0, 1, 127, 255])
def test_blank_pictures_become_black(level: int) -> None:
    assert not to_pixels(Image.new("L", (100, 60), level), DIGITS).any()


def test_noise_on_blank_paper_is_no_ink() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:1:200j, 0:1:200j]
    paper = np.clip(120 + 80 * x + 30 * y + rng.normal(0, 6, x.shape), 0, 255).astype(np.uint8)
    assert not to_pixels(Image.fromarray(paper), DIGITS).any()


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)),
    st.sampled_from([DIGITS, GREY, COLOUR]),
)
def test_any_picture_gives_pixels_of_the_right_shape(
    pixels: Pixels, preparation: Preparation
) -> None:
    found = to_pixels(Image.fromarray(pixels), preparation)
    assert found.shape == (preparation.channels, preparation.size, preparation.size)
    assert found.dtype == np.uint8
    assert found.flags.writeable


# ── modes ───────────────────────────────────────────────────────────────────────────────────────


def test_every_mode_shows_the_same_digit(digits: Pixels, tmp_path: Path) -> None:
    grey = Image.fromarray(photograph(digits[0]))
    rgb = Image.merge("RGB", [grey] * 3)
    clear = Image.merge("LA", [Image.new("L", grey.size, 0), grey.point(lambda v: 255 - v)])
    files = {
        "grey.png": grey,
        "rgb.png": rgb,
        "photo.jpg": rgb,
        "palette.gif": grey.convert("P"),
        "cmyk.tif": rgb.convert("CMYK"),
        "alpha.png": clear,
        "wide.png": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "float.tif": Image.fromarray(np.asarray(grey).astype(np.float32) / 255),
        "photo.webp": rgb,
        "photo.bmp": rgb,
    }
    for name, image in files.items():
        image.save(tmp_path / name)
        found = to_pixels(open_image(tmp_path / name), DIGITS)[0]
        assert likeness(found, digits[0]) > 0.85, name


def test_transparency_is_white() -> None:
    image = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 10, 5))
    pixels = to_pixels(image, Preparation("letterbox", 10, 3))
    assert pixels[:, :5].max() == 0
    assert pixels[:, 5:].min() == 255


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 32768], [65535, 257]], np.uint16), [[0, 128], [255, 1]]),
        (np.array([[0, 65535], [65535, 0]], np.int32), [[0, 255], [255, 0]]),
        (np.array([[0, 200], [255, 1]], np.int32), [[0, 200], [255, 1]]),
        (np.array([[0, 0.5], [1, 0.25]], np.float32), [[0, 128], [255, 64]]),
        (np.array([[0, 200], [255, 1]], np.float32), [[0, 200], [255, 1]]),
        (np.array([[-1e-7, 0.5], [1.0000002, 0.25]], np.float32), [[0, 128], [255, 64]]),
        (np.array([[-1, 0], [1, np.nan]], np.float32), [[0, 128], [255, 128]]),
    ],
)
def test_wide_greys_are_scaled(values: NDArray[np.generic], expected: list[list[int]]) -> None:
    pixels = to_pixels(Image.fromarray(values), Preparation("letterbox", 2, 1))
    assert pixels[0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "mode", "white"),
    [
        ([0, 90], np.uint16, 255),
        ([0, 4000], np.uint16, 4095),
        ([0, 9000], np.uint16, 16383),
        ([0, 40_000], np.uint16, 65535),
        ([0, 90], np.uint8, None),
        ([0, 4000], np.int32, None),
        ([0, 0.8], np.float32, None),
    ],
)
def test_white_is_the_lowest_level_that_greys_of_16_bits_keep_to(
    values: list[float], mode: type[np.generic], white: int | None
) -> None:
    assert pictures.white_of(Image.fromarray(np.array([values], mode))) == white


@pytest.mark.parametrize(
    ("values", "mode", "most"),
    [
        ([0, 400], np.uint16, 25),  # dim beside those that trained
        ([0, 60_000], np.uint16, 255),
        # these say themselves what is white, as far as that can be told
        ([0, 90], np.uint8, 90),
        ([0, 0.5], np.float32, 128),
        ([0, 32_768], np.int32, 128),
    ],
)
def test_white_of_those_that_trained_holds_for_16_bits(
    values: list[float], mode: type[np.generic], most: int
) -> None:
    preparation = Preparation("letterbox", 2, 1, white=4095)
    assert to_pixels(Image.fromarray(np.array([values], mode)), preparation).max() == most


def test_white_travels_with_the_preparation() -> None:
    for white in (None, 4095):
        preparation = Preparation("letterbox", 2, 1, white)
        assert Preparation.from_dict(preparation.as_dict()) == preparation
    old = {"kind": "crop", "size": 8, "channels": 3}  # of models before it was kept
    assert Preparation.from_dict(old).white is None
    for white in (0, -5, 1000, float("nan"), "4095"):
        with pytest.raises(ValueError, match="white at"):
            Preparation.from_dict(old | {"white": white})


@pytest.mark.parametrize("preparation", [GREY, COLOUR])
def test_letterbox_keeps_the_whole_picture(preparation: Preparation) -> None:
    wide = np.full((20, 80, 3), (10, 200, 30), np.uint8)
    wide[5:15, 20:60] = (250, 20, 90)
    pixels = to_pixels(Image.fromarray(wide), preparation)
    band = pixels[:, 12:20]
    assert (pixels[:, :12] == pixels[:, :1, :1]).all()  # padding in the border's colour
    assert (band[:, 0, 0] == pixels[:, 0, 0]).all()
    assert (band[:, 4, 16] != pixels[:, 0, 0]).any()
    if preparation.channels == 3:
        assert pixels[:, 0, 0].tolist() == [10, 200, 30]


@pytest.mark.parametrize("size", [(96, 32), (32, 96), (32, 32)])
def test_crop_takes_the_square_in_the_middle(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    top, left = ((side - 32) // 2 for side in size)
    found = to_pixels(Image.fromarray(noise), Preparation("crop", 32, 3))
    middle = noise[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(found, middle.transpose(2, 0, 1))
    halved = to_pixels(Image.fromarray(noise), Preparation("crop", 16, 3))
    expected = to_pixels(Image.fromarray(middle), Preparation("letterbox", 16, 3))
    np.testing.assert_array_equal(halved, expected)


def test_letterbox_of_the_right_size_changes_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    found = to_pixels(Image.fromarray(pixels), COLOUR)
    np.testing.assert_array_equal(found, pixels.transpose(2, 0, 1))


def test_shrinking_is_antialiased() -> None:
    lines = np.zeros((320, 320), np.uint8)
    lines[::2] = 255
    inner = to_pixels(Image.fromarray(lines), GREY)[0, 4:-4, 4:-4]
    assert 120 <= inner.min() <= inner.max() <= 135


def test_is_grey_looks_at_colour_not_mode(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8))
    Image.merge("RGB", [grey] * 3).save(tmp_path / "grey.jpg")
    assert is_grey(open_image(tmp_path / "grey.jpg"))
    assert not is_grey(Image.new("RGB", (200, 200), (200, 30, 30)))


def test_is_prepared_digit(digits: Pixels) -> None:
    assert all(map(is_prepared_digit, digits))
    assert not is_prepared_digit(255 - digits[0])
    assert not is_prepared_digit(np.zeros((28, 28), np.uint8))


@settings(max_examples=300, deadline=None)
@given(
    arrays.arrays(
        np.uint8,
        arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6),
        elements=st.sampled_from([0, 0, 0, 1, 127, 128, 255]),
    )
)
def test_a_prepared_digit_has_a_black_border_and_is_half_black(pixels: Pixels) -> None:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    black = np.median(border) == 0 and (pixels == 0).mean() >= 0.5
    assert is_prepared_digit(pixels) == (black and pixels.max() >= 128)


def test_what_is_given_is_left_alone(digits: Pixels) -> None:
    for image in (Image.fromarray(digits[0]), Image.fromarray(photograph(digits[0]))):
        before = np.array(image)
        for preparation in (DIGITS, GREY, COLOUR):
            to_pixels(image, preparation)[:] = 7
        np.testing.assert_array_equal(np.asarray(image), before)


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def test_exif_orientation_is_applied(digits: Pixels, tmp_path: Path) -> None:
    upright = Image.fromarray(photograph(digits[0]))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    upright.rotate(90, expand=True).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    found = np.asarray(open_image(tmp_path / "phone.jpg"), int)
    assert np.abs(found - np.asarray(upright, int)).mean() < 3


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), level) for level in (0, 255)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert not np.asarray(open_image(tmp_path / "two.gif").convert("L")).any()


def test_unreadable_files_are_named_in_one_line(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.png").read_bytes()
    bad = {
        "empty.png": (b"", "empty"),
        "text.jpg": (b"hello", "not a picture"),
        "cut.png": (whole[:5000], "damaged"),
        "cut.jpg": ((tmp_path / "whole.jpg").read_bytes()[:900], "damaged"),
        "garbled.png": (whole[:60] + bytes(200) + whole[260:], "damaged"),
    }
    for name, (content, message) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            open_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"absent\.png: no such file"):
        open_image(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="cannot read"):
        open_image(tmp_path)


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 9_999)
    with pytest.raises(ValueError, match=r"bomb\.png: 100 × 100 pixels are more than the 9,999"):
        open_image(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png: more than the 9,999 pixels"):
        open_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (3, 4000)])
def test_a_line_is_a_picture(size: tuple[int, int]) -> None:
    for preparation in (DIGITS, GREY, COLOUR):
        pixels = to_pixels(Image.new("RGB", size, "red"), preparation)
        assert pixels.shape == (preparation.channels, preparation.size, preparation.size)


def test_no_other_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)
    Image.new("L", (8, 8)).save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "page.png")
    with pytest.raises(ValueError, match=r"page\.png: not a picture in a known format"):
        open_image(tmp_path / "page.png")


def test_names_that_are_no_text_become_text() -> None:
    assert legible("Grüße") == "Grüße"
    assert legible("a\udcff") == "a\\udcff"
    with pytest.raises(ValueError, match=r"cannot read a\\udcff: no such file"):
        open_image("a\udcff")


KINDS: dict[str, dict[str, Any]] = {
    ".avif": {},
    ".bmp": {},
    ".gif": {"save_all": True, "append_images": [Image.new("RGB", (20, 14), "blue")]},
    ".ico": {},
    ".jp2": {},
    ".jpg": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    ".png": {},
    ".ppm": {},
    ".qoi": {},
    ".tga": {"compression": "tga_rle"},
    ".tif": {"compression": "tiff_lzw"},
    ".webp": {},
}


@pytest.fixture(scope="module")
def files() -> Iterator[dict[str, bytes]]:
    """A whole file of every kind; whatever damaged ones say, no large picture is made of them."""
    noise = np.random.default_rng(0).integers(0, 256, (14, 20, 3), np.uint8)
    found = {}
    for suffix, options in KINDS.items():
        stream = io.BytesIO()
        kind = Image.registered_extensions()[suffix]
        Image.fromarray(noise).save(stream, kind, **options)
        found[suffix] = stream.getvalue()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "MOST_PIXELS", 100_000)
        yield found


@pytest.mark.filterwarnings("ignore")  # of damaged metadata; Pillow reads on
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_one_line(tmp_path: Path, files: dict[str, bytes], data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[suffix])
    # most of what can go wrong is in the headers
    place = st.integers(0, len(content) - 1) | st.integers(0, min(100, len(content) - 1))
    for i in data.draw(st.lists(place, max_size=4)):
        content[i] = data.draw(st.integers(0, 255))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    pixels, refusal = None, ""
    try:
        pixels = to_pixels(open_image(path), COLOUR)
    except ValueError as error:
        refusal = str(error)
    assert "\n" not in refusal
    if pixels is None:
        assert refusal.startswith(f"cannot read {path}: ")
    else:
        assert pixels.shape == (3, 32, 32)


# ── the value itself ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("preparation", [DIGITS, GREY, COLOUR])
def test_preparation_travels_as_a_dictionary(preparation: Preparation) -> None:
    assert Preparation.from_dict(preparation.as_dict()) == preparation


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "digits", "size": 28}, "incomplete"),
        ({"kind": "cropped", "size": 28, "channels": 1}, "cropped"),
        ({"kind": "digits", "size": 28, "channels": 3}, "1 channel"),
        ({"kind": "letterbox", "size": 0, "channels": 3}, "positive"),
        ({"kind": "letterbox", "size": 28, "channels": 2}, "1 or 3"),
    ],
)
def test_a_preparation_that_does_not_fit_is_refused(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Preparation.from_dict(values)
