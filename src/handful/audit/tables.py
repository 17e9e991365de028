"""An audit on disk: a page with thumbnails, a table of findings, a table of judged labels."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from handful import doubts, twins
from handful.audit.found import FEWER, Audit, Finding, Judged
from handful.images import ImageSet
from handful.report import findings as page
from handful.report.findings import Kind
from handful.runs import RunFolder

FILES = "audit.html", "audit.csv", "labels.csv"


def check(out: Path) -> None:
    """Before anything is trained: ValueError where the folder is no audit's."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / FILES[0]).exists():
        raise ValueError(f"{out} exists and holds no audit: choose another --out")


def write(found: Audit, out: Path) -> None:
    folder = RunFolder(out)
    folder.write("audit.csv", _table(found).encode())
    if found.judged is None:
        (out / "labels.csv").unlink(missing_ok=True)  # of an earlier audit, which this one replaces
    else:
        folder.write("labels.csv", _labels(found, found.judged).encode())
    folder.write("audit.html", page.render(_facts(found), _sections(found)).encode())


def _name(images: ImageSet, position: int) -> str:
    return "" if position < 0 else images.paths[position]


def _cells(found: Audit, finding: Finding) -> dict[str, Any]:
    """A finding in words."""
    names, others = found.images.class_names, found.images
    if finding.kind == "leak" and found.test is not None:
        others = found.test
    return {
        "image": _name(found.images, finding.image),
        "label": names[finding.label] if finding.label >= 0 else "",
        "suggested": names[finding.suggested] if finding.suggested >= 0 else "",
        "score": "" if finding.score is None else f"{finding.score:.4f}",
        "other": _name(others, finding.other),
        "note": finding.note,
    }


def _table(found: Audit) -> str:
    """audit.csv: a row a finding."""
    text = io.StringIO()
    columns = ["rank", "kind", "image", "label", "suggested", "score", "other", "note"]
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    for rank, finding in enumerate(found.findings, 1):
        table.writerow({"rank": rank, "kind": finding.kind, **_cells(found, finding)})
    return text.getvalue()


def _labels(found: Audit, judged: Judged) -> str:
    """labels.csv: a row for each label that was judged, the most doubtful first."""
    names, text = found.images.class_names, io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = "rank image label suggested score probability likely_wrong distance".split()
    table.writerow(columns)
    for rank, k in enumerate(judged.doubts.order.tolist(), 1):
        position = int(judged.positions[k])
        row = [rank, _name(found.images, position)]
        row += [names[int(found.images.labels[position])], names[judged.doubts.suggested[k]]]
        numbers = judged.doubts.score[k], judged.probability[k]
        row += [f"{number:.6f}" for number in numbers]
        row += ["yes" if judged.doubts.wrong[k] else "no", f"{judged.distances[k]:.3f}"]
        table.writerow(row)
    return text.getvalue()


def _facts(found: Audit) -> dict[str, Any]:
    """What the page says of the whole."""
    judged, config = found.judged, found.config
    return {
        "source": config.data.source,
        "images": found.images.describe(),
        "test_images": None if found.test is None else len(found.test),
        "files": found.files,
        "counts": found.titled,
        "judged": None if judged is None else len(judged.positions),
        "agreeing": None if judged is None else judged.agreeing,
        "folds": config.downstream.folds,
        "recipe": config.recipe,
        "seed": config.seed,
        "near": twins.NEAR,
        "shift": twins.FARTHEST,
        "fewer": FEWER,
        "fence": doubts.FENCE,
    }


def _sections(found: Audit) -> dict[Kind, list[page.Line]]:
    """The first findings of each kind, with their pictures."""
    sections: dict[Kind, list[page.Line]] = {kind: [] for kind in found.counts}
    for finding in found.findings:
        lines = sections[finding.kind]
        if len(lines) == page.MOST:
            continue
        others = found.test if finding.kind == "leak" else found.images
        pixels = [
            images.images[position].numpy()
            for images, position in ((found.images, finding.image), (others, finding.other))
            if images is not None and position >= 0
        ]
        lines.append(page.Line(pixels=pixels, **_cells(found, finding)))
    return sections
