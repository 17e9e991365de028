"""The report, built from run folders that look like real ones."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import affine_transform

from handful import report
from handful.config import RunConfig
from handful.report.record import Record
from handful.runs import HEADER, RunFolder
from handful.wording import percent

FIGURES = ("views", "pipeline", "curves", "tsne", "confusion", "reliability", "risk", "mistakes")
DIGITS = tuple("0123456789")


def draw(text: str, rng: np.random.Generator, size: int = 28, channels: int = 1) -> np.ndarray:
    """A character as handwriting would vary it: uint8 (channels, size, size), light on dark."""
    canvas = Image.new("L", (size, size))
    font = ImageFont.load_default(size * 0.8)
    ImageDraw.Draw(canvas).text((size / 2, size / 2), text, 255, font, anchor="mm")
    angle, shear = rng.normal(0, 0.15), rng.normal(0, 0.15)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) * rng.uniform(0.9, 1.25)
    middle = np.full(2, (size - 1) / 2)
    warped = affine_transform(np.asarray(canvas, float), matrix, middle - matrix @ middle, order=1)
    ink = rng.uniform(0.5, 1, (channels, 1, 1)) if channels > 1 else np.ones((1, 1, 1))
    return (warped.clip(0, 255) * ink).astype(np.uint8)


def answers(n: int, classes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 (n, classes) of a classifier that is mostly right, and the truth."""
    labels = rng.integers(0, classes, n)
    logits = rng.normal(0, 1, (n, classes))
    logits[np.arange(n), labels] += rng.gamma(4, 1.6, n)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32), labels.astype(np.int64)


def training_rows(control: bool = True) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for epoch in range(1, 61):
        t = epoch / 60
        row = {
            "stage": "pretext", "step": epoch * 20, "steps": 1200, "epoch": epoch,
            "seconds": epoch * 1.1, "loss": 3.9 + 1.8 * math.exp(-5 * t), "learning_rate": 1e-3,
        }  # fmt: skip
        if epoch % 5 == 0:
            row |= {
                "alignment": 0.2 + 0.4 * t, "uniformity": -3.4 * (1 - math.exp(-4 * t)),
                "effective_rank": 12 + 40 * t, "knn_accuracy": 0.72 + 0.22 * (1 - math.exp(-4 * t)),
            }  # fmt: skip
        rows.append(row)
    lags = {"selection": 1.0, "downstream": 1.0}
    lags |= {"control": 1.8} if control else {}
    for stage, lag in lags.items():
        for check in range(1, 26):
            t = check / 25
            row = {
                "stage": stage, "step": int(check * 24 * lag), "steps": int(600 * lag),
                "epoch": check, "seconds": 70 + check, "learning_rate": 3e-3 * (1 - t),
                "loss": 0.55 + 1.7 * math.exp(-7 * t / lag) + 0.02 * math.sin(9 * check),
            }  # fmt: skip
            if "selection" in stage:
                row["validation_loss"] = 0.2 * lag + math.exp(-8 * t) + 0.1 * max(0, t - 0.6)
                row["validation_accuracy"] = 0.98 - 0.01 * lag - 0.4 * math.exp(-9 * t)
                row |= {"kept": True} if check == 16 else {}
            rows.append(row)
    return rows


def figure_arrays(
    names: Sequence[str], rng: np.random.Generator, size: int, channels: int, tests: int
) -> dict[str, np.ndarray]:
    classes = len(names)
    characters = [chr(48 + k) if k < 10 else chr(55 + k) for k in range(classes)]

    def picture(k: int) -> np.ndarray:
        return draw(characters[k], rng, size, channels)

    p, labels = answers(tests, classes, rng)
    predicted, sure = p.argmax(axis=1), p.max(axis=1)
    wrong = np.nonzero(predicted != labels)[0]
    wrong = wrong[np.argsort(-sure[wrong])][:25]
    map_labels = np.sort(rng.integers(0, classes, min(2000, tests)))
    centres = rng.normal(0, 18, (classes, 2))
    h = rng.normal(size=(2, 128)) * np.linspace(2, 0.2, 128)
    return {
        "gallery_originals": np.stack([picture(k) for k in range(classes)]),
        "gallery_views": np.stack([[picture(k) for _ in range(8)] for k in range(classes)]),
        "pipeline_image": picture(5 % classes),
        "pipeline_views": np.stack([picture(5 % classes), picture(5 % classes)]),
        "pipeline_h": np.abs(h[:1] + 0.3 * h),
        "pipeline_z": rng.normal(size=64) + 0.4 * rng.normal(size=(2, 64)),
        "map_h": rng.normal(size=(len(map_labels), 8)).astype(np.float32),
        "map_xy_before": 0.45 * centres[map_labels] + rng.normal(0, 9, (len(map_labels), 2)),
        "map_xy": centres[map_labels] * 1.4 + rng.normal(0, 2.6, (len(map_labels), 2)),
        "map_labels": map_labels,
        "test_probabilities": p,
        "test_labels": labels,
        "mistakes_images": np.stack([picture(labels[i]) for i in wrong]),
        "mistakes_index": wrong,
    }


