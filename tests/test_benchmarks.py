"""What benchmarks rest on; nothing is timed here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmarks import __main__ as command
from benchmarks import (
    ablation,
    accuracy,
    audit,
    cells,
    confidence,
    peers,
    pool,
    presets,
    robust,
    rows,
    scale,
    suggest,
)
from benchmarks.encoder import SixConvolutions
from benchmarks.exact import dense, errors
from benchmarks.loss import projections
from benchmarks.measure import Benchmark, Options, alternate, duel
from benchmarks.page import PAGE, page
from PIL import Image

from handful import bench, devices
from handful.bench import read
from handful.config import NetworkConfig
from handful.datasets import Dataset
from handful.losses import nt_xent
from handful.metrics import mean_interval
from handful.networks import multiply_adds
from handful.recipes import RECIPES, RICH_DIGITS
from handful.splits import mean_batch

ORIGIN = {"commit": "abc1234", "torch": "2.0", "cpu": "a CPU", "threads": 2, "date": "2026-01-31"}


def needs(*packages: str) -> pytest.MarkDecorator:
    """These cannot be imported plainly: see benchmarks/peers.py."""
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing),
        reason=f"needs {', '.join(missing)}: pip install -r benchmarks/requirements.txt",
    )


class Clock:
    """Time goes on by what the calls say they take."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, ""

    def __call__(self) -> float:
        return self.now

    def contestant(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds
            self.log += name

        return call


def test_contestants_take_turns_once_they_are_warm() -> None:
    clock = Clock()
    calls = {"a": clock.contestant("a", 2.0), "b": clock.contestant("b", 3.0)}
    times = alternate(calls, rounds=3, least=1.0, clock=clock)
    assert clock.log == "ab" + "ab" * 3
    assert times == {"a": [2.0] * 3, "b": [3.0] * 3}


def test_a_quick_call_is_repeated_until_its_turn_is_long_enough() -> None:
    clock = Clock()
    times = alternate({"a": clock.contestant("a", 0.25)}, rounds=2, least=1.0, clock=clock)
    assert clock.log == "aa" + "aaaa" * 2
    assert times == {"a": [0.25, 0.25]}


def test_a_ratio_is_that_of_the_rounds() -> None:
    row = duel({"ours": [1.0, 2.0, 1.0], "theirs": [3.0, 8.0, 5.0]}, "ours", "theirs")
    assert row == {"ours": 1.0, "theirs": 5.0, "ratio": 4.0, "range": [3.0, 5.0], "rounds": 3}
    assert cells.times_as_fast(row) == "4.00 × (3.00–5.0)"


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_whole_matrix_gives_the_loss(temperature: float) -> None:
    z_a, z_b = (z.detach().double() for z in projections(7))
    assert torch.allclose(dense(z_a, z_b, temperature), nt_xent(z_a, z_b, temperature), rtol=1e-12)


def test_errors_are_those_of_rounding() -> None:
    assert max(errors(12, 4, torch.float64, tile=5)) < 1e-12
    assert 0 < max(errors(12, 4, torch.float32, tile=5)) < 1e-5


def test_the_first_encoder_is_the_one_that_is_described() -> None:
    encoder = SixConvolutions(1, 28, NetworkConfig())
    convolutions = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [32, 32, 64, 64, 128, 128]
    high, middle, low = 28**2, 14**2, 7**2
    expected = 9 * high * (32 + 32 * 32) + 9 * middle * (32 * 64 + 64 * 64)
    expected += 9 * low * (64 * 128 + 128 * 128)
    assert multiply_adds(encoder, 28, 28) == expected == 29_127_168
    assert encoder(torch.rand(2, 1, 28, 28)).shape == (2, 128)


def example() -> Benchmark:
    columns = {"case": cells.text("case"), "figure": cells.number("figure")}
    return Benchmark("Example", "How it was measured.", columns, run=lambda options: iter(()))


def test_the_page_has_a_table_for_each_benchmark() -> None:
    found = page(
        {"one": example(), "two": example()},
        [{"benchmark": "one", "case": "this", "figure": 1234.5, **ORIGIN}],
    )
    assert "| case | figure |\n| --- | --- |\n| this | 1,234 |\n" in found
    assert "*a CPU, 2 threads, torch 2.0, commit abc1234, 2026-01-31*" in found
    assert "Not measured yet: `python -m benchmarks two`." in found


def test_the_newest_row_of_a_case_stands(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for case, figure in (("a", 1), ("b", 2), ("a", 3)):
        rows.save({"benchmark": "one", "case": case, "figure": figure}, path)
    assert [(row["case"], row["figure"]) for row in read(path)] == [("b", 2), ("a", 3)]


def test_rows_say_where_they_are_from() -> None:
    origin = rows.origin()
    assert origin.keys() == ORIGIN.keys()
    assert origin["threads"] == torch.get_num_threads()
    assert origin["cpu"]
    json.dumps(origin)


def test_the_page_is_what_its_rows_make() -> None:
    expected = page(command.BENCHMARKS, read(rows.ROWS))
    assert PAGE.read_text(encoding="utf-8") == expected, "python -m benchmarks table"


def test_what_cannot_run_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(command.BENCHMARKS["encoder"].run(Options())) == []
    assert "--mnist DIR" in capsys.readouterr().err


def grown(exponent: float) -> list[dict[str, Any]]:
    return [
        {"series": series, "size": size, "seconds": 3.0 * size**exponent, "megabytes": 5.0 + size}
        for series in scale.SERIES
        for size in (400, 100, 200)
    ]


def test_slopes_are_exponents_of_growth() -> None:
    for points in scale.by_series(grown(1.5)).values():
        assert [point["size"] for point in points] == [100, 200, 400]
        assert scale.slope(points, "seconds") == pytest.approx(1.5)
    assert "batch through the loss: time 1.50, memory 0.9" in scale.growth(grown(1.5))


def test_the_figure_has_a_column_for_each_series() -> None:
    figure = scale.figure(grown(1.0))
    assert len(figure.axes) == 2 * len(scale.SERIES)


@needs("lightly", "torchvision", "simclr", "kornia")
def test_peers_make_views_of_the_same_shape() -> None:
    picture = Image.fromarray(np.full((28, 28), 128, dtype=np.uint8))
    for transform in (
        peers.lightly_default(), peers.simclr_default(), peers.lightly_with(RICH_DIGITS, 28)
    ):  # fmt: skip
        assert [view.shape for view in transform(picture)] == [(1, 28, 28)] * 2
    batch = torch.rand(3, 1, 28, 28)
    assert peers.kornia_with(RICH_DIGITS, 28)(batch).shape == batch.shape


@needs("lightly", "torchvision", "simclr", "pytorch_metric_learning")
@pytest.mark.parametrize("peer", ["lightly", "simclr", "pytorch-metric-learning"])
def test_peers_compute_the_same_loss(peer: str) -> None:
    from benchmarks.loss import ours, theirs

    z = [part.detach() for part in projections(8)]
    assert float(theirs(peer, 8)(*z)) == pytest.approx(float(ours(*z)), rel=1e-5)


@needs("pytorch_metric_learning", "torchvision")
def test_the_peer_computes_the_same_labelled_loss() -> None:
    from benchmarks.loss import our_sup_con, theirs

    z = [part.detach() for part in projections(24)]
    found = theirs("pytorch-metric-learning, SupCon", 24)(*z)
    assert float(found) == pytest.approx(float(our_sup_con(*z)), rel=1e-5)


@needs("lightly")
def test_the_measurements_for_a_gpu_run_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu

    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "STEPS", 1)
    monkeypatch.setattr(gpu, "fast", lambda device, settings: {"what": "fast"})
    found = list(gpu.run(Options(quick=True)))
    assert len({row["case"] for row in found}) == len(found) == 4
    assert found[1]["ratio"] > 0
    assert all(cell(row) for row in found for cell in gpu.BENCHMARK.columns.values())


def test_without_a_gpu_nothing_is_measured_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert list(command.BENCHMARKS["gpu"].run(Options())) == []
    assert "device cuda is not available here" in capsys.readouterr().err


def test_figures_in_readme_and_recipes_are_those_of_the_rows() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    several = [group for group in accuracy.newest(read(accuracy.ROWS)) if len(group) > 1]
    assert len(several) >= 3
    for group in several:
        tested = [100 * row["test_accuracy"] for row in group]
        mean, _, low, high = mean_interval(tested)
        high = min(high, 100.0)  # Student's bound may lie beyond what there is
        assert f"{mean:.2f} ({low:.2f}–{high:.2f}), worst {min(tested):.2f}" in readme
        reaches = RECIPES[group[0]["recipe"]].reaches
        if group[0]["per_class"] in (None, 10, 50):
            assert f"{mean:.2f} %" in reaches
        if group[0]["per_class"] in (None, 50):
            assert f"(worst {min(tested):.2f})" in reaches


def test_times_are_apart_for_each_device() -> None:
    def row(device: str, seconds: float) -> dict[str, Any]:
        return {"device": device, "seconds": seconds}

    slow = [row("cpu, 2 threads", seconds) for seconds in (700.4, 500.0, 900.0)]
    assert accuracy.time_of(slow) == "700 s"
    both = [row("NVIDIA H200", 36.9), *slow, row("NVIDIA H200", 34.7)]
    assert accuracy.time_of(both) == "36 s (NVIDIA H200), 700 s"


def test_the_interval_of_a_mean_accuracy_ends_at_all_and_nothing() -> None:
    assert accuracy.mean_of([99.0, 99.9]) == "99.45 ± 0.64 (93.73 to 100.00)"
    assert accuracy.mean_of([0.1, 1.0], signed=True) == "+0.55 ± 0.64 (-5.17 to +6.27)"


def test_what_was_foreseen_is_held_against_what_came() -> None:
    def row(per_class: int, found: float) -> dict[str, Any]:
        return {"per_class": per_class, "test_accuracy": found, "test_images": 10_000}

    known = [row(n, 1 - 0.5 * n**-0.9) for n in (5, 10, 20, 50) for _ in range(3)]
    came = 1 - 0.5 * 100**-0.9
    told = accuracy._foreseen([*known, row(100, came), row(100, 0.9)])
    assert told.startswith("From the 12 runs with at most 50 labels a class")
    assert "expects 99.20 % of one more run with 100 (80 % interval 99.06–99.33 %)" in told
    assert told.endswith(f"Measured: {100 * came:.2f}, 90.00; 1 of 2 lie inside.")
    assert accuracy._foreseen(known).endswith("Not measured yet.")


def test_the_curve_is_of_numbers_of_labels() -> None:
    rows = [
        {"recipe": accuracy.CURVE_OF, "per_class": n, "commit": "abc1234"} for n in (None, 10, 50)
    ]
    assert [row["per_class"] for row in accuracy._curve(rows)] == [10, 50]


def test_pages_are_made_from_their_rows() -> None:
    assert accuracy.RESULTS.read_text(encoding="utf-8") == accuracy.page()
    made = ablation.page(read(ablation.ROWS))
    assert ablation.PAGE.read_text(encoding="utf-8") == made
    assert robust.PAGE.read_text(encoding="utf-8") == robust.page(read(robust.ROWS))
    assert pool.PAGE.read_text(encoding="utf-8") == pool.page()
    assert confidence.PAGE.read_text(encoding="utf-8") == confidence.page(read(confidence.ROWS))
    assert presets.PAGE.read_text(encoding="utf-8") == presets.page(read(presets.ROWS))
    asked = suggest.newest(read(suggest.ROWS))
    assert suggest.PAGE.read_text(encoding="utf-8") == suggest.page(asked)


def test_likelihood_is_held_against_the_best_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (2000,), generator=generator)
    logits = torch.randn(2000, 3, generator=generator) + 2 * F.one_hot(labels, 3)
    # by Bayes' rule twice these are the true log odds: spread one, class means two apart
    found = confidence._likelihood(logits * 2 * 3, labels)
    assert found["best_temperature"] == pytest.approx(3, rel=0.1)
    assert found["nll"] > 1.5 * found["nll_of_best"]
    again = confidence._likelihood(logits * 6 / found["best_temperature"], labels)
    assert again["nll"] == pytest.approx(found["nll_of_best"], rel=1e-4)


