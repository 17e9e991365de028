"""Many files are decoded once: the same pixels from the cache, and none of other files'."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from handful import decoding
from handful.decoding import decode
from handful.pictures import Preparation, open_image

SMALL = Preparation("letterbox", 8, 3)
Row = dict[str, Any]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(decoding, "MANY", 6)
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Six pictures and, in their midst, a file that is none."""
    random = np.random.default_rng(0)
    found = [tmp_path / f"{i}.png" for i in range(7)]
    for path in found:
        Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).save(path)
    found[2].write_bytes(b"no picture")
    return found


def forbidden(*_: object) -> None:
    raise AssertionError("decoded anew")


def test_what_was_decoded_is_taken_from_the_cache(cache: Path, paths: list[Path]) -> None:
    rows: list[Row] = []
    first = decode(paths, SMALL, rows.append)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    with mock.patch.object(decoding, "to_pixels", forbidden):
        again = decode(paths, SMALL, forbidden)
    assert first.kept == again.kept == [0, 1, 3, 4, 5, 6]
    assert len(first.skipped) == len(again.skipped) == 1
    assert str(paths[2]) in again.skipped[0]
    assert (first.images == again.images).all()
    with mock.patch.object(decoding, "MANY", 100):
        assert (decode(paths, SMALL).images == first.images).all()


def test_few_files_leave_nothing(cache: Path, paths: list[Path]) -> None:
    decode(paths[:5], SMALL, forbidden)
    assert not cache.exists()


def test_writing_into_the_images_does_not_reach_the_cache(cache: Path, paths: list[Path]) -> None:
    kept = decode(paths, SMALL).images
    again = decode(paths, SMALL).images
    again[:] = 0
    assert (decode(paths, SMALL).images == kept).all()


def test_the_name_is_of_content_order_and_preparation(cache: Path, paths: list[Path]) -> None:
    decode(paths, SMALL)
    moved = paths[0].parent / "elsewhere"
    moved.mkdir()
    copies = [Path(shutil.copy(path, moved)) for path in paths]
    with mock.patch.object(decoding, "to_pixels", forbidden):
        assert str(moved) in decode(copies, SMALL).skipped[0]
    turned = decode(paths[::-1], SMALL)
    assert turned.kept == [0, 1, 2, 3, 5, 6]
    assert decode(paths, Preparation("crop", 8, 3)).images.shape == turned.images.shape
    Image.new("RGB", (8, 8), "red").save(paths[6])
    assert (decode(paths, SMALL).images[-1].transpose(1, 2, 0) == [255, 0, 0]).all()
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("left", [40, 0])
@pytest.mark.parametrize("damaged", ["images.npy", "kept.npy"])
def test_a_damaged_cache_is_made_anew(
    cache: Path, paths: list[Path], damaged: str, left: int
) -> None:
    first = decode(paths, SMALL)
    (file,) = cache.glob(f"*/{damaged}")
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    again = decode(paths, SMALL)
    assert (again.images == first.images).all()
    assert again.kept == first.kept
    assert file.read_bytes() == whole


def test_a_file_that_can_be_read_by_now_is_not_lost(cache: Path, paths: list[Path]) -> None:
    def fails(path: Path) -> Image.Image:
        if path == paths[4]:
            raise ValueError(f"cannot read {path}: too many open files")
        return open_image(path)

    with mock.patch.object(decoding, "open_image", fails):
        assert decode(paths, SMALL).kept == [0, 1, 3, 5, 6]
    assert decode(paths, SMALL).kept == [0, 1, 3, 4, 5, 6]


def test_where_nothing_can_be_kept_nothing_is_lost(cache: Path, paths: list[Path]) -> None:
    cache.write_text("a file where the folder would be")
    assert decode(paths, SMALL).kept == [0, 1, 3, 4, 5, 6]
    cache.unlink()
    full = mock.Mock(free=10)
    with mock.patch.object(decoding.shutil, "disk_usage", return_value=full):
        assert decode(paths, SMALL).kept == [0, 1, 3, 4, 5, 6]
    assert not list(cache.iterdir())


def test_more_than_may_be_kept_removes_nothing(
    cache: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode(paths, SMALL)
    monkeypatch.setattr(decoding, "MOST_KEPT", 7 * 8 * 8)
    assert decode(paths[::-1], SMALL).kept == [0, 1, 2, 3, 5, 6]
    assert len(list(cache.iterdir())) == 1


def test_what_was_not_asked_for_longest_goes_first(
    cache: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def places() -> set[Path]:
        return set(cache.iterdir())

    decode(paths, SMALL)
    (oldest,) = places()
    decode(paths[::-1], SMALL)
    (other,) = places() - {oldest}
    for place, when in ((oldest, 2e9), (other, 1e9)):  # asked for since
        decoding.os.utime(place, (when, when))
    held = sum(file.stat().st_size for file in oldest.iterdir())
    monkeypatch.setattr(decoding, "MOST_KEPT", 2 * held + 10)
    decode(paths[:6], SMALL)
    assert oldest in places()
    assert other not in places()
    assert len(places()) == 2