def summary_of(arrays: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    p, labels = arrays["test_probabilities"], arrays["test_labels"]
    n, classes = p.shape
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, p.argmax(axis=1)), 1)
    hits, truth, said = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    accuracy = float(hits.sum() / n)
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / n)
    return {
        "recipe": "demo", "source": "mnist50", "per_class": None, "draw": None, "seed": 0,
        "dev": False, "labelled_images": 50 * classes, "unlabelled_images": 0,
        "class_names": list(names), "test_accuracy": accuracy,
        "test_interval": [accuracy - half, accuracy + half], "test_images": n,
        "test_of": "official test set", "test_accuracy_single_view": accuracy - 0.001,
        "validation_accuracy": 0.98, "validation_interval": [0.93, 0.9945],
        "validation_images": 100, "selected_step": 384,
        "validation_of": "the selection model, trained on 80 % of the labels",
        "control_test_accuracy": accuracy - 0.006,
        "control_interval": [accuracy - 0.006 - half, accuracy - 0.006 + half],
        "control_difference": {"difference": 0.006, "interval": [0.0038, 0.0081]},
        "calibration": {"temperature": 0.84, "ece": 0.006, "nll": 0.055, "brier": 0.022},
        "calibrated_by": "100 labelled images held out for validation", "strangers": 0.021,
        "abstention": [
            {"error": 0.01, "threshold": 0.91, "known": 100, "answered": 95, "wrong": 0,
             "limit": 0.031, "coverage": 0.958, "test_error": 0.004},
            {"error": 0.005, "threshold": 0.995, "known": 100, "answered": 0, "wrong": 0,
             "limit": 1.0, "coverage": 0.0, "test_error": None},
        ],
        "per_class_report": [
            {"name": name, "images": int(truth[k]), "precision": float(hits[k] / max(said[k], 1)),
             "recall": float(hits[k] / max(truth[k], 1)),
             "f1": float(2 * hits[k] / max(truth[k] + said[k], 1))}
            for k, name in enumerate(names)
        ],
        "confusion": confusion.tolist(),
        "images_through_encoder": {"pretext": 614400, "downstream": 150000, "control": 764400},
        "encoder_parameters": 289_000, "multiply_adds": 11_200_000, "seconds": 251.3,
        "stages": {"data": 1.2, "pretext": 92.0, "selection": 30.1, "downstream": 34.0,
                   "control": 81.0, "maps": 11.4},
        "versions": {"handful": "0.1.0", "python": "3.12.4", "torch": "2.13.0", "numpy": "2.4.6",
                     "platform": "Linux x86_64"},
        "device": "cpu, 2 threads", "complete": True,
    }  # fmt: skip


def write_run(
    path: Path,
    names: Sequence[str] = DIGITS,
    *,
    size: int = 28,
    channels: int = 1,
    tests: int = 2000,
    without: Sequence[str] = (),
    **changes: Any,
) -> Path:
    """A run folder with everything in it, less the arrays and files named in `without`."""
    rng = np.random.default_rng(0)
    arrays = figure_arrays(names, rng, size, channels, tests)
    summary = summary_of(arrays, names) | changes
    (path / "figures").mkdir(parents=True)
    settings = HEADER + RunConfig(control=True).to_toml()
    (path / "config.toml").write_text(settings, encoding="utf-8")
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    rows = "".join(json.dumps(row) + "\n" for row in training_rows())
    (path / "metrics.jsonl").write_text(rows, encoding="utf-8")
    kept = {key: value for key, value in arrays.items() if key not in without}
    np.savez_compressed(path / "figures" / "arrays.npz", **kept)
    for name in without:
        (path / name).unlink(missing_ok=True)
    return path


