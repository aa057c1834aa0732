"""Rows that are read one after the other are those that are read at once, or the file is refused in words."""

import gzip
import json
import os
import threading
import tracemalloc

import data_files
import pytest

from adapterx.cli.data.sources import Sources
from adapterx.cli.data.streaming import stream_rows
from adapterx.cli.data.tables import read_rows
from adapterx.errors import DataError

ALL = data_files.READ | data_files.REFUSED
ONLY_WHOLE = {  # what nothing but the whole file can tell
    *(name for name in ALL if name.endswith((".json", ".json.gz"))),
    *(name for name in ALL if name.endswith(".parquet.gz") or name.startswith("pretty.")),
}


def rows_of(path, read):
    try:
        found = read(str(path))
        found = found.all() if read is stream_rows else found
    except DataError as error:
        return str(error)
    return found.columns, found.values, found.places


@pytest.mark.parametrize("name", ALL)
def test_the_same_rows_or_a_refusal(name, tmp_path):
    (tmp_path / name).write_bytes(data_files.content(ALL[name][0]))
    at_once, streamed = (rows_of(tmp_path / name, read) for read in (read_rows, stream_rows))
    if isinstance(at_once, str):
        assert isinstance(streamed, str), at_once
        assert name in streamed
        assert "\n" not in streamed
    elif isinstance(streamed, str):
        assert "--streaming" in streamed
        quotes = b'"' in data_files.content(ALL[name][0])
        assert name in ONLY_WHOLE or ((quotes and name.startswith(("space_", "glue_"))) or name.endswith(".tsv"))
    else:
        assert repr(streamed) == repr(at_once)  # NaN differs from itself


def test_most_files_can_be_streamed(tmp_path):
    refused = []
    for name, (content, _) in data_files.READ.items():
        (tmp_path / name).write_bytes(data_files.content(content))
        refused += [name] if isinstance(rows_of(tmp_path / name, stream_rows), str) else []
    assert len(refused) < len(data_files.READ) / 4, refused


def test_several_sources_are_one_table(tmp_path):
    (tmp_path / "a.csv").write_text(data_files.PLAIN)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data_files.JSONL.encode()))
    (tmp_path / "c.parquet").write_bytes(data_files.parquet(text=["so"], label=["n"]))
    named = Sources([str(tmp_path / "[ab].*"), str(tmp_path / "c.parquet")])
    assert stream_rows(named).all() == read_rows(named)
    (tmp_path / "d.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "a", "label": "b", "more": 1}\n')
    for read in (read_rows, lambda source: stream_rows(source).all()):
        with pytest.raises(DataError, match=r"must have the same columns; .*a\.csv and .*d\.jsonl differ in 'more'"):
            read(Sources([*named, str(tmp_path / "d.jsonl")]))


def test_a_saved_dataset_and_a_folder_are_streamed(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])})
    datasets.Dataset.from_dict({"text": ["a"] * 2500, "label": [0, 1] * 1250}, features=features).save_to_disk(
        tmp_path / "saved"
    )
    assert stream_rows(str(tmp_path / "saved")).all() == read_rows(str(tmp_path / "saved"))
    (tmp_path / "dev.csv").write_text(data_files.PLAIN)
    found = [read(str(tmp_path), default_split="validation") for read in (read_rows, stream_rows)]
    assert found[1].all() == found[0]


def test_a_pipe_is_streamed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data_files.JSONL.encode() * 9000,))
    writer.start()
    found = stream_rows(str(tmp_path / "pipe")).all()
    writer.join()
    assert len(found.values) == 18_000
    assert found.columns == ["text", "label"]


def test_what_is_wrong_far_behind_the_beginning_is_told_with_its_line(tmp_path):
    lines = [f"text {i},{'pn'[i % 2]}" for i in range(40_000)]
    for wrong, said in {"x,y,z": "line 30002 has 3 fields", "x\0,p": "line 30002 holds a NUL byte"}.items():
        (tmp_path / "a.csv").write_text("\n".join(["text,label", *lines[:30_000], wrong, *lines[30_000:]]))
        with pytest.raises(DataError, match=said):
            stream_rows(str(tmp_path / "a.csv")).all()
    raw = "\n".join(["text,label", *lines]).encode()
    (tmp_path / "a.csv").write_bytes(raw.replace(b"text 30000,", b"text \xe9,"))
    with pytest.raises(DataError, match=r"not UTF-8: a byte behind line (29[0-9]{3}|30000), .*0xe9"):
        stream_rows(str(tmp_path / "a.csv")).all()


@pytest.mark.parametrize("kind", ["csv", "jsonl.gz", "parquet"])
def test_memory_does_not_grow_with_the_file(kind, tmp_path):
    """The peak of Python's and Arrow's memory stays below a fifth of a text of 50 MB."""
    import pyarrow
    import pyarrow.parquet

    path, rows, text = tmp_path / f"large.{kind}", 10_000, "word " * 1000
    if kind == "csv":
        path.write_text("text,label\n" + f'"{text}",p\n{text},n\n' * (rows // 2))
    elif kind == "jsonl.gz":
        lines = "".join(json.dumps({"text": text + os.urandom(40).hex(), "label": i % 2}) + "\n" for i in range(rows))
        path.write_bytes(gzip.compress(lines.encode(), compresslevel=1))
        del lines
    else:
        table = pyarrow.table({"text": [text] * rows, "label": ["p", "n"] * (rows // 2)})
        pyarrow.parquet.write_table(table, path, row_group_size=1000, use_dictionary=False)
        del table
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    try:
        count = sum(1 for _ in stream_rows(str(path)).rows)
        peak = tracemalloc.get_traced_memory()[1] + pyarrow.total_allocated_bytes() - before
    finally:
        tracemalloc.stop()
    assert count == rows
    assert peak < 10 * 2**20
