"""What is suggested is new, doubtful and varied, whatever is known of its labels."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handful import SimCLREncoder, cli, datasets, experiment
from handful.datasets import Dataset
from handful.predictor import Predictor
from handful.runs import RunFolder
from handful.suggest import doubt, suggest, typical, worth_a_label

TINY = {
    "network__width": 4, "pretext__steps": 2, "downstream__steps": 12, "downstream__checks": 2,
    "tsne": False, "test_views": 1, "control": False,
}  # fmt: skip


def test_doubt_is_what_the_first_class_is_not_ahead_by() -> None:
    probabilities = np.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(doubt(probabilities), [0.5, 1.0, 0.0])


def groups(count: int, of: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """`count` directions in space, `of` points near each, (count · of, 8)."""
    rng = np.random.default_rng(seed)
    middles = np.eye(8)[:count] * 5
    return np.repeat(middles, of, 0) + rng.normal(0, 0.1, (count * of, 8))


def test_one_image_of_each_group_is_typical() -> None:
    h = groups(6, 30)
    chosen = typical(h, np.ones(len(h)), 6)
    assert sorted(chosen // 30) == list(range(6))
    for i in chosen:  # nearer to the middle of its group than most of it
        group = h[i // 30 * 30 : i // 30 * 30 + 30]
        away = np.linalg.norm(group - group.mean(0), axis=1)
        assert away[i % 30] < np.median(away)
    # length says nothing, and the largest group comes first
    lengths = np.random.default_rng(1).uniform(0.5, 9, (len(h), 1))
    assert sorted(typical(h * lengths, np.ones(len(h)), 6) // 30) == list(range(6))
    assert typical(h[20:], np.ones(len(h) - 20), 6)[-1] < 10


def test_few_images_are_all_suggested_and_equal_ones_are_no_groups() -> None:
    np.testing.assert_array_equal(typical(groups(2, 2), np.ones(4), 7), range(4))
    same = np.ones((9, 3))
    assert len(typical(same, np.zeros(9), 4)) == 1


def test_doubtful_images_that_look_alike_are_suggested_once() -> None:
    """Two hundred images of one kind are the most doubtful: they do not take all places."""
    h = np.concatenate([groups(1, 200), groups(5, 40)[40:]])
    probabilities = np.full((len(h), 2), [0.99, 0.01])
    probabilities[:200] = [0.5, 0.5]
    probabilities[200::10] = [0.7, 0.3]
    chosen = worth_a_label(h, probabilities, 12)
    assert chosen[0] < 200
    assert len(set((chosen[chosen >= 200] - 200) // 40)) >= 3
    assert all(chosen[chosen >= 200] % 10 == 0)  # of those that leave no doubt, none
    left = doubt(probabilities)[chosen]
    assert (left[:-1] >= left[1:]).all()


@pytest.fixture(scope="module")
def place(bundled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of digits in class folders, which a run knows some of, and a pool of 60 others."""
    root, images = tmp_path_factory.mktemp("place") / "photos", bundled.train
    for i in range(260):
        part = "known" if i < 200 else "pool"
        folder = root / part / images.class_names[int(images.labels[i])]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.images[i, 0].numpy()).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    out = place.parent / "run"
    experiment.train(str(place / "known"), out=out, recipe="fast", **TINY)
    return out


def test_images_that_the_run_knows_are_left_out(run: Path, place: Path) -> None:
    said: list[str] = []
    found = suggest(run, str(place), 1000, say=said.append)
    names = {int(Path(one.image).stem) for one in found}
    assert names == set(range(200, 260))
    assert said[-1].endswith("60 of 260 images are new")
    with pytest.raises(ValueError, match="no image that the run does not know"):
        suggest(run, str(place / "known"), 5)


def test_the_most_doubtful_come_first_with_what_they_could_be(run: Path, place: Path) -> None:
    found = suggest(run, str(place / "pool"), 8)
    assert len({one.image for one in found}) == 8
    model = Predictor.load(run, "cpu")
    for image, ranking, undecided in found:
        assert not undecided
        assert ranking[0][0] == model.predict([image])[0]
    left = [one.ranking[0][1] - one.ranking[1][1] for one in found]
    assert left == sorted(left)
    assert suggest(run, str(place / "pool"), 8) == found


