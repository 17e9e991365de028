from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from handful import cached


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path))
    return cached.place("kind", [b"a", b"b"])


def test_a_name_is_of_all_parts_in_their_order(place: Path) -> None:
    assert place == cached.place("kind", iter([b"a", b"b"]))
    others = ([b"b", b"a"], [b"ab"], [b"a"], [b"a", b"b", b""])
    assert len({place, *(cached.place("kind", parts) for parts in others)}) == 1 + len(others)


def test_a_folder_is_there_once_it_is_whole(place: Path) -> None:
    with cached.filling(place) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").touch()
        assert not place.exists()
    assert cached.is_whole(place)
    assert list(place.parent.iterdir()) == [place]
    (place / "deep" / "file").unlink()
    assert not cached.is_whole(place)


def test_an_error_leaves_nothing(place: Path) -> None:
    def fill() -> None:
        with cached.filling(place) as folder:
            (folder / "file").touch()
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        fill()
    assert not list(place.parent.iterdir())


def test_of_two_that_fill_at_once_the_first_stays(place: Path) -> None:
    with cached.filling(place) as slow:
        (slow / "file").write_text("slow")
        with cached.filling(place) as fast:
            (fast / "file").write_text("fast")
    assert (place / "file").read_text() == "fast"
    (place / "file").unlink()
    with cached.filling(place) as again:
        (again / "file").write_text("again")
    assert (place / "file").read_text() == "again"


def test_what_killed_runs_left_is_removed_after_a_day(place: Path) -> None:
    for name, age in ((".kind-1-old", 2 * cached.DAY), (".kind-1-new", 60), (".other-1", 9e5)):
        (place.parent / name).mkdir()
        os.utime(place.parent / name, (time.time() - age,) * 2)
    with cached.filling(place):
        pass
    held = {path.name for path in place.parent.iterdir()}
    assert held == {".kind-1-new", ".other-1", place.name}
