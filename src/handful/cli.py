"""The command line: parse, call, show. Assembles nothing.

Everything that needs torch is imported inside the command that uses it, so that `--help` and most
mistakes answer at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from handful import screen
from handful.wording import numbers

if TYPE_CHECKING:
    from handful.bench import Row
    from handful.config import RunConfig
    from handful.datasets import Dataset
    from handful.predictor import Answer

app = typer.Typer(
    name="handful",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(help="Fetch data sets.")
app.add_typer(data, name="data")
bench_app = typer.Typer(help="Measure a recipe, run by run.")
app.add_typer(bench_app, name="bench")

Shown = TypeVar("Shown")

ANSWERS_A_ROW = 100
"""A bar that moves for every file costs more than reading it."""

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `handful train` made.")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="`mnist50`; a folder with one folder of images a class, or train/, val/, test/ and "
        "unlabelled/ of that; a table of path, label and split (.csv, .tsv, .parquet); arrays "
        "(.npz, .npy); a directory of idx files; a .zip or .tar of any of these; or a "
        "Hugging Face data set (hub:OWNER/NAME).",
    ),
]
Draws = Annotated[str, typer.Option(metavar="NUMBERS", help="Which images those are, a run each.")]
Seeds = Annotated[str, typer.Option(metavar="NUMBERS", help="A run each as well.")]
AnyRecipe = Annotated[
    str | None, typer.Option("--recipe", help="See `handful recipes`.", show_default="as in train")
]
RowsOut = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of rows and figure. Default: beside the runs."),
]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any one setting. May be repeated."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]


@app.callback(invoke_without_command=True)
def handful(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Accurate image classifiers from a handful of labelled images per class, with SimCLR.

    Start with **handful train mnist50**, or with a folder that has one folder of images a class:
    **handful train photos/**. What a run makes opens in any browser (report.html) and answers for
    new files: **handful predict RUN image.png**.
    """
    if version:
        show_version()
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def train(
    source: Source,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Named settings, see `handful recipes`. "
            "Default: demo for mnist50, standard for anything else."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/SOURCE-RECIPE.")
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option(help="Labelled images per class. Default: all.", rich_help_panel="Data"),
    ] = None,
    draw: Annotated[
        int | None,
        typer.Option(
            help="Which images those are: a number. Default: the first of each class.",
            rich_help_panel="Data",
        ),
    ] = None,
    unlabelled: Annotated[
        bool,
        typer.Option(
            "--unlabelled",
            help="Use the other training images too, without their labels.",
            rich_help_panel="Data",
        ),
    ] = False,
    pool: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="More images without labels: a folder, or anything that SOURCE may be.",
            rich_help_panel="Data",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="timm:NAME",
            help="Train one of timm's architectures, such as timm:resnet18, in place of handful's "
            "own small network.",
            rich_help_panel="Encoder",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Weights of that architecture to begin with.",
            rich_help_panel="Encoder",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Refuse images with anything amiss, such as a file that cannot be read.",
            rich_help_panel="Data",
        ),
    ] = False,
    dev: Annotated[
        bool,
        typer.Option(
            "--dev",
            help="Score on training images 50,000-59,999 and never open the test set.",
            rich_help_panel="Data",
        ),
    ] = False,
    control: Annotated[
        bool | None,
        typer.Option(
            "--control/--no-control",
            help="Also train by cross-entropy alone, to see what the contrast is worth.",
            show_default="as the recipe says",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all randomness.", show_default="0")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", show_default="auto")
    ] = None,
    assignments: Assignments = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Settings laid over the recipe: a few, or the config.toml of another run.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that is in the run folder.")
    ] = False,
    track: Annotated[
        str | None,
        typer.Option(
            metavar="TRACKER",
            help="tensorboard, the only one so far: curves, figures and settings go into the run "
            "folder too, and `tensorboard --logdir runs` shows them, also while it trains.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")] = False,
) -> None:
    """Train a classifier, measure it, and draw what it learned."""
    began = time.time() - time.process_time()  # of the process, not of this function
    options = {
        "data.per_class": per_class,
        "data.draw": draw,
        "data.unlabelled": unlabelled or None,
        "data.pool": pool,
        "data.strict": strict or None,
        "data.dev": dev or None,
        "network.encoder": encoder,
        "network.weights": weights and str(weights),
        "control": control,
        "seed": seed,
        "device": device,
    }
    given = {key: value for key, value in options.items() if value is not None}
    from handful.recipes import compose

    settings, chosen = compose(source, recipe, config, given, assignments or [])
    place = out or default_out(settings)
    with screen.progress(quiet) as progress:
        progress.say(f"recipe {settings.recipe}, into {place}")
        from handful import experiment

        run = experiment.run(
            settings,
            place,
            chosen=chosen,
            overwrite=overwrite,
            on_row=progress.row,
            say=progress.say,
            began=began,
            track=track,
        )
    typer.echo(screen.run(run.summary, str(run.path), str(run.report)))