@pytest.fixture
def undecided(run: Path, place: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """The same run, whose labels left nine images of the pool between its first two classes: six
    alike, three alike; and their names in that order.
    """
    copied = RunFolder(shutil.copytree(run, tmp_path / "run"))
    model = Predictor.load(run, "cpu")
    pool = datasets.load_pool(str(place / "pool"), model.preparation, model.class_names)
    some = np.random.default_rng(3).permutation(len(pool.images))[:9]
    h = np.repeat(np.eye(4)[:2], [6, 3], 0) + np.linspace(0, 0.1, 9)[:, None]
    shares = np.zeros((9, len(model.class_names)))
    shares[:, 0] = 0.6, 0.57, 0.54, 0.51, 0.61, 0.62, 0.63, 0.64, 0.65
    shares[:, 1] = 1 - shares[:, 0]
    copied.write_arrays(
        copied.arrays()
        | {
            "undecided_fingerprints": pool.images.select(torch.from_numpy(some)).fingerprints,
            "undecided_h": h.astype(np.float16),
            "undecided_shares": shares.astype(np.float32),
        }
    )
    return copied.path, [pool.images.paths[i] for i in some]


def test_what_labels_left_between_two_classes_comes_first(
    undecided: tuple[Path, list[str]], run: Path, place: Path
) -> None:
    path, names = undecided
    said: list[str] = []
    found = suggest(path, str(place / "pool"), 2, say=said.append)
    assert found[0].image in names[:6]  # the larger group
    assert found[1].image in names[6:]
    assert said[-1] == "left between two classes by labels that spread: 2 of these"
    for _, ranking, of_labels in found:
        assert of_labels
        assert [name for name, _ in ranking[:2]] == list(Predictor.load(run, "cpu").class_names[:2])
        assert 0.5 < ranking[0][1] < 0.66
    assert len({one.image for one in suggest(path, str(place), 1000)}) == 60


def test_after_all_that_is_undecided_comes_what_the_model_doubts(
    undecided: tuple[Path, list[str]], run: Path, place: Path, tmp_path: Path
) -> None:
    path, names = undecided
    found = suggest(path, str(place / "pool"), 12)
    assert [one.image for one in found[:9]] == names[3::-1] + names[4:]  # the fourth most of all
    for one in (place / "pool").rglob("*.png"):
        if str(one) not in names:
            (tmp_path / "others").mkdir(exist_ok=True)
            (tmp_path / "others" / one.name).write_bytes(one.read_bytes())
    others = suggest(run, str(tmp_path / "others"), 3)
    assert [Path(one.image).name for one in found[9:]] == [Path(one.image).name for one in others]
    assert not any(one.undecided for one in found[9:])
    said: list[str] = []
    assert len(suggest(path, str(tmp_path / "others"), 3, say=said.append)) == 3
    assert said[-1] == "left between two classes by labels that spread: none of these"


def test_labels_in_the_pool_are_not_looked_at(run: Path, place: Path, tmp_path: Path) -> None:
    for i, path in enumerate(sorted((place / "pool").rglob("*.png"))):
        folder = tmp_path / "pool" / str(i % 2)  # any two classes, none of them the run's
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    ours, theirs = (suggest(run, str(p / "pool"), 6) for p in (place, tmp_path))
    assert [Path(one.image).name for one in ours] == [Path(one.image).name for one in theirs]


def test_an_image_that_is_there_twice_counts_once(run: Path, place: Path, tmp_path: Path) -> None:
    paths = sorted((place / "pool").rglob("*.png"))[:5]
    for path in paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / f"again-{path.name}").write_bytes(path.read_bytes())
    assert len(suggest(run, str(tmp_path), 50)) == 5


def test_files_of_an_archive_are_called_as_they_lie_in_it(
    run: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "cache"))
    packed = shutil.make_archive(str(tmp_path / "more"), "zip", place / "pool")
    ours, theirs = (suggest(run, pool, 6) for pool in (packed, str(place / "pool")))
    names = [str(Path(one.image).relative_to(place / "pool")) for one in theirs]
    assert [one.image for one in ours] == names


def test_images_that_judge_a_run_are_not_suggested(place: Path, tmp_path: Path) -> None:
    """Neither those of a split that is called so, nor those that it was tested on."""
    paths = sorted((place / "known").rglob("*.png"))
    for path in paths:
        part = "test" if int(path.stem) % 2 else "train"
        folder = tmp_path / "photos" / part / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "run"
    experiment.train(
        str(tmp_path / "photos" / "train"), out=out, recipe="fast", **TINY, data__per_class=3
    )
    with pytest.raises(ValueError, match="no image that the run does not know"):
        suggest(out, str(tmp_path / "photos"), 5)  # the rest of train tested it
    found = suggest(None, str(tmp_path / "photos"), 1000)
    assert {Path(one.image).parts[-3] for one in found} == {"train"}