class Page(HTMLParser):
    """What a reader gets from the page: its text, pictures, headings and table headers."""

    VOID = frozenset({"meta", "img", "source", "br"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(self.html)
        assert self.open == [], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def sections(self) -> list[str | None]:
        return [attrs["id"] for attrs in self.of("section") if "id" in attrs]


ALL = [
    "quote", "pipeline", "views", "curves", "maps", "confusion", "classes", "calibration",
    "abstention", "mistakes", "configuration", "again",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo", tests=600)


@pytest.fixture(scope="module")
def page(whole: Path) -> Page:
    return Page(report.build(whole))


def test_every_section_is_there_and_reached_from_the_top(page: Page) -> None:
    assert page.sections == ALL
    links = [attrs["href"] for attrs in page.of("a")]
    assert links == [f"#{section}" for section in ALL]


def test_every_figure_is_written_and_embedded_with_a_text(whole: Path, page: Page) -> None:
    for name in FIGURES:
        with Image.open(whole / "figures" / f"{name}.png") as image:
            assert image.format == "PNG"
    images = page.of("img")
    assert len(images) == len(FIGURES)
    for attrs in images:
        assert len(attrs["alt"] or "") > 40
        assert re.match(r"data:image/(png|jpeg);base64,", attrs["src"] or "")
        assert int(attrs["width"] or 0) > 300
    assert len(page.of("source")) == 5


def test_the_page_is_one_file_that_asks_for_nothing(whole: Path, page: Page) -> None:
    assert not page.of("script") + page.of("link") + page.of("iframe")
    outside = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", page.html)
    assert "http" not in outside
    assert "url(" not in outside
    assert "@import" not in outside
    assert (whole / "report.html").stat().st_size < 3_000_000


def test_the_page_is_built_for_screen_readers(page: Page) -> None:
    assert page.of("html")[0]["lang"] == "en"
    assert len(page.of("h1")) == 1
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.of("th"))
    ids = {attrs["id"] for attrs in page.of("h2")}
    assert {attrs["aria-labelledby"] for attrs in page.of("section") if "id" in attrs} == ids


def test_the_headline_has_interval_control_and_difference(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", tests=60, test_accuracy=0.9862, test_interval=[0.9837, 0.9883],
        test_images=10_000, control_test_accuracy=0.981, control_interval=[0.9781, 0.9835],
        control_difference={"difference": 0.0052, "interval": [0.0031, 0.0073]},
    )  # fmt: skip
    text = Page(report.build(run)).text
    assert "98.62 % 95 % interval 98.37–98.83 % 10,000 images: official test set" in text
    assert "Control: without contrast 98.10 % 95 % interval 97.81–98.35 %" in text
    assert (
        "Contrast helped: +0.52 percentage points against the control, image by image "
        "(95 % interval +0.31 to +0.73)." in text
    )


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ([0.001, 0.01], "helped"),
        ([-0.01, -0.001], "hurt"),
        ([-0.001, 0.01], "made no measurable difference"),
        ([0.0, 0.01], "made no measurable difference"),
    ],
)
def test_the_verdict_follows_the_interval(
    tmp_path: Path, interval: list[float], verdict: str
) -> None:
    difference = {"difference": sum(interval) / 2, "interval": interval}
    run = write_run(tmp_path / "run", tests=20, without=EVERY_ARRAY, control_difference=difference)
    text = Page(report.build(run)).text
    assert [word for word in VERDICTS if f"Contrast {word}:" in text] == [verdict]


def test_the_validation_figure_says_whose_it_is_and_how_little_it_says(page: Page) -> None:
    assert "belongs to: the selection model, trained on 80 % of the labels." in page.text
    assert "With 100 of them, one image more or less moves it by 1.0 points" in page.text
    assert "anywhere from 93.0 % to 99.5 %" in page.text
    assert "The test images took part in no decision." in page.text


