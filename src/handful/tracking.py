"""A run as TensorBoard shows it: curves while it trains, then what came out and its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD = "tensorboard"
"""The one kind there is, and its place in the run folder: `tensorboard --logdir runs` finds it."""
NO_CURVES = ("stage", "member", "step", "steps", "epoch", "seconds", "kept")
"""What of a row says where in training it belongs."""


class Board:
    """Writes the rows of one run. Making one touches no disk: the first row does.

    Raises ValueError for another kind than `tensorboard`, and where that is not installed.
    """

    def __init__(self, kind: str, run: Path) -> None:
        if kind != TENSORBOARD:
            raise ValueError(f"--track {kind}: there is {TENSORBOARD} alone")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "--track tensorboard needs TensorBoard: pip install 'handful[tensorboard]'"
            ) from None
        self._make = SummaryWriter
        self._run = run
        self._opened: SummaryWriter | None = None

    @property
    def _writer(self) -> SummaryWriter:
        if self._opened is None:
            self._opened = self._make(str(self._run / TENSORBOARD), flush_secs=5)
        return self._opened

    def row(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl: every number is of a curve `stage/name` over its steps."""
        stage = row["stage"] + (f"-{row['member']}" if "member" in row else "")
        for name, value in row.items():
            if name not in NO_CURVES and isinstance(value, int | float):
                self._writer.add_scalar(f"{stage}/{name}", value, row["step"])

    def finish(self, summary: Mapping[str, Any], settings: str, figures: Path) -> None:
        """Accuracies of the summary, the settings (TOML) as text, and the pictures in `figures`."""
        writer: Any = self._writer
        for name in ("test_accuracy", "validation_accuracy", "control_test_accuracy"):
            if summary[name] is not None:
                writer.add_scalar(f"summary/{name}", summary[name], 0)
        writer.add_text("config.toml", f"```toml\n{settings}```")
        for path in sorted(figures.glob("*.png")):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            writer.add_image(path.stem, pixels, dataformats="HWC")
        writer.close()
