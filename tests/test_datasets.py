from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from handful import decoding, idx
from handful.config import DataConfig
from handful.datasets import Dataset, fetch_mnist, load, load_images, scores_on_mnist
from handful.pictures import Preparation

DIGITS = Preparation("digits", 28, 1)
NAMES = tuple("0123456789")


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two class folders of small colour pictures, a brightness for each class."""
    rng = np.random.default_rng(0)
    for name, level in (("cat", 60), ("dog", 160)):
        for i in range(6):
            pixels = rng.integers(level, level + 60, (40, 52, 3), np.uint8)
            save(tmp_path / "photos" / name / f"img{i}.png", pixels)
    return tmp_path / "photos"


@pytest.fixture
def idx_dir(tmp_path: Path) -> Path:
    """Sixty training and ten test images of three classes; pixel 14, 14 tells their number."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for part, n in (("train", 60), ("t10k", 10)):
        images = np.zeros((n, 28, 28), np.uint8)
        images[:, 10:20, 10:20] = 255
        images[:, 14, 14] = np.arange(n)
        idx.write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        idx.write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8) % 3)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load_from(source: Path, **settings: object) -> Dataset:
    return load(DataConfig.model_validate({"source": str(source), **settings}))


def disjoint(dataset: Dataset) -> bool:
    assert dataset.test is not None
    return not set(dataset.train.sources.tolist()) & set(dataset.test.sources.tolist())


# ── mnist50 ─────────────────────────────────────────────────────────────────────────────────────


def test_mnist50_is_what_it_says() -> None:
    dataset = load(DataConfig())
    assert dataset.train.class_counts.tolist() == [50] * 10
    assert dataset.train.class_names == NAMES
    assert dataset.test is not None
    assert dataset.test.images.shape == (10_000, 1, 28, 28)
    assert dataset.preparation == DIGITS
    assert disjoint(dataset)


def test_mnist50_is_the_official_data(mnist_dir: Path) -> None:
    dataset, official = load(DataConfig()), load_from(mnist_dir)
    assert official.test is not None
    assert dataset.test is not None
    for digit in range(10):
        first = (official.train.labels == digit).nonzero().squeeze(1)[:50]
        of_class = dataset.train.labels == digit
        assert torch.equal(dataset.train.sources[of_class], first)
        assert torch.equal(dataset.train.images[of_class], official.train.images[first])
    assert torch.equal(dataset.test.images, official.test.images)
    assert torch.equal(dataset.test.labels, official.test.labels)
    assert torch.equal(dataset.test.sources, official.test.sources)


def test_mnist50_has_one_size() -> None:
    with pytest.raises(ValueError, match=r"data\.size = 32: mnist50 has 28 × 28"):
        load(DataConfig(size=32))


# ── idx ─────────────────────────────────────────────────────────────────────────────────────────


def test_idx_directory(idx_dir: Path) -> None:
    dataset = load_from(idx_dir)
    assert dataset.train.images[:, 0, 14, 14].tolist() == list(range(60))
    assert dataset.train.labels.tolist() == [i % 3 for i in range(60)]
    assert dataset.train.class_names == ("0", "1", "2")
    assert dataset.test is not None
    assert dataset.test.images[:, 0, 14, 14].tolist() == list(range(10))
    assert dataset.test_of == "official test set"
    assert dataset.preparation == DIGITS
    assert disjoint(dataset)


def test_dev_scores_the_last_sixth_and_never_opens_the_test_files(idx_dir: Path) -> None:
    for path in idx_dir.glob("t10k*"):
        path.write_bytes(b"opening this fails")
    dataset = load_from(idx_dir, dev=True)
    assert dataset.train.images[:, 0, 14, 14].tolist() == list(range(50))
    assert dataset.test is not None
    assert dataset.test.images[:, 0, 14, 14].tolist() == list(range(50, 60))
    assert dataset.test_of == "training images from number 50 on"
    assert any("test files stay shut" in note for note in dataset.notes)
    assert disjoint(dataset)
    with pytest.raises(ValueError, match="no idx file"):
        load_from(idx_dir)


def test_dev_on_mnist_is_the_published_split(mnist_dir: Path) -> None:
    dataset = load_from(mnist_dir, dev=True)
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (50_000, 10_000)
    assert dataset.test.sources.tolist() == list(range(50_000, 60_000))


def test_idx_without_test_files(idx_dir: Path) -> None:
    for path in idx_dir.glob("t10k*"):
        path.unlink()
    dataset = load_from(idx_dir)
    assert dataset.test is None
    assert dataset.test_of == ""


