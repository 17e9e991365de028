from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from handful import storage


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path))
    return storage.place("kind", [b"a", b"b"])


def test_a_name_is_of_all_parts_in_their_order(place: Path) -> None:
    assert place == storage.place("kind", iter([b"a", b"b"]))
    others = ([b"b", b"a"], [b"ab"], [b"a"], [b"a", b"b", b""])
    assert len({place, *(storage.place("kind", parts) for parts in others)}) == 1 + len(others)


def test_a_folder_is_there_once_it_is_whole(place: Path) -> None:
    with storage.filling(place) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").touch()
        assert not place.exists()
    assert storage.is_whole(place)
    assert list(place.parent.iterdir()) == [place]
    (place / "deep" / "file").unlink()
    assert not storage.is_whole(place)


def test_an_error_leaves_nothing(place: Path) -> None:
    def fill() -> None:
        with storage.filling(place) as folder:
            (folder / "file").touch()
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        fill()
    assert not list(place.parent.iterdir())


def test_of_two_that_fill_at_once_the_first_stays(place: Path) -> None:
    with storage.filling(place) as slow:
        (slow / "file").write_text("slow")
        with storage.filling(place) as fast:
            (fast / "file").write_text("fast")
    assert (place / "file").read_text() == "fast"
    (place / "file").unlink()
    with storage.filling(place) as again:
        (again / "file").write_text("again")
    assert (place / "file").read_text() == "again"


def test_what_killed_runs_left_is_removed_after_a_day(place: Path) -> None:
    for name, age in ((".kind-1-old", 2 * storage.DAY), (".kind-1-new", 60), (".other-1", 9e5)):
        (place.parent / name).mkdir()
        os.utime(place.parent / name, (time.time() - age,) * 2)
    with storage.filling(place):
        pass
    held = {path.name for path in place.parent.iterdir()}
    assert held == {".kind-1-new", ".other-1", place.name}


def test_what_is_too_large_for_memory_is_of_a_file_without_a_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "IN_MEMORY", 100)
    small, large = storage.empty((10, 10)), storage.empty((10, 11))
    assert not isinstance(small, np.memmap)
    assert isinstance(large, np.memmap)
    large[:] = 7
    assert int(large.sum()) == 770
    assert not list(place.parent.iterdir())


def test_without_room_on_disk_it_says_where_and_what_to_do(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "IN_MEMORY", 100)
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        mock.patch.object(storage, "_take", side_effect=full),
        pytest.raises(ValueError, match=r"^110 bytes of pixels need as much room in .*_CACHE"),
    ):
        storage.empty((10, 11))


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
def test_what_is_kept_may_be_read_as_other_folders_may(place: Path) -> None:
    with storage.filling(place):
        pass
    (place.parent / "other").mkdir()
    assert place.stat().st_mode == (place.parent / "other").stat().st_mode