def test_of_the_surest_the_wrong_ones_are_counted() -> None:
    logits = torch.zeros(100, 2)
    logits[:, 0] = torch.linspace(1, 2, 100)
    labels = torch.zeros(100, dtype=torch.long)
    labels[:10] = 1  # the ten that it is least sure of, five of which are left out
    assert confidence._surest(logits, labels)["error_of_surest"] == pytest.approx(5 / 95)


def preset_row(preset: str, accuracy: float, chosen: str = "", **more: Any) -> dict[str, Any]:
    return {
        "kind": "textures", "preset": preset, "chosen": chosen or preset, "told": {},
        "draw": 100, "accuracy": accuracy, "commit": "abc1234", **more,
    }  # fmt: skip


def test_what_auto_takes_is_held_against_the_best_preset() -> None:
    told = {"letters": 0.5, "texture": 0.25}
    rows = [
        preset_row("texture", 0.1, commit="old"),
        preset_row("letters", 0.8),
        preset_row("texture", 0.9),
        preset_row("texture", 0.7, draw=101),
        preset_row("auto", 0.79, "letters", told=told),
    ]
    found = presets.page(rows)
    assert "| textures | 80.00 | – | – | 80.00 ± 14.14" in found
    expected = "| `letters` | letters 0.500, texture 0.250 | 79.00 | `texture` | -11.00 |"
    assert f"| textures | 100 {expected}" in found


