"""Does it hold elsewhere? Images that no recipe was tuned on, scored and reported only.

python -m benchmarks.robust run DIR [--recipe demo] [--draws 100-102] [--fonts FOLDER]
python -m benchmarks.robust table

`run` trains with 50 MNIST digits a class and scores that model on changed test digits and on digits
of another origin; then it trains the recipe `standard` on letters drawn from fonts, with its
control. It appends a row for each to benchmarks/robust.jsonl and leaves out what is there already
for the same commit and the same images. `table` writes docs/robustness.md from the newest rows.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks import corruptions, letters
from benchmarks.accuracy import REPORTED_ON, commit_of_recipes, mean_of, whole
from benchmarks.corruptions import CORRUPTIONS, OTHERS, Bytes
from handful import bench, datasets
from handful.bench import Row, read
from handful.images import ImageSet
from handful.metrics import evaluate
from handful.predictor import Predictor
from handful.recipes import RECIPES
from handful.wording import between, percent, points, points_between

ROWS = Path(__file__).parent / "robust.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "robustness.md"
PER_CLASS, SEED = 50, 0
PLAIN, SMALL, LETTERS = "MNIST test", "load_digits", "letters"
SETS = {
    PLAIN: "The 10,000 official test images as they are",
    **{name: str(change.__doc__) for name, change in (CORRUPTIONS | OTHERS).items()},
    SMALL: "1,797 digits of 8 × 8 pixels and 17 greys by other people (scikit-learn, UCI)",
}
"""What a digit model is scored on, and what that is, for people."""


def run(options: argparse.Namespace) -> None:
    """Everything of one draw after the other, each row written as soon as it is there."""
    commit = commit_of_recipes()
    if commit is None:
        sys.exit("commit src first: a row names the commit that made it")
    if not set(options.draws) <= set(REPORTED_ON):
        sys.exit("the test set is opened for draws 100-109 alone")
    made_by = {"seed": SEED, "commit": commit, "images_by": _images_by()}
    for draw in options.draws:
        _digits(options.source, {"recipe": options.recipe, "draw": draw, **made_by})
    found = letters.fonts(options.fonts)
    for draw in options.draws:
        chosen = letters.divided(found, draw)
        if chosen is None:
            place = options.fonts or "the system's font folders"
            families = len({font.family for font in found})
            print(
                f"letters are left out: {place} has {len(found)} fonts for Latin text of {families}"
                f" families, and {letters.FEWEST} of two are needed: install some (apt-get install "
                "fonts-dejavu fonts-liberation) or name a folder with --fonts",
                file=sys.stderr,
            )
            return
        _letters(chosen, {"what": LETTERS, "recipe": "standard", "draw": draw, **made_by})


def _images_by() -> str:
    """Names the code that changes digits and draws letters: rows of other images do not count."""
    code = (Path(str(module.__file__)).read_bytes() for module in (corruptions, letters))
    return hashlib.sha256(b"".join(code)).hexdigest()[:12]


def _there(key: Row) -> bool:
    return any(key.items() <= row.items() for row in read(ROWS))


def _keep(row: Row) -> None:
    bench.append(ROWS, row)
    print(f"{row['recipe']}, draw {row['draw']}, {row['what']}: {row['accuracy']}", flush=True)


def _digits(source: str, key: Row) -> None:
    missing = [what for what in SETS if not _there({"what": what, **key})]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        model = _trained(source, key, Path(folder) / "run")
    test, _ = datasets.load_images(source, model.preparation, model.class_names)
    for what in missing:
        images, labels = _seen(what, test)
        found = evaluate(model.logits(images), labels)
        figures = {
            "accuracy": found.accuracy, "interval": found.interval, "images": found.images
        }  # fmt: skip
        _keep({"what": what, **key, "per_class": PER_CLASS, **figures})


def _trained(source: str, key: Row, out: Path) -> Predictor:
    cell = bench.Cell(PER_CLASS, key["draw"], key["seed"])
    words = [*cell.options(), "--no-control", f"--recipe={key['recipe']}", "--set=tsne=false"]
    bench.apart(source, words, out=out)
    return Predictor.load(out)


def _seen(what: str, test: ImageSet) -> tuple[Bytes, Tensor]:
    """Digits uint8 (N, 28, 28) and their labels; always the same for the same test images."""
    if what == SMALL:
        small = load_digits()
        return corruptions.as_mnist(small.images), torch.from_numpy(small.target).long()
    images = test.images[:, 0].numpy()
    changes = CORRUPTIONS | OTHERS
    if what in changes:
        images = changes[what](images, np.random.default_rng(SEED))
    return images, test.labels


def _letters(chosen: letters.Divided, key: Row) -> None:
    fonts = sorted(map(str, [*chosen.train, *chosen.test]))
    key = key | {"fonts": hashlib.sha256("\n".join(fonts).encode()).hexdigest()[:12]}
    if _there(key):
        return
    with tempfile.TemporaryDirectory() as folder:
        letters.write(Path(folder), chosen, np.random.default_rng(key["draw"]))
        words = [f"--recipe={key['recipe']}", f"--seed={key['seed']}", "--control"]
        summary = bench.apart(folder, [*words, "--set=tsne=false"])
    figures = {
        "accuracy": summary["test_accuracy"],
        "interval": summary["test_interval"],
        "images": summary["test_images"],
        "control_accuracy": summary["control_test_accuracy"],
        "control_difference": summary["control_difference"],
        "train_fonts": [str(font) for font in chosen.train],
        "test_fonts": [str(font) for font in chosen.test],
        "varied": chosen.varied,
    }
    _keep({**key, "per_class": letters.PER_CLASS, **figures})


def table(_: argparse.Namespace) -> None:
    PAGE.write_text(page(read(ROWS)), encoding="utf-8")
    print(PAGE)


def page(rows: Sequence[Row]) -> str:
    """docs/robustness.md. Of each recipe the rows of its newest commit and images count."""
    of_digits = [row for row in rows if row["what"] in SETS]
    recipes = dict.fromkeys(row["recipe"] for row in of_digits)
    parts = [_part([row for row in of_digits if row["recipe"] == recipe]) for recipe in recipes]
    drawn = _letters_part([row for row in rows if row["what"] == LETTERS])
    return _PAGE.format(digits="\n\n".join(parts) or _NOTHING, letters=drawn or _NOTHING)


def _newest(rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
    """By what and draw: the last row of each, among those made as the last of all was."""
    made_by = [(row["commit"], row["images_by"]) for row in rows]
    pairs = zip(rows, made_by, strict=True)
    return {(row["what"], row["draw"]): row for row, by in pairs if by == made_by[-1]}


def _which(draws: Sequence[int]) -> str:
    return f"draw{'s' * (len(draws) > 1)} {', '.join(map(str, draws))}"


def _part(rows: Sequence[Row]) -> str:
    """The table of one recipe."""
    found = _newest(rows)
    accuracy = {place: 100 * row["accuracy"] for place, row in found.items()}
    draws = sorted({draw for _, draw in found})
    first = next(iter(found.values()))
    title = f"## `{first['recipe']}`, {first['per_class']} labels a class"
    lines = [title, "", f"{_which(draws).capitalize()}, commit {first['commit']}.", "", _HEAD]
    for what, about in SETS.items():
        some = {draw: accuracy[what, draw] for draw in draws if (what, draw) in accuracy}
        if some:
            row = next(row for (name, _), row in found.items() if name == what)
            lines.append(_line(what, about, f"{row['images']:,}", some, accuracy))
    whole_set = {
        draw: sum(accuracy[name, draw] for name in CORRUPTIONS) / len(CORRUPTIONS)
        for draw in draws
        if all((name, draw) in accuracy for name in CORRUPTIONS)
    }
    if whole_set:
        about = "Shot noise to canny edges, each as heavy as another"
        lines.append(_line("mean of the fifteen", about, "–", whole_set, accuracy))
    return "\n".join(lines)


def _line(
    what: str,
    about: str,
    images: str,
    by_draw: Mapping[int, float],
    accuracy: Mapping[tuple[str, int], float],
) -> str:
    changes = [by_draw[d] - accuracy[PLAIN, d] for d in by_draw if (PLAIN, d) in accuracy]
    change = f"{sum(changes) / len(changes):+.2f}" if changes and what != PLAIN else "–"
    values = list(by_draw.values())
    cells = [what, about.rstrip("."), images, mean_of(values), f"{min(values):.2f}", change]
    return f"| {' | '.join(cells)} |"


def _letters_part(rows: Sequence[Row]) -> str:
    """A line a draw, and what they say together; empty where there is no row."""
    newest = sorted(_newest(rows).values(), key=lambda row: row["draw"])
    if not newest:
        return ""
    lines = [f"Commit {newest[0]['commit']}.", "", _LETTERS_HEAD]
    for row in newest:
        n, gain = row["images"], row["control_difference"]
        cells = [
            str(row["draw"]),
            f"{len(row['train_fonts'])}, {row['varied']} images varied",
            str(len(row["test_fonts"])),
            str(n),
            f"{percent(row['accuracy'], n)} ({between(row['interval'], n)})",
            percent(row["control_accuracy"], n),
            f"{points(gain['difference'], n)} ({points_between(gain['interval'], n)})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    accuracies = [100 * row["accuracy"] for row in newest]
    gains = [100 * row["control_difference"]["difference"] for row in newest]
    means = f"Mean {mean_of(accuracies)}, worst {min(accuracies):.2f}"
    return "\n".join([*lines, "", f"{means}; gain over the control {mean_of(gains, signed=True)}."])


_NOTHING = "Not measured yet: `python -m benchmarks.robust run DIR`."
_HEAD = """| images | what they are | number | accuracy | worst | change |
|---|---|---|---|---|---|"""
_LETTERS_HEAD = """| draw | fonts to train | to test | test images | accuracy | control | gain |
|---|---|---|---|---|---|---|"""
_PAGE = """# Does it hold elsewhere?

