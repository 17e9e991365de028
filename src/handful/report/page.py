"""The page: figures and numbers in plain words, one HTML file that loads nothing."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from PIL import Image

from handful import config, metrics, plots, wording
from handful.report.record import Record

# A PNG of photographs above this size is embedded as a JPEG.
LARGE = 150_000


@dataclass(frozen=True)
class Embedded:
    """A picture as a data URI, with its natural size in CSS pixels."""

    uri: str
    width: int
    height: int


def embed(png: bytes) -> Embedded:
    """A PNG file for a page; photographs become a JPEG, which is several times smaller."""
    kind, data = "png", png
    with Image.open(io.BytesIO(png)) as picture:
        density = picture.info["dpi"][0] / 96
        width, height = (round(side / density) for side in picture.size)
        if len(png) > LARGE:
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "JPEG", quality=88, subsampling=0, optimize=True)
            if buffer.tell() < len(png):
                kind, data = "jpeg", buffer.getvalue()
    text = base64.b64encode(data).decode()
    return Embedded(f"data:image/{kind};base64,{text}", width, height)


def render(record: Record, figures: Mapping[str, Mapping[plots.Layout, bytes]]) -> str:
    """The page. figures: PNG files by name and layout; what is missing is left out."""
    embedded = {
        name: {layout: embed(data) for layout, data in layouts.items()}
        for name, layouts in figures.items()
        if "wide" in layouts
    }
    return template("report.html.jinja").render(_facts(record), figures=embedded)


def _facts(record: Record) -> dict[str, Any]:
    """Everything that the template says, as plain values."""
    names, summary = record.class_names, record.summary
    pairs: list[dict[str, Any]] = [
        {"truth": names[t], "predicted": names[p], "images": count}
        for t, row in enumerate(record.confusion)
        for p, count in enumerate(row)
        if t != p and count
    ]
    return {
        "run": record.name,
        "summary": summary,
        "ended": "seconds" in summary,
        "names": names,
        "numbered": any(len(name) > 6 or not plots.drawable(name) for name in names),
        "confused": sorted(pairs, key=lambda pair: -pair["images"])[:5],
        "per_class": [
            row | {"interval": _recall_interval(row)}
            for row in summary.get("per_class_report") or []
        ],
        "mistakes": record.mistakes,
        "reliability": record.reliability,
        "abstention": record.abstention,
        "sure": config.SURE,
        "verdict": verdict(summary.get("control_difference")),
        "settings": list(_settings(record.config)),
        "config": record.config,
        "toml": record.config.to_toml(),
        "command": _command(record),
    }


def _recall_interval(row: Mapping[str, Any]) -> tuple[float, float] | None:
    n = row["images"]
    return metrics.wilson(round(row["recall"] * n), n) if n else None


def verdict(difference: Mapping[str, Any] | None) -> str:
    """What the interval of the difference to the control allows to say; empty without one."""
    if difference is None:
        return ""
    low, high = difference["interval"]
    return "helped" if low > 0 else "hurt" if high < 0 else "made no measurable difference"


def _settings(run: config.RunConfig) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Headings and the settings below each, in the order of the configuration."""
    nested: list[tuple[str, Mapping[str, Any]]] = [("run", run.model_dump())]
    while nested:
        heading, tree = nested.pop(0)
        yield heading, [(k, v) for k, v in tree.items() if not isinstance(v, Mapping)]
        prefix = "" if heading == "run" else f"{heading}."
        inner = [(f"{prefix}{k}", v) for k, v in tree.items() if isinstance(v, Mapping)]
        nested = inner + nested


def _command(record: Record) -> str:
    source = shlex.quote(record.config.data.source)
    settings, again = shlex.quote(f"{record.name}/config.toml"), shlex.quote(f"{record.name}-again")
    return f"handful train {source} --config {settings} --out {again}"


def _plain(value: object) -> str:
    """A setting as a person reads it."""
    match value:
        case None:
            return "unset"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def template(name: str) -> jinja2.Template:
    """A page of the package: what it is given is escaped, and what it lacks is left out."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.ChainableUndefined, loader=jinja2.FunctionLoader(_text)
    )
    environment.filters |= {
        "percent": wording.percent, "between": wording.between, "duration": wording.duration,
        "points": lambda *difference: wording.points(*difference).replace("-", "−"),
        "bare": lambda text: text.removesuffix(" %"), "plain": _plain, "short": plots.short,
        "count": "{:,}".format,
    }  # fmt: skip
    return environment.get_template(name)


def _text(name: str) -> str:
    return files("handful").joinpath(name).read_text(encoding="utf-8")
