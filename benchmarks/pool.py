"""What a pool of unlabelled images is worth, step by step, and whether strangers in it do harm.

python -m benchmarks.pool chain DIR --per-class 1,10,50 --draws 100-102 [--tuned]
python -m benchmarks.pool foreign DIR --draws 100                      (or --dev --draws 0)
python -m benchmarks.pool asked DIR --per-class 5 --draws 100-104 [--tuned]
python -m benchmarks.pool table

DIR holds MNIST's official files. `chain` takes the pretext task of the recipe `pool` from the cache
(or does it) and measures what comes after it: a linear probe and nearest neighbours in h, labels
that spread, fine-tuning on the labels alone. The whole recipe is in benchmarks/accuracy.jsonl.
`foreign` holds the labels of two digits back and lets their images stay in the pool. `asked` gives
labels to images that `handful suggest` names after a run, or to others at random. All append a row
a draw to benchmarks/pool.jsonl, `table` writes docs/pool.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.accuracy import ROWS as RUNS
from benchmarks.accuracy import commit_for, mean_of, newest, time_of, whole
from handful import bench, datasets, devices, metrics, networks, propagation, stages
from handful.bench import Row, read
from handful.config import RunConfig
from handful.datasets import Dataset
from handful.images import UNLABELLED
from handful.pretext import place_of_pretext, pretext_task
from handful.propagation import Guess
from handful.recipes import RECIPES
from handful.session import Member, Session, members_of, plan
from handful.stages import Trained
from handful.suggest import left_between
from handful.wording import numbers

HERE = Path(__file__).parents[1]
ROWS = HERE / "benchmarks" / "pool.jsonl"
PAGE = HERE / "docs" / "pool.md"
PROBE = 0.1
"""C of the logistic regression on standardised h: of 0.01, 0.1 and 1 none was better on all of
development draws 0-2."""
TUNED = {"steps": 400, "pseudo_labels": False}
"""Fine-tuning on the labels alone, from the same encoder."""
FOREIGN, PER_CLASS = 2, 10
"""Classes, the last ones, whose labels are held back; labels of each other class."""
ASKED = 1, 5
"""Labels more that are asked for, by `suggest -n`."""


def begun(options: argparse.Namespace, per_class: int, draw: int, classes: int = 10) -> Member:
    """A run of the recipe after its pretext task, with labels of the first `classes` alone."""
    changes = {
        "data.source": options.source, "data.dev": options.dev, "data.per_class": per_class,
        "data.draw": draw, "data.unlabelled": True, "device": "cpu",
    }  # fmt: skip
    config = RECIPES["pool"].config.updated(changes)
    dataset = _of(datasets.load(config.data), classes)
    member = _member(config, dataset)
    pretext_task(member)
    return member


def _member(config: RunConfig, dataset: Dataset) -> Member:
    config, parts = plan(config, dataset)
    device = devices.choose(config.device)
    show: Callable[[Row], None] = lambda row: None  # noqa: E731
    session = Session(
        config, device, dataset, parts, None, show, lambda line: print(line, flush=True)
    )
    return members_of(session)[0]


def _of(dataset: Dataset, classes: int) -> Dataset:
    """The same images, without labels those of other classes; of the test images none of them."""
    assert dataset.test is not None
    names = dataset.train.class_names[:classes]
    known = torch.where(dataset.train.labels < classes, dataset.train.labels, UNLABELLED)
    train = replace(dataset.train, labels=known, class_names=names)
    test = dataset.test.select(dataset.test.labels < classes)
    return replace(dataset, train=train, test=replace(test, class_names=names))


def scored(session: Session, trained: Trained) -> tuple[float, Tensor]:
    """Accuracy on the test images, looked at as the recipe does, and which answers are right."""
    test = session.parts.test
    assert test is not None
    logits = stages.predictor_of(session, trained).logits(test)
    right = logits.argmax(1) == test.labels
    return float(right.double().mean()), right


_known: dict[Path | None, tuple[Tensor, Tensor]] = {}


def _represented(member: Member) -> tuple[Tensor, Tensor]:
    """Of all images of the pretext task, which no draw moves, and of the test images."""
    place = place_of_pretext(member)
    parts = member.session.parts
    assert parts.test is not None
    if place not in _known:
        images = parts.pretext.images, parts.test.images
        h, h_test = (networks.represent(member.encoder, some) for some in images)
        _known[place] = h, h_test
    return _known[place]


def chain(options: argparse.Namespace, per_class: int, draw: int) -> Row:
    member = begun(options, per_class, draw)
    session = member.session
    parts, truth = session.parts, session.dataset.train
    test = parts.test
    assert test is not None
    h, h_test = _represented(member)
    labelled = parts.pretext.labels != UNLABELLED
    labels = parts.pretext.labels[labelled]
    centre, size = h.mean(0), h.std(0) + 1e-6
    probe = LogisticRegression(C=PROBE, max_iter=1000)
    probe.fit(((h[labelled] - centre) / size).numpy(), labels.numpy())
    guess = propagation.guess(h, parts.pretext.labels, len(parts.pretext.class_names))
    right = (guess.classes == truth.labels[parts.pretext.sources])[~labelled]
    known = _newest(read(RUNS), "best", per_class, {draw})
    control = known[0] if known and not options.dev else _without_pool(session)[0]
    row: Row = {
        "what": "chain",
        "control": control,
        "probe": float(probe.score(((h_test - centre) / size).numpy(), test.labels.numpy())),
        "neighbours": metrics.knn_accuracy(h[labelled], labels, h_test, test.labels),
        "spread": float(right.double().mean()),
        "left_out": float((~guess.familiar)[~labelled].double().mean()),
    }
    if options.tuned:
        tuned = session.config.downstream.model_copy(update=TUNED)
        row["tuned"] = scored(session, stages.fitting(member)(parts.final, tuned, "downstream"))[0]
    return row


def _without_pool(session: Session) -> tuple[float, Tensor]:
    """What `best` makes of the same labels."""
    config = RECIPES["best"].config.updated({"data": session.config.data.model_dump()})
    config = config.updated({"data.unlabelled": False, "device": "cpu"})
    alone = _member(config, session.dataset)
    return scored(alone.session, stages.train_classifier([alone]))


def foreign(options: argparse.Namespace, per_class: int, draw: int) -> Row:
    member = begun(options, per_class, draw, 10 - FOREIGN)
    session, pool = member.session, member.session.parts.pretext
    mnist = datasets.load(session.config.data).train.labels[pool.sources]
    known = mnist < 10 - FOREIGN
    h = networks.represent(member.encoder, pool.images)
    found = propagation.guess(h, pool.labels, len(pool.class_names))
    with_them, right = scored(session, stages.train_classifier([member]))
    own = pool.select(known & (pool.labels == UNLABELLED))
    parts = session.parts._replace(pool=own)
    told = member._replace(session=replace(session, parts=parts))
    without_them, other = scored(session, stages.train_classifier([told]))
    no_pool, none = _without_pool(session)
    return {
        "what": "foreign",
        "foreign_left_out": float((~found.familiar)[~known].double().mean()),
        "own_left_out": float((~found.familiar)[known].double().mean()),
        "with_foreign": with_them,
        "without_foreign": without_them,
        "no_pool": no_pool,
        "to_no_pool": metrics.paired_difference(right, none),
        "to_without": metrics.paired_difference(right, other),
    }


def asked(options: argparse.Namespace, per_class: int, draw: int) -> Row:
    """What a few labels more are worth, if they are asked for."""
    member = begun(options, per_class, draw)
    session, images = member.session, member.session.parts.pretext
    truth = session.dataset.train.labels[images.sources]
    h, _ = _represented(member)

    def spread(more: Tensor) -> Guess:
        labels = images.labels.scatter(0, more, truth[more])
        return propagation.guess(h, labels, len(images.class_names))

    unlabelled, nothing = images.labels == UNLABELLED, torch.tensor([], dtype=torch.int64)

    def right(found: Guess, more: Tensor = nothing) -> float:
        """Of the labels that spread; those that were asked for are no such."""
        counted = unlabelled.scatter(0, more, value=False)
        return float((found.classes == truth)[counted].double().mean())

    def tested(found: Guess) -> tuple[float, Tensor]:
        """The recipe from here on, but for its folds."""
        lessons = replace(images, labels=found.classes).select(found.familiar)
        trained = stages.fitting(member)(lessons, session.config.downstream, "downstream")
        return scored(session, trained)

    before = spread(nothing)
    known = stages.between(images, h, before)
    others = unlabelled.nonzero().squeeze(1)
    chance = torch.Generator().manual_seed(draw)
    row: Row = {
        "what": "asked",
        "undecided": float(before.undecided[unlabelled].double().mean()),
        "before": right(before),
        "suggested": {},
        "random": {},
    }
    settled = [before]
    for count in ASKED:
        named = torch.from_numpy(left_between(known, images, count)[0])
        by_chance = others[torch.randperm(len(others), generator=chance)[:count]]
        settled.append(spread(named))
        row["suggested"][str(count)] = right(settled[-1], named)
        row["random"][str(count)] = right(spread(by_chance), by_chance)
    if options.tuned:
        (without_it, other), (with_it, answers) = map(tested, settled[:2])
        row |= {
            "pool": without_it,
            "pool_with_one_more": with_it,
            "to_pool": metrics.paired_difference(answers, other),
        }
    return row


def run(options: argparse.Namespace) -> None:
    commit = commit_for(options.draws, options.dev)
    measure = {"chain": chain, "foreign": foreign, "asked": asked}[options.command]
    propagation._graph = cache(propagation._graph)  # of the same h for every draw
    for draw in options.draws:
        for per_class in options.per_class:
            row: dict[str, Any] = measure(options, per_class, draw)
            row |= {"per_class": per_class, "draw": draw, "commit": commit, "dev": options.dev}
            print(row, flush=True)
            if not options.dev:
                bench.append(ROWS, row)


def table(_: argparse.Namespace) -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    """docs/pool.md from the rows, and from those of whole runs."""
    last = {(row["what"], row["per_class"], row["draw"]): row for row in read(ROWS)}
    rows, runs = list(last.values()), read(RUNS)
    steps = [row for row in rows if row["what"] == "chain"]
    more = [row for row in rows if row["what"] == "asked"]
    return _PAGE.format(
        steps="\n".join(
            _steps(per_class, [row for row in steps if row["per_class"] == per_class], runs)
            for per_class in sorted({row["per_class"] for row in steps})
        ),
        foreign="\n".join(_foreign(row) for row in rows if row["what"] == "foreign"),
        asked_head=f"| {' | '.join(_ASKED)} |\n|{'---|' * len(_ASKED)}",
        asked="\n".join(
            _asked(per_class, [row for row in more if row["per_class"] == per_class])
            for per_class in sorted({row["per_class"] for row in more})
        ),
        draws=", ".join(map(str, sorted({row["draw"] for row in steps}))),
        commits=", ".join(sorted({row["commit"] for row in rows})),
        per_class=PER_CLASS,
        runs=_made_by([row for group in newest(runs) for row in group if row["recipe"] == "pool"]),
    )


def _made_by(runs: list[Row]) -> str:
    """Which commit the runs of each number of labels are of, and how long they took."""
    parts = []
    for per_class in sorted({row["per_class"] for row in runs}):
        some = [row for row in runs if row["per_class"] == per_class]
        parts.append(f"{per_class} (commit {some[0]['commit']}), {time_of(some)}")
    return "; ".join(parts)


def _newest(runs: list[Row], recipe: str, per_class: int, draws: set[int]) -> list[float]:
    """Test accuracies of a recipe on these draws, those that stand."""
    found = {
        row["draw"]: row["test_accuracy"]
        for group in newest(runs)
        for row in group
        if row["recipe"] == recipe and row["per_class"] == per_class and row["draw"] in draws
    }
    return [found[draw] for draw in sorted(found)]


def _cell(values: list[float]) -> str:
    return mean_of([100 * value for value in values]) if values else "–"


def _steps(per_class: int, rows: list[Row], runs: list[Row]) -> str:
    draws = {row["draw"] for row in rows}
    cells = [
        _cell([row[name] for row in rows if name in row])
        for name in ("probe", "neighbours", "spread", "tuned")
    ]
    cells.append(_cell(_newest(runs, "pool", per_class, draws)))
    cells.append(_cell([row["control"] for row in rows]))
    return f"| {per_class} | {' | '.join(cells)} |"


def _foreign(row: Row) -> str:
    def paired(name: str) -> str:
        difference, low, high = (100 * value for value in row[name])
        return f"{difference:+.2f} ({low:+.2f} to {high:+.2f})"

    shares = [f"{100 * row[name]:.1f} %" for name in ("foreign_left_out", "own_left_out")]
    figures = [f"{100 * row[name]:.2f}" for name in ("with_foreign", "without_foreign", "no_pool")]
    paired_with = [paired("to_no_pool"), paired("to_without")]
    return f"| {row['draw']} | {' | '.join([*shares, *figures, *paired_with])} |"


_ASKED = (
    "labels", "draws", "undecided", "labels that spread",
    *(f"{n} more, {how}" for n in ASKED for how in ("suggested", "at random")),
    "pool", "pool, 1 more suggested", "gain",
)  # fmt: skip


def _asked(per_class: int, rows: list[Row]) -> str:
    labels = [
        _cell([row["before"] for row in rows]),
        *(
            _cell([row[how][str(n)] for row in rows])
            for n in ASKED
            for how in ("suggested", "random")
        ),
    ]
    whole_runs = [row for row in rows if "pool" in row]
    gains = [100 * row["to_pool"][0] for row in whole_runs]
    cells = [
        str(per_class),
        ", ".join(str(row["draw"]) for row in rows),
        ", ".join(f"{100 * row['undecided']:.2f} %" for row in rows),
        *labels,
        _cell([row["pool"] for row in whole_runs]),
        _cell([row["pool_with_one_more"] for row in whole_runs]),
        f"{mean_of(gains, signed=True)}: {', '.join(f'{g:+.2f}' for g in gains)}" if gains else "–",
    ]
    return f"| {' | '.join(cells)} |"


_PAGE = """# Many images, few labels