@app.command()
def evaluate(
    run: Run,
    source: Source,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = "auto",
) -> None:
    """Score a trained classifier on labelled images: the test split where SOURCE has one."""
    from handful import experiment

    with screen.progress() as progress:
        found = experiment.evaluate(run, source, device=device, on_row=progress.row)
    if found["learned_from"]:
        _note(
            f"{found['learned_from']:,} of these {found['images']:,} images are labelled images "
            "that the run learned from: this is no measure of how it does on new ones"
        )
    typer.echo(screen.as_json(found) if as_json else screen.evaluation(found))


@app.command()
def predict(
    run: Run,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES",
            help="Images, folders of images, patterns such as 'scans/*.png', or - for files "
            "named on standard input, one a line, answered once the list ends.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print JSON, a line a file as it comes.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, as it comes.")] = False,
    abstain: Annotated[
        float | None,
        typer.Option(
            metavar="ERROR",
            help="Name a class only where at most this share of answers is expected to be wrong, "
            "for example 0.01.",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Name the class of each image, with its probability and the next candidates.

    An image that is unlike those that taught the classes is marked. With --abstain, unsure
    answers are left out, and a line says how far so few labelled images can vouch for the others.

    A file that cannot be read gets a row with the reason; the others are answered all the same,
    and the exit code is 2.
    """
    forms = {
        "--json": (as_json, screen.answers_json),
        "--jsonl": (as_jsonl, screen.answers_jsonl),
        "--csv": (as_csv, screen.answers_csv),
    }
    shown = _form(forms, screen.answers)
    from handful import decoding
    from handful.predictor import Predictor

    model = Predictor.load(run, device=device)
    least = 0.0
    if abstain is not None:
        limits = model.abstention(abstain)
        least = limits.threshold
        _note(screen.abstention(limits))
    paths = list(expand(files))
    unreadable, began = 0, time.monotonic()

    def answers() -> Iterator[Answer]:  # told as they come: all of them would fill the memory
        nonlocal unreadable
        for step, answer in enumerate(model.predict_files(paths), 1):
            unreadable += answer.error is not None
            if step % ANSWERS_A_ROW == 0 or step == len(paths):
                done = {"stage": "predict", "step": step, "steps": len(paths)}
                progress.row(done | {"seconds": time.monotonic() - began})
            yield answer

    # where lines come one by one they are the progress
    quiet = len(paths) < decoding.MANY or (sys.stdout.isatty() and (as_jsonl or as_csv))
    with screen.progress(quiet=quiet) as progress:
        for text in shown(answers(), least):
            typer.echo(text)
    if unreadable:
        raise ValueError(f"{unreadable} of {len(paths)} files could not be read")


@app.command()
def embed(
    run: Run,
    source: Source,
    out: Annotated[Path, typer.Option(metavar="FILE.npz", help="File to write.")],
    device: Device = "auto",
) -> None:
    """Write the representation h of each image (of SOURCE's test split, if any) to an archive."""
    from handful import experiment

    with screen.progress() as progress:
        count, taken = experiment.embed(run, source, out, device=device, on_row=progress.row)
    typer.echo(f"{count:,} images, {taken} → {out}")


@app.command()
def suggest(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] POOL",
            help="Images without labels, as a folder or any other source; before it the run whose "
            "model shall learn from them. Without a run: which to label first of all.",
        ),
    ],
    count: Annotated[int, typer.Option("-n", "--count", help="How many images.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of what is left to chance.")] = 0,
    device: Device = "auto",
) -> None:
    """Say which images to label next: doubtful ones that differ from each other.

    After a run of `pool` those come first that its labels left between two classes.
    Label them, train again, and ask again. Labels that POOL has already are not looked at.
    """
    if len(places) > 2:
        raise ValueError(f"suggest takes a run and a pool, got {len(places)} places")
    forms = {
        "--json": (as_json, screen.suggestions_json),
        "--csv": (as_csv, screen.suggestions_csv),
    }
    shown = _form(forms, screen.suggestions)
    from handful import suggest as suggestions

    run = Path(places[0]) if len(places) == 2 else None
    with screen.progress() as progress:
        found = suggestions.suggest(
            run, places[-1], count, seed=seed, device=device, say=_note, on_row=progress.row
        )
    typer.echo(shown(found))


