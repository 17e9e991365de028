from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handful import datasets, hub, sources, suggest
from handful.config import DataConfig
from handful.images import UNLABELLED

hf = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
hf.disable_progress_bars()

RNG = np.random.default_rng(0)
PICTURES = [Image.fromarray(RNG.integers(0, 255, (9 + i, 12, 3), dtype=np.uint8)) for i in range(8)]
LABELS = [0, 1, 0, 1, 0, 1, -1, None]
CLASSES = hf.ClassLabel(names=["cat", "dog"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "theirs")
    return tmp_path / "cache"


def made(labels: list[Any] = LABELS, kind: Any = CLASSES, name: str = "label") -> Any:
    features = hf.Features({"image": hf.Image(), name: kind})
    return hf.Dataset.from_dict({"image": PICTURES[: len(labels)], name: labels}, features)


def parts() -> Any:
    return hf.DatasetDict(train=made(), test=made([0, 1]))


def saved(folder: Path) -> Path:
    parts().save_to_disk(folder)
    return folder


def in_parquet(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    for split, rows in parts().items():
        for shard in range(2):
            part = rows.shard(2, shard, contiguous=True)
            part.to_parquet(folder / f"data/{split}-{shard:05d}-of-00002.parquet")
    return folder


def archived(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", in_parquet(folder)))


@pytest.mark.parametrize("written", [saved, in_parquet, archived])
def test_what_datasets_wrote_is_a_source(tmp_path: Path, written: Callable[[Path], Path]) -> None:
    path = written(tmp_path / "theirs")
    dataset = datasets.load(DataConfig(source=str(path), size=12, prepare="letterbox"))
    assert dataset.train.class_names == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 0, 1, UNLABELLED, UNLABELLED]
    assert dataset.test is not None
    assert dataset.test.labels.tolist() == [0, 1]
    assert f"{path}: unpacked into" in dataset.notes[0]
    # pixels are those of the pictures, in their order
    assert (dataset.train.images[3].numpy().transpose(1, 2, 0) == np.asarray(PICTURES[3])).all()


def test_one_data_set_and_one_file_train(tmp_path: Path) -> None:
    made().save_to_disk(tmp_path / "one")
    made().to_parquet(tmp_path / "photos.parquet")
    for name in ("one", "photos.parquet"):
        dataset = datasets.load(DataConfig(source=str(tmp_path / name)))
        assert len(dataset.train) == 8
        assert dataset.test is None


def test_a_table_of_paths_stays_one(tmp_path: Path) -> None:
    PICTURES[0].save(tmp_path / "a.png")
    PICTURES[1].save(tmp_path / "b.png")
    rows = hf.Dataset.from_dict({"path": ["a.png", "b.png"], "label": ["cat", "dog"]})
    rows.to_parquet(tmp_path / "labels.parquet")
    assert sources.located(str(tmp_path)).place == tmp_path / "labels.parquet"
    assert not hub.is_saved(tmp_path / "a.png")


def test_names_are_looked_up_with_configuration_and_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fetched(name: str, config: str | None, *, revision: str | None, **_: Any) -> Any:
        asked.append((name, config, revision))
        return hf.load_from_disk(saved(tmp_path / "theirs"))

    monkeypatch.setattr(hf, "load_dataset", fetched)
    dataset = datasets.load(DataConfig(source="hub:owner/pets:small@v1.0"))
    assert asked == [("owner/pets", "small", "v1.0")]
    assert len(dataset.train) == 8
    with pytest.raises(ValueError, match=r"cannot read hub:a b: a name is OWNER/NAME, and with it"):
        sources.located("hub:a b")


def test_the_second_time_nothing_is_written(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "theirs")
    first = hub.unpacked(path)
    monkeypatch.setattr(hub, "_write", lambda *_: pytest.fail("written again"))
    assert hub.unpacked(path) == first
    shutil.copytree(path, tmp_path / "copied")
    assert hub.unpacked(tmp_path / "copied") == first
    assert first.table.parent.parent == cache


@pytest.mark.parametrize("kind", [hf.Value("string"), hf.Value("int64")])
def test_labels_may_be_plain_values(tmp_path: Path, kind: Any) -> None:
    values = [7, 8, 7, None] if kind.dtype == "int64" else ["7", "8", "7", None]
    made(values, kind, "class").save_to_disk(tmp_path / "one")
    train = datasets.load(DataConfig(source=str(tmp_path / "one"))).train
    assert train.class_names == ("7", "8")
    assert train.labels.tolist() == [0, 1, 0, UNLABELLED]


def test_splits_of_other_names_are_told(tmp_path: Path) -> None:
    hf.DatasetDict(train=made(), extra=made()).save_to_disk(tmp_path / "two")
    notes = datasets.load(DataConfig(source=str(tmp_path / "two"))).notes
    assert "not used: the split extra, not called as parts of a source are" in notes


def test_splits_without_labels_are_a_pool(tmp_path: Path) -> None:
    unlabelled = made().remove_columns("label")
    hf.DatasetDict(train=made(), unlabelled=unlabelled).save_to_disk(tmp_path / "two")
    train = datasets.load(DataConfig(source=str(tmp_path / "two"))).train
    assert int((train.labels == UNLABELLED).sum()) == 2 + 8
    unlabelled.save_to_disk(tmp_path / "pool")
    assert len(datasets.load_pool(str(tmp_path / "pool")).images) == 8


def test_pictures_that_cannot_be_read_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere.png"
    PICTURES[0].save(elsewhere)
    cells = [{"bytes": None, "path": str(elsewhere)}, {"bytes": None, "path": "/gone.png"}]
    cells += [{"bytes": b"no picture", "path": None}, None]
    kinds = hf.Features({"image": hf.Image(decode=False), "label": CLASSES})
    amiss = hf.Dataset.from_dict({"image": cells, "label": [0, 1, 0, 1]}, kinds)
    both = hf.concatenate_datasets([made().cast(kinds), amiss])
    monkeypatch.setattr(hf, "load_dataset", lambda *_, **__: both)
    dataset = datasets.load(DataConfig(source="hub:some"))
    assert len(dataset.train) == 9
    skipped = [note for note in dataset.notes if note.startswith("skipped")]
    assert len(skipped) == 3
    assert "train-000009.png: the file is empty" in skipped[0]
    assert "train-000010.png: not a picture in a known format" in skipped[1]


def test_what_is_amiss_is_one_line_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    two = hf.Features({"a": hf.Image(), "b": hf.Image(), "label": CLASSES})
    hf.Dataset.from_dict({"a": PICTURES, "b": PICTURES, "label": LABELS}, two).save_to_disk(
        tmp_path / "pictures"
    )
    three = hf.Features({"image": hf.Image(), "fine": CLASSES, "coarse": CLASSES})
    hf.Dataset.from_dict({"image": PICTURES, "fine": LABELS, "coarse": LABELS}, three).save_to_disk(
        tmp_path / "classes"
    )
    hf.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    saved(tmp_path / "damaged")
    for file in (tmp_path / "damaged").rglob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    for name, reason in (
        (
            "pictures",
            "several columns of pictures among a, b, label: rename the one to use to image",
        ),
        (
            "classes",
            r"several columns of classes \(fine, coarse\): rename the one to use to label",
        ),
        ("text", "no column of pictures among text"),
        ("damaged", ""),
    ):
        with pytest.raises(ValueError, match=f"cannot read .*{name}: .*{reason}") as caught:
            sources.located(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())


def test_what_only_looks_like_it_is_read_as_before(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        PICTURES[0].save(tmp_path / name / "1.png")
    (tmp_path / "state.json").write_text("{}")
    hf.Dataset.from_dict({"score": [1.0]}).to_parquet(tmp_path / "train.parquet")
    assert sources.located(str(tmp_path)) == (tmp_path, None, [])


def test_lists_are_no_labels_and_nan_is_none(tmp_path: Path) -> None:
    made([1.0, 2.0, float("nan"), None], hf.Value("float32")).save_to_disk(tmp_path / "nan")
    train = datasets.load(DataConfig(source=str(tmp_path / "nan"))).train
    assert train.labels.tolist() == [0, 1, UNLABELLED, UNLABELLED]
    several = hf.Features({"image": hf.Image(), "label": hf.Sequence(hf.Value("int64"))})
    rows = {"image": PICTURES[:2], "label": [[0, 1], [0]]}
    hf.Dataset.from_dict(rows, several).save_to_disk(tmp_path / "several")
    with pytest.raises(ValueError, match="its column label holds more than one name or number"):
        sources.located(str(tmp_path / "several"))


def test_no_picture_may_lie_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.png"
    PICTURES[0].save(elsewhere)
    cell = {"bytes": None, "path": str(elsewhere)}
    with pytest.raises(ValueError, match=r"its picture .*elsewhere\.png lies outside of it"):
        hub._encoded(cell, tmp_path / "theirs")
    assert hub._encoded(cell, tmp_path) == elsewhere.read_bytes()


def test_without_a_split_of_a_known_name_there_is_nothing(tmp_path: Path, cache: Path) -> None:
    hf.DatasetDict(full=made(), extra=made()).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match=r"none of its splits \(full, extra\) is called train"):
        sources.located(str(tmp_path / "two"))
    assert not cache.exists() or not list(cache.iterdir())


def test_what_to_label_next_is_called_by_its_file(tmp_path: Path) -> None:
    unlabelled = made().remove_columns("label")
    unlabelled.save_to_disk(tmp_path / "pool")
    pool = datasets.load_pool(str(tmp_path / "pool"))
    named = suggest._named(pool, pool.images, range(8))
    assert named(3) == "train/train-000003.png"


def test_more_than_is_safe_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LARGEST", 1000)
    with pytest.raises(ValueError, match=r"it holds more than the 1,000 bytes that are safe"):
        hub.unpacked(saved(tmp_path / "theirs"))
    assert not list(cache.iterdir())


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"hub:mnist takes datasets: pip install 'handful\[hub\]'"):
        sources.located("hub:mnist")
