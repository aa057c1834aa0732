"""The files of an ONNX export in their folder: the model, the data of a large one, and the index of all exports.

A reader never sees a model with the data of another, nor an index that tells of another model, whenever the writing
process is killed: data stand under a name made of their hash, which only their own model mentions, and come first; an
index that tells of the old model forgets it before the new model comes, and learns of the new one afterwards.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterx.checkpoint.folder import move_into_place, write_atomically
from adapterx.errors import ExportError
from adapterx.export.embedded import DOCUMENT, PROPERTY
from adapterx.export.metadata import FORMAT_VERSION, read_metadata, require, text_of

FILES = {"function": "model.onnx", "portable": "model.portable.onnx"}
EXTERNAL_DATA_FROM = 1_800_000_000  # bytes of weights; a protobuf file ends at 2 GiB


def save(model: Any, path: Path, document: Mapping[str, Any]) -> None:
    """Write an `onnx_ir.Model`; a large one leaves its weights to a file `<name>.<hash>.data` beside it."""
    ir = require("onnx_ir")
    model.metadata_props[PROPERTY] = text_of(document)
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    external = f"{path.name}.data" if weights > EXTERNAL_DATA_FROM else None
    ir.save(model, path, external_data=external)
    if external is not None:
        _name_by_hash(path, path.with_name(external))


def set_property(path: Path, document: Mapping[str, Any]) -> None:
    """Replace the metadata in the file and leave its graph and weights untouched."""
    onnx = require("onnx")
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {PROPERTY: text_of(document)})
    onnx.save(model, path)


def publish(staged: Path, out_dir: Path, name: str, document: Mapping[str, Any]) -> None:
    """Bring a finished model from the staging folder to its place, with its data and a line in the index.

    Args:
        staged: holds the model `name`, and its data if it has any.
        out_dir: where the files go; what belonged to an earlier model of that name is deleted.
        name: one of `FILES`.
        document: the model's metadata, for `adapterx_export.json`.

    Raises:
        OSError: a file cannot be written or renamed.
    """
    recorded = _recorded(out_dir)
    others = {key: value for key, value in recorded.items() if key != name}
    (staged / DOCUMENT).write_bytes(_index({**others, name: document}))
    if name in recorded:
        write_atomically(out_dir / DOCUMENT, _index(others))
    data = sorted(path.name for path in staged.iterdir() if _is_data_of(name, path.name))
    move_into_place([(staged / file, out_dir / file) for file in (*data, name, DOCUMENT)])
    for path in out_dir.iterdir():
        if _is_data_of(name, path.name) and path.name not in data:
            path.unlink()


def _name_by_hash(path: Path, data: Path) -> None:
    onnx = require("onnx")
    digest = hashlib.sha256()
    with data.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    name = f"{path.name}.{digest.hexdigest()[:16]}.data"
    os.replace(data, data.with_name(name))
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    onnx.save(model, path)


def _is_data_of(name: str, file: str) -> bool:
    """Tell whether a file holds the data of the model, under its name of today or that of adapterx 0.1.0."""
    return re.fullmatch(rf"{re.escape(name)}(\.[0-9a-f]{{16}})?\.data", file) is not None


def _recorded(out_dir: Path) -> dict[str, Any]:
    """Return what the index in the folder tells of files that are there."""
    try:
        old = read_metadata(out_dir).get("files", {})
    except ExportError:  # none yet, or not ours: the files themselves hold their metadata
        old = {}
    return {key: value for key, value in old.items() if key in FILES.values() and (out_dir / key).is_file()}


def _index(files: Mapping[str, Any]) -> bytes:
    return text_of({"format_version": FORMAT_VERSION, "files": files}).encode()
