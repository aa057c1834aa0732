"""Data that the library `datasets` keeps: called by a name, or saved in a folder."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapterx.checkpoint.document import read_json
from adapterx.cli import hub
from adapterx.cli.data.columnar import BATCH, named
from adapterx.cli.data.rows import Row, RowStream, first_line, listed
from adapterx.cli.data.sources import KNOWN, similar
from adapterx.errors import AdapterxError, DataError, speaker

SPLITS, STATE = "dataset_dict.json", "state.json"  # the files that tell the folder of several splits, and of one


def read_named(source: str, default_split: str) -> RowStream:
    """Read a dataset called `name[:configuration][@split]`.

    Raises:
        DataError: there is none.
    """
    name, _, split = source.partition("@")
    name, _, configuration = name.partition(":")
    if not hub.reachable():
        if not hub.may_be_cached(name):
            raise _no_dataset(source, "the hub cannot be reached, and its cache has none")
        # The library, which is imported only now, would try for half a minute; like this it looks into its cache.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets

    try:
        loaded = datasets.load_dataset(name, configuration or None, split=split or default_split)
    except Exception as error:  # of dozens of kinds; all mean that there is no such data
        raise _no_dataset(source, first_line(error)) from error
    return _stream(source, loaded)


def _no_dataset(source: str, reason: str) -> DataError:
    return DataError(
        f"{speaker()}: {source} is no file, and no dataset of that name could be loaded ({reason}); "
        f"a file ends in {KNOWN}, a dataset is written name:configuration@split{similar(Path(source))}"
    )


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    return (folder / SPLITS).is_file() or (folder / STATE).is_file()


def read_saved(folder: Path, split: str | None, default_split: str) -> RowStream:
    """Read what `save_to_disk` wrote: a Dataset, or one split of a DatasetDict.

    Raises:
        DataError: it is damaged, or has no such split.
    """
    source = str(folder)
    if (folder / SPLITS).is_file():
        try:
            known = read_json(folder / SPLITS).get("splits")
        except AdapterxError as error:
            raise DataError(f"{speaker()}: {source} cannot be read as a saved dataset: {error}") from error
        known = [each for each in known if isinstance(each, str)] if isinstance(known, list) else []
        chosen = split or (known[0] if len(known) == 1 else default_split)
        if chosen not in known:
            raise DataError(
                f"{speaker()}: {source} has no split {chosen!r}; write {source}@SPLIT, one of {listed(known)}"
            )
        source, folder = f"{source}@{chosen}", folder / chosen
    elif split is not None:
        raise DataError(f"{speaker()}: {source} holds one dataset without splits; leave out @{split}")
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # of dozens of kinds; all mean that it is damaged
        raise DataError(f"{speaker()}: {source} cannot be read as a saved dataset: {first_line(error)}") from error
    return _stream(source, loaded)


def _stream(source: str, loaded: Any) -> RowStream:
    import datasets

    of_values = {c: getattr(f, "feature", f) for c, f in loaded.features.items()}  # in lists too
    names = {c: f.names for c, f in of_values.items() if isinstance(f, datasets.ClassLabel)}

    def rows() -> Iterator[tuple[str, Row]]:
        count = 0
        try:
            # As Arrow, so that images and sounds beside the texts are not decoded.
            for batch in loaded.with_format("arrow").iter(batch_size=BATCH):
                for row in batch.to_pylist():
                    yield f"row {count}", named(row, names)
                    count += 1
        except Exception as error:  # of many kinds
            raise DataError(f"{speaker()}: {source} cannot be read: {first_line(error)}") from error

    return RowStream(source, list(loaded.column_names), rows())
