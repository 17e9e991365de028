from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from handful import arrays

IMAGES = np.random.default_rng(0).integers(2, 256, (6, 5, 4), np.uint8)
LABELS = np.array([0, 2, 2, 0, -1, 2])


def saved(folder: Path, **named: NDArray[Any]) -> Path:
    path = folder / "a.npz"
    np.savez_compressed(path, allow_pickle=True, **named)
    return path


@pytest.mark.parametrize(
    "names",
    [
        ("images", "labels", "val_images", "val_labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"),
        ("X_train", "Y_train", "x_valid", "y_valid", "X_test", "Y_test"),
        ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"),
    ],
)
def test_archives_as_they_are_common(tmp_path: Path, names: tuple[str, ...]) -> None:
    parts = (IMAGES, LABELS, IMAGES[:2], LABELS[:2], IMAGES[3:], LABELS[3:, None])
    held = dict(zip(names, parts, strict=True))
    found = arrays.read(saved(tmp_path, **held, note=np.array("not looked at", object)))
    assert list(found) == ["train", "validation", "test"]
    train, test = found["train"], found["test"]
    np.testing.assert_array_equal(train.images[:, 0].numpy(), IMAGES)
    assert train.labels.tolist() == [0, 1, 1, 0, -1, 1]
    assert train.class_names == ("0", "2")
    np.testing.assert_array_equal(test.images[:, 0].numpy(), IMAGES[3:])
    assert test.labels.tolist() == [0, -1, 1]


def test_class_names_are_taken(tmp_path: Path) -> None:
    names = np.array(["cat", "cow", "dog"])
    found = arrays.read(saved(tmp_path, images=IMAGES, labels=LABELS, class_names=names))
    assert found["train"].class_names == ("cat", "dog")
    named = saved(tmp_path, images=IMAGES, labels=LABELS, class_names=names.astype("S"))
    assert arrays.read(named)["train"].class_names == ("cat", "dog")
    text = np.array(["dog", "Unlabelled", "cat", "dog ", "-1", "cat"])
    found = arrays.read(saved(tmp_path, images=IMAGES, labels=text))
    assert found["train"].class_names == ("cat", "dog")
    assert found["train"].labels.tolist() == [1, -1, 0, 1, -1, 0]


def test_unlabelled_images(tmp_path: Path) -> None:
    found = arrays.read(saved(tmp_path, images=IMAGES, labels=LABELS, x_unlabelled=IMAGES[:3]))
    assert found["unlabelled"].labels.tolist() == [-1] * 3
    assert arrays.read(saved(tmp_path, images=IMAGES))["train"].labels.tolist() == [-1] * 6


def test_files_side_by_side(tmp_path: Path) -> None:
    for name, array in {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:2]}.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "y_test.npy", LABELS[:2])
    assert arrays.find(tmp_path) == tmp_path / "x_train.npy"
    found = arrays.read(tmp_path / "x_train.npy")
    assert found["test"].labels.tolist() == [0, 1]
    np.save(tmp_path / "birds.npy", IMAGES[:3])
    np.save(tmp_path / "birds_labels.npy", LABELS[:3])
    found = arrays.read(tmp_path / "birds.npy")
    assert list(found) == ["train"]
    assert found["train"].labels.tolist() == [0, 1, 1]
    (tmp_path / "x_train.npy").unlink()
    assert arrays.find(tmp_path) is None


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.array([0, 0.5, 1], np.float32), [0, 128, 255]),
        (np.array([0, 0.5, 1], np.float64), [0, 128, 255]),
        (np.array([-1e-7, 0.5, 1.0000002], np.float32), [0, 128, 255]),
        (np.array([0, 7.6, 255]), [0, 8, 255]),
        (np.array([True, False, True]), [255, 0, 255]),
        (np.array([0, 1, 1], np.uint8), [0, 255, 255]),
        (np.array([0, 3, 255], np.int64), [0, 3, 255]),
        (np.array([0, 257, 65535], np.uint16), [0, 1, 255]),
    ],
)
def test_values_are_brought_to_bytes(
    tmp_path: Path, images: NDArray[Any], expected: list[int]
) -> None:
    found = arrays.read(saved(tmp_path, images=images[:, None, None]))["train"].images
    assert found[:, 0, 0, 0].tolist() == expected


def test_all_parts_are_scaled_alike(tmp_path: Path) -> None:
    dark = np.zeros((2, 3, 3), np.float32)
    dark[0] = 1
    found = arrays.read(saved(tmp_path, x_train=255 * dark, x_test=dark))
    assert int(found["test"].images.max()) == 1