def test_idx_images_that_fill_the_frame_are_not_digits(idx_dir: Path) -> None:
    idx.write_idx(idx_dir / "train-images-idx3-ubyte.gz", np.full((60, 28, 28), 90, np.uint8))
    assert load_from(idx_dir).preparation.kind == "letterbox"
    assert load_from(idx_dir, prepare="digits").preparation.kind == "digits"


def test_classes_may_be_numbered_from_one(idx_dir: Path) -> None:
    for part, n in (("train", 60), ("t10k", 10)):
        labels = np.arange(n, dtype=np.uint8) % 3 + 1
        idx.write_idx(idx_dir / f"{part}-labels-idx1-ubyte", labels)
    dataset = load_from(idx_dir)
    assert dataset.train.class_names == ("1", "2", "3")
    assert dataset.train.labels[:4].tolist() == [0, 1, 2, 0]


def bad_labels(folder: Path, part: str, label: int) -> None:
    path = folder / f"{part}-labels-idx1-ubyte"
    labels = idx.read_idx(path)
    labels[5] = label
    idx.write_idx(path, labels)


def test_bad_idx_directories_are_named_in_one_line(idx_dir: Path) -> None:
    def broken(name: str, *, dev: bool = False) -> str:
        folder = idx_dir.with_name(name)
        with pytest.raises(ValueError, match=name) as caught:
            load_from(folder, dev=dev)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for name in ("stray", "stray-test", "count", "cut", "magic", "alone", "wide", "single"):
        shutil.copytree(idx_dir, idx_dir.with_name(name))
    images, labels = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte"

    bad_labels(idx_dir.with_name("stray"), "train", 77)
    assert "label 77 but none 3" in broken("stray")
    bad_labels(idx_dir.with_name("stray-test"), "t10k", 7)
    assert "not trained: 7" in broken("stray-test")
    idx.write_idx(idx_dir.with_name("count") / labels, np.zeros(59, np.uint8))
    assert "60 images" in broken("count")
    cut = idx_dir.with_name("cut") / images
    cut.write_bytes(cut.read_bytes()[:-12])
    assert "damaged" in broken("cut")
    (idx_dir.with_name("magic") / labels).write_bytes(b"MNIST labels")
    assert "no idx file" in broken("magic")
    (idx_dir.with_name("alone") / labels).unlink()
    assert "no train labels" in broken("alone")
    idx.write_idx(idx_dir.with_name("wide") / images, np.zeros((60, 28, 30), np.uint8))
    assert "square" in broken("wide")
    idx.write_idx(idx_dir.with_name("single") / labels, np.zeros(60, np.uint8))
    assert "one class only" in broken("single", dev=True)


def test_idx_images_keep_their_size(idx_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.size = 32: the idx images are 28 × 28"):
        load_from(idx_dir, size=32)


# ── folders ─────────────────────────────────────────────────────────────────────────────────────


def test_class_folders(photos: Path) -> None:
    dataset = load_from(photos)
    assert dataset.train.class_names == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6
    assert dataset.train.images.shape == (12, 3, 52, 52)
    assert Path(dataset.train.paths[7]) == photos / "dog" / "img1.png"
    assert dataset.preparation == Preparation("letterbox", 52, 3)
    assert dataset.test is None
    assert any(
        "fitted whole" in note and "52 × 52 pixels, colour" in note for note in dataset.notes
    )
    cropped = load_from(photos, prepare="crop", size=40)
    assert any("each picture: cut to the square" in note for note in cropped.notes)
    with Image.open(dataset.train.paths[0]) as image:
        middle = np.asarray(image)[:, 6:46].transpose(2, 0, 1)
    np.testing.assert_array_equal(cropped.train.images[0].numpy(), middle)
    means = dataset.train.images.float().mean((1, 2, 3))
    assert means[:6].max() < means[6:].min()


def test_train_test_and_unlabelled_on_top(photos: Path, tmp_path: Path) -> None:
    top = tmp_path / "top"
    for part in ("train", "test"):
        shutil.copytree(photos, top / part)
    shutil.rmtree(top / "test" / "cat")
    shutil.copytree(photos / "cat", top / "unlabelled" / "from a walk")
    dataset = load_from(top)
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6 + [-1] * 6
    assert dataset.test is not None
    assert dataset.test.labels.tolist() == [1] * 6
    assert dataset.test.class_names == ("cat", "dog")
    assert dataset.test_of == "images in top/test"
    # the unlabelled copies share the sources of the labelled ones
    assert dataset.train.sources.tolist() == [*range(12), *range(6)]
    assert disjoint(dataset)


@pytest.mark.parametrize("name", ["unlabelled", "unlabeled"])
def test_unlabelled_images_may_lie_in_train_too(photos: Path, tmp_path: Path, name: str) -> None:
    top = tmp_path / "top"
    shutil.copytree(photos, top / "train")
    shutil.copytree(photos / "cat", top / "train" / name)
    shutil.copytree(photos / "dog", top / "unlabelled")
    dataset = load_from(top)
    assert dataset.train.class_names == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6 + [-1] * 12
    assert len(dataset.train.sources.unique()) == 12
    for folder in (top / "unlabelled", top / "train" / name):
        assert f"unlabelled: 6 images in {folder}" in dataset.notes
    images, taken = load_images(str(top), dataset.preparation, ("cat", "dog"))
    assert (len(images), taken) == (12, f"all of {top / 'train'}")


def test_unlabelled_images_beside_the_classes_are_read_once(photos: Path) -> None:
    shutil.copytree(photos / "cat", photos / "unlabelled")
    assert load_from(photos).train.labels.tolist() == [0] * 6 + [1] * 6 + [-1] * 6


def test_reading_many_files_tells_how_far_it_is(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, object]] = []
    config = DataConfig(source=str(photos))
    load(config, rows.append)
    assert rows == []  # that is over before anybody asks
    monkeypatch.setattr(decoding, "MANY", 12)
    load(config, rows.append)
    assert [(row["stage"], row["step"], row["steps"]) for row in rows] == [
        ("read", i + 1, 12) for i in range(12)
    ]


