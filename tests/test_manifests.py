from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handful import manifests


def written(folder: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def listed(path: Path) -> dict[str, list[tuple[str, str | None]]]:
    """File names and labels by part."""
    parts, skipped = manifests.read(path)
    assert not skipped
    return {part.role: [(file.name, label) for file, label in part.files] for part in parts}


def test_a_table_lists_files_labels_and_splits(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "path,label,split\na.png,cat,train\nsub/b.png,dog,\nc.png,cat,val\nd.png,dog,TEST\n"
        "e.png,Unlabelled,train\nf.png,-1,train\ng.png,cat,unlabelled\n",
    )
    assert listed(path) == {
        "train": [("a.png", "cat"), ("b.png", "dog"), ("e.png", None), ("f.png", None)],
        "validation": [("c.png", "cat")],
        "test": [("d.png", "dog")],
        "unlabelled": [("g.png", None)],
    }
    parts, _ = manifests.read(path)
    assert parts[0].files[1][0] == tmp_path / "sub" / "b.png"
    assert parts[2].origin == f"{path} (test)"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "\ufeffFile;Class\na.png;cat\n"),
        ("a.tsv", "image\tlabel\na.png\tcat\n"),
        ("a.csv", 'label,extra,filename\ncat,"two\nlines",a.png\n\n'),
        ("a.CSV", "path,label\r\na.png,cat\r\n"),
    ],
)
def test_tables_as_other_programs_write_them(tmp_path: Path, name: str, text: str) -> None:
    assert listed(written(tmp_path, text, name)) == {"train": [("a.png", "cat")]}


def test_rows_that_are_amiss_are_listed(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "path,label\na.png,cat\nb.png\n,cat\na.png,dog\n../out.png,dog\nx\0y,dog\n"
        "sub/../a.png,cat\n",
    )
    parts, skipped = manifests.read(path, inside=tmp_path)
    assert [label for _, label in parts[0].files] == ["cat"]
    assert [line for _, line in skipped] == [
        "row 3 of labels.csv has 1 cells, the header 2",
        "row 4 of labels.csv names no file",
        "row 5 of labels.csv: a.png is in row 2 already, of another class or split",
        f"row 6 of labels.csv: ../out.png lies outside of {tmp_path.name}",
        "row 7 of labels.csv names no file",
        "row 8 of labels.csv: sub/../a.png is in row 2 already",
    ]
    outside, _ = manifests.read(path)  # one's own table may name files anywhere
    assert (tmp_path / "../out.png", "dog") in outside[0].files


def test_a_file_by_two_names_is_in_one_split(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("a.png")
    path = written(
        tmp_path, "path,label,split\na.png,cat,train\n./b/../a.png,cat,test\nlink.png,cat,test\n"
    )
    parts, skipped = manifests.read(path)
    assert [part.role for part in parts] == ["train"]
    assert [line.partition(" is ")[2] for _, line in skipped] == [
        "in row 2 already, of another class or split"
    ] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"no column for the path in its first row \(nothing\)"),
        (b"name,label\na.png,cat", r"no column for the path in its first row \(name, label\)"),
        (b"path,class,label\na,b,c", "two columns for the label"),
        (b"path,label\n", "lists no images"),
        (b"path,label\na.png", "lists no images: row 2 of labels.csv has 1 cells"),
        (b"path,label,split\na.png,cat,trian", "row 2 of labels.csv: split 'trian' is none of"),
        (b"path,label\n\xff.png,cat", "no text in UTF-8"),
        (b'path,label\na.png,cat\nb.png,"cat\nc.png,cat\n', "no table of values: unexpected end"),
        (b'path,label\n"' + b"a" * 200_000 + b'",cat', "no table of values: field larger"),
    ],
)
def test_tables_that_cannot_be_used_say_so(tmp_path: Path, text: bytes, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        manifests.read(path)
    assert "labels.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among its files")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(ValueError, match=r"cannot read .*labels\.csv: it is no regular file"):
        manifests.read(tmp_path / "labels.csv")


def test_a_name_of_two_lines_is_told_in_one(tmp_path: Path) -> None:
    path = written(tmp_path, 'path,label\n"a\nb.png","c\nd"\n"a\nb.png","c\nd"\n')
    parts, skipped = manifests.read(path)
    assert parts[0].files[0] == (tmp_path / "a\nb.png", "c\\nd")
    assert [line for _, line in skipped] == ["row 7 of labels.csv: a\\nb.png is in row 4 already"]


def test_a_large_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "path,label\na.png,cat")
    monkeypatch.setattr(manifests, "LARGEST", 10)
    with pytest.raises(ValueError, match="has 20 bytes: a table may have 10"):
        manifests.read(path)
    with pytest.raises(ValueError, match=r"cannot read .*absent.csv: No such file"):
        manifests.read(tmp_path / "absent.csv")


def test_a_folder_has_one_table(tmp_path: Path) -> None:
    (tmp_path / "results.csv").touch()
    assert manifests.find(tmp_path) is None
    (tmp_path / "Labels.TSV").touch()
    assert manifests.find(tmp_path) == tmp_path / "Labels.TSV"
    (tmp_path / "manifest.parquet").touch()
    with pytest.raises(ValueError, match=r"has Labels\.TSV, manifest\.parquet: give the one"):
        manifests.find(tmp_path)


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "labels.parquet"
    columns = {
        "path": ["a.png", "b.png", "c.png"],
        "label": [3, None, 5],
        "pixels": [b"", b"", b""],
    }
    parquet.write_table(pyarrow.table(columns), path)
    assert listed(path) == {"train": [("a.png", "3"), ("b.png", None), ("c.png", "5")]}
    parquet.write_table(
        pyarrow.table({"path": ["a.png", "b.png"], "label": [float("nan"), 1.5]}), path
    )
    assert listed(path) == {"train": [("a.png", None), ("b.png", "1.5")]}
    for label, kind in ((b"cat", "bytes"), ({"id": 1}, "structs"), ([1], "lists")):
        parquet.write_table(pyarrow.table({"path": ["a.png"], "label": [label]}), path)
        with pytest.raises(ValueError, match=f"{path} has {kind} for paths, labels or splits"):
            manifests.read(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cannot read .*labels\.parquet: the file is damaged"):
        manifests.read(path)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'handful\[parquet\]'"):
        manifests.read(written(tmp_path, b"PAR1", "labels.parquet"))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(['"', ",", "\n", "\r", "\0", ";", "a", "path", "\xff", "-1"])))
def test_no_text_breaks_it(tmp_path: Path, pieces: list[str]) -> None:
    path = written(tmp_path, ("path,label\na,b\n" + "".join(pieces)).encode("latin-1"))
    files, refusal = 0, ""
    try:
        parts, _ = manifests.read(path)
        files = sum(len(part.files) for part in parts)
    except ValueError as error:
        refusal = str(error)
    assert bool(files) != bool(refusal)
    assert "\n" not in refusal
