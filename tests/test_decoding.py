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
from handful.pictures import Preparation

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
    assert isinstance(again.images.base, np.memmap), "what is larger than memory has to be mapped"
    with mock.patch.object(decoding, "MANY", 100):
        assert (decode(paths, SMALL).images == first.images).all()


def test_few_files_leave_nothing(cache: Path, paths: list[Path]) -> None:
    decode(paths[:5], SMALL, forbidden)
    assert not cache.exists()


def test_writing_into_the_images_does_not_reach_the_cache(cache: Path, paths: list[Path]) -> None:
    first = decode(paths, SMALL).images
    kept = first.copy()
    first[:] = 0
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


@pytest.mark.parametrize("damaged", ["images.npy", "kept.npy"])
def test_a_damaged_cache_is_not_used(cache: Path, paths: list[Path], damaged: str) -> None:
    first = decode(paths, SMALL)
    kept = first.images.copy()
    (place,) = cache.iterdir()
    whole = (place / damaged).read_bytes()
    (place / damaged).unlink()  # not in place: the array above is mapped from it
    (place / damaged).write_bytes(whole[:40])
    again = decode(paths, SMALL)
    assert (again.images == kept).all()
    assert again.kept == first.kept
    assert not place.exists(), "the next run would have it again"


def test_where_nothing_can_be_kept_nothing_is_lost(cache: Path, paths: list[Path]) -> None:
    cache.write_text("a file where the folder would be")
    assert decode(paths, SMALL).kept == [0, 1, 3, 4, 5, 6]
    cache.unlink()
    full = mock.Mock(free=10)
    with mock.patch.object(decoding.shutil, "disk_usage", return_value=full):
        assert decode(paths, SMALL).kept == [0, 1, 3, 4, 5, 6]
    assert not list(cache.iterdir())


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
