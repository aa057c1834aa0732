"""`adapterx list`: the runs, adapters and fusions below a folder, one line each."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapterx.checkpoint.formats import OWN, format_of
from adapterx.checkpoint.pair import read_document
from adapterx.cli.records import METRICS, read_metrics
from adapterx.cli.runs import read_record, state_of
from adapterx.cli.tasks import task_of
from adapterx.errors import AdapterxError, ConfigError, speaker, unspoken

Json = dict[str, Any]
_DEPTH = 4  # folders in folders; deeper ones are no place for adapters
_DOCUMENTS = {"adapter": "adapter_config.json", "fusion": "fusion_config.json"}


def inventory(folders: list[Path]) -> list[Json]:
    """Return what is found in folders and below them, in order of the paths; what is damaged says so.

    Raises:
        ConfigError: one is no folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{speaker()}: folder must be a folder, {folder} is none")
    return [entry for folder in folders for entry in _below(folder, _DEPTH)]


def as_rows(found: list[Json]) -> list[Json]:
    """Return what was found in few columns, as a terminal shows it."""

    def row(entry: Json) -> Json:
        told = [entry.get(key) for key in ("kind", "name", "method", "config", "problem")]
        return {
            "folder": entry["folder"],
            "what": ", ".join(str(each) for each in told if each),
            "base model": Path(entry.get("base model", "")).name,
            "score": entry.get("score", ""),
            "KiB": f"{entry.get('bytes', 0) / 1024:,.0f}",
        }

    return list(map(row, found))


def _below(folder: Path, depth: int) -> Iterator[Json]:
    state = state_of(folder)
    if state == "complete":
        yield _described(folder, "run", _run)
    elif state == "interrupted":
        yield {"folder": str(folder), "kind": "interrupted run"}
    else:
        for kind, document in _DOCUMENTS.items():
            if (folder / document).exists():
                yield _described(folder, kind, _READERS[kind])
    if state is None and depth:
        try:
            inside = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
        except OSError:  # a folder of others
            inside = []
        for path in inside:
            if not Path(path).name.startswith("."):
                yield from _below(Path(path), depth - 1)


def _described(folder: Path, kind: str, read: Any) -> Json:
    entry: Json = {"folder": str(folder), "kind": kind}
    try:
        with unspoken():
            entry |= read(folder)
    except AdapterxError as error:
        entry["problem"] = str(error)
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors") if path.exists()]
    return {name: value for name, value in entry.items() if value not in (None, "")} | {"bytes": sum(sizes)}


def _run(folder: Path) -> Json:
    record = read_record(folder)
    adapter = (record["options"] or {}).get("adapter") or {}
    found = {"base model": record["base_model"], "method": record["method"], "config": _width(adapter)}
    if (folder / METRICS).exists():
        metrics = read_metrics(folder)
        found["score"] = metrics.get(task_of(record).best(record)[0])
    return found


def _adapter(folder: Path) -> Json:
    library = format_of(folder)
    if library != OWN:
        return {"kind": f"adapter of {library or 'nobody known'}"}
    document = read_document(folder, "adapter")
    return {"name": document.get("name"), "base model": _base(document), "config": _width(document.get("config") or {})}


def _fusion(folder: Path) -> Json:
    document = read_document(folder, "fusion")
    parts = (document.get("composition") or {}).get("parts") or []
    return {"name": "+".join(map(str, parts)), "base model": _base(document)}


_READERS = {"adapter": _adapter, "fusion": _fusion}


def _base(document: Json) -> str | None:
    described = document.get("base_model")
    return described.get("name") if isinstance(described, dict) else None


def _width(config: Json) -> str:
    """Return what tells adapters apart at a glance: width, placement, positions."""
    width = config.get("bottleneck_dim") or (
        f"1/{config['reduction_factor']}" if config.get("reduction_factor") else ""
    )
    positions = "+".join(config.get("positions") or [])
    return " ".join(str(part) for part in (width, config.get("placement"), positions) if part)
