"""What each piece of the method is worth: one change at a time, on development images alone.

python -m benchmarks.ablation run DIR [--per-class 50] [--draws 0-19] [--jobs 2] [VARIANT ...]
python -m benchmarks.ablation table

Every variant sends the same number of images through the encoder. `run` appends a row a run to
benchmarks/ablation.jsonl and leaves out what is there already for the same commit; `table` writes
docs/ablation.md from the newest row of each variant and draw.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.accuracy import TUNED_ON, commit_of_recipes, mean_of, whole
from handful import bench, devices
from handful.bench import Row, read
from handful.config import RunConfig, assignment
from handful.recipes import RICH_DIGITS

ROWS = Path(__file__).parent / "ablation.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "ablation.md"
PER_CLASS, IMAGES, BATCH = 50, 120_000, 125


ByCommit = dict[tuple[str, int, str | None], list[Row]]
"""By variant, draw and commit."""
SAME = 0.01
"""Share by which numbers of images may differ and be called the same: batches are whole."""


class Variant(NamedTuple):
    """What it changes in the base."""

    about: str
    changes: tuple[str, ...] = ()
    without: str | None = None
    """The variant that lacks nothing but its contrast, or what its name adds."""

    @property
    def settings(self) -> list[str]:
        """Those of the base and over them its own, as a row of it has them."""
        return [*BASE, *self.changes]


def _steps(images: int, batch: float = BATCH) -> int:
    return round(images / batch)


def _two_stages(loss: str, share: float) -> tuple[str, ...]:
    """A pretext task that takes `share` of the images; the classifier gets the others."""
    pretext = round(IMAGES * share)
    return (
        f"pretext.loss={loss}",
        f"pretext.steps={_steps(pretext, 2 * BATCH)}",
        f"downstream.steps={_steps(IMAGES - pretext)}",
    )


def _joint(weight: float) -> tuple[str, ...]:
    """One stage, two views of half as many images a step."""
    return f"downstream.contrast={weight}", f"downstream.batch_size={-(-BATCH // 2)}"


BASE = (
    "pretext.steps=0",
    f"downstream.steps={_steps(IMAGES)}",
    f"downstream.batch_size={BATCH}",
    "downstream.label_smoothing=0.1",
    "downstream.ema=0.97",
    "test_views=8",
    "downstream.curriculum=0.0",
)
"""Cross-entropy alone, from scratch, for a fixed length, laid over the recipe `fast`."""
SMALL_BATCH = 62.5
"""Of 500 images as many in each of eight nearly equal batches."""
DECAY = "downstream.weight_decay=0.5"
CURRICULUM = "downstream.curriculum=1.0"
SMALL = (
    f"downstream.steps={_steps(IMAGES, SMALL_BATCH)}",
    f"downstream.batch_size={math.ceil(SMALL_BATCH)}",
    "downstream.ema=0.985",  # over as many images
)
SMALL_AND_DECAY = (*SMALL, CURRICULUM, DECAY)


def _column(name: str) -> tuple[str, ...]:
    return (*SMALL_AND_DECAY, f'network.columns=["{name}"]')


VARIANTS: dict[str, Variant] = {
    "base": Variant("cross-entropy alone, mild views, the weights' average, 8 test views"),
    "sup_con first": Variant(
        "a third of the images for SupCon on rich views first",
        _two_stages("sup_con", 1 / 3),
        without="base",
    ),
    "nt_xent first": Variant(
        "a third of the images for NT-Xent on rich views first",
        _two_stages("nt_xent", 1 / 3),
        without="base",
    ),
    "joint 0.3": Variant("SupCon beside cross-entropy, weight 0.3", _joint(0.3), without="base"),
    "curriculum": Variant("views weaken from rich to mild over the whole length", (CURRICULUM,)),
    "joint, curriculum": Variant(
        "SupCon beside cross-entropy, and views that weaken",
        (*_joint(0.3), CURRICULUM),
        without="curriculum",
    ),
    "sup_con first, curriculum": Variant(
        "a third of the images for SupCon on rich views, then views that weaken from them",
        (*_two_stages("sup_con", 1 / 3), CURRICULUM),
        without="curriculum",
    ),
    "nt_xent first, curriculum": Variant(
        "a third of the images for NT-Xent on rich views, then views that weaken from them",
        (*_two_stages("nt_xent", 1 / 3), CURRICULUM),
        without="curriculum",
    ),
    "nt_xent first, unlabelled, curriculum": Variant(
        "that NT-Xent on all 50,000 images, with label or without",
        ("data.unlabelled=true", *_two_stages("nt_xent", 1 / 3), CURRICULUM),
        without="curriculum",
    ),
    "rich views": Variant(
        "those of the pretext task to the end",
        tuple(f"downstream.views.{name}={str(value).lower()}" for name, value in RICH_DIGITS),
    ),
    "small batches": Variant(
        "views that weaken, half as many images a step and twice as many steps",
        (*SMALL, CURRICULUM),
        without="curriculum",
    ),
    "decay": Variant(
        "views that weaken, ten times the weight decay",
        (CURRICULUM, DECAY),
        without="curriculum",
    ),
    "small batches, decay": Variant(
        "views that weaken, and both of these",
        SMALL_AND_DECAY,
        without="curriculum",
    ),
    "small batches, decay, wider": Variant(
        "and width 24 instead of 16",
        (*SMALL_AND_DECAY, "network.width=24"),
        without="small batches, decay",
    ),
    "small batches, decay, upright": Variant(
        "and images centred, their slant taken out",
        _column("upright"),
        without="small batches, decay",
    ),
    "small batches, decay, harmonic": Variant(
        "and first filters that are mixed of cosines",
        _column("harmonic"),
        without="small batches, decay",
    ),
    "small batches, decay, upright harmonic": Variant(
        "and these two", _column("upright_harmonic"), without="small batches, decay"
    ),
    "no average": Variant("the weights themselves", ("downstream.ema=0.0",)),
    "16 test views": Variant("instead of 8", ("test_views=16",)),
    "LARS": Variant(
        "instead of AdamW, with a usual rate",
        ("downstream.optimizer=lars", "downstream.learning_rate=1.0"),
    ),
}


def run(options: argparse.Namespace) -> None:
    commit = commit_of_recipes()
    here, names = devices.versions(), options.variants or list(VARIANTS)
    known = {
        (row["variant"], row["per_class"], row["draw"])
        for row in _current(read(ROWS))
        if commit and commit == row["commit"] and (not options.here or row["versions"] == here)
    }
    asked = [(name, options.per_class, draw) for draw in options.draws for name in names]
    missing = [cell for cell in asked if cell not in known]

    def one(cell: tuple[str, int, int]) -> None:
        name, per_class, draw = cell
        words = [*bench.Cell(per_class, draw).options(), "--recipe=fast", "--dev"]
        settings = VARIANTS[name].settings
        words += [f"--set={one}" for one in settings]
        summary = bench.apart(options.source, words, options.threads)
        row = {key: summary[key] for key in bench.KEPT} | {
            "variant": name, "settings": settings, "commit": commit,
        }  # fmt: skip
        bench.append(ROWS, row)
        print(f"{name}, draw {draw}: {row['test_accuracy']}, {row['seconds']:.0f} s", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, missing))


def table(_: argparse.Namespace) -> None:
    PAGE.write_text(page(read(ROWS)), encoding="utf-8")
    print(PAGE)


def _current(rows: Sequence[Row]) -> list[Row]:
    """Those of the variants as they are defined now, whatever settings have come since."""
    now = {name: _configured(variant.settings) for name, variant in VARIANTS.items()}
    return [
        row
        for row in rows
        if row["variant"] in now and _configured(row["settings"]) == now[row["variant"]]
    ]


def _configured(settings: Sequence[str]) -> RunConfig | None:
    try:
        return RunConfig().updated(dict(map(assignment, settings)))
    except ValueError:  # of a setting that is no more
        return None


def page(rows: Sequence[Row]) -> str:
    """docs/ablation.md, with a table for each number of labels."""
    current = _current(rows)
    numbers = sorted({row["per_class"] for row in current}, reverse=True)
    tables = [_table([row for row in current if row["per_class"] == n]) for n in numbers]
    base = ", ".join(f"`{one}`" for one in BASE)
    return _PAGE.format(tables="\n\n".join(tables), base=base)


def _table(rows: Sequence[Row]) -> str:
    """Of a variant and draw the newest run counts that has beside it what it is compared with."""
    found: ByCommit = {}
    for row in rows:
        found.setdefault((row["variant"], row["draw"], row["commit"]), []).append(row)

    def compared(row: Row) -> int:
        """2 where all stands beside it by the same machine, 1 where by any."""
        overs = {"base", VARIANTS[row["variant"]].without or "base"}
        others = [_other(row, found, over) for over in overs]
        return min(1 + _alike(row, other) if other else 0 for other in others)

    newest: dict[tuple[str, int], Row] = {}
    for row in rows:
        cell = row["variant"], row["draw"]
        if cell not in newest or compared(row) >= compared(newest[cell]):
            newest[cell] = row
    lines = []
    for name in VARIANTS:
        own = [row for (variant, _), row in newest.items() if variant == name]
        if own:
            lines.append(_line(name, own, found))
    counted = [row for row in rows if row is newest[row["variant"], row["draw"]]]
    commits = ", ".join(dict.fromkeys(row["commit"] or "uncommitted" for row in counted))
    first = rows[0]
    title = (
        f"## {first['per_class']} labels a class, {_encoded(first):,} images through the encoder"
    )
    others = {
        row["variant"]: f"*{row['variant']}*: {_encoded(row):,}"
        for row in rows
        if abs(_encoded(row) / _encoded(rows[0]) - 1) > SAME
    }
    told = f" As many images, but for {', '.join(others.values())}." if others else ""
    return "\n".join([title, "", f"Commits: {commits}.{told}", "", _HEAD, *lines])


def _encoded(row: Row) -> int:
    return int(sum(row["images_through_encoder"].values()))


def _line(name: str, rows: Sequence[Row], found: ByCommit) -> str:
    accuracies = [100 * row["test_accuracy"] for row in rows]
    single = [100 * row["test_accuracy_single_view"] for row in rows]
    cells = [
        name,
        VARIANTS[name].about,
        str(len(rows)),
        f"{sum(accuracies) / len(accuracies):.2f}",
        f"{sum(single) / len(single):.2f}",
        "–" if name == "base" else _gain(rows, found, "base"),
        _gain(rows, found, without) if (without := VARIANTS[name].without) else "–",
        "–" if name == "base" else _of_one_machine(rows, found, without or "base"),
    ]
    return f"| {' | '.join(cells)} |"


def _gain(rows: Sequence[Row], found: ByCommit, over: str) -> str:
    """In points over that variant, draw by draw."""
    return _mean_gain(_pairs(rows, found, over), len(rows))


def _of_one_machine(rows: Sequence[Row], found: ByCommit, over: str) -> str:
    """The same of pairs that one machine made."""
    pairs = _pairs(rows, found, over)
    alike = [pair for pair in pairs if _alike(*pair)]
    return "the same" if len(alike) == len(pairs) else _mean_gain(alike, len(rows))


def _pairs(rows: Sequence[Row], found: ByCommit, over: str) -> list[tuple[Row, Row]]:
    others = [_other(row, found, over) for row in rows]
    return [(row, other) for row, other in zip(rows, others, strict=True) if other]


def _other(row: Row, found: ByCommit, over: str) -> Row | None:
    """What a run is compared with: the newest of its commit, of its machine if there is one."""
    others = found.get((over, row["draw"], row["commit"]), [])
    return max(reversed(others), key=lambda other: _alike(row, other), default=None)


def _alike(row: Row, other: Row) -> bool:
    """Whether they were rounded alike."""
    return bool(row["versions"] == other["versions"])


def _mean_gain(pairs: Sequence[tuple[Row, Row]], draws: int) -> str:
    if not pairs:
        return "–"
    told = "" if len(pairs) == draws else f", of {len(pairs)}"
    gains = [100 * (row["test_accuracy"] - other["test_accuracy"]) for row, other in pairs]
    return mean_of(gains, signed=True) + told


_PAGE = """# What each piece is worth

