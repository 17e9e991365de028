"""The run folder: what is in it, whose it is and how far it got."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from handful import config as configs
from handful.config import RunConfig

if TYPE_CHECKING:
    from handful.images import ImageSet

State = Literal["absent", "complete", "interrupted", "foreign"]

HEADER = "# A run of handful. Repeat it: handful train SOURCE --config THIS_FILE\n"
"""First line of every config.toml that handful wrote: how it knows a run folder as its own."""
CONTENTS = (
    "summary.json",
    "metrics.jsonl",
    "predictions.csv",
    "report.html",
    "model",
    "checkpoints",
    "figures",
    "tensorboard",
    "config.toml",
)
"""All that a run writes and all that `--overwrite` removes, in that order: half removed, a run no
longer is complete and still is ours."""


class RunFolder:
    """One run's files. Making one touches no disk; `claim` does."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def state(self) -> State:
        """`foreign` is whatever exists, is not empty and was not written by handful."""
        if not self.path.exists():
            return "absent"
        if not self.path.is_dir():
            return "foreign"
        if not any(self.path.iterdir()):
            return "absent"
        if not self._ours():
            return "foreign"
        return "complete" if (self.path / "summary.json").is_file() else "interrupted"

    @property
    def is_run(self) -> bool:
        """Whether a run is there, finished or not."""
        return self.state() in ("complete", "interrupted")

    def _ours(self) -> bool:
        try:
            with self.config_path.open(encoding="utf-8", errors="replace") as file:
                return file.readline() == HEADER
        except FileNotFoundError:
            return False

    def config(self) -> RunConfig:
        """What the run was asked to do. Raises ValueError where that cannot be read."""
        return configs.load(self.config_path)

    def summary(self) -> dict[str, Any]:
        """What came out. Raises ValueError where the folder holds no finished run."""
        state = self.state()
        if state != "complete":
            what = {
                "absent": "there is no run there",
                "interrupted": "that run did not finish",
                "foreign": "handful did not make it",
            }[state]
            raise ValueError(f"no finished run in {self.path}: {what}")
        path = self.path / "summary.json"
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        if not isinstance(summary, dict):
            raise ValueError(f"{path} is damaged: it holds no object")
        return summary

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """To be written last: the presence of this file means that the run is complete."""
        document = _strict({**summary, "complete": True})
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        self.write("summary.json", f"{text}\n".encode())

    def append(self, row: Mapping[str, Any]) -> None:
        """One more row of metrics.jsonl; a number that is not finite becomes null."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(_strict(row), ensure_ascii=False, allow_nan=False) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl in order, without a last line that an interruption cut short.

        Raises ValueError where another line is damaged.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        *whole, _ = path.read_bytes().split(b"\n")
        try:
            return [json.loads(line) for line in whole]
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def write_arrays(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """figures/arrays.npz, compressed: what figures are drawn from, and later commands read."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        self.write("figures/arrays.npz", buffer.getvalue())

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of `write_arrays`, none where it was never called.

        Raises ValueError where the file is damaged.
        """
        path = self.figures / "arrays.npz"
        if not path.exists():
            return {}
        try:
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def write_predictions(self, images: ImageSet, probabilities: np.ndarray[Any, Any]) -> None:
        """predictions.csv: one row an image of the test split.

        probabilities: float (N, Y), in the order of `images` and its class names. Columns: index,
        label (empty where unlabelled), predicted, its probability; path where images were files.
        """
        names = images.class_names
        columns = ["index", "label", "predicted", "probability"] + ["path"] * bool(images.paths)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(columns)
        for i, (label, row) in enumerate(zip(images.labels.tolist(), probabilities, strict=True)):
            best = int(row.argmax())
            cells = [i, names[label] if label >= 0 else "", names[best], f"{row[best]:.6f}"]
            table.writerow(cells + ([images.paths[i]] if images.paths else []))
        self.write("predictions.csv", text.getvalue().encode())

    def write(self, name: str, data: bytes) -> None:
        """Put a file into the folder, whole or not at all. Raises ValueError where it cannot."""
        path = self.path / name
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise ValueError(f"cannot write {path}: {error.strerror}") from None


def preset_there(path: Path | str) -> str | None:
    """The kind of views that a run at this place has; None where none is, or cannot be read."""
    folder = RunFolder(path)
    try:
        return folder.config().preset if folder.is_run else None
    except (ValueError, OSError):
        return None


def check(path: Path | str, overwrite: bool = False) -> None:
    """Raises ValueError where `claim` would, whatever the configuration."""
    folder = RunFolder(path)
    state = folder.state()
    if state == "foreign":
        raise ValueError(f"{folder.path} exists and was not made by handful: choose another --out")
    if state == "interrupted" and not overwrite:
        raise ValueError(
            f"{folder.path} holds a run that did not finish or is still running: "
            "--overwrite starts it again, or choose another --out"
        )


def claim(
    path: Path | str, config: RunConfig, overwrite: bool = False
) -> RunFolder | dict[str, Any]:
    """Make `path` the folder of this run, or return the summary where it already is done.

    An absent or empty folder is made and config.toml written into it. A complete run of the same
    configuration gives its summary. Raises ValueError for an interrupted run, a run of another
    configuration, a folder that handful did not make, and where it cannot write. `overwrite`
    removes what an earlier run wrote, and nothing else, and never touches a foreign folder.
    """
    folder = RunFolder(path)
    try:
        check(path, overwrite)
        if overwrite:
            _clear(folder)
        elif folder.state() == "complete":
            return _same(folder, config)
        written = (HEADER + config.to_toml()).encode()
        folder.path.mkdir(parents=True, exist_ok=True)
        # "x": of two commands that start at once, one gets the folder
        with folder.config_path.open("xb") as file:
            file.write(written)
    except OSError as error:
        raise ValueError(
            f"cannot write the run folder {folder.path}: {error.strerror or error}; "
            "choose another --out"
        ) from None
    return folder


def _same(folder: RunFolder, config: RunConfig) -> dict[str, Any]:
    """The summary of a complete run; ValueError where its configuration is another one."""
    try:
        theirs = folder.config()
    except ValueError:
        raise ValueError(
            f"{folder.path} holds a run whose config.toml this version cannot read: "
            "--overwrite replaces it, or choose another --out"
        ) from None
    differing = config.differences(theirs)
    for key in ("data.source", "network.weights"):
        if key in differing and _same_place(*differing[key]):
            del differing[key]
    if differing:
        listed = "; ".join(
            f"{key}: here {_shown(here)}, there {_shown(there)}"
            for key, (here, there) in differing.items()
        )
        raise ValueError(
            f"{folder.path} holds a run of another configuration ({listed}): "
            "--overwrite replaces it, or choose another --out"
        )
    return folder.summary()


def _same_place(here: str | None, there: str | None) -> bool:
    """Whether two names lead to one folder or file; `mnist50` is none."""
    if here is None or there is None or "mnist50" in (here, there):
        return here == there
    return Path(here).expanduser().resolve() == Path(there).expanduser().resolve()


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def _clear(folder: RunFolder) -> None:
    for name in CONTENTS:
        path = folder.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _strict(value: Any) -> Any:
    """The same value with null for NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
