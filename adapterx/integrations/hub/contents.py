"""What a folder holds that belongs on the hub, checked: a run, an adapter with or without a head, a fusion, several."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterx.checkpoint.document import (
    check_hash,
    has_content,
    json_document,
    open_regular,
    parse_json,
    read_json,
)
from adapterx.checkpoint.pair import document_file, read_pair, tensors_file
from adapterx.errors import CheckpointError, ConfigError, speaker

Json = dict[str, Any]
RUN, METRICS = "run.json", "metrics.json"
STEMS = ("adapter", "head", "fusion")
_BESIDE_A_RUN = (METRICS, "learning_curve.png")  # and not named by `run.json`
# What adapterx writes, under these names in every folder.
OWN_NAMES = {RUN, *_BESIDE_A_RUN, *(f"{stem}_{end}" for stem in STEMS for end in ("config.json", "model.safetensors"))}
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Contents:
    """The files of a folder that belong together, and what their documents say.

    Attributes:
        folder: where they are.
        files: their names relative to it, with `/`.
        documents: the JSON objects among them that adapterx wrote, by name.
        changed: what is to be pushed in the place of a file.
    """

    folder: Path
    files: tuple[str, ...]
    documents: Mapping[str, Json]
    changed: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def record(self) -> Json:
        """What `run.json` says; empty where the folder holds no run."""
        return self.documents.get(RUN, {})

    @property
    def adapters(self) -> dict[str, Json]:
        """The documents of the adapters by the folder they are in, `""` for this one."""
        found = {name: document for name, document in self.documents.items() if name.endswith(_ADAPTER)}
        return {name[: -len(_ADAPTER)].rstrip("/"): document for name, document in found.items()}


def read_contents(folder: str | Path) -> Contents:
    """Read and check everything in a folder that is to be pushed.

    Raises:
        CheckpointError: there is nothing, or something is missing, damaged or of another library.
    """
    folder = Path(folder)
    if (folder / RUN).exists():
        return _run(folder)
    inside = sorted(path.parent for path in folder.glob(f"*/{_ADAPTER}")) if folder.is_dir() else []
    documents: dict[str, Json] = {}
    files: list[str] = []
    for place in (folder, *inside):
        for stem, document in _pairs(place):
            pair = [path.relative_to(folder).as_posix() for path in _files(place, stem)]
            documents[pair[0]] = document
            files += pair
    if all(name.endswith("head_config.json") for name in documents):
        raise CheckpointError(f"{speaker()}: folder must hold an adapter, a fusion or a run, {folder} holds none")
    return Contents(folder, tuple(files), documents)


def with_base(contents: Contents, base_model: str | None) -> Contents:
    """Return the same with documents that name a base model by a name that others know, too.

    Args:
        contents: what was read.
        base_model: name on the hub; None keeps what is recorded.

    Raises:
        ConfigError: none is given, and a run names a folder of this machine.
    """
    record = contents.record
    recorded = record.get("base_model")
    if base_model is None and isinstance(recorded, str) and _is_local(recorded):
        raise ConfigError(
            f"{speaker()}: base_model must be given, as a name on the hub; that of the run is a folder of this "
            f"machine, {Path(recorded).name}"
        )
    if base_model is None:
        return contents
    changed: dict[str, bytes] = {}
    for name, document in contents.documents.items():
        described = document.get("base_model")
        if isinstance(described, dict) and described.get("name") != base_model:
            values = document | {"base_model": described | {"name": base_model, "commit": None}}
            changed[name] = json_document(values, name)
    if record:
        changed[RUN] = _record_of(record, base_model, changed)
    documents = {name: parse_json(content, name) for name, content in changed.items()}
    return replace(contents, documents={**contents.documents, **documents}, changed=changed)


def _record_of(record: Json, base_model: str, changed: Mapping[str, bytes]) -> bytes:
    """Return `run.json` for another name of the base model, and with the hashes of the files that changed with it."""
    facts = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in changed.items()
    }
    values = record | {"base_model": base_model, "files": record["files"] | facts}
    options = record.get("options")
    if isinstance(options, dict) and "model" in options:
        values["options"] = options | {"model": base_model}
    return json_document(values, RUN)


def _is_local(model: str) -> bool:
    return Path(model).is_absolute() or "\\" in model or model.startswith((".", "~"))


def _run(folder: Path) -> Contents:
    record = _checked(folder / RUN)
    listed = record.get("files")
    if not isinstance(listed, dict) or not all(Path(name).name == name for name in listed):
        raise CheckpointError(f"{speaker()}: {folder / RUN} must list the files of the run")
    for name, facts in listed.items():
        with open_regular(folder / name) as file:
            same = has_content(file, facts)
        if not same:
            raise CheckpointError(f"{speaker()}: {folder / name} is damaged: its bytes are not those of the run")
    names = [RUN, *listed, *(name for name in _BESIDE_A_RUN if (folder / name).exists())]
    documents = {RUN: record} | {_files(folder, stem)[0].name: document for stem, document in _pairs(folder)}
    documents = {name: document for name, document in documents.items() if name in names}
    if METRICS in names:
        documents[METRICS] = _checked(folder / METRICS)
    return Contents(folder, tuple(dict.fromkeys(names)), documents)


def _checked(path: Path) -> Json:
    document = read_json(path)
    check_hash(document, str(path))
    return document


def _pairs(folder: Path) -> Iterator[tuple[str, Json]]:
    for stem in STEMS:
        if document_file(folder, stem).exists():
            yield stem, read_pair(folder, stem)[0]


def _files(folder: Path, stem: str) -> tuple[Path, Path]:
    return document_file(folder, stem), tensors_file(folder, stem)