Made by `python -m benchmarks.ablation table` from `benchmarks/ablation.jsonl`. Development only:
labels drawn from training images 0–49,999, accuracy in per cent on training images 50,000–59,999,
seed 0; the test files stay shut. Such figures choose recipes and are no results.

Every variant sends as many images through the encoder in training and makes one change, or two, in
the base. *Gain* is the paired difference to the base, draw by draw; *over the same without* that to
the same training without contrast, whose images go to cross-entropy instead, or of what has no
contrast without what its name adds: mean ± standard deviation
(95 % interval of the mean, Student's t). Both runs of a pair are of one commit. They may come
from different machines and versions of PyTorch (`versions` in the rows), which round differently.
That scatters gains; the last column, again over the same without or else over the base, is of the
pairs that one machine made. Accuracies are means over the draws of a line, gains over the same
where nothing else is said. Where draws are few, only what stands clear of zero says something.

The base is `fast` with {base}.

{tables}

Repeat: `python -m benchmarks.ablation run DIR --per-class 50 --draws 0-19`, which also runs what is
missing here, and the same with `--per-class 10 --draws 0-5`, DIR with the four idx files.
"""
_HEAD = """| variant | what it is | draws | accuracy | single view | gain | over the same without \
| of one machine |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="train, and append rows")
    runner.add_argument("source")
    runner.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    runner.add_argument("--per-class", type=int, default=PER_CLASS)
    runner.add_argument("--draws", type=whole, default=TUNED_ON)
    runner.add_argument("--jobs", type=int, default=1)
    runner.add_argument("--threads", type=int, help="of each run")
    runner.add_argument("--here", action="store_true", help="also what other machines have run")
    runner.set_defaults(call=run)
    commands.add_parser("table", help="write docs/ablation.md").set_defaults(call=table)
    options = parser.parse_args()
    if options.call is run:
        unknown = set(options.variants) - VARIANTS.keys()
        if unknown or not set(options.draws) <= set(TUNED_ON):
            parser.error(f"unknown: {unknown}" if unknown else "draws 0-19 alone are for this")
    options.call(options)


if __name__ == "__main__":
    main()
