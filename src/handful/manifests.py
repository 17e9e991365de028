"""Tables that say which picture is of which class and part: CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from handful.pictures import NO_LABEL, SPLITS, Part, Role, legible
from handful.wording import one_line

NAME = re.compile(r"(manifest|labels)\.(csv|tsv|parquet)", re.IGNORECASE)
SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
LARGEST = 2**28  # bytes of a table

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "image"),
    "label": ("label", "class", "class_name"),
    "split": ("split", "set"),
}
"""What a column is for, and the names that it may have, in any case."""

ROLES: dict[str, Role] = {"": "train", **SPLITS}

Row = tuple[int, list[str]]
"""A row's number, for people, and its cells."""


class Manifest(NamedTuple):
    """The parts that a table has, train first, and a line for each row that was left out.

    skipped: with each line the part that its row is of, None where that is not known.
    """

    parts: list[Part]
    skipped: list[tuple[Role | None, str]]


def find(folder: Path) -> Path | None:
    """The table that a folder is read by: manifest or labels, .csv, .tsv or .parquet.

    Raises ValueError where there are several.
    """
    found = [path for path in sorted(folder.iterdir()) if NAME.fullmatch(path.name)]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} has {names}: give the one that lists the images as SOURCE")
    return found[0] if found else None


def read(path: Path, inside: Path | None = None) -> Manifest:
    """The pictures that a table lists; paths are taken from its own folder.

    Columns: `path`, `label` and, if wanted, `split` (train, val, test or unlabelled). An empty
    label, -1 or `unlabelled` is none. A file counts once, by the first row that names it.
    inside: the folder that no path may lead out of.

    Raises ValueError naming the table, and the row where it is one that is amiss.
    """
    rows = iter(_rows(path))
    _, header = next(rows, (0, []))
    place = _columns(path, header)
    files: dict[Role, list[tuple[Path, str | None]]] = {}
    skipped: list[tuple[Role | None, str]] = []
    known: dict[str, tuple[int, Role, str]] = {}
    for number, cells in rows:
        row = f"row {number} of {path.name}"
        if len(cells) != len(header):
            skipped.append((None, f"{row} has {len(cells)} cells, the header {len(header)}"))
            continue
        role = _role(cells[place["split"]] if "split" in place else "", row)
        name, label = cells[place["path"]], legible(cells[place["label"]].strip())
        file = path.parent / name
        if not name or "\0" in name:
            skipped.append((role, f"{row} names no file"))
        elif inside is not None and not file.resolve().is_relative_to(inside.resolve()):
            skipped.append((role, f"{row}: {legible(name)} lies outside of {inside.name}"))
        else:
            key = os.path.normcase(file.resolve())
            first, *said = known.setdefault(key, (number, role, label))
            if first != number:
                other = ", of another class or split" * (said != [role, label])
                line = f"{row}: {legible(name)} is in row {first} already{other}"
                skipped.append((role, line))
                continue
            unknown = label.lower() in NO_LABEL or role == "unlabelled"
            files.setdefault(role, []).append((file, None if unknown else label))
    if not files:
        why = "".join(f": {line}" for _, line in skipped[:1])
        raise ValueError(f"{path} lists no images{why}")
    roles: tuple[Role, ...] = ("train", "validation", "test", "unlabelled")
    return Manifest(
        [Part(role, f"{path} ({role})", files[role]) for role in roles if role in files], skipped
    )


def has_columns(path: Path) -> bool:
    """Whether a table has a column for paths and one for labels. Raises ValueError for no table."""
    _, header = next(iter(_rows(path)), (0, []))
    cells = {cell.strip().lower() for cell in header}
    return not any(cells.isdisjoint(COLUMNS[column]) for column in ("path", "label"))


def _role(text: str, row: str) -> Role:
    role = ROLES.get(text.strip().lower())
    if role is None:
        raise ValueError(f"{row}: split {text!r} is none of train, val, test and unlabelled")
    return role


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    """Where the columns are. Raises ValueError where one is missing or there twice."""
    place: dict[str, int] = {}
    cells = [cell.strip().lower() for cell in header]
    for column, names in COLUMNS.items():
        found = [i for i, cell in enumerate(cells) if cell in names]
        if len(found) > 1 or (not found and column != "split"):
            listed = ", ".join(header)[:200] or "nothing"
            raise ValueError(
                f"{path} has {'two columns' if found else 'no column'} for the {column} in its "
                f"first row ({listed}): call them path, label and, if wanted, split"
            )
        if found:
            place[column] = found[0]
    return place


def _rows(path: Path) -> Iterable[Row]:
    """All rows, the header's first. Raises ValueError for what is no such table."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise ValueError(f"cannot read {path}: it is no regular file")
        size = found.st_size
        if size > LARGEST:
            raise ValueError(f"{path} has {size:,} bytes: a table may have {LARGEST:,}")
        return _parquet(path) if path.suffix.lower() == ".parquet" else list(_text(path))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8: save it as such") from None
    except csv.Error as error:
        raise ValueError(f"{path} is no table of values: {error}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None


def _text(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        tabbed = path.suffix.lower() == ".tsv"
        delimiter = "\t" if tabbed else max(",;\t", key=first.count)
        table = csv.reader(file, delimiter=delimiter, strict=True)
        yield from ((table.line_num, cells) for cells in table if cells)


def _parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(
            f"{path} takes pyarrow: pip install 'handful[parquet]', or save it as .csv"
        ) from None
    try:
        file = parquet.ParquetFile(path)
        wanted = {name for names in COLUMNS.values() for name in names}
        # others may hold anything, the pictures themselves included
        names = [name for name in file.schema_arrow.names if name.strip().lower() in wanted]
        columns = [column.to_pylist() for column in file.read(names).columns]
    except (ArrowException, OSError) as error:
        reason = one_line(error)
        raise ValueError(f"cannot read {path}: the file is damaged ({reason})") from None
    rows = zip(*columns, strict=True)
    return [
        (0, names),
        *((i, [_cell(path, value) for value in row]) for i, row in enumerate(rows, 1)),
    ]


def _cell(path: Path, value: object) -> str:
    """A value as a table of text has it: what is missing is empty, NaN too."""
    if value is None or value != value:
        return ""
    if isinstance(value, bytes | dict | list):
        kind = {bytes: "bytes", dict: "structs", list: "lists"}[type(value)]
        raise ValueError(f"{path} has {kind} for paths, labels or splits: save them as text")
    return str(value)
