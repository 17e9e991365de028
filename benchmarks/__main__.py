"""Speed, memory and exactness, measured against other packages and tabulated for the docs.

python -m benchmarks [NAME ...] [--mnist DIR]
python -m benchmarks table

Rows go to benchmarks/performance.jsonl, where the newest of each case stands; `table` alone writes
docs/performance.md from them. Accuracy has commands of its own: benchmarks/accuracy.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import (
    encoder,
    epoch,
    exact,
    gpu,
    loss,
    memory,
    page,
    processes,
    rows,
    scale,
    step,
    views,
)
from benchmarks.measure import Benchmark, Options
from handful.bench import read

BENCHMARKS: dict[str, Benchmark] = {
    "views": views.BENCHMARK,
    "loss": loss.BENCHMARK,
    "memory": memory.BENCHMARK,
    "exact": exact.BENCHMARK,
    "epoch": epoch.BENCHMARK,
    "step": step.BENCHMARK,
    "start": processes.START,
    "predict": processes.PREDICT,
    "encoder": encoder.BENCHMARK,
    "scale": scale.BENCHMARK,
    "gpu": gpu.BENCHMARK,
}
APART = "scale", "gpu"
"""Run only when named: the one takes as long as all others, the other needs a GPU."""


def measure(names: Sequence[str], options: Options) -> None:
    """Run benchmarks, keep each row as soon as it is there, and write the page."""
    for name in names:
        began = time.perf_counter()
        for row in BENCHMARKS[name].run(options):
            _show(name, row)
            if not options.quick:
                rows.save({"benchmark": name, **rows.origin(), **row})
        print(f"{name} took {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    if not options.quick:
        write_page()


def _show(name: str, row: dict[str, object]) -> None:
    cells = [f"{head}: {cell(row)}" for head, cell in BENCHMARKS[name].columns.items()]
    print(f"{name}  {', '.join(cells)}", flush=True)


def write_page() -> None:
    page.PAGE.write_text(page.page(BENCHMARKS, read(rows.ROWS)), encoding="utf-8")
    print(page.PAGE)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME",
        help=f"{', '.join(BENCHMARKS)}, or table, which only writes the page; "
        f"default: all but {' and '.join(APART)}",
    )  # fmt: skip
    parser.add_argument(
        "--mnist", type=Path, metavar="DIR", help="where the official idx files are"
    )
    parser.add_argument("--slow", action="store_true", help="also what takes minutes")
    parser.add_argument("--quick", action="store_true", help="see that all runs, keep nothing")
    given = parser.parse_args()
    if given.names == ["table"]:
        return write_page()
    unknown = set(given.names) - BENCHMARKS.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    names = given.names or [name for name in BENCHMARKS if name not in APART]
    try:
        measure(names, Options(quick=given.quick, slow=given.slow, mnist=given.mnist))
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: pip install -r benchmarks/requirements.txt -c constraints.txt")


if __name__ == "__main__":
    main()