def test_pieces_of_pictures_keep_to_their_half_and_come_again(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8), (80, 1))
    picture = Image.fromarray(np.stack([ramp] * 3, 2))
    with mock.patch.object(presets, "_opened", return_value=picture):
        pieces = list(presets._pieces(["one", "two"], np.random.default_rng(0)))
        again = list(presets._pieces(["one", "two"], np.random.default_rng(0)))
        for folder in ("a", "b"):
            presets.write(tmp_path / folder, "photographs", 100)
    assert len(pieces) == 2 * presets.PER_CLASS + presets.TESTED
    for split, _, piece in pieces:
        assert piece.size == (presets.SIDE, presets.SIDE)
        pixels = np.asarray(piece)
        assert pixels.max() < 100 if split == "train" else pixels.min() >= 100
    assert [np.asarray(p).tobytes() for *_, p in pieces] == [
        np.asarray(p).tobytes() for *_, p in again
    ]
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == len(presets.PHOTOGRAPHS) * presets.PER_CLASS + presets.TESTED
    assert {path.suffix for path in files} == {".jpg", ".png"}
    same = (tmp_path / one / files[7] for one in "ab")
    assert len({path.read_bytes() for path in same}) == 1


def asked(draw: int, suggested: float, random: float, commit: str = "abc") -> dict[str, Any]:
    return {
        "draw": draw, "dev": False, "commit": commit, "sizes": [20, 40], "test_images": 10_000,
        "suggested": [0.8, suggested], "random": [0.8, random],
    }  # fmt: skip


