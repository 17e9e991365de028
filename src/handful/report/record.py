"""What a report shows of a run, with nothing taken for granted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handful import confidence, metrics
from handful.config import RunConfig
from handful.pictures import legible
from handful.runs import RunFolder


@dataclass(frozen=True)
class Record:
    """What a run folder holds. A run that has not ended may have an empty summary."""

    name: str
    config: RunConfig
    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    arrays: Mapping[str, NDArray[Any]]

    @classmethod
    def read(cls, folder: RunFolder, summary: Mapping[str, Any]) -> Record:
        """`summary` is what summary.json holds or will hold. Raises ValueError as `folder` does."""
        name = legible(folder.path.resolve().name)
        # curves of an ensemble are of its first member
        rows = [row for row in folder.rows() if not row.get("member")]
        return cls(name, folder.config(), summary, rows, folder.arrays())

    @cached_property
    def class_names(self) -> list[str]:
        """Of all classes that anything here knows; those without a name go by their number."""
        arrays = self.arrays
        known = [str(name) for name in self.summary.get("class_names") or []]
        largest = max(
            len(self.confusion),
            len(arrays.get("gallery_originals", ())),
            int(arrays["map_labels"].max()) + 1 if self.has("map_labels") else 0,
        )
        return known + [str(k) for k in range(len(known), largest)]

    @cached_property
    def confusion(self) -> list[list[int]]:
        """Images by truth (row) and prediction (column); empty where nothing was tested."""
        if self.summary.get("confusion"):
            return list(self.summary["confusion"])
        if not self.has("test_probabilities", "test_labels"):
            return []
        p, labels = self.arrays["test_probabilities"], self.arrays["test_labels"]
        counts = np.zeros((p.shape[1], p.shape[1]), dtype=int)
        np.add.at(counts, (labels, p.argmax(axis=1)), 1)
        return [[int(n) for n in row] for row in counts]

    @cached_property
    def reliability(self) -> metrics.Reliability | None:
        if not self.has("test_probabilities", "test_labels"):
            return None
        probabilities = torch.from_numpy(self.arrays["test_probabilities"])
        return metrics.reliability(probabilities, torch.from_numpy(self.arrays["test_labels"]))

    @cached_property
    def risk(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Share answered and of these the share wrong, the surest first: (T,) each."""
        if not self.has("test_probabilities", "test_labels"):
            return None
        sure, answer = torch.from_numpy(self.arrays["test_probabilities"]).max(1)
        right = answer == torch.from_numpy(self.arrays["test_labels"])
        coverage, wrong = confidence.risk_coverage(sure, right)
        return coverage.numpy(), wrong.numpy()

    @cached_property
    def abstention(self) -> list[Mapping[str, Any]]:
        """What became of answers that were expected to keep to an error; empty in older runs."""
        return list(self.summary.get("abstention") or [])

    @cached_property
    def mistakes(self) -> list[dict[str, Any]]:
        """Of each mistake shown: its index in the test split, truth, prediction, probability."""
        if not self.has("mistakes_index", "test_probabilities", "test_labels"):
            return []
        index = self.arrays["mistakes_index"]
        p = self.arrays["test_probabilities"][index]
        truth = self.arrays["test_labels"][index]
        columns = index.tolist(), truth.tolist(), p.argmax(axis=1).tolist(), p.max(axis=1).tolist()
        return [
            {"index": i, "truth": t, "predicted": k, "probability": q}
            for i, t, k, q in zip(*columns, strict=True)
        ]

    def has(self, *keys: str) -> bool:
        """Whether every one of these arrays is there and holds something."""
        return all(key in self.arrays and self.arrays[key].size for key in keys)
