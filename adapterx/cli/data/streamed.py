"""Data that are larger than memory: texts and other columns stay on the disk, labels in memory."""

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from adapterx.cli.data.examples import (
    Examples,
    find_column,
    label_value,
    require_columns,
    require_encodable,
    require_present,
    text_value,
)
from adapterx.cli.data.rows import RowStream, listed
from adapterx.cli.data.sources import Sources, find_files
from adapterx.cli.data.spool import Spool, changed
from adapterx.cli.data.streaming import stream_lines, stream_rows
from adapterx.cli.data.wanted import ANSWER, Wanted, are_lines, names_in_answer, require_no_blank
from adapterx.errors import DataError, speaker

MOST_PLACES = 3  # that a message names


def stream_examples(
    source: str | Sources,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    recorded: tuple[str | None, str | None] = (None, None),
    default_split: str = "train",
    folder: Path,
) -> Examples:
    """Read what `load_examples` reads, with the texts in a `Spool` in `folder`.

    Raises:
        DataError: as there; only the whole file could tell what is meant; or a late row of JSON brings a column that
            would have been read in place of another.
    """
    stream = stream_rows(source, default_split=default_split)
    texts, labels = Spool(folder), []
    missing: tuple[list[str], list[str]] = ([], [])
    same: dict[str, str] = {}  # each label is kept once
    chosen: tuple[str, str] | None = None
    known = 0
    for place, value in stream.rows:
        if known != len(stream.columns):
            known = len(stream.columns)
            chosen = _columns(stream, place, chosen, (text_column, label_column), recorded)
            require_columns(stream.source, *chosen)
        where = f"{stream.source}: {place}: column"
        text = text_value(value.get(chosen[0]), f"{where} {chosen[0]!r}")
        label = label_value(value.get(chosen[1]), f"{where} {chosen[1]!r}")
        for found, places in zip((text, label), missing, strict=True):
            if found is None:
                places.append(place)
        if text is not None and label is not None:
            texts.append(text)
            labels.append(same.setdefault(label, label))
    for column, places in zip(chosen, missing, strict=True):
        require_present(stream, column, places)
    return Examples(texts, labels, *chosen)


def stream_texts(
    file: str, text_column: str | None, *, recorded: str | None, answer: Sequence[str] = ANSWER, folder: Path
) -> Wanted:
    """Gather the texts that `texts_to_label` gathers from a file, with all columns in a `Spool` in `folder`.

    Raises:
        ConfigError: as there.
        DataError: as there, and as in `stream_examples`.
    """
    files = find_files(file)
    if are_lines(files, text_column):
        return _lines_to_label(files, folder)
    stream = stream_rows(file, default_split="test")
    rows, missing, known = Spool(folder), [], 0
    chosen: tuple[str] | None = None
    for place, row in stream.rows:
        if known != len(stream.columns):
            known = len(stream.columns)
            chosen = _columns(stream, place, chosen, (text_column,), (recorded,))
        if text_value(row.get(chosen[0]), f"{stream.source}: {place}: column {chosen[0]!r}") is None:
            missing.append(place)
        else:
            rows.append(row)
    require_present(stream, chosen[0], missing)
    names = names_in_answer(stream.columns, chosen, answer)
    others = changed(rows, lambda row: {name: row.get(column) for column, name in names.items()})
    return Wanted(changed(rows, itemgetter(chosen[0])), others)


def _lines_to_label(files: Sequence[Path], folder: Path) -> Wanted:
    texts = Spool(folder)
    for path in files:
        before, blank, last = len(texts), [], []
        for number, line in enumerate(stream_lines(path), 1):
            if not line.strip():
                last.append(number)
                continue
            blank += last
            last = []  # behind the last text they shift no answer
            require_encodable(line, f"{path}: line {number}")
            texts.append(line)
        require_no_blank(str(path), blank)
        if len(texts) == before:
            raise DataError(f"{speaker()}: {path} is empty")
    return Wanted(texts, changed(texts, lambda _: {}))


def _columns(
    stream: RowStream,
    place: str,
    before: tuple[str, ...] | None,
    asked: tuple[str | None, ...],
    recorded: tuple[str | None, ...],
) -> tuple[Any, ...]:
    """Return the columns of texts, and of labels if asked for; refuse to change them where a row brings new ones."""
    kinds = ("text", "label")[: len(asked)]
    found = tuple(find_column(stream, *each) for each in zip(asked, recorded, kinds, strict=True))
    if before not in (None, found):
        options = " and ".join(f"--{kind}-column" for kind in kinds)
        raise DataError(
            f"{speaker()}: {stream.source}: {place} brings a column that would be read ({listed(found)}) in place of "
            f"those before ({listed(before)}); name the columns with {options}"
        )
    return found