def test_a_class_may_be_called_train(photos: Path) -> None:
    (photos / "cat").rename(photos / "train")
    assert load_from(photos).train.class_names == ("dog", "train")


def test_pictures_beside_class_folders_are_told(photos: Path) -> None:
    picture = next((photos / "cat").iterdir())
    for i in range(2):
        shutil.copy(picture, photos / f"loose{i}.png")
    dataset = load_from(photos)
    assert dataset.train.class_counts.tolist() == [6, 6]
    assert "skipped: 2 pictures lie in" in "\n".join(dataset.notes)
    with pytest.raises(ValueError, match="--strict: 1 amiss, the first: 2 pictures lie in"):
        load_from(photos, strict=True)


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_source_that_no_run_could_name_is_refused(photos: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"photos\xff")
    shutil.copytree(photos, odd)
    with pytest.raises(ValueError, match=r"photos\\udcff is a name that is no text"):
        load_from(odd)


def test_unreadable_and_foreign_files_are_skipped_with_a_note(photos: Path) -> None:
    for i in range(7):
        (photos / "cat" / f"bad{i}.jpg").write_bytes(b"no picture")
    (photos / "cat" / "notes.txt").touch()
    (photos / "dog" / "live.HEIC").touch()
    (photos / ".DS_Store").touch()
    dataset = load_from(photos)
    assert dataset.train.class_counts.tolist() == [6, 6]
    notes = "\n".join(dataset.notes)
    assert notes.count("bad") == 5
    assert "skipped: 3 more" in notes
    assert "not read: 1 .heic, 1 .txt" in notes
    for path in (photos / "cat").glob("bad*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"--strict: 1 amiss, .*live\.HEIC: save it as \.png"):
        load_from(photos, strict=True)


def test_a_table_of_something_else_blocks_no_class_folders(photos: Path) -> None:
    (photos / "labels.csv").write_text("id,name\n0,cat\n1,dog\n")
    dataset = load_from(photos)
    assert dataset.train.class_counts.tolist() == [6, 6]
    assert any(
        note.startswith("not used: ") and "labels.csv, which has no columns" in note
        for note in dataset.notes
    )
    (photos / "labels.csv").write_text("path,label\ncat/img0.png,cat\ndog/img0.png,dog\n")
    assert load_from(photos).train.class_counts.tolist() == [1, 1]


def test_bad_folders_are_named_in_one_line(photos: Path, tmp_path: Path) -> None:
    def refused(source: Path, message: str, **settings: object) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            load_from(source, **settings)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "nowhere", r"nowhere does not exist: give mnist50")
    refused(photos / "cat" / "img0.png", r"img0\.png is a file")
    refused(photos / "cat", "cat has no class folders")
    refused(photos, "--dev needs a directory of idx files", dev=True)
    (photos / "empty").mkdir()
    refused(photos, "class folder .*empty has no images")
    (photos / "empty" / "readme.txt").touch()
    refused(photos, r"class folder .*empty has only files of other kinds \(1 \.txt\)")
    (photos / "empty" / "x.png").touch()
    refused(photos, r"class empty of .* has no readable image: cannot read .*x\.png")
    shutil.rmtree(photos / "empty")
    shutil.copytree(photos, photos / "test")
    refused(photos, "has cat beside test: put class folders into train/")
    refused(shutil.move(photos / "test", tmp_path / "T" / "Test").parent, "has test images but no")
    shutil.copytree(photos, tmp_path / "top" / "train")
    shutil.copytree(photos / "cat", tmp_path / "top" / "test" / "lion")
    refused(tmp_path / "top", "not trained: lion; trained were cat, dog")
    shutil.rmtree(photos / "dog")
    refused(photos, "one class only, cat")


