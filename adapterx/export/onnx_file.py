"""Export to ONNX: one node per adapter with a body of standard operators, or standard operators only."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.errors import ExportError, speaking_as, unspoken
from adapterx.export.metadata import describe, path_from, require, staging
from adapterx.export.onnx_folder import save, set_property
from adapterx.export.onnx_node import DOMAIN, INPUTS, adapter_nodes, attach_functions, translation
from adapterx.export.positional import Prepared, prepared, quiet_tracing
from adapterx.export.publishing import FILES, publish
from adapterx.export.validation import check_onnx

OPSETS = range(20, 24)  # 20 is the first with Gelu; 23 is the last that torch 2.13 writes
_PREFIX = "model."  # of every parameter's name, from the attribute of `Positional`


@speaking_as("to_onnx")
def to_onnx(
    model: nn.Module,
    out_dir: str | os.PathLike,
    *,
    mode: str = "function",
    opset: int = 20,
    example: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    validate: bool = True,
) -> dict[str, Any]:
    """Export the model with its active adapters to ONNX, batch and sequence free.

    Inputs and outputs are those of `to_torchscript`, by name. Adapter weights keep their names as initializers, such as
    `encoder.layer.0.output.dense.adapterx.default.down_proj.weight`. The model is left as it was.

    Args:
        model: as in `to_torchscript`, on the CPU; float32 or float16 (bfloat16 only without validation, because ONNX
            Runtime has no kernels for it on the CPU).
        out_dir: made if needed. Of what is there, only `model.onnx` (or `model.portable.onnx`), its `.data` and
            `adapterx_export.json` are replaced; a model above 1.8 GB of weights gets a file `model.onnx.<hash>.data`,
            which must stay beside it.
        mode: `"function"` writes `model.onnx`: one node `adapterx::BottleneckAdapter` per adapter with a body in the
            same file, which ONNX Runtime uses unless a kernel is registered. `"portable"` writes
            `model.portable.onnx`: standard operators only, for runtimes that know no model-local functions.
        opset: 20 to 23.
        example: as in `to_torchscript`.
        validate: run the ONNX checker, then ONNX Runtime at other shapes, and compare with the model.

    Returns:
        The metadata, also in the file (property `adapterx_export`) and in `adapterx_export.json`.

    Raises:
        ExportError: a package is missing, the model cannot be exported, the folder cannot be written, or the file
            disagrees with the model; what was in the folder before is then still there.
    """
    if mode not in FILES:
        raise ExportError(f"to_onnx: mode must be one of {', '.join(FILES)}, got {mode!r}")
    if opset not in OPSETS:
        raise ExportError(f"to_onnx: opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {opset!r}")
    for package in ("onnx", "onnxscript", *(["onnxruntime"] if validate else [])):
        require(package)
    out_dir, name = path_from(out_dir, "out_dir"), FILES[mode]
    with prepared(model, example=example) as ready:
        _check_place(ready, validate)
        with staging(out_dir) as folder:  # first: an unusable folder is known before the work
            graph = _convert(ready, opset)
            nodes, variants = len(adapter_nodes(graph)), attach_functions(graph)
            _tidy(graph, inline=mode == "portable")
            facts = {"kind": "onnx", "mode": mode, "opset": opset, "adapter_nodes": nodes, "variants": variants}
            document = describe(model, ready, **facts)
            save(graph, folder / name, document)
            if validate:
                document["validation"] = check_onnx(folder / name, ready)
                set_property(folder / name, document)
            publish(folder, out_dir, name, document)
    return document


def _check_place(ready: Prepared, validate: bool) -> None:
    if ready.device.type != "cpu":
        raise ExportError(f"to_onnx: model must be on the CPU, got {ready.device}; call model.cpu() first")
    if validate and "bfloat16" in ready.dtypes:
        raise ExportError(
            "to_onnx: a bfloat16 model cannot be validated, ONNX Runtime has no bfloat16 kernels on the CPU; "
            "export model.float(), or pass validate=False and check the file where it will run"
        )


def _convert(ready: Prepared, opset: int) -> Any:
    """Return the `onnx_ir.Model` with one bare node per adapter."""
    batch = torch.export.Dim("batch", min=1)
    sequence = torch.export.Dim("sequence", min=1, max=ready.max_sequence)
    names = ready.module.inputs
    try:
        with quiet_tracing(), _quiet_logger(), unspoken():
            program = torch.onnx.export(
                ready.module,
                ready.example,
                dynamo=True,
                # Nested, because the wrapper's forward takes all tensors in one parameter (*tensors).
                dynamic_shapes=(tuple({0: batch, 1: sequence} for _ in names),),
                input_names=list(names),
                output_names=list(ready.module.outputs),
                custom_translation_table={torch.ops.adapterx.bottleneck_adapter.default: translation()},
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"to_onnx: the model cannot be exported: {type(error).__name__}: {error}") from error
    return program.model


@contextmanager
def _quiet_logger() -> Iterator[None]:
    """Keep the exporter's remarks on packages that are not there (torchvision) from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _tidy(model: Any, *, inline: bool) -> None:
    """Fold learned scalings, name weights as the model does, inline if asked, drop what tells of this machine."""
    passes = require("onnx_ir.passes.common")
    for node in adapter_nodes(model):
        _fold_weights(model, node)
    for old in list(model.graph.initializers):
        if old.startswith(_PREFIX):
            _rename(model, model.graph.initializers[old], old.removeprefix(_PREFIX))
    if inline:
        passes.InlinePass()(model)
        model.functions.clear()
        model.opset_imports.pop(DOMAIN, None)
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)  # stack traces with absolute paths
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def _fold_weights(model: Any, node: Any) -> None:
    """Turn a computed weight (a learned scaling) into an initializer named like the parameter it stands for."""
    ir = require("onnx_ir")
    down = node.inputs[INPUTS.index("down_weight")].name
    stem = down.removesuffix("down_proj.weight")
    for key, name in (("up_weight", "up_proj.weight"), ("up_bias", "up_proj.bias")):
        index = INPUTS.index(key)
        value = node.inputs[index] if index < len(node.inputs) else None
        wanted = f"{stem}{name}"
        if value is None or stem == down or value.name == wanted or wanted in model.graph.initializers:
            continue
        array = _constant(value)
        if array is not None:
            folded = ir.val(wanted, const_value=ir.tensor(array, name=wanted))
            model.graph.initializers[wanted] = folded
            node.replace_input_with(index, folded)


def _constant(value: Any) -> Any:
    """Return the NumPy array of a value made of initializers by the operators that a learned scaling needs, or None."""
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    arrays = [_constant(given) for given in node.inputs] if node is not None else []
    if not arrays or any(array is None for array in arrays):
        return None
    if node.op_type == "Mul":
        return arrays[0] * arrays[1]
    if node.op_type == "Unsqueeze":
        return arrays[0].reshape(tuple(value.shape.numpy())) if value.shape is not None else None
    return None


def _rename(model: Any, value: Any, name: str) -> None:
    if name in model.graph.initializers:
        return
    del model.graph.initializers[value.name]
    value.name = name
    model.graph.initializers[name] = value