def test_suggested_labels_are_judged_draw_by_draw() -> None:
    rows = [asked(100, 0.95, 0.90), asked(101, 0.96, 0.95)]
    assert suggest.fewer(rows) == pytest.approx([0.5, 0.2])
    found = suggest.page(rows)
    assert "leave **35 %** fewer errors" in found
    assert "| 40 | 95.50 ±" in found
    old = asked(100, 0.5, 0.5, commit="old")
    assert suggest.newest([old, *rows, rows[0] | {"dev": True}]) == rows
    with pytest.raises(SystemExit, match="no row on test images"):
        suggest.newest([rows[0] | {"dev": True}])


def test_planted_faults_are_what_they_are_called(bundled: Dataset) -> None:
    train, which = audit.flipped(bundled.train, np.random.default_rng(0))
    changed = (train.labels != bundled.train.labels).nonzero().squeeze(1)
    assert sorted(which) == changed.tolist()
    assert len(which) == 25
    copies = audit.copies(bundled.train, np.arange(5), first_source=70_000)
    assert torch.equal(copies.images[0], bundled.train.images[0])
    apart = (copies.images.float() - bundled.train.images[:5].float()).abs().flatten(1).amax(1)
    assert (apart[1:] > 0).all()
    assert copies.sources.tolist() == list(range(70_000, 70_005))