def test_a_development_run_claims_no_test(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", tests=20, without=EVERY_ARRAY, dev=True, test_of="development images"
    )
    text = Page(report.build(run)).text
    assert "the test set was not opened" in text
    assert "Accuracy on development images" in text
    assert "Test accuracy" not in text
    assert "took part in no decision" not in text


@pytest.mark.parametrize(
    ("gone", "sections"),
    [
        (("pipeline_image", "metrics.jsonl", "map_xy"), {"pipeline", "curves", "maps"}),
        (("gallery_views", "mistakes_images"), {"views", "mistakes"}),
        (("test_probabilities", "map_labels"), {"calibration", "abstention", "mistakes", "maps"}),
    ],
)
def test_what_is_missing_is_left_out(
    tmp_path: Path, gone: tuple[str, ...], sections: set[str]
) -> None:
    run = write_run(tmp_path / "run", tests=60, without=gone)
    assert set(ALL) - set(Page(report.build(run)).sections) == sections


def test_without_pretext_the_pipeline_is_drawn_as_far_as_it_went(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tests=20, without=("pipeline_h", "pipeline_z"))
    assert "pipeline" in Page(report.build(run)).sections


def test_curves_are_explained_as_far_as_there_are_any(tmp_path: Path, page: Page) -> None:
    by_validation = ("kNN accuracy (", "Validation loss is")
    explained = ("Health of the pretext task", *by_validation)
    assert all(words in page.text for words in explained)
    run = write_run(tmp_path / "run", without=EVERY_ARRAY, validation_accuracy=None)
    unseen = Page(report.build(run))
    assert "Health of the pretext task: effective rank (" in unseen.text
    assert not any(words in unseen.text for words in by_validation)
    plain = RunConfig().updated({"pretext.steps": 0}).to_toml()
    (run / "config.toml").write_text(HEADER + plain, encoding="utf-8")
    short = Page(report.build(run))
    assert "curves" in short.sections
    assert not any(words in short.text for words in explained)
    described = next(str(attrs["alt"]) for attrs in short.of("img") if attrs.get("alt"))
    assert described.startswith("Training curves: the classifier's training loss")
    assert "validation" not in described


def test_nulls_everywhere_leave_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tests=20, without=("metrics.jsonl", *EVERY_ARRAY))
    nothing = dict.fromkeys(json.loads((run / "summary.json").read_text()))
    (run / "summary.json").write_text(json.dumps(nothing | {"recipe": "demo"}))
    page = Page(report.build(run))
    assert page.sections == ["configuration", "again"]
    assert "No accuracy has been measured" in page.text
    assert "None" not in page.text


def test_curves_of_an_ensemble_are_of_its_first_member_and_say_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", without=EVERY_ARRAY)
    one = RunConfig(recipe="fast").updated({"data.validation": 0, "downstream.steps": 9})
    settings = HEADER + one.updated({"members": 3}).to_toml()
    (run / "config.toml").write_text(settings, encoding="utf-8")
    alone = Record.read(RunFolder(run), {}).rows
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row | {"member": 1}) + "\n" for row in training_rows())
    assert Record.read(RunFolder(run), {}).rows == alone
    assert "Of the first of 3 networks." in Page(report.build(run)).text


def test_a_run_that_was_stopped_shows_what_it_has(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", without=("summary.json", *EVERY_ARRAY))
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"stage": "pretext", "st')
    page = Page(report.build(run))
    assert page.sections == ["curves", "configuration", "again"]
    assert "This run has not ended" in page.text


def test_drawing_and_writing_apart_is_building(whole: Path, page: Page) -> None:
    folder = RunFolder(whole)
    report.draw(folder, folder.summary())
    report.write(folder, folder.summary())
    assert Page(whole / "report.html").html == page.html


def test_figures_may_be_drawn_before_the_summary_is_written(tmp_path: Path, whole: Path) -> None:
    report.build(whole)
    early = write_run(tmp_path / "early", tests=600, without=("summary.json",))
    known = RunFolder(whole).summary()["abstention"]
    report.draw(RunFolder(early), {"class_names": list(DIGITS), "abstention": known})
    for name in FIGURES:
        path = Path("figures") / f"{name}.png"
        assert (early / path).read_bytes() == (whole / path).read_bytes()


def test_figures_that_no_longer_hold_are_removed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tests=60)
    report.build(run)
    (run / "figures" / "arrays.npz").unlink()
    report.build(run)
    left = {path.stem for path in (run / "figures").glob("**/*.png")}
    assert left == {"curves", "confusion"}


