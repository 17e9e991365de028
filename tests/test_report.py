"""The report, built from run folders that look like real ones."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import affine_transform

from handful import report
from handful.config import RunConfig

FIGURES = ("views", "pipeline", "curves", "tsne", "confusion", "reliability", "mistakes")
DIGITS = tuple("0123456789")


def draw(text: str, rng: np.random.Generator, size: int = 28, channels: int = 1) -> np.ndarray:
    """A character as handwriting would vary it: uint8 (channels, size, size), light on dark."""
    canvas = Image.new("L", (size, size))
    font = ImageFont.load_default(size * 0.8)
    ImageDraw.Draw(canvas).text((size / 2, size / 2), text, 255, font, anchor="mm")
    angle, shear = rng.normal(0, 0.15), rng.normal(0, 0.15)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) * rng.uniform(0.9, 1.25)
    middle = np.full(2, (size - 1) / 2)
    warped = affine_transform(np.asarray(canvas, float), matrix, middle - matrix @ middle, order=1)
    ink = rng.uniform(0.5, 1, (channels, 1, 1)) if channels > 1 else np.ones((1, 1, 1))
    return (warped.clip(0, 255) * ink).astype(np.uint8)


def answers(n: int, classes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 (n, classes) of a classifier that is mostly right, and the truth."""
    labels = rng.integers(0, classes, n)
    logits = rng.normal(0, 1, (n, classes))
    logits[np.arange(n), labels] += rng.gamma(8, 1.2, n)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32), labels.astype(np.int64)


def training_rows(control: bool = True) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for epoch in range(1, 61):
        t = epoch / 60
        row = {
            "stage": "pretext", "step": epoch * 20, "steps": 1200, "epoch": epoch,
            "seconds": epoch * 1.1, "loss": 3.9 + 1.8 * math.exp(-5 * t), "learning_rate": 1e-3,
        }  # fmt: skip
        if epoch % 5 == 0:
            row |= {
                "alignment": 0.2 + 0.4 * t, "uniformity": -3.4 * (1 - math.exp(-4 * t)),
                "effective_rank": 12 + 40 * t, "knn_accuracy": 0.72 + 0.22 * (1 - math.exp(-4 * t)),
            }  # fmt: skip
        rows.append(row)
    lags = {"selection": 1.0, "downstream": 1.0}
    lags |= {"control-selection": 1.8, "control": 1.8} if control else {}
    for stage, lag in lags.items():
        for check in range(1, 26):
            t = check / 25
            row = {
                "stage": stage, "step": int(check * 24 * lag), "steps": int(600 * lag),
                "epoch": check, "seconds": 70 + check, "learning_rate": 3e-3 * (1 - t),
                "loss": 0.55 + 1.7 * math.exp(-7 * t / lag) + 0.02 * math.sin(9 * check),
            }  # fmt: skip
            if "selection" in stage:
                row["validation_loss"] = 0.2 * lag + math.exp(-8 * t) + 0.1 * max(0, t - 0.6)
                row["validation_accuracy"] = 0.98 - 0.01 * lag - 0.4 * math.exp(-9 * t)
                row |= {"best": True} if check == 16 else {}
            rows.append(row)
    return rows


def figure_arrays(
    names: Sequence[str], rng: np.random.Generator, size: int, channels: int, tests: int
) -> dict[str, np.ndarray]:
    classes = len(names)
    characters = [chr(48 + k) if k < 10 else chr(55 + k) for k in range(classes)]

    def picture(k: int) -> np.ndarray:
        return draw(characters[k], rng, size, channels)

    p, labels = answers(tests, classes, rng)
    predicted, sure = p.argmax(axis=1), p.max(axis=1)
    wrong = np.nonzero(predicted != labels)[0]
    wrong = wrong[np.argsort(-sure[wrong])][:25]
    map_labels = np.sort(rng.integers(0, classes, min(2000, tests)))
    centres = rng.normal(0, 18, (classes, 2))
    h = rng.normal(size=(2, 128)) * np.linspace(2, 0.2, 128)
    return {
        "gallery_originals": np.stack([picture(k) for k in range(classes)]),
        "gallery_views": np.stack([[picture(k) for _ in range(8)] for k in range(classes)]),
        "pipeline_image": picture(5 % classes),
        "pipeline_views": np.stack([picture(5 % classes), picture(5 % classes)]),
        "pipeline_h": np.abs(h[:1] + 0.3 * h),
        "pipeline_z": rng.normal(size=64) + 0.4 * rng.normal(size=(2, 64)),
        "map_h": rng.normal(size=(len(map_labels), 8)).astype(np.float32),
        "map_xy_before": 0.45 * centres[map_labels] + rng.normal(0, 9, (len(map_labels), 2)),
        "map_xy": centres[map_labels] * 1.4 + rng.normal(0, 2.6, (len(map_labels), 2)),
        "map_labels": map_labels,
        "test_probabilities": p,
        "test_labels": labels,
        "mistakes_images": np.stack([picture(labels[i]) for i in wrong]),
        "mistakes_index": wrong,
    }


