from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handful import archives, storage

FILES = {"photos/cat/1.png": b"one", "photos/dog/2.png": b"two" * 999, "photos/ü.txt": b""}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(files: Mapping[str, bytes], *links: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for link in links:
            archive.addfile(link)
    return stream.getvalue()


def saved(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def held(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def twice(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in (b"one", b"two"):
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.zip", zipped),
        ("a.ZIP", lambda files: zipped(files, zipfile.ZIP_LZMA)),
        ("a.tar", tarred),
        ("a.tar.gz", lambda files: gzip.compress(tarred(files))),
        ("a.tgz", lambda files: gzip.compress(tarred(files))),
        ("a.tar.bz2", lambda files: bz2.compress(tarred(files))),
        ("a.tar.xz", lambda files: lzma.compress(tarred(files))),
    ],
)
def test_archives_are_unpacked(
    tmp_path: Path, name: str, pack: Callable[[Mapping[str, bytes]], bytes]
) -> None:
    path = saved(tmp_path, name, pack(FILES | {"./photos/./cat/3.png": b"three"}))
    assert archives.is_archive(path)
    folder = archives.unpacked(path)
    assert folder.name == "a"
    assert held(folder) == FILES | {"photos/cat/3.png": b"three"}


def test_folders_are_no_archives(tmp_path: Path) -> None:
    (tmp_path / "a.zip").mkdir()
    assert not archives.is_archive(tmp_path / "a.zip")
    assert not archives.is_archive(saved(tmp_path, "a.png", zipped(FILES)))


def test_an_archive_is_unpacked_once(tmp_path: Path, cache: Path) -> None:
    content = zipped(FILES)  # once: the time is in it
    first = archives.unpacked(saved(tmp_path, "a.zip", content))
    number = first.stat().st_ino
    (first.parent / ".DS_Store").touch()
    (first / "photos" / ".DS_Store").touch()
    again = archives.unpacked(saved(tmp_path, "b.zip", content))  # content names it
    assert again == first
    assert again.stat().st_ino == number
    other = archives.unpacked(saved(tmp_path, "a.zip", zipped({"x": b"y"})))
    assert held(other) == {"x": b"y"}
    assert len(list(cache.iterdir())) == 2


def test_what_was_lost_since_is_unpacked_again(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.zip", zipped(FILES))
    (archives.unpacked(path) / "photos" / "cat" / "1.png").unlink()
    assert held(archives.unpacked(path)) == FILES
    (archives.unpacked(path).parent / storage.MARK).unlink()
    assert held(archives.unpacked(path)) == FILES
    (archives.unpacked(path) / "photos" / "cat" / "other.png").touch()
    assert held(archives.unpacked(path)) == FILES


def test_what_killed_runs_left_goes_after_a_day(tmp_path: Path, cache: Path) -> None:
    for name, age in ((".archive-1-old", 2 * storage.DAY), (".archive-1-new", 60)):
        (cache / name / "photos").mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    folder = archives.unpacked(saved(tmp_path, "a.zip", zipped(FILES)))
    assert {left.name for left in cache.iterdir()} == {".archive-1-new", folder.parent.name}


def test_hidden_entries_are_left_out(tmp_path: Path) -> None:
    more = {"__MACOSX/photos/._1.png": b"", "photos/.DS_Store": b"", ".git/config": b""}
    assert held(archives.unpacked(saved(tmp_path, "a.zip", zipped(FILES | more)))) == FILES


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("photos/link")
    entry.type, entry.linkname = kind, target
    return entry


def linked_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        entry = zipfile.ZipInfo("photos/link")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    return stream.getvalue()


def locked_zip() -> bytes:
    content = bytearray(zipped({"x.png": b"secret"}, zipfile.ZIP_STORED))
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + flags] |= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zip", zipped({"../out.png": b"x"}), r"entry \.\./out\.png would lie outside"),
        ("a.zip", zipped({"a/../../out.png": b"x"}), "would lie outside"),
        ("a.zip", zipped({"/out.png": b"x"}), "would lie outside"),
        ("a.zip", zipped({"a\\..\\..\\out.png": b"x"}), "would lie outside"),
        ("a.zip", zipped({"C:/out.png": b"x"}), "would lie outside"),
        ("a.zip", zipped({"a/C:/out.png": b"x"}), "would lie outside"),
        ("a.zip", zipped({"a/C:out.png": b"x"}), "would lie outside"),
        ("a.tar", tarred({"../out.png": b"x"}), "would lie outside"),
        ("a.tar", tarred({"/out.png": b"x"}), "would lie outside"),
        ("a.tar", tarred(FILES, link(tarfile.SYMTYPE, "/etc")), "link is no file"),
        ("a.tar", tarred(FILES, link(tarfile.LNKTYPE, "photos/cat/1.png")), "is no file"),
        ("a.tar", tarred(FILES, link(tarfile.FIFOTYPE, "")), "is no file"),
        ("a.zip", linked_zip(), "photos/link is a link: give the folder"),
        ("a.zip", locked_zip(), "locked by a password"),
        ("a.zip", b"", "not a zip file"),
        ("a.zip", zipped(FILES)[:200], "not a zip file"),
        ("a.zip", zipped({}), "holds no files"),
        ("a.zip", zipped({".hidden": b""}), "holds no files"),
        ("a.zip", zipped({"a": b"", "a/b": b""}), "cannot unpack"),
        ("a.zip", twice("cat/1.png"), r"entry cat/1\.png is there twice"),
        ("a.zip", zipped({"x" * 300: b""}), "name too long"),
        ("a.tar", b"", "empty file"),
        ("a.tar", b"no archive" * 100, "cannot unpack"),
        ("a.tar.gz", gzip.compress(tarred(FILES))[:150], "cannot unpack"),
        ("a.tar.xz", lzma.compress(tarred(FILES))[:100], "cannot unpack"),
        ("a.tar", tarred(FILES)[:3000], "unexpected end of data"),
        ("a.tar", tarred(FILES)[:1024], "it is damaged: it ends too early"),
        ("a.tar", tarred(FILES).replace(b"photos/dog", b"photos/dig"), "it is damaged: it ends"),
    ],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path, cache: Path, name: str, content: bytes, message: str
) -> None:
    path = saved(tmp_path, name, content)
    with pytest.raises(ValueError, match=f"cannot unpack .*{message}|{message}") as caught:
        archives.unpacked(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []
    assert {left.name for left in tmp_path.iterdir()} == {"cache", name}


def test_bombs_are_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SMALL", 10_000)
    bomb = {f"{i}.png": bytes(100_000) for i in range(10)}
    packed = (
        zipped(bomb),
        gzip.compress(tarred(bomb)),
        gzip.compress(tarred({".hidden": bytes(10_000_000), "x": b""})),  # what is skipped counts
    )
    for name, content in zip(("a.zip", "a.tar.gz", "b.tar.gz"), packed, strict=True):
        path = saved(tmp_path, name, content)
        monkeypatch.setattr(archives, "RATIO", 100)
        with pytest.raises(ValueError, match=r"it holds more than the [0-9,]+ bytes that are safe"):
            archives.unpacked(path)
        assert list(cache.iterdir()) == []
        monkeypatch.setattr(archives, "RATIO", 2000)
        assert archives.unpacked(path).is_dir()
        shutil.rmtree(cache)
    monkeypatch.setattr(archives, "MOST_FILES", 9)
    with pytest.raises(ValueError, match="it holds more than 9 files"):
        archives.unpacked(tmp_path / "a.zip")


def test_a_header_of_a_tar_is_never_large(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("long")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, archives.HEADER + 1
    content = entry.tobuf() + b"x" * (archives.HEADER + 1024)
    with pytest.raises(ValueError, match="a header is too large"):
        archives.unpacked(saved(tmp_path, "a.tar", content))


def test_two_may_unpack_at_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, "a.zip", zipped(FILES))
    write = archives._write

    def slowly(path: Path, folder: Path) -> None:
        write(path, folder)
        monkeypatch.setattr(archives, "_write", write)
        archives.unpacked(path)  # another run, all of it meanwhile

    monkeypatch.setattr(archives, "_write", slowly)
    assert held(archives.unpacked(path)) == FILES
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, cache: Path) -> None:
    cache.touch()
    with pytest.raises(ValueError, match=r"cannot unpack .*a\.zip: .*(exists|directory)"):
        archives.unpacked(saved(tmp_path, "a.zip", zipped(FILES)))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_one_line_and_leaves_nothing(
    tmp_path: Path, cache: Path, data: st.DataObject
) -> None:
    name, pack = data.draw(
        st.sampled_from(
            [
                ("a.zip", zipped),
                ("a.tar", tarred),
                ("a.tar.gz", lambda files: gzip.compress(tarred(files))),
                ("a.tar.bz2", lambda files: bz2.compress(tarred(files))),
            ]
        )
    )
    content = bytearray(pack(FILES))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = saved(tmp_path, name, content[: data.draw(st.integers(0, len(content)))])
    before = len(list(cache.iterdir())) if cache.exists() else 0
    folder, refusal = None, ""
    try:
        folder = archives.unpacked(path)
    except ValueError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert bool(refusal) == (folder is None)
    assert folder or len(list(cache.iterdir())) == before
    assert {left.name for left in tmp_path.iterdir()} == {"cache", name}
    if folder:  # what is not refused lost no file; a tar archive has sums of its headers only
        found, whole = list(held(folder).values()), list(FILES.values())
        assert len(found) == len(whole)
        assert name == "a.tar" or sorted(found) == sorted(whole)
    path.unlink()
