"""Labelled examples of data that are larger than memory: the texts stay on the disk, the labels in memory."""

from pathlib import Path

from adapterx.cli.data.examples import Examples, find_column, label_value, require_columns, require_present, text_value
from adapterx.cli.data.rows import RowStream, listed
from adapterx.cli.data.sources import Sources
from adapterx.cli.data.spool import Spool
from adapterx.cli.data.streaming import stream_rows
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


def _columns(
    stream: RowStream,
    place: str,
    before: tuple[str, str] | None,
    asked: tuple[str | None, str | None],
    recorded: tuple[str | None, str | None],
) -> tuple[str, str]:
    """Return the columns of texts and labels; refuse to change them where a row brings new ones."""
    found = tuple(find_column(stream, *each) for each in zip(asked, recorded, ("text", "label"), strict=True))
    if before is None:
        require_columns(stream.source, *found)
    elif found != before:
        raise DataError(
            f"{speaker()}: {stream.source}: {place} brings a column that would be read ({listed(found)}) in place of "
            f"those before ({listed(before)}); name the columns with --text-column and --label-column"
        )
    return found
