"""An ONNX model as a file: its metadata, and the data of a large one in a file beside it, named by their hash."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterx.checkpoint.document import describe_content
from adapterx.export.embedded import PROPERTY
from adapterx.export.metadata import require, text_of

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


def _name_by_hash(path: Path, data: Path) -> None:
    onnx = require("onnx")
    with data.open("rb") as file:
        digest = describe_content(file)["sha256"]
    name = f"{path.name}.{digest[:16]}.data"
    os.replace(data, data.with_name(name))
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    onnx.save(model, path)