# ── what is amiss in folders ────────────────────────────────────────────────────────────────────


def test_the_source_may_set_validation_images_apart(photos: Path, tmp_path: Path) -> None:
    for part in ("train", "val", "test", "unlabelled"):
        shutil.copytree(photos, tmp_path / "top" / part)
    shutil.rmtree(tmp_path / "top" / "val" / "cat")
    dataset = load_from(tmp_path / "top")
    assert dataset.validation is not None
    assert dataset.validation.labels.tolist() == [1] * 6
    assert "validation: 6 images" in dataset.notes
    train, validation, test = (set(part.sources.tolist()) for part in dataset.parts)
    # what is unlabelled is among the test images too; what validates is a copy of what trains
    assert (len(train), len(validation), len(test)) == (12, 6, 12)
    assert validation < train
    assert not test & train
    told = "\n".join(load_from(tmp_path / "top", per_class=2).notes)
    assert "validation: 6 images, left out" in told
    told = "\n".join(load_from(tmp_path / "top", validation=0).notes)
    assert "validation: 6 images, which train as well" in told
    _, taken = load_images(str(tmp_path / "top"), dataset.preparation, ("cat", "dog"))
    assert taken == f"all of {tmp_path / 'top' / 'test'}"
    shutil.rmtree(tmp_path / "top" / "test")
    images, taken = load_images(str(tmp_path / "top"), dataset.preparation, ("cat", "dog"))
    assert (len(images), taken) == (6, f"all of {tmp_path / 'top' / 'val'}")


def test_what_tests_or_validates_never_trains_unlabelled(photos: Path, tmp_path: Path) -> None:
    top = tmp_path / "top"
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (top / part / name).mkdir(parents=True)
            for i in range(3):
                number = i + 3 * (part == "test")
                shutil.copy(photos / name / f"img{number}.png", top / part / name)
    (top / "unlabelled").mkdir()
    shutil.copy(photos / "cat" / "img5.png", top / "unlabelled" / "tests.png")
    noise = np.random.default_rng(7).integers(0, 256, (40, 52, 3), np.uint8)
    save(top / "unlabelled" / "new.png", noise)
    dataset = load_from(top, strict=True)
    assert [Path(path).name for path in dataset.train.paths[6:]] == ["new.png"]
    assert "left out: 1 unlabelled images that test or validate as well" in dataset.notes
    shutil.copy(photos / "cat" / "img5.png", top / "train" / "cat")
    assert load_from(top).train.class_counts.tolist() == [4, 3]
    with pytest.raises(
        ValueError, match="--strict: 1 amiss, the first: 1 labelled images that tra"
    ):
        load_from(top, strict=True)
    (top / "test").rename(top / "val")
    assert any("are validation images as well" in note for note in load_from(top).notes)


def test_equal_pictures_share_a_source(photos: Path) -> None:
    shutil.copy(photos / "dog" / "img0.png", photos / "dog" / "img9.png")
    sources = load_from(photos).train.sources
    assert sources.tolist() == [*range(12), 6]


def test_the_official_files_are_divided_as_ever(mnist_dir: Path) -> None:
    dataset = load_from(mnist_dir)
    assert torch.equal(dataset.train.sources, torch.arange(60_000))
    assert dataset.test is not None
    assert torch.equal(dataset.test.sources, 60_000 + torch.arange(10_000))


def test_images_without_any_label_cannot_judge(photos: Path) -> None:
    table = photos / "labels.csv"
    rows = [f"{name}/img{i}.png,{name},train" for name in ("cat", "dog") for i in range(4)]
    for split in ("val", "test"):
        table.write_text("\n".join(["path,label,split", *rows, f"cat/img5.png,,{split}"]))
        with pytest.raises(ValueError, match=r"no (test|validation) image has a label"):
            load_from(photos)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among its files")