@app.command()
def export(
    run: Run,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="onnx, the only one so far.")
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File to write.", show_default="model.onnx in RUN's model folder"
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file that is there.")
    ] = False,
) -> None:
    """Write the model as one file that gives the probabilities of `handful predict`, without torch.

    It takes pixels: what a picture must go through first is described in its metadata. It counts as
    written once ONNX Runtime gives the answers of PyTorch on 1,000 images.
    """
    from handful import export as exports

    typer.echo(screen.exported(exports.export(run, form, out, overwrite=overwrite)))


@app.command()
def plot(run: Run) -> None:
    """Draw the figures and the report of a run again."""
    from handful import report

    typer.echo(report.build(run))


@data.command()
def mnist(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")],
) -> None:
    """Fetch all 70,000 images of MNIST from OpenML, as the four official idx files."""
    from handful import datasets

    datasets.fetch_mnist(out)
    typer.echo(out)


@bench_app.command()
def labels(
    source: Source,
    per_class: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Labelled images per class: 5,10,20-22.")
    ],
    draws: Draws = "100-104",
    seeds: Seeds = "0",
    recipe: AnyRecipe = None,
    out: RowsOut = None,
    control: Annotated[
        bool | None,
        typer.Option(
            "--control/--no-control",
            help="Also train by cross-entropy alone.",
            show_default="where the recipe contrasts",
        ),
    ] = None,
    jobs: Jobs = 1,
    assignments: Assignments = None,
) -> None:
    """How accurate a recipe is, by the number of labels: a table, a figure and a row a run.

    Repeated, it runs only what is missing.
    """
    cells = [
        (labelled, draw, seed)
        for labelled in numbers("--per-class", per_class)
        for draw in numbers("--draws", draws)
        for seed in numbers("--seeds", seeds)
    ]
    from handful import bench, datasets, efficiency

    asked = bench.setting(source, recipe, assignments or [], control)
    dataset = datasets.load(asked.data)
    on_mnist = efficiency.comparable(asked)
    rows, place = _rows(asked, dataset, cells, out, "labels", jobs, assignments)
    found = efficiency.points(rows)
    figure = efficiency.figure(found, asked.recipe, on_mnist=on_mnist)
    (place / "labels.png").write_bytes(figure)
    typer.echo(f"{screen.efficiency(found)}\n\nrows and figure  {place}")


@app.command("learn-curve")
def learn_curve(
    source: Source,
    per_class: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Labels per class to train with.",
            show_default="an eighth, a quarter and a half of the smallest class",
        ),
    ] = None,
    at: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Labels per class to look ahead to.",
            show_default="twice what the smallest class has",
        ),
    ] = None,
    draws: Draws = "0-2",
    seeds: Seeds = "0",
    recipe: AnyRecipe = None,
    out: RowsOut = None,
    jobs: Jobs = 1,
    assignments: Assignments = None,
) -> None:
    """How many labels do I need? Trains on parts of yours and says what more would give.

    Repeated, it runs only what is missing.
    """
    wanted = None if per_class is None else numbers("--per-class", per_class)
    drawn, seeded = numbers("--draws", draws), numbers("--seeds", seeds)
    from handful import bench, datasets, efficiency, forecast

    asked = bench.setting(source, recipe, assignments or [], control=False)
    dataset = datasets.load(asked.data)
    sizes, labelled = bench.curve(asked, dataset, wanted)
    cells = [(size, draw, seed) for size in sizes for draw in drawn for seed in seeded]
    forecast.check([size for size, *_ in cells])
    rows, place = _rows(asked, dataset, cells, out, "curve", jobs, assignments)
    found, ahead = efficiency.points(rows), efficiency.expected(rows, at or 2 * labelled)
    (place / "curve.png").write_bytes(efficiency.figure(found, asked.recipe, ahead=ahead))
    told = screen.expectation(ahead, labelled, found[0].images)
    typer.echo(f"{screen.efficiency(found)}\n\n{told}\nrows and figure  {place}")


def _rows(
    asked: RunConfig,
    dataset: Dataset,
    cells: Sequence[tuple[int, int, int]],
    out: Path | None,
    kind: str,
    jobs: int,
    assignments: list[str] | None,
) -> tuple[list[Row], Path]:
    """A row for each cell (labels per class, draw, seed), and the folder that holds them."""
    from handful import bench

    place = out or default_out(asked).with_name(f"{default_out(asked).name}-{kind}")
    rows = bench.labels(
        asked,
        dataset,
        [bench.Cell(*cell) for cell in cells],
        place / "rows.jsonl",
        assignments=assignments or [],
        jobs=jobs,
        on_row=lambda cell, row: typer.echo(screen.cell(cell, row), err=True),
        say=_note,
    )
    return rows, place


