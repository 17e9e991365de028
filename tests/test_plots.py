"""Figures: what they show can be read off their artists; odd input does not break them."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from handful import plots
from handful.plots import Figure
from handful.plots.clusters import apart
from handful.plots.style import PALETTE, class_style, labels_of

LAYOUTS: tuple[plots.Layout, ...] = ("wide", "narrow")
rng = np.random.default_rng(0)


def pictures(*shape: int) -> np.ndarray:
    return rng.integers(0, 255, shape, dtype=np.uint8)


def texts(figure: Figure) -> list[str]:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    return [text for text in found if text]


def opened(figure: Figure) -> Image.Image:
    return Image.open(io.BytesIO(plots.png(figure)))


def inside(figure: Figure) -> bool:
    """Whether every text lies within the page."""
    opened(figure)
    page = figure.bbox.padded(1)
    renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts]
    corners = [corner for box in boxes for corner in (box.min, box.max)]
    return all(page.contains(x, y) for x, y in corners)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gallery_names_each_class_and_shows_its_views(layout: plots.Layout) -> None:
    figure = plots.views(pictures(3, 1, 28, 28), pictures(3, 4, 1, 28, 28), ["a", "b", "c"], layout)
    assert texts(figure) == ["image", "views of it", "a", "b", "c"]
    assert len(figure.axes[0].images) == 3 * (1 + 4)
    assert inside(figure)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 20, 90), (1, 400, 300), (3, 8, 8)])
def test_images_of_any_shape_keep_it(layout: plots.Layout, shape: tuple[int, int, int]) -> None:
    figure = plots.views(pictures(2, *shape), pictures(2, 3, *shape), ["x", "y"], layout)
    left, right, bottom, top = figure.axes[0].images[0].get_extent()
    assert (bottom - top) / (right - left) == pytest.approx(shape[1] / shape[2], rel=0.02)
    assert inside(figure)


def test_many_classes_are_cut_off_where_the_page_would_grow_too_long() -> None:
    names = [str(k) for k in range(60)]
    figure = plots.views(pictures(60, 1, 8, 8), pictures(60, 1, 1, 8, 8), names)
    assert len(figure.axes[0].images) == 40 * 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["7", "a name that is far too long"])
def test_mistakes_say_truth_answer_and_probability(layout: plots.Layout, name: str) -> None:
    figure = plots.mistakes(
        pictures(7, 1, 28, 28), [0] * 7, [1] * 7, [0.987] * 7, [name, "1"], layout
    )
    shown = texts(figure)
    assert shown[1] == labels_of([name, "1"], 12)[0]
    assert shown[:5:2] == ["true", "said", "98.7 %"]
    assert len(figure.axes[0].images) == 7
    assert inside(figure)


def test_confusion_leaves_zeros_blank_and_colours_errors_only() -> None:
    matrix = np.array([[50, 3, 0], [0, 40, 0], [1, 0, 2000]])
    figure = plots.confusion(matrix, ["cat", "dog", "cow"])
    cells = {(t.get_position()[1], t.get_position()[0]): t for t in figure.axes[0].texts}
    assert {at: cell.get_text() for at, cell in cells.items()} == {
        (0, 0): "50", (0, 1): "3", (1, 1): "40", (2, 0): "1", (2, 2): "2000"
    }  # fmt: skip
    assert cells[0, 1].get_weight() == "bold" != cells[0, 0].get_weight()
    shown = figure.axes[0].images[0].get_array()
    assert isinstance(shown, np.ma.MaskedArray)
    assert shown.count() == 2
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["cat", "dog", "cow"]


@pytest.mark.parametrize("classes", [1, 2, 30, 90, 1000])
def test_confusion_of_any_number_of_classes(classes: int) -> None:
    matrix = rng.integers(0, 3, (classes, classes))
    names = [f"class number {k}" for k in range(classes)]
    figure = plots.confusion(matrix, names)
    if classes <= 100:  # of more, some are shown
        assert len(figure.axes[0].texts) == (np.count_nonzero(matrix) if classes <= 40 else 0)
    assert opened(figure).width < 3000


def test_of_many_classes_those_that_are_confused_most_are_shown() -> None:
    matrix = np.diag(np.full(500, 8))
    for k in range(40):
        matrix[10 * k, 10 * k + 1] = 2 + (k < 20)  # the second twenty pairs have fewer
    figure = plots.confusion(matrix, [f"class {k}" for k in range(500)])
    rows = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert rows == [f"class {k}" for k in range(200) if k % 10 < 2]
    assert len(figure.axes[0].texts) == 40 + 20  # what is right, and what is not
    shown = np.ma.asarray(figure.axes[0].images[0].get_array())
    assert shown[0, 1] == pytest.approx(3 / 11)  # of all images of the class
    told = [text.get_text() for text in figure.texts]
    assert "predicted as: the 40 of 500 classes that are confused most" in told


def test_risk_falls_where_less_is_answered_and_marks_the_chosen_places() -> None:
    coverage = np.arange(1, 501) / 500
    figure = plots.risk(coverage, coverage**4 / 50, {"at most 1.0 % expected": (0.95, 0.016)})
    (curve, mark) = figure.axes[0].lines
    assert len(curve.get_xdata()) == 495  # of the first hundredth a share says nothing
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([0.95], [0.016])
    assert "at most 1.0 % expected" in texts(figure)
    assert inside(figure)
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert len(set(ticks)) == len(ticks)


def test_risk_without_an_error_and_of_one_image() -> None:
    assert opened(plots.risk(np.ones(1), np.zeros(1), {})).width > 300


def test_confusion_without_an_error() -> None:
    assert opened(plots.confusion(np.diag([3, 4]), ["0", "1"])).mode == "P"


def test_reliability_draws_the_bins_that_hold_images() -> None:
    figure = plots.reliability(
        [0, 0.5, 0.75, 1], [0, 4, 96], [None, 0.7, 0.97], [None, 0.5, 0.99],
        [None, 0.15, 0.94], [None, 0.85, 1.0], 0.031,
    )  # fmt: skip
    upper, lower = figure.axes
    points = upper.containers[0].lines[0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(points.get_xydata(), [[0.7, 0.5], [0.97, 0.99]])
    assert [bar.get_height() for bar in lower.patches] == [0, 4, 96]
    assert "calibration error (ECE) 3.1 %" in texts(figure)
    assert inside(figure)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_have_a_label_on_each_cluster_and_a_legend(layout: plots.Layout) -> None:
    labels = np.repeat([0, 1], 20)
    after = rng.normal(size=(40, 2)) + 30 * labels[:, None]
    figure = plots.tsne(rng.normal(size=(40, 2)), after, labels, ["cat", "dog"], layout)
    before, last, legend = figure.axes
    assert [before.get_title(loc="left"), last.get_title(loc="left")] == [
        "Before training",
        "After training",
    ]
    places = {text.get_text(): text.get_position() for text in last.texts}
    for k, name in enumerate(("cat", "dog")):
        assert np.abs(places[name] - np.median(after[labels == k], axis=0)).max() < 2
    assert [text.get_text() for text in legend.texts] == ["cat", "dog"]
    assert inside(figure)


def test_a_map_alone_unlabelled_points_and_points_that_coincide() -> None:
    labels = np.array([-1, -1, 1, 1, 0])
    figure = plots.tsne(None, np.zeros((5, 2)), labels, ["a", "b"])
    assert [text.get_text() for text in figure.axes[-1].texts] == ["unlabelled", "a", "b"]
    assert len(figure.axes) == 2
    assert inside(figure)


def test_many_long_names_become_numbers_on_the_map_and_stay_in_the_legend() -> None:
    names = [f"species {k} of birds" for k in range(30)]
    figure = plots.tsne(None, rng.normal(size=(300, 2)), np.arange(300) % 30, names)
    assert {text.get_text() for text in figure.axes[0].texts} == {f"#{k}" for k in range(30)}
    assert "#7  species 7 of birds" in texts(figure)


def test_labels_are_moved_apart_and_stay_inside() -> None:
    corners = np.array([0.0, 0.0]), np.array([200.0, 200.0])
    moved = apart([(1, 1, "one"), (1, 1, "two"), (199, 100, "three")], 1, 13, *corners)
    (x1, y1, _), (x2, y2, _), (x3, _, text) = moved
    assert abs(y1 - y2) >= 15.5 or abs(x1 - x2) >= 30
    assert min(x1, y1, x2, y2) > 5
    assert x3 < 199 - 10
    assert text == "three"


def test_classes_differ_in_colour_or_marker() -> None:
    assert len({class_style(k) for k in range(56)}) == 56
    assert len({colour for colour, _ in map(class_style, range(8))}) == len(PALETTE) == 8


def rows(stage: str, **keys: float) -> list[dict[str, Any]]:
    return [{"stage": stage, "step": k, **{key: v / k for key, v in keys.items()}} for k in (1, 2)]


def titles(figure: Figure | None) -> list[str]:
    assert figure is not None
    return [axes.texts[0].get_text() for axes in figure.axes if axes.axison]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_curves_show_what_there_is(layout: plots.Layout) -> None:
    assert plots.curves([], layout) is None
    assert titles(plots.curves(rows("pretext", loss=5), layout)) == ["Pretext loss"]
    health = rows("pretext", loss=5, alignment=1, uniformity=-2, effective_rank=9, knn_accuracy=0.9)
    chosen = rows("selection", loss=2, validation_loss=1, validation_accuracy=0.9)
    chosen[1]["kept"] = True
    figure = plots.curves(health + chosen + rows("downstream", loss=1), layout)
    assert titles(figure) == [
        "Pretext loss", "kNN accuracy, %", "Effective rank", "Alignment, uniformity",
        "Classifier loss", "Validation loss", "Validation accuracy, %",
    ]  # fmt: skip
    assert figure is not None
    assert "stopping point" in texts(figure)
    assert "control" not in texts(figure)
    assert inside(figure)


@pytest.mark.parametrize(
    "shares", [(0.93, 0.9301, 0.9302), (0.93, 0.935, 0.971), (1, 1), (0, 0), (0.2, 0.99)]
)
def test_ticks_in_per_cent_are_distinct_and_exact(shares: tuple[float, ...]) -> None:
    shown = [{"stage": "pretext", "step": k, "knn_accuracy": v} for k, v in enumerate(shares, 1)]
    figure = plots.curves(shown)
    assert figure is not None
    opened(figure)
    axes = figure.axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx([100 * share for share in shares])
    low, high = axes.get_ylim()
    ticks = [
        (tick.get_position()[1], tick.get_text())
        for tick in axes.get_yticklabels()
        if low <= tick.get_position()[1] <= high
    ]
    assert len({text for _, text in ticks}) == len(ticks) >= 3
    for value, text in ticks:
        assert float(text) == pytest.approx(value)
        assert 0 <= value <= 100
        assert len(text) <= 5


def test_the_control_is_thin_and_grey_beside_ours() -> None:
    both = rows("control", loss=3) + rows("downstream", loss=2)
    figure = plots.curves(both)
    assert figure is not None
    control, ours = figure.axes[0].lines
    assert control.get_linewidth() < ours.get_linewidth()
    assert list(control.get_ydata()) == [3, 1.5]
    assert {"with contrast", "control"} <= set(texts(figure))


def test_the_last_best_row_is_the_stopping_point() -> None:
    chosen = rows("selection", validation_loss=1)
    chosen[0]["kept"] = chosen[1]["kept"] = True
    figure = plots.curves(chosen)
    assert figure is not None
    assert figure.axes[0].lines[-1].get_xydata().tolist() == [[2, 0.5]]  # type: ignore[union-attr]


def test_without_a_refit_the_downstream_rows_have_the_validation() -> None:
    assert "Validation loss" in titles(plots.curves(rows("downstream", loss=1, validation_loss=1)))


def test_what_is_not_finite_is_left_out_of_a_curve() -> None:
    odd = [{"stage": "pretext", "step": k, "loss": v} for k, v in enumerate((1.0, None, np.nan))]
    figure = plots.curves(odd)
    assert figure is not None
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pipeline_ends_where_the_run_does(layout: plots.Layout) -> None:
    image, two = pictures(3, 40, 30), pictures(2, 3, 40, 30)
    h, z = rng.normal(size=(2, 130)), rng.normal(size=(2, 1))
    whole = plots.pipeline(image, two, h, z, layout)
    assert {"$x$", "$x_b$", "$h_a$", "$z_b$", "encoder", "head"} <= set(texts(whole))
    assert len(whole.axes[0].images) == 1 + 2 + 2 + 2
    assert inside(whole)
    assert "head" not in texts(plots.pipeline(image, two, h, None, layout))
    assert "encoder" not in texts(plots.pipeline(image, two, None, None, layout))


def test_names_are_shortened_kept_apart_and_never_taken_for_formulas() -> None:
    assert plots.short("a  b\n c", 9) == "a b c"
    assert plots.short("golden_retriever", 9) == "golden…er"
    assert labels_of(["same start of a", "same start of a!", "x"], 6)[2] == "x"
    assert labels_of(["long name one more", "long name two more"], 9) == ["#0", "#1"]
    assert labels_of(["猫", "cat"], 9) == ["#0", "cat"]
    assert not plots.drawable("猫")
    figure = plots.confusion(np.eye(2, dtype=int), [r"$\frac$", "a$b$c"])
    assert opened(figure).width > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_png_tells_its_natural_size(layout: plots.Layout) -> None:
    figure = plots.curves(rows("pretext", loss=1, knn_accuracy=1, effective_rank=2), layout)
    assert figure is not None
    image = opened(figure)
    assert image.format == "PNG"
    assert image.width / image.info["dpi"][0] == pytest.approx(figure.get_figwidth(), rel=0.01)


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    plots.png(plots.confusion(np.eye(2, dtype=int), ["a", "b"]))
    assert dict(mpl.rcParams) == before


def test_the_same_figure_gives_the_same_bytes() -> None:
    first, second = (plots.png(plots.confusion(np.eye(3, dtype=int), "abc")) for _ in range(2))
    assert first == second


def test_what_is_expected_goes_on_from_the_last_point() -> None:
    ours = [(5, 0.9, None), (50, 0.99, None)]
    ahead = ("expected", (100, 0.995, (0.99, 0.997)))
    figure = plots.labels({"best": ours}, [], ahead=ahead)
    (axes,) = figure.axes
    (beyond,) = (line for line in axes.lines if line.get_label() == "expected")
    assert beyond.get_xdata() == pytest.approx([50, 100])
    assert beyond.get_ydata() == pytest.approx([0.01, 0.005])
    opened(figure)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["5", "50", "100"]
    assert inside(figure)


def test_accuracy_against_labels_is_drawn_in_errors() -> None:
    ours = [(5, 0.9, (0.88, 0.92)), (50, 0.99, None), (500, 1.0, (0.999, 1.001))]
    lines = {"best": ours, "control": [(5, 0.8, None), (50, 0.95, None)]}
    published = [(30, 0.96, "one net"), (900, 0.985, "another net")]
    figure = plots.labels(lines, [(5, 0.89), (5, 0.91)], published)
    (axes,) = figure.axes
    best, *_ = (line for line in axes.lines if line.get_label() == "best")
    assert best.get_ydata() == pytest.approx([0.1, 0.01, 1e-4])
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the better, the higher
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["best", "control"]
    assert texts(figure) == ["one net", "another net"]
    opened(figure)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["5", "50", "500"]
    alike = plots.labels({"best": [(50, 0.984, (0.982, 0.986))]}, [(50, 0.984)], [])
    low, high = sorted(alike.axes[0].get_ylim())
    assert any(low <= tick <= high for tick in alike.axes[0].get_yticks())
    assert "99.0 %" in [text.get_text() for text in axes.get_yticklabels()]
    assert inside(figure)
