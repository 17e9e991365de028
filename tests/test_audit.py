"""An audit finds what was planted, says nothing of clean images and escapes what it shows."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handful import audit, cli, experiment, runs, screen
from handful.config import RunConfig
from handful.datasets import Dataset
from handful.images import ImageSet
from handful.recipes import RECIPES

CPU = torch.device("cpu")
QUICK = ["network.width=8", "downstream.steps=60", "downstream.folds=4", "test_views=1"]
FEW = ["network.width=4", "downstream.folds=2", "test_views=1"]
COLUMNS = ["rank", "kind", "image", "label", "suggested", "score", "other", "note"]


def digit(images: ImageSet, i: int) -> Image.Image:
    return Image.fromarray(images.images[i, 0].numpy())


def folder_of(
    images: ImageSet, place: Path, per_class: int, split: str = "", skip: int = 0
) -> Path:
    """Class folders of digits 0 to 3."""
    for label in range(4):
        chosen = (images.labels == label).nonzero()[skip : skip + per_class, 0].tolist()
        (place / split / str(label)).mkdir(parents=True)
        for i in chosen:
            digit(images, i).save(place / split / str(label) / f"{i}.png")
    return place


def table(out: Path) -> list[dict[str, str]]:
    with (out / "audit.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def audited(source: Path | str, out: Path, *assignments: str) -> list[dict[str, str]]:
    config, chosen = audit.setting(str(source), None, assignments)
    audit.run(config, out, chosen=chosen)
    return table(out)


UNTRAINED = "downstream.folds=0"


def test_clean_images_give_nothing(bundled: Dataset, tmp_path: Path) -> None:
    source = folder_of(bundled.train, tmp_path / "clean", 6, "train")
    folder_of(bundled.train, source, 4, "test", skip=6)
    assert audited(source, tmp_path / "out", UNTRAINED) == []
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert "Nothing was found" in page
    assert not (tmp_path / "out" / "labels.csv").exists()


def test_what_was_planted_is_found_and_nothing_else(bundled: Dataset, tmp_path: Path) -> None:
    source = folder_of(bundled.train, tmp_path / "photos", 6, "train")
    folder_of(bundled.train, source, 4, "test", skip=6)
    train, test = source / "train", source / "test"
    zero, one, two, three = (sorted((train / str(k)).glob("*.png"))[0] for k in range(4))
    (train / "0" / "x equal.png").write_bytes(zero.read_bytes())
    shifted = np.roll(np.asarray(Image.open(one)), 1, 0)
    Image.fromarray(shifted).save(train / "1" / "x near.jpg", quality=80)
    (train / "3" / "x conflict ü<b>.png").write_bytes(two.read_bytes())
    (test / "3" / "x leak.png").write_bytes(three.read_bytes())
    Image.new("L", (28, 28), 7).save(train / "2" / "x blank.png")
    (train / "2" / "x damaged.png").write_bytes(b"no picture")
    digit(bundled.train, 499).resize((10, 10)).save(train / "2" / "x tiny.png")
    rows = audited(source, tmp_path / "out", UNTRAINED)
    assert list(rows[0]) == COLUMNS
    assert [row["rank"] for row in rows] == [str(k) for k in range(1, len(rows) + 1)]
    found = {(row["kind"], Path(row["image"]).name, Path(row["other"]).name) for row in rows}
    assert found == {
        ("leak", three.name, "x leak.png"),
        ("conflict", "x conflict ü<b>.png", two.name),
        ("duplicate", "x equal.png", zero.name),
        ("duplicate", "x near.jpg", one.name),
        ("blank", "x blank.png", ""),
        ("tiny", "x tiny.png", ""),
        ("unreadable", "", ""),
    }
    kinds = [row["kind"] for row in rows]
    assert kinds[:2] == ["leak", "conflict"]
    conflict = rows[1]
    assert (conflict["label"], conflict["suggested"]) == ("3", "2")
    assert "x damaged.png" in rows[kinds.index("unreadable")]["note"]
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert "x conflict ü&lt;b&gt;.png" in page
    assert "ü<b>" not in page
    assert page.count("data:image/png") == 10  # two of each pair, one of the blank and the tiny one
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_arrays_keep_their_numbers_whatever_else_there_is(bundled: Dataset, tmp_path: Path) -> None:
    """Copies, images without a label, some of them left out as they test: all move positions."""
    pixels, labels = bundled.train.images[:, 0].numpy(), bundled.train.labels.numpy().copy()
    chosen = np.concatenate([np.flatnonzero(labels == k)[:6] for k in range(2)])
    x, y = pixels[chosen].copy(), labels[chosen].copy()
    test = pixels[np.flatnonzero(labels < 2)[-4:]]
    x[1], y[1] = test[3], -1  # left out: it tests
    y[11] = -1
    x[7] = x[2]  # of another label
    more = pixels[chosen[:3] + 20].copy()
    more[2] = x[8]
    np.savez(
        tmp_path / "some.npz", x_train=x, y_train=y, x_test=test, x_unlabelled=more,
        y_test=labels[np.flatnonzero(labels < 2)[-4:]],
    )  # fmt: skip
    conflict, copy = audited(tmp_path / "some.npz", tmp_path / "out", UNTRAINED)
    assert (conflict["kind"], conflict["image"], conflict["other"]) == (
        "conflict", "train 7", "train 2",
    )  # fmt: skip
    assert {copy["image"], copy["other"]} == {"train 8", "unlabelled 2"}


def test_every_file_that_was_left_out_has_its_line(bundled: Dataset, tmp_path: Path) -> None:
    source = folder_of(bundled.train, tmp_path / "photos", 6)
    for i in range(12):
        (source / "2" / f"damaged {i}.png").write_bytes(b"no picture")
    rows = audited(source, tmp_path / "out", UNTRAINED)
    assert [row["kind"] for row in rows] == ["unreadable"] * 12
    assert all(f"damaged {i}.png" in " ".join(row["note"] for row in rows) for i in range(12))


def test_imbalance_names_the_class_and_unlabelled_leaks_are_left_out(
    bundled: Dataset, tmp_path: Path
) -> None:
    source = folder_of(bundled.train, tmp_path / "few", 6, "train")
    folder_of(bundled.train, source, 2, "test", skip=6)
    for path in sorted((source / "train" / "1").glob("*"))[2:]:
        path.unlink()
    (source / "unlabelled").mkdir()
    leaked = sorted((source / "test" / "2").glob("*"))[0]
    (source / "unlabelled" / "again.png").write_bytes(leaked.read_bytes())
    rows = audited(source, tmp_path / "out", UNTRAINED)
    assert [(row["kind"], row["label"]) for row in rows] == [("imbalance", "1")]
    assert rows[0]["note"] == "2 labelled images, 0 has 6"


def test_idx_images_go_by_their_numbers(
    bundled: Dataset, idx_folder: Callable[[int, int], Path], tmp_path: Path
) -> None:
    source = idx_folder(5, 30)
    from handful.idx import read_idx, write_idx

    path = source / "train-images-idx3-ubyte"
    pixels = read_idx(path).copy()
    pixels[17] = pixels[4]
    pixels[20] = read_idx(source / "t10k-images-idx3-ubyte")[29]
    write_idx(path, pixels)
    rows = audited(source, tmp_path / "out", UNTRAINED)
    found = {(row["image"], row["other"]) for row in rows}
    assert found == {("train 20", "test 29"), ("train 17", "train 4")}


@pytest.fixture(scope="module")
def noisy(bundled: Dataset) -> tuple[audit.Audit, np.ndarray]:
    """100 digits of four classes, 5 of them with a wrong label and one that is no digit."""
    index = torch.cat([(bundled.train.labels == k).nonzero()[:25, 0] for k in range(4)])
    images = bundled.train.select(index)
    which = np.random.default_rng(0).choice(len(images) - 1, 5, replace=False)
    labels, pixels = images.labels.clone(), images.images.clone()
    labels[which] = (labels[which] + 1) % 4
    pixels[-1] = torch.randint(0, 256, (1, 28, 28), generator=torch.Generator().manual_seed(0))
    train = replace(images, labels=labels, images=pixels, class_names=("0", "1", "2", "3"))
    config, chosen = audit.setting("mnist50", None, [*QUICK, "downstream.steps=40"], "cpu")
    found = audit.examined(config, replace(bundled, train=train, test=None), CPU, chosen=chosen)
    return found, which


def test_flipped_labels_come_first(noisy: tuple[audit.Audit, np.ndarray]) -> None:
    found, which = noisy
    assert found.judged is not None
    first = found.judged.positions.numpy()[found.judged.doubts.order[:10]]
    assert np.isin(which, first).sum() >= 4  # by chance it would be one in two audits
    likely = [f for f in found.findings if f.kind == "wrong label"]
    assert np.isin(which, [f.image for f in likely]).sum() >= 2
    assert len(likely) < 20
    right = {int(i): (int(found.images.labels[i]) - 1) % 4 for i in which}
    assert sum(f.suggested == right[f.image] for f in likely if f.image in right) >= 2
    scores = [f.score for f in likely if f.score is not None]
    assert scores == sorted(scores)


def test_noise_among_digits_is_an_outlier(noisy: tuple[audit.Audit, np.ndarray]) -> None:
    found, _ = noisy
    assert found.judged is not None
    outliers = [f.image for f in found.findings if f.kind == "outlier"]
    assert outliers[0] == 99
    assert len(outliers) < 6


def test_the_same_seed_gives_the_same_and_no_test_label_matters(
    bundled: Dataset, few: ImageSet
) -> None:
    assert bundled.test is not None
    test = bundled.test.select(torch.arange(40))
    config, chosen = audit.setting("mnist50", None, [*FEW, "downstream.steps=4"], "cpu")
    scores = []
    for labels in (test.labels, test.labels.flip(0)):
        dataset = replace(bundled, train=few, test=replace(test, labels=labels))
        found = audit.examined(config, dataset, CPU, chosen=chosen)
        assert found.judged is not None
        scores.append(found.judged.doubts.score)
    np.testing.assert_array_equal(*scores)


def test_copies_are_answered_by_a_network_that_saw_neither(
    few: ImageSet, bundled: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = torch.cat([torch.arange(40), torch.arange(40)])
    train = few.select(twice)
    train = replace(train, sources=torch.arange(80))
    config, chosen = audit.setting("mnist50", None, [*FEW, "downstream.steps=2"], "cpu")
    learned: list[tuple[set[int], set[int]]] = []
    kept = audit.stages.in_folds

    def watched(fitted: Any, images: ImageSet, *rest: Any) -> Any:
        prints = images.fingerprints
        for fold in kept(fitted, images, *rest):
            taught = fold.trained.learned_from.fingerprints
            learned.append((set(taught.tolist()), set(prints[fold.held].tolist())))
            yield fold

    monkeypatch.setattr(audit.stages, "in_folds", watched)
    audit.examined(config, replace(bundled, train=train, test=None), CPU, chosen=chosen)
    assert len(learned) == 2
    for seen, answered in learned:
        assert answered
        assert not seen & answered


def test_a_class_of_one_image_is_not_judged_and_said(few: ImageSet, bundled: Dataset) -> None:
    alone = few.select(
        torch.cat([(few.labels != 3).nonzero()[:, 0], (few.labels == 3).nonzero()[0]])
    )
    said: list[str] = []
    config, chosen = audit.setting("mnist50", None, [*FEW, "downstream.steps=2"], "cpu")
    dataset = replace(bundled, train=alone, test=None)
    found = audit.examined(config, dataset, CPU, chosen=chosen, say=said.append)
    assert found.judged is not None
    assert len(found.judged.positions) == len(alone) - 1
    assert any(line.startswith("1 images are alone") for line in said)
    assert any(line.startswith("training 2 networks, about ") for line in said)


def test_how_long_an_audit_takes_is_told_by_a_step_of_its_networks(
    few: ImageSet, bundled: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, timed = list[str](), list[float]()

    def seconds_per_image(_: object, __: object, batch: float) -> float:
        timed.append(batch)
        return 1.5

    monkeypatch.setattr(audit.networks, "seconds_per_image", seconds_per_image)
    monkeypatch.setattr(audit, "PER_IMAGE", 1)
    settings = [*FEW, "downstream.steps=6", "downstream.batch_size=12"]
    config, chosen = audit.setting("mnist50", None, settings, "cpu")
    audit.examined(
        config, replace(bundled, train=few, test=None), CPU, chosen=chosen, say=said.append
    )
    assert timed == [10]  # of 40, half are held out: twenty in two batches
    assert "training 2 networks, about 3 min" in said  # 2 networks · 6 steps · 10 images


def test_where_each_class_has_one_image_nothing_is_trained(few: ImageSet, bundled: Dataset) -> None:
    first = torch.stack([(few.labels == k).nonzero()[0, 0] for k in range(10)])
    config, chosen = audit.setting("mnist50", None, FEW, "cpu")
    dataset = replace(bundled, train=few.select(first), test=None)
    found = audit.examined(config, dataset, CPU, chosen=chosen)
    assert found.judged is None
    assert found.findings == ()


def test_an_audit_of_a_run_takes_its_source_and_its_network(
    bundled: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = folder_of(bundled.train, tmp_path / "photos", 6)
    short = {"pretext__steps": 1, "downstream__steps": 2, "network__width": 5, "tsne": False}
    made = experiment.train(str(source), out=tmp_path / "run", recipe="fast", seed=3, **short)
    config, _ = audit.setting(str(made.path), None, [])
    assert config.data.source == str(source)
    assert (config.network.width, config.seed, config.pretext.steps) == (5, 3, 0)
    assert config.downstream.views == runs.RunFolder(made.path).config().downstream.views
    assert audit.place(str(made.path)) == tmp_path / "run-audit"
    monkeypatch.chdir(made.path)
    assert audit.place(".") == tmp_path.resolve() / "run-audit"
    code = cli.main(
        ["audit", str(made.path), "--set=downstream.steps=2", "--set=downstream.folds=2"]
    )
    out = capsys.readouterr().out
    assert code == 0
    assert str(tmp_path / "run-audit" / "audit.html") in out
    with (tmp_path / "run-audit" / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores)
    assert set(rows[0]) == {
        "rank", "image", "label", "suggested", "score", "probability", "likely_wrong", "distance",
    }  # fmt: skip


def test_what_an_audit_fixes_is_refused_however_it_is_said() -> None:
    for said in ("pretext.steps=3", "pretext={steps=3}"):
        with pytest.raises(ValueError, match=r"--set pretext\.steps: an audit trains one network"):
            audit.setting("mnist50", None, [said])


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_any_recipe_may_judge(recipe: str) -> None:
    config, _ = audit.setting("mnist50", recipe, [])
    assert config.pretext.steps == 0
    assert (config.members, config.downstream.folds) == (1, 5)
    assert config.downstream.steps is not None


def test_mistakes_are_one_line(
    bundled: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(bundled.train, tmp_path / "photos", 2)
    file = tmp_path / "file"
    file.touch()
    for arguments, words in (
        (["nowhere"], "does not exist"),
        ([str(file)], "is a file"),
        ([str(folder), "--out", str(folder)], "holds no audit: choose another --out"),
        ([str(folder), "--out", str(file)], "is a file: name a folder"),
        (["mnist50", "--recipe", "fastt"], "did you mean fast"),
        (["mnist50", "--set=pretext.steps=3"], "--set pretext.steps: "),
        (["mnist50", "--set=members=2"], "members"),
        (["mnist50", "--device", "tpu"], "unknown device tpu"),
    ):
        assert cli.main(["audit", *arguments]) == 2, arguments
        said = capsys.readouterr().err
        assert words in said
        assert said.splitlines()[-1].startswith("handful: ")
        assert "Traceback" not in said
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "2", "3"]
    assert not (tmp_path / "runs").exists()


def test_an_audit_replaces_an_earlier_one_and_nothing_else(
    bundled: Dataset, tmp_path: Path
) -> None:
    source, out = folder_of(bundled.train, tmp_path / "photos", 2), tmp_path / "out"
    quick = ["network.width=4", "downstream.steps=2", "downstream.folds=2"]
    audited(source, out, *quick)
    assert (out / "labels.csv").exists()
    (out / "notes.txt").write_text("mine")
    audited(source, out, UNTRAINED)
    assert sorted(path.name for path in out.iterdir()) == ["audit.csv", "audit.html", "notes.txt"]


def test_blank_is_what_shows_nothing(few: ImageSet) -> None:
    paper = torch.full((1, 1, 28, 28), 200, dtype=torch.uint8)
    noise = (
        paper + torch.randint(0, 6, paper.shape, generator=torch.Generator().manual_seed(0)).byte()
    )
    speck = paper.clone()
    speck[..., 3, 3:6] = 0
    shown = audit.blanks(torch.cat([few.images, paper, noise, speck]))
    assert shown.tolist() == [False] * 40 + [True] * 3


def test_a_run_warns_where_a_test_image_trains(bundled: Dataset, tmp_path: Path) -> None:
    source = folder_of(bundled.train, tmp_path / "photos", 4, "train")
    folder_of(bundled.train, source, 3, "test", skip=4)
    short = ["pretext.steps", "downstream.steps", "network.width", "test_views"]
    values = dict(zip(short, (1, 2, 4, 1), strict=True))
    config = RunConfig(tsne=False).updated({"data.source": str(source), **values})

    def warnings(out: str, leaked: int) -> list[str]:
        said: list[str] = []
        run = experiment.run(config, tmp_path / out, say=said.append)
        assert run.summary["test_images_that_train"] == leaked
        page = run.report.read_text(encoding="utf-8")
        assert ("this accuracy is too good" in page) == (
            "too good" in screen.run(run.summary, "r", "x")
        )
        assert ("this accuracy is too good" in page) == (leaked > 0)
        return [line for line in said if line.startswith("note: ")]

    assert warnings("clean", 0) == []
    leaked = sorted((source / "train" / "1").glob("*"))[0]
    (source / "test" / "1" / "again.png").write_bytes(leaked.read_bytes())
    assert warnings("leaky", 1) == [
        "note: 1 test image is also among those that train, so the accuracy will be too good: "
        f"`handful audit {source}` shows which"
    ]