def test_strange_files_are_skipped_with_a_note(photos: Path) -> None:
    (photos / "cat" / "broken.png").symlink_to("nowhere.png")
    (photos / "cat" / "loop").symlink_to(photos, target_is_directory=True)
    os.mkfifo(photos / "cat" / "pipe.png")
    (photos / "cat" / "folder.png").mkdir()
    (photos / "cat" / ".hidden.png").write_bytes(b"no picture")
    noise = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    save(photos / "dog" / f"{'長' * 80}.png", noise)
    dataset = load_from(photos)
    assert dataset.train.class_counts.tolist() == [6, 7]
    notes = "\n".join(dataset.notes)
    assert notes.count("skipped:") == 2
    assert "broken.png: no such file" in notes
    assert "pipe.png: it is no regular file" in notes
    with pytest.raises(ValueError, match=r"--strict: 2 amiss, the first: cannot read .*broken"):
        load_from(photos, strict=True)


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names are text there")
def test_names_that_are_no_text_can_be_written(photos: Path) -> None:
    folder = os.fsencode(photos / "c") + b"\xff"
    shutil.copytree(os.fsencode(photos / "cat"), folder)
    dataset = load_from(photos)
    assert dataset.train.class_names == ("c\\udcff", "cat", "dog")
    assert "".join(dataset.train.paths).encode("utf-8").count(b"udcff") == 6


def test_names_that_differ_in_case_are_told(photos: Path) -> None:
    if (photos / "CAT").exists():
        pytest.skip("this disk takes names that differ in case for one")
    shutil.copytree(photos / "cat", photos / "Cat2")
    (photos / "cat").rename(photos / "cat2")
    dataset = load_from(photos)
    assert dataset.train.class_names == ("Cat2", "cat2", "dog")
    assert any("classes Cat2 and cat2 differ in case" in note for note in dataset.notes)
    with pytest.raises(ValueError, match="--strict: 1 amiss, the first: classes Cat2 and cat2"):
        load_from(photos, strict=True)


def test_a_thousand_classes_of_one_image(tmp_path: Path) -> None:
    for i in range(1000):
        save(tmp_path / "many" / f"class{i}" / "1.png", np.full((8, 8), i % 251, np.uint8))
    dataset = load_from(tmp_path / "many")
    assert dataset.train.class_names[:3] == ("class0", "class1", "class2")
    assert dataset.train.class_counts.tolist() == [1] * 1000
    assert dataset.train.images[:, 0, 14, 14].tolist() == [i % 251 for i in range(1000)]


# ── tables, arrays and archives ─────────────────────────────────────────────────────────────────


@pytest.fixture
def listed(photos: Path) -> Path:
    """The same pictures in one folder, with a table that says what they are."""
    flat = photos.with_name("flat")
    flat.mkdir()
    splits = ("train", "train", "train", "val", "test", "unlabelled")
    rows = ["path,label,split"]
    for folder in (photos / "dog", photos / "cat"):
        for i, split in enumerate(splits):
            name = f"{folder.name}{i}.png"
            shutil.copy(folder / f"img{i}.png", flat / name)
            rows.append(f"{name},{folder.name},{split}")
    (flat / "labels.csv").write_text("\n".join(rows))
    return flat


def test_a_table_beside_a_flat_folder(listed: Path, photos: Path) -> None:
    folders_of = load_from(photos).train
    for source in (listed, listed / "labels.csv"):
        dataset = load_from(source)
        assert dataset.train.class_names == ("cat", "dog")
        assert dataset.train.labels.tolist() == [1, 1, 1, 0, 0, 0, -1, -1]
        assert torch.equal(dataset.train.images[3:6], folders_of.images[:3])
        assert dataset.validation is not None
        assert dataset.validation.labels.tolist() == [1, 0]
        assert dataset.test is not None
        assert dataset.test.labels.tolist() == [1, 0]
        assert dataset.test_of == "images in labels.csv (test)"
        assert dataset.preparation == Preparation("letterbox", 52, 3)
        assert f"{listed / 'labels.csv'}: 6 images of 52×52" in dataset.notes[0]
        assert disjoint(dataset)
        images, taken = load_images(str(source), dataset.preparation, ("dog", "cat"))
        assert images.labels.tolist() == [0, 1]
        assert taken == f"all of {listed / 'labels.csv'} (test)"


def test_rows_of_a_table_may_be_amiss(listed: Path) -> None:
    with (listed / "labels.csv").open("a") as table:
        table.write("\nabsent.png,cat,train\ncat0.png,dog,train\n")
    notes = "\n".join(load_from(listed).notes)
    assert "skipped: row 15 of labels.csv: cat0.png is in row 8 already" in notes
    assert "absent.png: no such file" in notes
    with pytest.raises(ValueError, match="--strict: 2 amiss"):
        load_from(listed, strict=True)
    images, _ = load_images(str(listed), DIGITS, ("cat", "dog"))  # none of the test split is amiss
    assert len(images) == 2
    with (listed / "labels.csv").open("a") as table:
        table.write("cat0.png,cat,test\n")
    with pytest.raises(ValueError, match=r"1 row of .* cannot be used, .*: row 16 of labels\.csv"):
        load_images(str(listed), DIGITS, ("cat", "dog"))
    with (listed / "labels.csv").open("a") as table:
        table.write("other.png,bird,test\n")
    with pytest.raises(ValueError, match=r"labels\.csv \(test\) has classes .* not trained: bird"):
        load_from(listed)