Made by `python -m benchmarks.robust table` from `benchmarks/robust.jsonl`. A report only: no recipe
was tuned on any of these images, and none will be.

A model learns from a few MNIST digits as they are and then meets others: the test digits changed in
fifteen ways, inverted or shifted, and digits that other people wrote. Accuracy in per cent: mean ±
standard deviation over draws (95 % interval of the mean, Student's t), and the worst draw. *Change*
is the mean difference to the same model on unchanged test digits, in points. The changed images are
the same for every draw and every recipe.

The fifteen are a re-implementation after MNIST-C (Mu and Gilmer 2019, arXiv 1906.02337) in
`benchmarks/corruptions.py`: its kinds, with strengths chosen by eye before any model saw them.
Figures are not comparable digit by digit with published MNIST-C ones. scikit-learn's digits pass
the package's own preparation, as a photographed digit would; the others are scored as they are:
`predict` on a file would turn an inverted digit the right way round first.

{digits}

## Letters, a task that no recipe has seen

A to Z, black on white, 32 × 32 pixels, from the fonts of the machine that ran it, through the path
of any folder of pictures: `handful train FOLDER --recipe standard --control`, with no setting
changed but that no maps are drawn.
20 images a class train; families of fonts that train do not test, and `draw` says which these are.
Where fewer than 20 fonts were there to train with, the other images are the same fonts up to 15 %
smaller and up to two pixels away (*varied*, per class). The *control* is the same network without
the contrast, for as many images through the encoder; *gain* is the difference to it on the same
images. Intervals are of the images of one run; images of one font resemble each other, so the
truth is wider.
After these runs the views of the preset `letters` were fitted to letters in colours, drawn with the
same fonts (docs/presets.md): what is measured with them is no longer of a task that nothing has
seen.

{letters}

## Repeat it

DIR holds MNIST's four idx files (`handful data mnist --out DIR` fetches them):

    python -m benchmarks.robust run DIR --recipe best --draws 100-102
    python -m benchmarks.robust table
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="train, score, and append rows")
    runner.add_argument("source", metavar="DIR", help="the four idx files of MNIST")
    runner.add_argument("--recipe", default="demo", choices=RECIPES)
    runner.add_argument("--draws", type=whole, default=range(100, 103))
    runner.add_argument("--fonts", type=Path, metavar="FOLDER", help="instead of the system's")
    runner.set_defaults(call=run)
    commands.add_parser("table", help="write docs/robustness.md").set_defaults(call=table)
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
