"""A folder as data: files that are named after their split, as `load_dataset` finds them."""

import re
from pathlib import Path

from adapterx.cli.data.rows import listed
from adapterx.cli.data.sources import KNOWN, SUFFIXES, kind_of
from adapterx.errors import DataError, speaker

KEYWORDS = {  # those of datasets 5.2
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_CONFIGURED = re.compile(r"\A---\s*\n(?:.*\n)*?(?:configs|data_files):", re.MULTILINE)


def parted(source: str) -> tuple[Path | None, str | None]:
    """Return the folder that a source names and the split behind `@`; None for what is no folder."""
    try:
        whole, _, split = source.rpartition("@")
        if source and Path(source).expanduser().is_dir():
            return Path(source).expanduser(), None
        if whole and split and "/" not in split and Path(whole).expanduser().is_dir():
            return Path(whole).expanduser(), split
    except (OSError, RuntimeError, ValueError):  # too long a name, no such user's home
        pass
    return None, None


def files_of_split(folder: Path, split: str | None, default_split: str) -> list[Path]:
    """Return the files of a folder that belong to a split: `train.csv`, `data/dev-00000.jsonl`, `test/a.parquet`.

    Raises:
        DataError: no file is named after a split, none after this one, or it is there in several kinds.
    """
    found = {name: _named_after(folder, words) for name, words in KEYWORDS.items()}
    known = [name for name, files in found.items() if files]
    if not known:
        raise DataError(
            f"{speaker()}: {folder} is a folder, and none of its files is named after a split (train.csv, ...); "
            f"give a file ({KNOWN}), or a pattern such as '{folder}/*.csv'"
        )
    readme = folder / "README.md"
    if readme.is_file() and _CONFIGURED.match(readme.read_bytes()[: 2**20].decode("utf-8", "replace")):
        raise DataError(f"{speaker()}: {readme} chooses the files of each split; give them, or a pattern of them")
    chosen = split or default_split
    if chosen not in known:
        raise DataError(f"{speaker()}: {folder} has no split {chosen!r}; write {folder}@SPLIT, one of {listed(known)}")
    kinds = sorted({kind_of(path) for path in found[chosen]})
    if len(kinds) > 1:
        raise DataError(f"{speaker()}: {folder} holds {chosen} as {' and '.join(kinds)}; give the files that are meant")
    return found[chosen]


def _named_after(folder: Path, words: tuple[str, ...]) -> list[Path]:
    """Return the files with one of the words in their name, else those in folders with it, between other signs."""
    word = re.compile(rf"(?:^|[-._ 0-9])(?:{'|'.join(words)})(?:[-._ 0-9]|$)")
    files = sorted(
        path
        for path in folder.rglob("*")
        if kind_of(path) in SUFFIXES and path.is_file() and not _hidden(path.relative_to(folder))
    )
    by_file = [path for path in files if word.search(path.name)]
    return by_file or [path for path in files if any(word.search(part) for part in path.relative_to(folder).parts[:-1])]


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)