def ablated(variant: str, draw: int, accuracy: float) -> dict[str, Any]:
    known = ablation.VARIANTS.get(variant)
    return {"variant": variant, "draw": draw, "commit": "abc1234", "test_accuracy": accuracy,
            "test_accuracy_single_view": accuracy - 0.001, "per_class": 50,
            "versions": {"torch": "2.13"},
            "images_through_encoder": {"pretext": 0, "downstream": 120_000},
            "settings": known.settings if known else []}  # fmt: skip


def test_an_ablation_pairs_each_draw_with_the_base() -> None:
    found = ablation.page(
        [
            ablated("base", 0, 0.90),
            ablated("base", 0, 0.98),
            ablated("base", 1, 0.97),
            ablated("joint 0.3", 0, 0.981),
            ablated("joint 0.3", 1, 0.973),
            ablated("joint 0.3", 2, 0.5),
        ]
    )
    base, joint = (line for line in found.splitlines() if line.startswith(("| base", "| joint")))
    assert base.endswith("| 2 | 97.50 | 97.40 | – | – | – |")
    assert "| 3 | 81.80 |" in joint
    assert joint.count("+0.20 ± 0.14 (-1.07 to +1.47)") == 2


def test_an_ablation_pairs_runs_of_one_commit_and_counts_draws_of_all() -> None:
    def by(commit: str, *found: tuple[str, int, float]) -> list[dict[str, Any]]:
        return [ablated(*one) | {"commit": commit} for one in found]

    found = ablation.page(
        by("old", ("base", 0, 0.90), ("joint 0.3", 0, 0.92), ("base", 1, 0.5))
        + by("new", ("base", 1, 0.90), ("joint 0.3", 1, 0.94), ("joint 0.3", 2, 0.9))
        + by("newer", ("base", 2, 0.7), ("joint 0.3", 0, 0.5))  # without a base of its draw
        + by("newest", ("base", 0, 0.8))
    )
    base, joint = (line for line in found.splitlines() if line.startswith(("| base", "| joint")))
    assert "| 3 | 80.00 |" in base
    assert "| 3 | 92.00 |" in joint
    assert joint.count("+3.00 ± 1.41 (-9.71 to +15.71), of 2 |") == 2  # the third has no base
    assert "Commits: old, new, newer, newest." in found


def test_an_ablation_pairs_runs_of_one_machine_where_it_can() -> None:
    def by(torch: str, *found: tuple[str, int, float]) -> list[dict[str, Any]]:
        return [ablated(*one) | {"versions": {"torch": torch}} for one in found]

    found = ablation.page(
        by("a", ("base", 0, 0.90), ("joint 0.3", 0, 0.91), ("base", 1, 0.90), ("base", 2, 0.90))
        + by("b", ("base", 0, 0.50), ("joint 0.3", 1, 0.94), ("joint 0.3", 2, 0.93))
        + by("b", ("base", 2, 0.90))
    )
    joint = next(line for line in found.splitlines() if line.startswith("| joint"))
    three, two = "+2.67 ± 1.53 (-1.13 to +6.46)", "+2.00 ± 1.41 (-10.71 to +14.71), of 2"
    assert joint.endswith(f"| {three} | {three} | {two} |")