def summary_of(arrays: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    p, labels = arrays["test_probabilities"], arrays["test_labels"]
    n, classes = p.shape
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, p.argmax(axis=1)), 1)
    hits, truth, said = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    accuracy = float(hits.sum() / n)
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / n)
    return {
        "recipe": "demo", "source": "mnist50", "per_class": None, "draw": None, "seed": 0,
        "dev": False, "labelled_images": 50 * classes, "unlabelled_images": 0,
        "class_names": list(names), "test_accuracy": accuracy,
        "test_interval": [accuracy - half, accuracy + half], "test_images": n,
        "test_of": "official test set", "test_accuracy_single_view": accuracy - 0.001,
        "validation_accuracy": 0.98, "validation_interval": [0.93, 0.9945],
        "validation_images": 100, "selected_step": 384,
        "validation_of": "the selection model, trained on 80 % of the labels",
        "control_test_accuracy": accuracy - 0.006, "control_validation_accuracy": 0.96,
        "control_interval": [accuracy - 0.006 - half, accuracy - 0.006 + half],
        "control_difference": {"difference": 0.006, "interval": [0.0038, 0.0081]},
        "calibration": {"temperature": 0.84, "ece": 0.006, "nll": 0.055, "brier": 0.022},
        "per_class_report": [
            {"name": name, "images": int(truth[k]), "precision": float(hits[k] / max(said[k], 1)),
             "recall": float(hits[k] / max(truth[k], 1)),
             "f1": float(2 * hits[k] / max(truth[k] + said[k], 1))}
            for k, name in enumerate(names)
        ],
        "confusion": confusion.tolist(),
        "images_through_encoder": {"pretext": 614400, "downstream": 150000, "control": 764400},
        "encoder_parameters": 289_000, "multiply_adds": 11_200_000, "seconds": 251.3,
        "stages": {"data": 1.2, "pretext": 92.0, "selection": 30.1, "downstream": 34.0,
                   "control": 81.0, "maps": 11.4},
        "versions": {"handful": "0.1.0", "python": "3.12.4", "torch": "2.13.0", "numpy": "2.4.6",
                     "platform": "Linux x86_64"},
        "device": "cpu, 2 threads", "complete": True,
    }  # fmt: skip


def write_run(
    path: Path,
    names: Sequence[str] = DIGITS,
    *,
    size: int = 28,
    channels: int = 1,
    tests: int = 2000,
    without: Sequence[str] = (),
    **changes: Any,
) -> Path:
    """A run folder with everything in it, less the arrays and files named in `without`."""
    rng = np.random.default_rng(0)
    arrays = figure_arrays(names, rng, size, channels, tests)
    summary = summary_of(arrays, names) | changes
    (path / "figures").mkdir(parents=True)
    (path / "config.toml").write_text(RunConfig(control=True).to_toml(), encoding="utf-8")
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    rows = "".join(json.dumps(row) + "\n" for row in training_rows())
    (path / "metrics.jsonl").write_text(rows, encoding="utf-8")
    kept = {key: value for key, value in arrays.items() if key not in without}
    np.savez_compressed(path / "figures" / "arrays.npz", **kept)
    for name in without:
        (path / name).unlink(missing_ok=True)
    return path