Made by `python -m benchmarks.pool table` from `benchmarks/pool.jsonl` and
`benchmarks/accuracy.jsonl`. Draws {draws}; commits of the steps: {commits}.

The recipe `pool` lets SimCLR (NT-Xent, views that change the pen as well as the place, 2,350 steps
of 256 images) learn from all 60,000 training images of MNIST without any label, once for all draws.
On two CPU cores with AVX-512 that took 13 minutes; without, 22 for the 50,000 development images,
and 41 beside other work for the 60,000. The labels then spread to the other images along a graph of
nearest neighbours in h (Zhou et al. 2004; Iscen et al. 2019), and a classifier learns from all of
them, beginning with the encoder of the pretext task; then, from two labels a class on, two folds of
them calibrate it.
How long a run took (median), by the number of labels: {runs};
some runs, and all of those of 5, beside other work.

## Step by step

Accuracy in per cent on the 10,000 official test images, mean ± standard deviation over the draws
(95 % interval of the mean, Student's t); *labels* are those of each class. *Linear probe* and
*neighbours* (five vote) see the encoder as the pretext task left it, which saw no label; *labels
that spread* are those of the pool itself, compared with what MNIST says of it; *fine-tuned* learns
from the labels alone, for 400 steps. The control, `best`, has no pretext task and no pool: it was
trained for as long as helped it, not for as many images.

| labels | linear probe | neighbours | labels that spread | fine-tuned | **pool** | control |
|---|---|---|---|---|---|---|
{steps}

What was chosen how: views, temperature and length of the pretext task before anything was measured
here; the graph (ten neighbours, α 0.99), 1,600 steps and no label smoothing on development draws 0
to 2 (training images 50,000–59,999), in explorations that are not on record. There, on draw 0 with
10 labels a class and 800 steps, hard labels gave 99.26, soft ones 98.98, a second round of
self-training no more than the first (99.20, then 99.18), and the surest 80 % of the images alone
97.87: what is hard is then never seen. One seed each. A run scores the test images once, a row of
these steps up to four times, one of the two tables below two or three times, or not at all where no
classifier was trained. Where there are rows of several commits, the newest stand here.
The folds train networks of their own, and take nothing from the one that answers.

## A few labels more, where they count

Few labels may leave a whole kind of images between two classes: here sevens with a bar, which then
become sevens, or twos, all at once, and are taught as that. The run knows which images they are,
and `handful suggest RUN POOL` names such images first: of each of as many groups as are asked for
the most typical one, so that with `-n 1` it is the one in the middle of them all. What one (`-n 1`)
or five more labels (`-n 5`) are worth, and as many *at random* from the whole pool: the share of
the other labels that spread rightly; then the recipe but for its folds on the official test images,
without and with the one, from the same encoder. *Labels* are those of each class to begin with. At
1 a class five at once are worth less than the one alone (in four draws of five; why was not looked
into): there ask for one, train, and ask again.

{asked_head}
{asked}

It was found on development draws 0 to 19 at 5 labels a class and 0 to 5 at 1, and was fixed before
this was run on others; with `--dev` the command repeats those. That labels spread worse in some of
draws 100 to 104 than in others was known from the runs above, and made us look. One thing was tried
beside it: to leave out of what is suggested the images that are like none with a label, strangers
perhaps. That was worse in three of eight draws, since what is worth a label is often among them; so
strangers in the pool may be suggested as well. Without any label more nothing was found: a
classifier that learned without the undecided images (400 steps, development draws 0, 3 and 4 at 5
labels a class) gave 65, 32 and 37 in 100 of them their right class, no more than the labels that
spread (69, 32 and 37). To give undecided images to classes so that all become as large as each
other brought 0.5 to 0.7 points where a kind went wrong (five of those draws) and cost up to 0.1
elsewhere (three); it is not done, since in a pool whose classes are not of one size it would be
wrong.

## Strangers in the pool

Labels of the digits 0 to 7 alone, {per_class} of each; the pool has all ten digits, of which the
last two belong to no class. An image is left out where labels reach it less than 0.4 times as much
as the tenth of its class, as guessed, that they reach most. *Told* learns from the same encoder
with the strangers taken out by their true labels; *no pool* is `best`. In explorations on
development draws 0 and 1 (8 and 9, or 3 and 6 held back; all images, or classes up to six times as
large as others) 1 to 3 in 100 strangers stayed at 10 labels a class, and up to 2 in 100 others were
left out; at 1 label a class up to 17 in 100 others were, and in two of eight trials half of the
strangers stayed.

| draw | strangers out | others out | pool | told | no pool | pool over no pool | pool over told |
|---|---|---|---|---|---|---|---|
{foreign}

Repeat: `python -m benchmarks.accuracy run pool DIR --per-class 10 --draws 100-102`,
`python -m benchmarks.pool chain DIR --per-class 1,5,10,50 --draws 100-102 --tuned`,
`python -m benchmarks.pool asked DIR --per-class 5 --draws 100-104 --tuned` and
`python -m benchmarks.pool foreign DIR --draws 100`, DIR with the four idx files.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("chain", "foreign", "asked"):
        measured = commands.add_parser(name)
        measured.add_argument("source")
        measured.add_argument("--draws", type=whole, required=True)
        measured.add_argument(
            "--per-class", type=lambda text: numbers("--per-class", text), default=[PER_CLASS]
        )
        measured.add_argument("--dev", action="store_true")
        measured.add_argument("--tuned", action="store_true", help="train the classifier as well")
        measured.set_defaults(do=run)
    commands.add_parser("table").set_defaults(do=table)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
