"""Measured rows: benchmarks/performance.jsonl, where the newest row of each case stands."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.accuracy import commit_of_recipes
from benchmarks.measure import ROOT, Row
from handful.bench import read

ROWS = ROOT / "benchmarks" / "performance.jsonl"


def save(row: Row, path: Path = ROWS) -> None:
    """Add a row in place of the one that the same case had."""
    lines = [json.dumps(one) for one in [*_others(read(path), row), row]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _others(rows: list[Row], row: Row) -> list[Row]:
    key = (row["benchmark"], row["case"])
    return [one for one in rows if (one["benchmark"], one["case"]) != key]


def origin() -> Row:
    """What made a row: code, machine and day."""
    return {
        "commit": commit_of_recipes(),
        "torch": torch.__version__,
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