def test_an_ablation_runs_what_its_commit_or_with_here_its_machine_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, trained = tmp_path / "rows.jsonl", list[int]()
    there = {"commit": "now", "versions": {"torch": "elsewhere"}}
    for row in (ablated("base", 0, 0.9) | there, ablated("base", 1, 0.9)):
        bench.append(path, row)

    def apart(source: str, words: Sequence[str], threads: int | None) -> dict[str, Any]:
        draw = next(draw for draw in (0, 1) if f"--draw={draw}" in words)
        trained.append(draw)
        found = {"per_class": 50, "draw": draw, "versions": devices.versions()}
        return dict.fromkeys(bench.KEPT, 0) | found

    monkeypatch.setattr(ablation, "ROWS", path)
    monkeypatch.setattr(ablation, "commit_of_recipes", lambda: "now")
    monkeypatch.setattr(bench, "apart", apart)
    asked = ["ablation", "run", "DIR", "base", "--draws", "0-1"]
    runs = []
    for options in ([], ["--here"], ["--here"]):
        monkeypatch.setattr("sys.argv", [*asked, *options])
        ablation.main()
        runs.append(trained.copy())
        trained.clear()
    assert runs == [[1], [0], []]


def test_an_ablation_tells_what_of_a_gain_is_of_the_contrast() -> None:
    found = ablation.page(
        [
            ablated("base", 0, 0.90),
            ablated("curriculum", 0, 0.95),
            ablated("joint, curriculum", 0, 0.96),
        ]
    )
    joint = next(line for line in found.splitlines() if line.startswith("| joint"))
    assert joint.endswith("| +6.00 | +1.00 | the same |")


def test_an_ablation_names_who_had_more_images() -> None:
    more = ablated("joint 0.3", 0, 0.9)
    more["images_through_encoder"] = {"pretext": 10_000, "downstream": 120_000}
    found = ablation.page([ablated("base", 0, 0.9), ablated("curriculum", 0, 0.9), more])
    assert "120,000 images through the encoder" in found
    assert "As many images, but for *joint 0.3*: 130,000." in found
    assert "but for" not in ablation.page([ablated("base", 0, 0.9)])


def test_what_a_contrast_or_a_column_is_compared_with_lacks_nothing_else() -> None:
    column = {"network.columns"}
    of_contrast = {"pretext.loss", "pretext.steps", "downstream.contrast", "data.unlabelled"}
    of_its_images = {"downstream.steps", "downstream.batch_size"}
    by_name = {
        "small batches": "downstream.ema",
        "decay": "downstream.weight_decay",
        "wider": "network.width",
    }

    def others(variant: ablation.Variant, added: str) -> list[str]:
        its_own = {key for words, key in by_name.items() if words in added}
        left_out = of_contrast | of_its_images | column | its_own
        return [one for one in variant.changes if one.split("=")[0] not in left_out]

    for name, variant in ablation.VARIANTS.items():
        if variant.without:
            added = name.removeprefix(variant.without)
            assert others(variant, added) == others(ablation.VARIANTS[variant.without], ""), name


def test_an_ablation_compares_runs_of_one_commit_and_of_variants_as_they_are() -> None:
    found = ablation.page(
        [
            ablated("base", 0, 0.90),
            ablated("joint 0.3", 0, 0.91),
            ablated("joint 0.3", 1, 0.99) | {"settings": ["another"]},
            ablated("a variant of old", 0, 0.99) | {"settings": []},
            ablated("base", 0, 0.95) | {"commit": "def5678"},
        ]
    )
    base, joint = (line for line in found.splitlines() if line.startswith(("| base", "| joint")))
    assert base.endswith("| 1 | 95.00 | 94.90 | – | – | – |")
    assert joint.endswith("| 1 | 91.00 | 90.90 | +1.00 | +1.00 | the same |")


def test_every_variant_sends_as_many_images_through_the_encoder() -> None:
    images = ablation.PER_CLASS * 10
    for name, variant in ablation.VARIANTS.items():
        settings = dict(one.split("=") for one in variant.settings)
        batch = mean_batch(images, int(settings["downstream.batch_size"]))
        views = 2 if "downstream.contrast" in settings else 1
        encoded = views * int(settings["downstream.steps"]) * batch
        encoded += 2 * int(settings["pretext.steps"]) * ablation.BATCH
        assert encoded == pytest.approx(ablation.IMAGES, rel=0.002), name
