"""Hugging Face data sets: by name, as `datasets` saves them, or as Parquet with pictures inside."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from handful import storage
from handful.config import HUB
from handful.pictures import SPLITS, legible

NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
SHARD = re.compile(rf"({'|'.join(SPLITS)})\b.*\.parquet", re.IGNORECASE)
SAVED = {"dataset_dict.json"}, {"state.json", "dataset_info.json"}
"""Files that tell a folder that `datasets` saved."""
TABLE, NOTES = "labels.csv", "notes.txt"
LARGEST = 2**34  # bytes of all pictures
LABELS = ("label", "labels", "class", "class_name")
BEGIN = {
    b"\xff\xd8": ".jpg",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
"""What files of a kind begin with; others are called .png."""


class Unpacked(NamedTuple):
    """The table of pictures in the cache, and lines for people on what is not among them."""

    table: Path
    notes: list[str]


def is_name(source: str) -> bool:
    return source.startswith(HUB)


def is_saved(path: Path) -> bool:
    """Whether a folder or file is one that `datasets` wrote, its pictures inside."""
    if path.is_dir():
        saved = any(all((path / name).is_file() for name in names) for names in SAVED)
        return saved or any(map(_holds_pictures, _shards(path)[:1]))
    return path.suffix.lower() == ".parquet" and _holds_pictures(path)


def unpacked(source: str | Path) -> Unpacked:
    """The pictures of a data set as files, in the cache, where its content names them.

    source: `hub:NAME`, `hub:OWNER/NAME:CONFIG@REVISION`, or a path that `is_saved`. Splits that are
    called nothing like train, validation, test or unlabelled are left out, with a note.
    Raises ValueError with one line naming the source for whatever is amiss.
    """
    try:
        own = Path(__file__).read_bytes()  # what is unpacked depends on who does it
        if isinstance(source, Path):
            place = storage.place("hub", [own, *_contents(_files(source))])
            if not storage.is_whole(place):
                _write(_local(source), place, source)
        else:
            splits = _fetched(source)
            stored = (Path(file["filename"]) for one in splits.values() for file in one.cache_files)
            parts = [own, *_contents(stored), " ".join(splits).encode()]
            place = storage.place("hub", parts)
            if not storage.is_whole(place):
                _write(splits, place, None)
    except ImportError:
        raise ValueError(f"{source} takes datasets: pip install 'handful[hub]'") from None
    except OSError as error:
        raise ValueError(f"cannot unpack {source}: {error.strerror or _line(error)}") from None
    except Exception as error:  # Arrow, the hub and its network raise whatever they stumble over
        raise ValueError(f"cannot read {source}: {_line(error)}") from None
    return Unpacked(place / TABLE, (place / NOTES).read_text("utf-8").splitlines())


def _line(error: Exception) -> str:
    return legible(" ".join(f"{error}".split()))[:300] or type(error).__name__


def _shards(folder: Path) -> list[Path]:
    """Parquet files that splits are called by, in a folder or in its `data/`."""
    held = [*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]
    return sorted(path for path in held if SHARD.fullmatch(path.name))


def _holds_pictures(path: Path) -> bool:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:  # whoever reads the table says so
        return False
    try:
        types = parquet.read_schema(path).types
    except (ArrowException, OSError):
        return False
    return any(
        {"bytes", "path"} == {field.name for field in kind} for kind in types if _nests(kind)
    )


def _nests(kind: Any) -> bool:
    return str(kind).startswith("struct<")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    held = sorted(file for file in path.rglob("*") if file.is_file())
    return _shards(path) or [file for file in held if file.suffix in (".arrow", ".json")]


def _contents(files: Iterable[Path]) -> Iterator[bytes]:
    for path in files:
        with path.open("rb") as file:
            yield path.name.encode() + hashlib.file_digest(file, "sha256").digest()


def _local(path: Path) -> Mapping[str, Any]:
    import datasets

    if path.is_dir() and not (shards := _shards(path)):
        return _named(datasets.load_from_disk(path))
    files: dict[str, list[str]] = {}
    for shard in shards if path.is_dir() else [path]:
        said = SHARD.fullmatch(shard.name)
        files.setdefault(said[1].lower() if said else "train", []).append(str(shard))
    # streamed: nothing of it is written a second time
    return _named(datasets.load_dataset("parquet", data_files=files, streaming=True))


def _fetched(source: str) -> Mapping[str, Any]:
    import datasets

    asked = NAME.fullmatch(source.removeprefix(HUB))
    if not asked:
        raise ValueError("a name is OWNER/NAME, and with it if wanted :CONFIG and @REVISION")
    name, config, revision = asked["name"], asked["config"], asked["revision"]
    # from files: their content names the folder in the cache
    loaded = datasets.load_dataset(name, config, revision=revision, keep_in_memory=False)
    return _named(loaded)


def _named(loaded: Any) -> Mapping[str, Any]:
    """Splits by their names; what has none trains."""
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _write(splits: Mapping[str, Any], place: Path, inside: Path | None) -> None:
    """inside: a file or folder that no picture may lie outside of; None trusts what was fetched."""
    if not any(split.lower() in SPLITS for split in splits):
        named = ", ".join(map(legible, splits))
        raise ValueError(f"none of its splits ({named}) is called train, val, test or unlabelled")
    notes: list[str] = []
    total = 0
    with storage.filling(place) as folder:
        with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", "label", "split"])
            for split, rows in splits.items():
                role = SPLITS.get(split.lower())
                if role is None:
                    named = "not called as parts of a source are"
                    notes.append(f"not used: the split {legible(split)}, {named}")
                    continue
                (folder / role).mkdir(exist_ok=True)
                for number, (picture, label) in enumerate(_rows(rows, inside)):
                    total += len(picture)
                    if total > LARGEST:
                        raise ValueError(f"it holds more than the {LARGEST:,} bytes that are safe")
                    name = f"{role}/{split}-{number:06d}{_suffix(picture)}"
                    (folder / name).write_bytes(picture)
                    table.writerow([name, label, role])
        (folder / NOTES).write_text("\n".join(notes), encoding="utf-8")


def _rows(rows: Any, inside: Path | None) -> Iterator[tuple[bytes, str]]:
    """Each picture as it is encoded, and its class; empty where it has none."""
    import datasets

    image, label = _columns(rows.features)
    rows = rows.select_columns([image, *([label] if label else [])])
    rows = rows.cast_column(image, datasets.Image(decode=False))
    names = getattr(rows.features[label], "names", None) if label else None
    for row in rows:
        value = row[label] if label else None
        if names and value is not None:
            value = names[value] if value >= 0 else None
        if isinstance(value, list | dict | bytes):
            raise ValueError(f"its column {label} holds more than one name or number an image")
        unknown = value is None or value != value
        yield _encoded(row[image], inside), "" if unknown else str(value)


def _columns(features: Mapping[str, Any]) -> tuple[str, str | None]:
    """Which columns are the images and the labels. Raises ValueError where that is not plain."""
    import datasets

    def holds_pictures(kind: Any) -> bool:
        return isinstance(kind, datasets.Image) or (
            isinstance(kind, dict) and kind.keys() == {"bytes", "path"}
        )

    images = [name for name, kind in features.items() if holds_pictures(kind)]
    if len(images) != 1 and "image" not in images:
        held = "several columns" if images else "no column"
        raise ValueError(
            f"it has {held} of pictures among {', '.join(features)}: rename the one to use to "
            "image, and save_to_disk"
        )
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    known = [name for name in LABELS if name in features]
    if len(classes) > 1 and not known:
        raise ValueError(
            f"it has several columns of classes ({', '.join(classes)}): rename the one to use to "
            "label, and save_to_disk"
        )
    return ("image" if "image" in images else images[0]), next(iter([*known, *classes]), None)


def _encoded(cell: Mapping[str, Any] | None, inside: Path | None) -> bytes:
    """The file that a cell holds or names; nothing where it does neither."""
    if cell is None:
        return b""
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    path = Path(cell["path"] or "")
    if not path.is_file():  # a pipe would be waited for
        return b""
    if inside is not None and not path.resolve().is_relative_to(inside.resolve()):
        raise ValueError(f"its picture {legible(path)} lies outside of it")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"its picture {legible(path)} has more than {LARGEST:,} bytes")
    return path.read_bytes()


def _suffix(picture: bytes) -> str:
    """What a file of that kind is called by; reading goes by its content."""
    return next((suffix for begin, suffix in BEGIN.items() if picture.startswith(begin)), ".png")
