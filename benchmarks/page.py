"""docs/performance.md from the measured rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

from benchmarks.measure import ROOT, Benchmark, Row

PAGE = ROOT / "docs" / "performance.md"
HEAD = """# Performance

Made by `python -m benchmarks table` from `benchmarks/performance.jsonl`. `make bench` measures
anew, with `BENCH_FLAGS="--mnist DIR"` also what needs the official idx files; `make bench-scale`
measures the last section but one, `python -m benchmarks gpu` the last.

Unless a section says otherwise, whatever is compared takes turns in one process: after a warm-up,
five rounds or more of one turn each, and a turn lasts at least 0.2 s. Figures are medians over the
rounds; a ratio is the median of the rounds' own ratios, with their range. The other packages run as
they were published, at the versions in `benchmarks/requirements.txt`, with the machine's default
number of threads unless something else is said."""


def page(benchmarks: Mapping[str, Benchmark], rows: Sequence[Row]) -> str:
    parts = [HEAD]
    for name, benchmark in benchmarks.items():
        parts.append(section(name, benchmark, [row for row in rows if row["benchmark"] == name]))
    return "\n\n".join(parts) + "\n"


def section(name: str, benchmark: Benchmark, rows: Sequence[Row]) -> str:
    paragraphs = benchmark.about.split("\n\n")
    about = "\n\n".join(fill(text, 100, break_on_hyphens=False) for text in paragraphs)
    head = f"## {benchmark.title}\n\n{about}"
    if not rows:
        return f"{head}\n\nNot measured yet: `python -m benchmarks {name}`."
    found = [head, table(benchmark, rows), origins(rows)]
    if benchmark.after:
        found.append(benchmark.after(list(rows)))
    return "\n\n".join(found)


def table(benchmark: Benchmark, rows: Sequence[Row]) -> str:
    lines = [list(benchmark.columns), ["---"] * len(benchmark.columns)]
    lines += [[cell(row) for cell in benchmark.columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def origins(rows: Sequence[Row]) -> str:
    """What measured these rows, each once."""
    found = dict.fromkeys(
        f"{row['cpu']}, {row['threads']} thread{'s' * (row['threads'] > 1)}, torch {row['torch']}, "
        f"commit {row['commit'] or 'none'}, {row['date']}"
        for row in rows
    )
    return "*" + "; ".join(found) + "*"
