"""What an exported file says about itself, and how to read it without running the file."""

import json
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapterx.adapters import active_composition, adapters
from adapterx.checkpoint import folder as files
from adapterx.checkpoint.document import PACKAGE_VERSION, public_name
from adapterx.compose import adapter_names_in, composition_to_dict
from adapterx.errors import ExportError, speaker, speaking_as
from adapterx.export.positional import Prepared

FORMAT_VERSION = 1
DOCUMENT = "adapterx_export.json"  # beside ONNX files, and inside TorchScript files
PROPERTY = "adapterx_export"  # among the properties of an ONNX file


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


@speaking_as("read_metadata")
def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """Return what an exported file says about itself; nothing in the file is executed.

    Args:
        path: a TorchScript or an ONNX file that adapterx wrote; or the folder of ONNX files, which gives
            `{"format_version": 1, "files": {name: metadata}}`.

    Raises:
        ExportError: there is no such file, it cannot be read, or adapterx did not write it.
    """
    path = Path(path)
    try:
        if path.is_dir():
            path = path / DOCUMENT
        text = path.read_text(encoding="utf-8") if path.suffix == ".json" else _embedded(path)
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise ExportError(f"{speaker()}: cannot read {path}: {error}") from error
    try:
        document = json.loads(text) if text is not None else None
    except ValueError as error:
        raise ExportError(f"{speaker()}: the metadata in {path} is damaged: {error}") from error
    if not isinstance(document, dict) or "format_version" not in document:
        raise ExportError(f"{speaker()}: {path} has no metadata of adapterx")
    if document["format_version"] != FORMAT_VERSION:
        raise ExportError(
            f"{speaker()}: format_version of {path} must be {FORMAT_VERSION}, got {document['format_version']!r}; "
            "a newer adapterx may have written it"
        )
    return document


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, as `adapterx.checkpoint.folder.staging` does.

    Raises:
        ExportError: the folder cannot be written.
    """
    try:
        with files.staging(folder, prefix=".adapterx_export.") as temporary:
            yield temporary
    except OSError as error:
        raise ExportError(f"{speaker()}: cannot write to {folder}: {error.strerror or error}") from error


def _embedded(path: Path) -> str | None:
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/extra/{DOCUMENT}")]
            return archive.read(names[0]).decode() if names else None
    onnx = require("onnx")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise ExportError(f"{speaker()}: {path} is neither a TorchScript nor an ONNX file: {error}") from error
    return {entry.key: entry.value for entry in model.metadata_props}.get(PROPERTY)


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