def test_a_model_alone_does_not_know_what_it_learned(run: Path, place: Path) -> None:
    said: list[str] = []
    assert len(suggest(run / "model", str(place), 1000, say=said.append)) == 260
    assert "is no run folder: which images its model learned from is not known" in said[0]


def test_a_pool_of_no_more_than_is_asked_for_needs_no_encoder(place: Path) -> None:
    folder = next((place / "pool").iterdir())
    said: list[str] = []
    found = suggest(None, str(folder), 1000, say=said.append)
    assert len(found) == len(list(folder.iterdir()))
    assert not any("encoder" in line for line in said)


def test_without_a_run_the_first_labels_are_spread(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handful import suggest as module

    class Quick(module.SimCLREncoder):
        def __init__(self, random_state: Any = None, device: str = "auto") -> None:
            super().__init__(pretext_steps=3, width=4, random_state=random_state, device=device)

    monkeypatch.setattr(module, "SimCLREncoder", Quick)
    rows: list[dict[str, Any]] = []
    found = suggest(None, str(place / "pool"), 7, on_row=rows.append)
    assert rows[-1]["stage"] == "pretext"
    assert len({one.image for one in found}) == 7
    assert all(one.ranking == () for one in found)


def test_an_encoder_alone_suggests_what_is_typical(place: Path, tmp_path: Path) -> None:
    pixels = np.stack([np.asarray(Image.open(p)) for p in sorted((place / "pool").rglob("*.png"))])
    encoder = SimCLREncoder("fast", pretext_steps=1, width=4, random_state=0, device="cpu")
    encoder.fit(pixels).predictor_.save(tmp_path / "model")
    found = suggest(tmp_path / "model", str(place / "pool"), 5, device="cpu")
    assert len({one.image for one in found}) == 5
    assert all(one.ranking == () for one in found)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def ended(*words: object) -> tuple[int, str, str]:
        code = cli.main(list(map(str, words)))
        return code, *capsys.readouterr()

    return ended


def test_what_the_command_prints_is_a_table_to_fill_in(
    command: Callable[..., tuple[int, str, str]], run: Path, place: Path
) -> None:
    code, out, err = command("suggest", run, place / "pool", "-n", 4, "--csv")
    assert code == 0
    assert "60 of 60 images are new" in err
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["label"] for row in rows] == [""] * 4
    _, out, _ = command("suggest", run, place / "pool", "-n", 4, "--json")
    records = json.loads(out)
    assert [one["image"] for one in records] == [row["path"] for row in rows]
    assert [one["candidates"][0]["class"] for one in records] == [r["candidate"] for r in rows]
    _, out, _ = command("suggest", run, place / "pool", "-n", 4)
    assert [line.split()[1] for line in out.splitlines()[1:]] == [row["path"] for row in rows]


def test_shares_of_labels_are_not_called_probabilities(
    command: Callable[..., tuple[int, str, str]],
    undecided: tuple[Path, list[str]],
    place: Path,
) -> None:
    _, out, _ = command("suggest", undecided[0], place / "pool", "-n", 10, "--json")
    kinds = [set(one["candidates"][0]) - {"class"} for one in json.loads(out)]
    assert kinds == [{"share"}] * 9 + [{"probability"}]
    _, out, _ = command("suggest", undecided[0], place / "pool", "-n", 10)
    by_labels = [line.endswith("  by the labels that spread") for line in out.splitlines()]
    assert by_labels == [False] + [True] * 9 + [False]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b", "c"], "a run and a pool, got 3 places"),
        (["RUN", "POOL", "-n", "0"], "-n 0: ask for at least one"),
        (["RUN", "nowhere"], "nowhere does not exist"),
        (["nowhere", "POOL"], "no run in nowhere"),
        (["RUN"], "is a run: name the pool after it"),
        (["RUN", "POOL", "--csv", "--json"], "exclude each other"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    command: Callable[..., tuple[int, str, str]],
    run: Path,
    place: Path,
) -> None:
    known = {"RUN": str(run), "POOL": str(place / "pool")}
    code, out, err = command("suggest", *(known.get(word, word) for word in words))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