def test_arrays(photos: Path, tmp_path: Path) -> None:
    files = load_from(photos).train
    pixels, labels = files.images.permute(0, 2, 3, 1).numpy(), files.labels.numpy()
    held = {"x_train": pixels, "y_train": labels, "x_test": pixels[::5], "y_test": labels[::5]}
    np.savez(tmp_path / "a.npz", allow_pickle=False, class_names=files.class_names, **held)
    dataset = load_from(tmp_path / "a.npz")
    assert torch.equal(dataset.train.images, files.images)
    assert torch.equal(dataset.train.labels, files.labels)
    assert dataset.train.class_names == ("cat", "dog")
    assert dataset.test is not None
    assert dataset.test.labels.tolist() == [0, 0, 1]
    assert dataset.test_of == "images in a.npz (test)"
    assert disjoint(dataset)
    images, taken = load_images(str(tmp_path / "a.npz"), dataset.preparation, ("dog", "cat"))
    assert images.labels.tolist() == [1, 1, 0]
    assert taken == f"all of {tmp_path / 'a.npz'} (test)"
    smaller = load_from(tmp_path / "a.npz", size=20)
    assert smaller.train.images.shape == (12, 3, 20, 20)
    grey, _ = load_images(str(tmp_path / "a.npz"), DIGITS, ("dog", "cat"))
    assert grey.images.shape == (3, 1, 28, 28)
    (tmp_path / "side").mkdir()
    for name, array in held.items():
        np.save(tmp_path / "side" / f"{name}.npy", array)
    assert torch.equal(load_from(tmp_path / "side").train.images, files.images)
    assert load_from(tmp_path / "side" / "x_train.npy").test is not None


