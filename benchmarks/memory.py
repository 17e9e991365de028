"""Memory that a loss needs beyond its inputs and their gradients, each in a process of its own.

python -m benchmarks.memory PEER N
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks import cells
from benchmarks.loss import DIM, descent, ours, theirs
from benchmarks.measure import Benchmark, Call, Options, Row, in_fresh_process

CASES = (("ours", 4096), ("ours", 8192), ("ours", 16384), ("lightly", 4096), ("simclr", 512))
MB = 2**20


def megabytes_above(call: Call) -> float:
    """Peak of resident memory during a call, beyond what was resident before it."""
    before = _forget_peak()
    call()
    return (_peak() - before) / MB


def _forget_peak() -> float:
    """Start the record of peaks anew from what is resident now, in bytes, which is returned."""
    with suppress(OSError):  # where this is no Linux, the peak until now stands
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    """Bytes. Linux's getrusage would answer with the parent's peak where that is higher."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes


def measure(peer: str, n: int) -> Row:
    loss = ours if peer == "ours" else theirs(peer, n)
    tiny = ours if peer == "ours" else theirs(peer, 8)
    descent(tiny, 8)()  # what the first call sets up is not the loss's
    gradients = 2 * n * DIM * 4 / MB
    return {"megabytes": megabytes_above(descent(loss, n)) - gradients}


def run(options: Options) -> Iterator[Row]:
    for peer, n in CASES:
        n = n // 16 if options.quick else n
        matrix = (2 * n) ** 2 * 4 / MB
        found = in_fresh_process("benchmarks.memory", peer, n)
        yield {"case": f"{peer}, {n}", "peer": peer, "n": n, "matrix": matrix, **found}


BENCHMARK = Benchmark(
    title="Memory of the loss",
    about=f"""Peak of resident memory during one forward and backward pass of two views'
projections, N × {DIM} each, in megabytes beyond what the inputs and their gradients take; a process
each. The matrix is that of all similarities in float32, once.""",
    columns={
        "NT-Xent of": cells.text("peer"),
        "N": cells.number("n"),
        "needs, MB": cells.number("megabytes"),
        "the matrix, MB": cells.number("matrix"),
    },
    run=run,
)

if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
