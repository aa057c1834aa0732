"""What an exported file says about itself, and how to read it without running the file."""

import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapterx.adapters import active_composition, adapters
from adapterx.checkpoint import folder as files
from adapterx.checkpoint.document import (
    FORMAT_VERSION,
    HASH,
    PACKAGE_VERSION,
    check_version,
    json_document,
    parse_json,
    public_name,
)
from adapterx.compose import adapter_names_in, composition_to_dict
from adapterx.errors import CheckpointError, ExportError, speaker, speaking_as
from adapterx.export.embedded import DOCUMENT, document_in
from adapterx.export.positional import Prepared


def describe(model: nn.Module, prepared: Prepared, **facts: Any) -> dict[str, Any]:
    """Return the metadata of a file: versions, base model, active adapters, inputs, and the facts given."""
    return {
        "format_version": FORMAT_VERSION,
        **facts,
        "versions": {"adapterx": PACKAGE_VERSION, "torch": torch.__version__, "transformers": _version("transformers")},
        "base_model": _base_model(model),
        "adapters": _adapters(model),
        "composition": composition_to_dict(active_composition(model)),
        "inputs": list(prepared.module.inputs),
        "outputs": list(prepared.module.outputs),
        "dtype": prepared.dtypes[0] if prepared.dtypes else None,
        "device": prepared.device.type,
        "max_sequence": prepared.max_sequence,
        "example_shape": list(prepared.example[0].shape),
        "validation": None,
    }


def text_of(document: Mapping[str, Any]) -> str:
    """Return the text that stands in a file for a document, with a hash by which `read_metadata` knows it again.

    Raises:
        CheckpointError: `read_metadata` would not read as much.
    """
    return json_document(document, "the metadata of an export").decode()


@speaking_as("read_metadata")
def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """Return what an exported file says about itself; nothing in the file is executed.

    Args:
        path: a TorchScript or an ONNX file that adapterx wrote; or the folder of ONNX files, which gives
            `{"format_version": 2, "files": {name: metadata}}`. Format 1 is that of adapterx 0.1.0.

    Raises:
        ExportError: there is no such file, it cannot be read, adapterx did not write it, or its metadata were changed.
    """
    path = path_from(path, "path")
    if path.is_dir():
        path = path / DOCUMENT
    try:
        content = document_in(path)
        document = parse_json(content, f"the metadata in {path}") if content is not None else {}
        if "format_version" not in document:
            raise ExportError(f"{speaker()}: {path} has no metadata of adapterx")
        check_version(document, f"the metadata in {path}")
    except CheckpointError as error:
        raise ExportError(f"{speaker()}: {str(error).removeprefix(f'{speaker()}: ')}") from error
    except FileNotFoundError as error:
        raise ExportError(f"{speaker()}: cannot read {path}: there is no such file") from error
    except (OSError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ExportError(f"{speaker()}: cannot read {path}: {reason}") from error
    return {key: value for key, value in document.items() if key != HASH}


def path_from(value: str | os.PathLike, argument: str) -> Path:
    """Return a path that a user gave.

    Raises:
        ExportError: it is no path.
    """
    if not isinstance(value, (str, os.PathLike)) or "\0" in os.fsdecode(value):
        raise ExportError(f"{speaker()}: {argument} must be a path, got {value!r}")
    return Path(os.fsdecode(value))


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, as `adapterx.checkpoint.folder.staging` does.

    Raises:
        ExportError: the folder cannot be written, or another process writes to it for long.
    """
    try:
        with files.staging(folder, prefix=".adapterx_export.") as temporary:
            yield temporary
    except CheckpointError as error:
        raise ExportError(f"{speaker()}: {str(error).removeprefix(f'{speaker()}: ')}") from error
    except OSError as error:
        raise ExportError(f"{speaker()}: cannot write to {folder}: {error.strerror or error}") from error


def require(name: str) -> Any:
    """Import one of the packages of the `onnx` extra.

    Raises:
        ExportError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(
            f"{speaker()}: needs {name.partition('.')[0]}: pip install 'adapterx[onnx]' ({error})"
        ) from error


def _version(package: str) -> str | None:
    if package not in sys.modules:
        return None
    try:
        return packages.version(package)
    except packages.PackageNotFoundError:
        return None


def _base_model(model: nn.Module) -> dict[str, Any]:
    base = getattr(model, "base_model", model)
    config = getattr(base, "config", None)
    name = getattr(config, "_name_or_path", None)
    return {
        "name": public_name(name) if isinstance(name, str) and name else None,
        "model_type": getattr(config, "model_type", None),
        "class": type(model).__name__,
    }


def _adapters(model: nn.Module) -> list[dict[str, Any]]:
    """Return name and configuration of the adapters that take part in the forward pass, in order of application."""
    attached = adapters(model)
    return [
        {"name": name, "rule": attached[name].rule, "config": attached[name].config.to_dict()}
        for name in adapter_names_in(active_composition(model))
    ]
