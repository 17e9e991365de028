from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from handful import idx


@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=4, min_side=0)))
@pytest.mark.parametrize("name", ["plain", "packed.gz"])
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, name: str, array: np.ndarray
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    idx.write_idx(path, array)
    found = idx.read_idx(path)
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


def test_encoding_is_the_published_one() -> None:
    array = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    header = bytes.fromhex("00000802 00000002 00000003")
    assert idx.encode(array) == header + bytes([1, 2, 3, 4, 5, 6])


def test_gzip_is_told_from_the_content_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "no-suffix").write_bytes(gzip.compress(idx.encode(np.arange(3, dtype=np.uint8))))
    assert idx.read_idx(tmp_path / "no-suffix").tolist() == [0, 1, 2]


def test_writing_is_repeatable_and_leaves_nothing_behind(tmp_path: Path) -> None:
    array = np.arange(100, dtype=np.uint8)
    idx.write_idx(tmp_path / "a.gz", array)
    first = (tmp_path / "a.gz").read_bytes()
    idx.write_idx(tmp_path / "a.gz", array)
    assert (tmp_path / "a.gz").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["a.gz"]


def test_official_files_have_the_official_digests(mnist_dir: Path) -> None:
    for name, digest in idx.MNIST_SHA256.items():
        raw = gzip.decompress((mnist_dir / f"{name}.gz").read_bytes())
        assert hashlib.sha256(raw).hexdigest() == digest
        assert idx.sha256(idx.read_idx(mnist_dir / f"{name}.gz")) == digest


GOOD = idx.encode(np.zeros((4, 5), np.uint8))
BAD = {
    "empty": (b"", "it is empty"),
    "text": (b"not an idx file", "begins with 6e 6f 74 20"),
    "floats": (bytes([0, 0, 13, 1]) + bytes(20), "no idx file of bytes"),
    "no dimensions": (bytes([0, 0, 8, 0]), "no idx file of bytes"),
    "half a header": (GOOD[:6], "download it again"),
    "cut": (GOOD[:-1], "announces 4 × 5 bytes and holds 19"),
    "too long": (GOOD + b"x", "announces 4 × 5 bytes and holds 21"),
    "huge": (bytes([0, 0, 8, 3]) + b"\xff" * 12, "download it again"),
    "many axes of nothing": (bytes([0, 0, 8, 65]) + bytes(260), "begins with 00 00 08 41"),
    "cut gzip": (gzip.compress(GOOD)[:-9], "damaged"),
    "garbled gzip": (b"\x1f\x8b" + bytes(30), "damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_in_one_line(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        idx.read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["raw", "packed.gz"])
def test_no_more_is_read_than_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    idx.write_idx(tmp_path / name, np.zeros((100, 100), np.uint8))
    monkeypatch.setattr(idx, "LARGEST", 10_012)
    assert idx.read_idx(tmp_path / name).shape == (100, 100)
    monkeypatch.setattr(idx, "LARGEST", 10_011)
    with pytest.raises(ValueError, match=f"{name} holds more than the 10,011 bytes that are read"):
        idx.read_idx(tmp_path / name)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_one_line(tmp_path: Path, data: st.DataObject) -> None:
    raw = idx.encode(np.arange(24, dtype=np.uint8).reshape(4, 3, 2))
    content = bytearray(data.draw(st.sampled_from([raw, gzip.compress(raw, mtime=0), raw[:16]])))
    for place in data.draw(st.lists(st.integers(0, min(30, len(content) - 1)), max_size=5)):
        content[place] = data.draw(st.sampled_from([0, 1, 2, 3, 4, 255]) | st.integers(0, 255))
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    found, refusal = None, ""
    try:
        found = idx.read_idx(path)
    except ValueError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert found is not None or str(path) in refusal
    assert found is None or found.size <= 24


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*absent"):
        idx.read_idx(tmp_path / "absent")


def test_find_knows_all_spellings(tmp_path: Path) -> None:
    names = [
        "train-images-idx3-ubyte.gz",
        "train-labels.idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "test-labels-idx1-ubyte.gz",
        "notes.txt",
        ".train-labels-idx1-ubyte.partial",
    ]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "train-images-idx3-ubyte").mkdir()  # as some archives have it, the file inside
    assert {part: path.name for part, path in idx.find(tmp_path).items()} == {
        "train-images": names[0],
        "train-labels": names[1],
        "test-images": names[2],
        "test-labels": names[3],
    }
