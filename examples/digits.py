"""Fifty digits a class to a classifier, its report and its mistakes: python examples/digits.py"""

import csv
from pathlib import Path
from typing import Any

import handful


def main(out: Path = Path("runs/digits"), **settings: Any) -> int:
    """Train, say how good the classifier is, name its surest mistakes; how many there are."""
    run = handful.train("mnist50", out=out, recipe="fast", overwrite=True, **settings)
    low, high = run.summary["test_interval"]
    print(f"{run.summary['test_accuracy']:.2%} of the test images ({low:.2%} to {high:.2%})")
    print(f"why, in pictures: {run.report}")
    with (run.path / "predictions.csv").open(encoding="utf-8") as file:
        wrong = [row for row in csv.DictReader(file) if row["label"] != row["predicted"]]
    for row in sorted(wrong, key=lambda row: -float(row["probability"]))[:5]:
        print(
            "test image {index}: a {label}, taken for a {predicted} ({probability})".format(**row)
        )
    return len(wrong)


if __name__ == "__main__":
    main()
