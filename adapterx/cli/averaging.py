"""`adapterx average`: one adapter of the weights of several; of several runs, a run that can be evaluated and used."""

from pathlib import Path
from typing import Any

from adapterx.checkpoint import average_saved_adapters
from adapterx.checkpoint.document import HASH
from adapterx.cli import runs
from adapterx.cli.paths import check_empty
from adapterx.cli.records import RECORD, check_files, describe_file, to_document
from adapterx.cli.runs import read_record, state_of
from adapterx.errors import ConfigError, speaker

_OWN = {"seed", "files", "keep_checkpoints", "options", "threads", "device", "versions", "format_version", HASH}


def average_folders(
    folders: list[Path], output: Path, *, name: str | None, weights: list[float] | None, check_base: bool
) -> dict[str, Any]:
    """Write the mean of saved adapters, or of runs, to a folder that holds nothing; return what was done.

    Raises:
        AdapterxError: they differ in what must be alike, or one is damaged.
    """
    check_empty(output)
    options = {"name": name, "weights": weights or None, "check_base": check_base}
    records = [read_record(folder) for folder in folders if state_of(folder) == "complete"]
    if len(records) != len(folders) or len(records) < 2:
        head = average_saved_adapters(folders, output, **options)
        return {"adapters": len(folders), "head": "averaged too" if head else "none that they share", "written": output}
    for folder, record in zip(folders, records, strict=True):
        check_files(folder, record.get("files", {}))
        _check_alike(folders[0], records[0], folder, record)
    with runs.staged(output, last=RECORD) as staging:
        if not average_saved_adapters(folders, staging, **options):
            raise ConfigError(f"{speaker()}: runs must have heads that agree, those of {folders[0]} and others do not")
        record = {key: value for key, value in records[0].items() if key not in ("format_version", HASH)}
        record["files"] = {path.name: describe_file(path) for path in sorted(staging.iterdir()) if path.is_file()}
        record["averaged"] = [folder.name for folder in folders]
        (staging / RECORD).write_bytes(to_document(record))
    return {"runs": len(folders), "written": output}


def _check_alike(first: Path, one: dict[str, Any], folder: Path, other: dict[str, Any]) -> None:
    """Refuse runs that answer in other labels, read texts otherwise, or stand on another base model."""
    differ = sorted(key for key in (one.keys() | other.keys()) - _OWN if one.get(key) != other.get(key))
    if differ:
        raise ConfigError(
            f"{speaker()}: runs must agree in all but seed and options, {first} and {folder} differ in "
            f"{', '.join(differ)}"
        )
    if one["method"] != "adapters":
        raise ConfigError(f"{speaker()}: runs must be of the method adapters, {first} is of {one['method']}")