def test_names_from_outside_are_text_and_nothing_else(tmp_path: Path) -> None:
    bad = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "a $\\frac$ b", "猫")
    run = write_run(tmp_path / bad[0].replace("/", "_"), bad, tests=60, source=bad[1])
    page = Page(report.build(run))
    assert not page.of("script")
    assert len(page.of("img")) == len(FIGURES)
    assert all("onerror" not in attrs for attrs in page.of("img"))
    assert all(name in page.text for name in bad)


def test_many_classes_long_names_and_colour_fit(tmp_path: Path) -> None:
    names = [f"species_{k}_of_a_very_long_name" for k in range(30)]
    run = write_run(tmp_path / "run", names, size=96, channels=3, tests=900)
    page = Page(report.build(run))
    assert page.sections == ALL
    assert "#29" in page.text
    assert (run / "report.html").stat().st_size < 3_000_000


def test_the_command_repeats_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my run", tests=20, without=EVERY_ARRAY)
    text = Page(report.build(run)).text
    assert "handful train mnist50 --config 'my run/config.toml' --out 'my run-again'" in text


def test_settings_and_versions_are_listed(page: Page) -> None:
    assert re.search(r"torch\s+2\.13\.0", page.text)
    assert re.search(r"pretext\.views\s+rotation\s+15", page.text)
    assert re.search(r"per_class\s+unset", page.text)


@pytest.mark.parametrize("name", ["summary.json", "figures/arrays.npz"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", tests=20)
    (run / name).write_bytes(b"{not this")
    with pytest.raises(ValueError, match=Path(name).name) as caught:
        report.build(run)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="there is no run there"):
            report.build(place)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="handful did not make it"):
        report.build(tmp_path)


VERDICTS = ("helped", "hurt", "made no measurable difference")
EVERY_ARRAY = (
    "gallery_originals", "gallery_views", "pipeline_image", "pipeline_views", "pipeline_h",
    "pipeline_z", "map_h", "map_xy", "map_xy_before", "map_labels", "test_probabilities",
    "test_labels", "mistakes_images", "mistakes_index",
)  # fmt: skip


def test_it_says_when_to_answer_and_what_few_labels_vouch_for(page: Page) -> None:
    assert "--abstain 0.01" in page.text
    assert "100 labelled images held out for validation" in page.text
    assert "1.0 % 91.0 % 95 of 100 0 3.1 % 95.8 % 0.4 %" in page.text
    assert "0.5 % 99.5 % 0 of 100 0 100.0 % 0.0 % –" in page.text
    told = "are further from those that the model learned its classes from than 99 %"
    assert f"2.1 % of the test images {told}" in page.text


def test_it_says_which_views_and_why(tmp_path: Path) -> None:
    told = {"letters": 0.5234, "natural": 0.4}
    run = write_run(tmp_path / "run", presets_tried=told)
    text = Page(report.build(run)).text
    assert "spoke for (cross-entropy: letters 0.523, natural 0.400)" in text
    run = write_run(tmp_path / "other", presets_tried={})
    assert "spoke for" not in Page(report.build(run)).text


def test_without_evidence_it_says_how_to_get_some(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tests=300, abstention=[], calibrated_by=None)
    text = Page(report.build(run)).text
    assert "--set downstream.folds=4" in text
    assert "fitted to" not in text
    assert "--abstain" not in text


def test_a_notebook_shows_figures_of_merit_and_pictures(whole: Path) -> None:
    report.build(whole)
    summary = json.loads((whole / "summary.json").read_text(encoding="utf-8"))
    found = report.notebook(whole, summary)
    assert percent(summary["test_accuracy"], summary["test_images"]) in found
    assert "over the control" in found
    assert found.count("<img src='data:image/") == 2
    assert "http" not in found
    nothing = dict.fromkeys(("test_accuracy", "validation_accuracy", "control_difference"))
    bare = report.notebook(whole / "<nowhere>", summary | nothing | {"recipe": "<b>"})
    assert "accuracy" not in bare
    assert "<img" not in bare
    assert "&lt;nowhere&gt;" in bare
    assert "&lt;b&gt;" in bare
