"""Adapters of adapterx in PEFT's files, and back: the same tensors under other names. The library is not needed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adapterx.checkpoint.base import check_record
from adapterx.checkpoint.contents import Contents, read_contents
from adapterx.checkpoint.document import named_errors, open_regular, read_json
from adapterx.checkpoint.folder import move_into_place, staging
from adapterx.checkpoint.formats import PEFT, PEFT_TYPE, recognise
from adapterx.checkpoint.pair import write_pair
from adapterx.config import AdapterConfig
from adapterx.couplings import INVERTIBLES
from adapterx.errors import CheckpointError, ConfigError, speaker, speaking_as
from adapterx.host import ADAPTERS

_PREFIX = "base_model.model."
_DOCUMENT, _TENSORS = "adapter_config.json", "adapter_model.safetensors"
_OWN = tuple(field.name for field in fields(AdapterConfig))
# What every configuration of PEFT has, and what those of this method have beyond the options of an adapter.
_PEFTS = (
    "peft_type",
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
)
_ADDED = ("exclude_modules", "adapted_modules", "base_check")
_ALL_LINEAR = "all-linear"


@speaking_as("to_peft")
def to_peft(source: str | Path, target: str | Path) -> None:
    """Write an adapter of adapterx as `PeftModel.save_pretrained` does, for `PeftModel.from_pretrained`.

    The tensors are the same, bit for bit, and so are the outputs. PEFT has no place for the adapter's name and for
    metadata. Of `modules_to_save` PEFT takes every module whose name ends so.

    Args:
        source: what `save_adapter` wrote.
        target: made if it is not there.

    Raises:
        CheckpointError: the files are missing or damaged, are another library's, or the target is.
    """
    contents, target = read_contents(source), Path(target)
    tensors = {_PREFIX + key: tensor.contiguous() for key, tensor in sorted(contents.tensors.items())}
    content = json.dumps(_pefts_document(contents), indent=2, sort_keys=True).encode()
    with named_errors(target):
        path = target / _DOCUMENT
        if path.exists() and recognise(read_json(path), path) not in (None, PEFT):
            raise CheckpointError(f"{speaker()}: {target} must not hold the files of another library, got {path.name}")
        with staging(target, prefix=".peft.") as staged:
            (staged / _TENSORS).write_bytes(save(tensors, metadata={"format": "pt"}))
            (staged / _DOCUMENT).write_bytes(content)
            move_into_place([(staged / name, target / name) for name in (_TENSORS, _DOCUMENT)])


@speaking_as("from_peft")
def from_peft(source: str | Path, target: str | Path, name: str = "default") -> None:
    """Write an adapter that PEFT has saved as `save_adapter` does, for `load_adapter`.

    Args:
        source: what `save_pretrained` wrote of a `BottleneckConfig`.
        target: made if it is not there.
        name: of the adapter; PEFT's files do not tell.

    Raises:
        CheckpointError: the files are missing or damaged, are of another method, or hold what adapterx has no place
            for, which is named.
    """
    source = Path(source)
    document = read_document(source)
    tensors = _read_tensors(source / _TENSORS)
    config, modules = _own_config(document, source / _DOCUMENT), document["adapted_modules"]
    copied = _copied_modules(tensors, modules, document.get("modules_to_save") or (), config.train_norms, source)
    config = AdapterConfig(**{**vars(config), "modules_to_save": copied})
    mapping = document.get("auto_mapping") or {}
    task = document.get("task_type")
    written = {
        "name": name,
        "config": config.to_dict(),
        "base_model": {
            "name": document.get("base_model_name_or_path"),
            "commit": document.get("revision"),
            "model_type": None,
            "class": mapping.get("base_model_class"),
        },
        "base_check": document.get("base_check") or {"model_types": [], "weights": {}},
        "modules": modules,
        "metadata": {} if task is None else {"task_type": task},
    }
    write_pair(target, "adapter", tensors, written)


def _pefts_document(contents: Contents) -> dict[str, Any]:
    base = contents.described
    options = {name: value for name, value in contents.config.to_dict().items()}
    return {
        "peft_type": PEFT_TYPE,
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": base.get("name"),
        "revision": base.get("commit"),
        "inference_mode": True,
        **options,
        "modules_to_save": list(contents.config.modules_to_save) or None,
        "adapted_modules": contents.modules,
        "base_check": contents.base if contents.base["weights"] else None,
    }


def read_document(source: Path) -> dict[str, Any]:
    """Return the JSON document of an adapter that PEFT has saved; errors as in `from_peft`."""
    path = source / _DOCUMENT
    with named_errors(path):
        if not path.exists():
            raise CheckpointError(f"{speaker()}: {path} does not exist")
    document = read_json(path)
    if recognise(document, path) != PEFT:
        raise CheckpointError(f"{speaker()}: {path} must be written by PEFT, it has no 'peft_type' or is another's")
    if document["peft_type"] != PEFT_TYPE:
        raise CheckpointError(
            f"{speaker()}: peft_type of {path} must be {PEFT_TYPE!r}, got {document['peft_type']!r}, which is no "
            "bottleneck adapter"
        )
    if unknown := sorted(document.keys() - {*_PEFTS, *_OWN, *_ADDED}):
        raise CheckpointError(f"{speaker()}: {path} must hold options that adapterx knows, got {', '.join(unknown)}")
    modules = document.get("adapted_modules")
    if not isinstance(modules, dict) or not modules or not all(isinstance(each, dict) for each in modules.values()):
        raise CheckpointError(f"{speaker()}: {path} must name the adapted_modules, as get_peft_model fills them in")
    if document.get("base_check") is not None:
        check_record(document["base_check"], str(path))
    return document


def _own_config(document: Mapping[str, Any], path: Path) -> AdapterConfig:
    values = {name: document[name] for name in _OWN if name in document and name != "modules_to_save"}
    if document.get("exclude_modules") or str(values.get("target_modules")).lower() == _ALL_LINEAR:
        values["target_modules"] = list(document["adapted_modules"])  # which adapterx has no shorter words for
    try:
        return AdapterConfig(**values)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{speaker()}: {path} holds no valid config: {error}") from error


def _copied_modules(
    tensors: Mapping[str, Tensor], modules: Mapping[str, Any], endings: Sequence[str], norms: bool, source: Path
) -> tuple[str, ...]:
    """Return the names of the modules to save that tensors are of; refuse tensors that belong to nothing."""
    found, strange = {}, []
    for key in sorted(tensors):
        parts = key.split(".")
        if {ADAPTERS, INVERTIBLES} & {*parts}:
            if INVERTIBLES not in parts and ".".join(parts[: parts.index(ADAPTERS)]) not in modules:
                strange.append(key)
            continue
        paths = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        path = next((path for path in paths if any(path.endswith(ending) for ending in endings)), None)
        if path is not None:
            found[path] = None
        elif not norms:
            strange.append(key)
    if strange:
        raise CheckpointError(
            f"{speaker()}: {source / _TENSORS} must hold an adapter and its modules to save alone, got {strange[:4]}"
        )
    return tuple(found)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with named_errors(path):
        if not path.exists():
            raise CheckpointError(
                f"{speaker()}: {path} does not exist; save_pretrained writes it, pickles are not read"
            )
    with open_regular(path) as file:
        try:
            tensors = load(file.read())
        except (SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(f"{speaker()}: {path} is not a valid safetensors file: {error}") from error
    if strange := sorted(key for key in tensors if not key.startswith(_PREFIX)):
        raise CheckpointError(f"{speaker()}: tensors of {path} must begin with {_PREFIX!r}, got {strange[:4]}")
    return {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}