@app.command()
def audit(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE|RUN", help="What `train` takes, or a run of it.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: runs/SOURCE-audit or RUN-audit.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Whose classifier judges the labels.", show_default="fast, or the run's"),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Judge labels and outliers, which takes it.")
    ] = True,
    assignments: Assignments = None,
    device: Device = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")] = False,
) -> None:
    """What is amiss in the images and labels? A page with thumbnails and a table to act on.

    Copies and near copies, training images that are in the test, labels that are likely wrong,
    outliers, blank, tiny and unreadable files, classes with few labels.
    """
    from handful import audit as auditing

    untrained = [] if train else ["downstream.folds=0"]
    settings, chosen = auditing.setting(source, recipe, [*(assignments or []), *untrained], device)
    place = out or auditing.place(source)
    with screen.progress(quiet) as progress:
        found = auditing.run(settings, place, chosen=chosen, on_row=progress.row, say=progress.say)
    typer.echo(screen.audit(found.titled, place))


@app.command()
def recipes() -> None:
    """List the recipes: what each is for, what it costs and what it reached."""
    from handful.recipes import RECIPES

    blocks = [
        f"{name}: {recipe.summary}\n"
        f"  {recipe.command}\n  costs    {recipe.cost}\n  reaches  {recipe.reaches}"
        for name, recipe in RECIPES.items()
    ]
    typer.echo("\n\n".join(blocks))


@app.command("version")
def show_version() -> None:
    """Show the version."""
    from handful import __version__

    typer.echo(f"handful {__version__}")


def default_out(settings: RunConfig) -> Path:
    from handful.config import name_of

    return Path("runs") / f"{name_of(settings.data.source)}-{settings.recipe}"


def expand(given: Iterable[Path]) -> Iterator[Path]:
    """Files as they are; of a folder the pictures in it and below it, in natural order.

    `-` stands for the files on standard input, one a line; what is no file and has * or ? or [ for
    all pictures that match. Other files in a folder are left out, with a note on stderr. Raises
    ValueError for a folder without pictures and for a pattern that nothing matches.
    """
    from handful import folders

    for path in given:
        if str(path) == "-":
            lines = (line.rstrip("\r\n") for line in sys.stdin)
            yield from (Path(line) for line in lines if line)
            continue
        if not path.is_dir():
            yield from [path] if path.exists() else folders.matching(path)
            continue
        others = folders.other_files(path)
        if others:
            _note(f"{path}: left out what is no picture by its name: {others}")
        found = folders.pictures(path)
        if not found:
            raise ValueError(f"no pictures in {path}")
        yield from found


def _form(forms: Mapping[str, tuple[bool, Shown]], usual: Shown) -> Shown:
    """How to print, by the option that was given. Raises ValueError for several."""
    asked = {name: form for name, (wanted, form) in forms.items() if wanted}
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} exclude each other: leave one out")
    return next(iter(asked.values()), usual)


def _note(line: str) -> None:
    typer.echo(f"handful: {' '.join(line.split())}", err=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a mistake, 130 for Ctrl-C.

    A mistake is one line on stderr. What is no mistake of the user keeps its traceback;
    HANDFUL_TRACEBACK=1 shows it for all.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # an old code page must not stop an answer
            stream.reconfigure(errors="replace")
    if hasattr(sys.stdout, "reconfigure") and not sys.stdout.isatty():  # nor spoil a file of them
        sys.stdout.reconfigure(encoding="utf-8")
    if hasattr(sys.stdin, "reconfigure"):  # names of files are bytes, not always text
        sys.stdin.reconfigure(errors="surrogateescape")
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="handful", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        line = explanation(error)
        if line is None or os.environ.get("HANDFUL_TRACEBACK"):
            raise
        _note(line)
        return 2
    if code == 130:
        _note("stopped by Ctrl-C")
    return code if isinstance(code, int) else 0


def explanation(error: Exception) -> str | None:
    """One line for a mistake or a limit of the machine; None for what is our own fault."""
    if hasattr(error, "format_message"):  # typer and click: options and arguments
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "handful"
        return f"{error.format_message()} See `{command} --help`."
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    from handful.devices import out_of_memory

    if out_of_memory(error):
        return (
            "out of memory: take smaller batches (--set pretext.batch_size=64), "
            "smaller images (--set data.size=32) or --device cpu"
        )
    return None