def test_channels_may_stand_first_or_last(tmp_path: Path) -> None:
    last = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), np.uint8)
    first = last.transpose(0, 3, 1, 2)
    for images in (last, first):
        np.testing.assert_array_equal(
            arrays.read(saved(tmp_path, images=images))["train"].images.numpy(), first
        )
    see_through = np.concatenate([last, np.full((2, 5, 6, 1), 255, np.uint8)], 3)
    see_through[0, ..., 3] = 0
    found = arrays.read(saved(tmp_path, images=see_through))["train"].images.numpy()
    assert (found[0] == 255).all()
    np.testing.assert_array_equal(found[1], first[1])


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"pixels": IMAGES}, r"none of its arrays \(pixels\) is named as images are"),
        ({"images": IMAGES, "x": IMAGES}, "two arrays of train images"),
        ({"images": IMAGES, "y_test": LABELS}, "test labels, but no images"),
        ({"images": IMAGES, "labels": LABELS[:5]}, r"6 images came with labels of \(5,\)"),
        ({"images": IMAGES, "labels": np.eye(6)}, r"6 images came with labels of \(6, 6\)"),
        ({"images": IMAGES, "labels": LABELS / 2}, "labels are float64: expected whole numbers"),
        ({"images": IMAGES, "labels": LABELS - 1}, "a label is -2"),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.array(["a"])}, "label is 2, and"),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.array(list("aba"))}, "name twice"),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.arange(3)}, "expected names"),
        ({"images": IMAGES[0]}, r"images are \(5, 4\): expected \(N, H, W\)"),
        ({"images": IMAGES[:0]}, r"images of uint8 \(0, 5, 4\) are no pictures"),
        ({"images": np.array(3)}, r"images are \(\): expected"),
        ({"images": np.full((2, 3, 3), "a")}, "are no pictures"),
        ({"images": np.full((2, 3, 3), np.nan)}, "values that are no numbers, or infinite"),
        ({"x_train": IMAGES / 255.0, "x_test": np.full((2, 5, 4), np.inf)}, "no numbers, or infin"),
        ({"images": IMAGES / 170.0}, r"values from 0\.01.* to 1\.45"),
        ({"images": IMAGES - 300.0}, "values from -2.*: expected 0 to 255"),
        ({"images": np.array([Harmful()])}, "could run code"),
    ],
)
def test_arrays_that_do_not_fit_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        arrays.read(saved(tmp_path, **named))
    assert "a.npz" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("harm").exists()


def test_files_that_are_no_arrays_say_so(tmp_path: Path) -> None:
    for name, content in {
        "no.npz": b"PK nothing",
        "no.npy": b"\x80\x04N.",
        "empty.npy": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read .*{name}") as caught:
            arrays.read(tmp_path / name)
        assert "\n" not in str(caught.value)
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("images.npy", "no array")
    with pytest.raises(ValueError, match="images is no array"):
        arrays.read(tmp_path / "text.npz")
    (tmp_path / "images.npy").write_bytes(saved(tmp_path, images=IMAGES).read_bytes())
    with pytest.raises(ValueError, match=r"cannot read .*images\.npy: images is no array"):
        arrays.read(tmp_path / "images.npy")
    np.save(tmp_path / "class_names.npy", np.array(["cat", "dog"]))
    with pytest.raises(ValueError, match=r"class_names\.npy: it holds the names of classes: give"):
        arrays.read(tmp_path / "class_names.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ValueError, match=r"cannot read .*folder\.npy: it is no regular file"):
        arrays.read(tmp_path / "folder.npy")
    with pytest.raises(ValueError, match=r"cannot read .*absent\.npz: No such file"):
        arrays.read(tmp_path / "absent.npz")


def test_no_more_is_read_than_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, images=np.zeros((100, 10, 10), np.uint8))
    np.save(tmp_path / "images.npy", np.zeros((100, 10, 10), np.uint8))
    monkeypatch.setattr(arrays, "LARGEST", 9_999)
    for file in (path, tmp_path / "images.npy"):
        with pytest.raises(ValueError, match="more than the 9,999 that are read"):
            arrays.read(file)


def test_a_header_that_lies_costs_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    shape = (2**24, 2**12, 2**12)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    (tmp_path / "images.npy").write_bytes(header.getvalue() + bytes(100))
    with pytest.raises(ValueError, match=r"cannot read .*images\.npy"):
        arrays.read(tmp_path / "images.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(tmp_path / "images.npy", "images.npy")
    with pytest.raises(ValueError, match=r"cannot read .*a\.npz"):
        arrays.read(tmp_path / "a.npz")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_one_line(tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from([".npz", ".npy"]))
    path = tmp_path / f"images{suffix}"
    stream = io.BytesIO()
    if suffix == ".npz":
        np.savez_compressed(stream, allow_pickle=False, images=IMAGES, labels=LABELS)
    else:
        np.save(stream, IMAGES)
    content = bytearray(stream.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    found, refusal = None, ""
    try:
        found = arrays.read(path)
    except ValueError as error:
        refusal = str(error)
    assert "\n" not in refusal
    if found is None:
        assert path.name in refusal
    else:
        assert all(part.images.numel() <= 8 * IMAGES.size for part in found.values())