def test_arrays_that_are_digits_stay_digits(idx_dir: Path, tmp_path: Path) -> None:
    official = load_from(idx_dir)
    train = official.train
    np.savez(tmp_path / "a.npz", allow_pickle=False, images=train.images[:, 0], labels=train.labels)
    dataset = load_from(tmp_path / "a.npz")
    assert dataset.preparation == DIGITS
    assert torch.equal(dataset.train.images, train.images)
    assert load_from(tmp_path / "a.npz", prepare="letterbox").preparation.kind == "letterbox"
    wide = np.zeros((4, 200, 90), np.uint8)
    wide[:, 50:150] = 77
    np.savez(tmp_path / "b.npz", allow_pickle=False, images=wide, labels=[0, 1, 0, 1])
    assert load_from(tmp_path / "b.npz").train.images.shape == (4, 1, 128, 128)
    np.savez(tmp_path / "c.npz", allow_pickle=False, x_test=wide, y_test=[0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"c\.npz has test images but none to train with"):
        load_from(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", allow_pickle=False, images=wide)
    with pytest.raises(ValueError, match=r"no image of .*d\.npz has a label"):
        load_from(tmp_path / "d.npz")
    with pytest.raises(ValueError, match=r"--dev needs a directory of idx files, and .*a\.npz"):
        load_from(tmp_path / "a.npz", dev=True)


@pytest.mark.parametrize("kind", ["photos", "flat", "idx", "arrays", "class"])
def test_archives_are_what_they_hold(
    kind: str, photos: Path, listed: Path, idx_dir: Path, tmp_path: Path, cache: Path
) -> None:
    np.savez(
        tmp_path / "a.npz",
        allow_pickle=False,
        images=np.eye(9)[None].repeat(4, 0),
        labels=[0, 1] * 2,
    )
    (tmp_path / "arrays").mkdir()
    shutil.move(tmp_path / "a.npz", tmp_path / "arrays" / "a.npz")
    folder = tmp_path / kind
    if kind == "class":
        shutil.copytree(photos / "cat", folder / "cat")
    plain = folder / "a.npz" if kind == "arrays" else folder
    packed = [
        Path(shutil.make_archive(str(tmp_path / "packed1"), "zip", folder)),
        Path(shutil.make_archive(str(tmp_path / "packed2"), "gztar", tmp_path, kind)),
    ]
    for path in packed:
        if kind == "class":
            with pytest.raises(ValueError, match="has one class only, cat"):
                load_from(path)
            assert load_images(str(path), DIGITS, ("cat",))[0].labels.tolist() == [0] * 6
            continue
        expected, found = load_from(plain), load_from(path)
        assert found.notes[0].startswith(f"{path}: unpacked into {cache}")
        for part, same in zip(found.parts, expected.parts, strict=True):
            assert torch.equal(part.images, same.images)
            assert torch.equal(part.labels, same.labels)
        assert found.preparation == expected.preparation
        names = expected.train.class_names
        images, _ = load_images(str(path), found.preparation, names)
        same, _ = load_images(str(plain), found.preparation, names)
        assert torch.equal(images.images, same.images)
        assert not scores_on_mnist(str(path))


def test_a_table_in_an_archive_names_no_file_outside(
    photos: Path, listed: Path, tmp_path: Path, cache: Path
) -> None:
    with (listed / "labels.csv").open("a") as table:
        table.write(f"\n{photos / 'cat' / 'img0.png'},cat,train\n")
    assert len(load_from(listed).train) == 9
    path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", listed))
    dataset = load_from(path)
    assert len(dataset.train) == 8
    assert any("img0.png lies outside of packed" in note for note in dataset.notes)


def test_pools_of_every_kind(photos: Path, listed: Path, tmp_path: Path, cache: Path) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (5, 40, 52, 3), np.uint8)
    np.savez(tmp_path / "pool.npz", allow_pickle=False, images=images, labels=np.arange(5))
    path = shutil.make_archive(str(tmp_path / "packed"), "zip", listed)
    expected = {tmp_path / "pool.npz": 5, listed: 0, Path(path): 0}
    for pool, more in expected.items():
        dataset = load_from(photos, pool=str(pool))
        assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6 + [-1] * more
        assert any(note.startswith(f"pool: {more} images") for note in dataset.notes)


# ── for a model that is there already ───────────────────────────────────────────────────────────


def test_evaluating_takes_the_test_split(idx_dir: Path) -> None:
    found, taken = load_images(str(idx_dir), DIGITS, ("0", "1", "2"))
    assert len(found) == 10
    assert taken == f"all of {idx_dir / 't10k-images-idx3-ubyte.gz'}"
    for path in idx_dir.glob("t10k*"):
        path.unlink()
    found, taken = load_images(str(idx_dir), DIGITS, ("0", "1", "2"))
    assert len(found) == 60
    assert taken == f"all of {idx_dir / 'train-images-idx3-ubyte.gz'}"


def test_labels_are_matched_by_name(idx_dir: Path) -> None:
    found, _ = load_images(str(idx_dir), DIGITS, ("2", "spare", "0", "1"))
    assert found.class_names == ("2", "spare", "0", "1")
    assert found.labels[:4].tolist() == [2, 3, 0, 2]
    with pytest.raises(ValueError, match="not trained: 2; trained were 0, 1"):
        load_images(str(idx_dir), DIGITS, ("0", "1"))


def test_mnist50_is_prepared_for_the_model() -> None:
    found, taken = load_images("mnist50", DIGITS, NAMES)
    assert taken == "MNIST's official test images"
    assert found.images.shape == (10_000, 1, 28, 28)
    assert found.labels[:3].tolist() == [7, 2, 1]


def test_arrays_are_brought_to_another_size(idx_dir: Path) -> None:
    found, _ = load_images(str(idx_dir), Preparation("letterbox", 40, 3), ("0", "1", "2"))
    assert found.images.shape == (10, 3, 40, 40)


def test_folders_for_a_model(photos: Path) -> None:
    preparation = Preparation("letterbox", 32, 3)
    found, taken = load_images(str(photos), preparation, ("dog", "cat"))
    assert found.labels.tolist() == [1] * 6 + [0] * 6
    assert taken == f"all of {photos}"
    flat, _ = load_images(str(photos / "cat"), preparation, ("dog", "cat"))
    assert flat.labels.tolist() == [-1] * 6
    assert flat.class_names == ("dog", "cat")
    assert flat.paths[0].endswith("img0.png")
    (photos / "cat" / "bad.png").touch()
    for folder in (photos, photos / "cat"):
        with pytest.raises(ValueError, match=r"1 file of .* cannot be read, .*bad\.png"):
            load_images(str(folder), preparation, ("dog", "cat"))


def test_digits_written_to_png_are_the_same_as_the_arrays(idx_dir: Path, tmp_path: Path) -> None:
    arrays = load_from(idx_dir).train
    for i, pixels in enumerate(arrays.images[:, 0].numpy()):
        save(tmp_path / "png" / str(int(arrays.labels[i])) / f"{i}.png", pixels)
    dataset = load_from(tmp_path / "png")
    assert dataset.preparation == DIGITS
    order = torch.tensor([int(Path(path).stem) for path in dataset.train.paths])
    assert torch.equal(dataset.train.images, arrays.images[order])
    assert torch.equal(dataset.train.labels, arrays.labels[order])


# ── fetching ────────────────────────────────────────────────────────────────────────────────────


def test_fetching_writes_the_official_files(
    mnist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {name: idx.read_idx(mnist_dir / f"{name}.gz") for name in idx.MNIST_SHA256}
    train, train_labels, test, test_labels = stored.values()
    sent = SimpleNamespace(
        data=np.concatenate([train, test]).reshape(70_000, 784).astype(np.int16),
        target=np.concatenate([train_labels, test_labels]).astype(str).astype(object),
    )
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *_, **__: sent)
    fetch_mnist(tmp_path / "new" / "mnist")
    for name, array in stored.items():
        found = idx.read_idx(tmp_path / "new" / "mnist" / f"{name}.gz")
        np.testing.assert_array_equal(found, array)
    sent.data[0, 300] += 1
    with pytest.raises(ValueError, match="not the official train-images"):
        fetch_mnist(tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_fetching_without_internet_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", unreachable)
    with pytest.raises(ValueError, match="is there internet"):
        fetch_mnist(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot make the folder"):
        fetch_mnist(tmp_path / "file")


def test_official_files_are_not_fetched_again(
    mnist_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("sklearn.datasets.fetch_openml")
    fetch_mnist(mnist_dir)


def test_mnists_own_test_images_are_known(
    idx_folder: Callable[[int, int], Path], tmp_path: Path
) -> None:
    assert scores_on_mnist("mnist50")
    assert not scores_on_mnist(str(idx_folder(2, 5)))
    assert not scores_on_mnist(str(idx_folder(2, 0)))
    assert not scores_on_mnist(str(tmp_path))
    with pytest.raises(ValueError, match="does not exist"):
        scores_on_mnist(str(tmp_path / "nowhere"))


def test_the_official_files_are_mnist(mnist_dir: Path) -> None:
    assert scores_on_mnist(str(mnist_dir))


def test_a_pool_joins_without_labels_and_without_what_is_there_already(
    idx_dir: Path, tmp_path: Path
) -> None:
    source = load_from(idx_dir)
    assert source.test is not None
    known = [source.train.images[3, 0], source.test.images[4, 0]]
    for i, pixels in enumerate(known):  # one would be labelled twice, the other trained and tested
        save(tmp_path / "pool" / "deep" / f"known{i}.png", pixels.numpy())
    rng = np.random.default_rng(0)
    for i in range(3):
        new = np.zeros((28, 28), np.uint8)
        new[4:24, 4:24] = rng.integers(50, 255, (20, 20), np.uint8)
        save(tmp_path / "pool" / f"new{i}.png", new)
    shutil.copy(tmp_path / "pool" / "new0.png", tmp_path / "pool" / "again.png")
    (tmp_path / "pool" / "broken.png").write_bytes(b"broken")
    # prepared digits are taken as they are
    found = load_from(idx_dir, pool=str(tmp_path / "pool"), prepare="letterbox")
    assert len(found.train) == len(source.train) + 3
    assert found.train.labels[-3:].tolist() == [-1, -1, -1]
    assert disjoint(found)
    assert len(found.train.sources.unique()) == len(found.train)
    assert any(
        "pool: 3 images" in note and "3 that are there twice or in the source" in note
        for note in found.notes
    )
    assert any("broken.png" in note for note in found.notes)


def test_a_pool_of_nothing_but_the_source_changes_nothing(idx_dir: Path) -> None:
    plain, pooled = load_from(idx_dir), load_from(idx_dir, pool=str(idx_dir))
    assert torch.equal(plain.train.images, pooled.train.images)
    assert torch.equal(plain.train.labels, pooled.train.labels)


def test_an_idx_pool_gives_its_training_images(idx_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(idx_dir, other)
    images = np.zeros((5, 28, 28), np.uint8) + np.arange(1, 6, dtype=np.uint8)[:, None, None]
    idx.write_idx(other / "train-images-idx3-ubyte.gz", images)
    idx.write_idx(other / "train-labels-idx1-ubyte", np.array([0, 1, 2, 3, 4], np.uint8))
    found = load_from(idx_dir, pool=str(other))
    assert found.train.labels[-5:].tolist() == [-1] * 5
    assert len(found.train) == 65


def test_a_pool_takes_no_path_from_anyone(photos: Path, idx_dir: Path) -> None:
    plain = load_from(photos, size=28)
    for pool in (idx_dir, photos):
        found = load_from(photos, size=28, pool=str(pool))
        assert found.train.paths[: len(plain.train)] == plain.train.paths
        assert len(found.train.paths) == len(found.train)


def test_a_pool_that_is_not_there_is_one_line(idx_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        load_from(idx_dir, pool=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no images"):
        load_from(idx_dir, pool=str(tmp_path / "empty"))
