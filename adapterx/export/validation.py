"""Run an exported file at shapes unlike the example's and compare it with the model."""

import math
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterx import ops
from adapterx.errors import ExportError, speaker, speaking_as, unspoken
from adapterx.export.kinds import ONNX, PT2, TORCH_SAVE, TORCHSCRIPT, ZIP, kind_of
from adapterx.export.metadata import path_from, read_metadata, require, staging
from adapterx.export.positional import INPUTS, PER_TOKEN, Prepared, prepared
from adapterx.heads import SequenceClassifier

SHAPES = ((1, 1), (1, 7), (2, 8), (3, 19), (5, 64))
# Largest difference allowed, times the largest magnitude in the model's own output where that exceeds 1. In half
# precision two correct programs that add in another order differ by some units in the last place after each layer.
TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
_OTHER_KINDS = {
    PT2: "a torch.export archive (.pt2), which validate cannot run yet; torch.export.load opens it",
    TORCH_SAVE: "a file of torch.save, which holds tensors or pickled objects and no program",
    ZIP: "a zip archive of another kind",
}

# What a program without adapterx and transformers does. Names of files come as arguments.
_FRESH_PROCESS = """
import sys
import warnings

warnings.simplefilter("ignore")
import torch

library, model, inputs, outputs = sys.argv[1:]
torch.ops.load_library(library)
module = torch.jit.load(model).eval()
results = []
with torch.no_grad():
    for tensors in torch.load(inputs, weights_only=True):
        result = module(*tensors)
        results.append([tensor.cpu() for tensor in (result if isinstance(result, tuple) else (result,))])
with open(outputs, "wb") as file:  # given a name, torch ends the process where the disk is full
    torch.save(results, file)
"""


@speaking_as("validate")
def validate(
    model: nn.Module,
    file: str | os.PathLike,
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    atol: float | None = None,
) -> dict[str, Any]:
    """Compare an exported file with the model, TorchScript in a new process, ONNX in ONNX Runtime on the CPU.

    Args:
        model: what the file was exported from, with the same active adapters; left as it was.
        file: a file of `to_torchscript` or `to_onnx`, under any name.
        shapes: pairs (batch, sequence); sequences are cut to what the model takes. Rows after the first are padded.
        atol: largest absolute difference allowed; where the model's output exceeds 1 in magnitude, it counts relative
            to the largest one. None: 1e-4, for float16 2e-2, for bfloat16 1e-1.

    Returns:
        `{"runtime", "atol", "max_abs_diff", "shapes": [{"batch", "sequence", "max_abs_diff"}, ...]}`.

    Raises:
        ExportError: the file is of another kind, cannot be run, or differs by more.
    """
    _check_order(model, file)
    path = path_from(file, "file")
    check = check_torchscript if _kind_to_run(path) == TORCHSCRIPT else check_onnx
    inputs = read_metadata(path).get("inputs")
    if not isinstance(inputs, list) or not inputs or not all(name in INPUTS for name in inputs):
        raise ExportError(
            f"validate: the metadata in {path} must name inputs among {', '.join(INPUTS)}, got {inputs!r}"
        )
    with prepared(model, inputs=inputs) as ready:
        return check(path, ready, shapes=shapes, atol=atol)


def _check_order(model: object, file: object) -> None:
    if isinstance(file, nn.Module) and not isinstance(model, nn.Module):
        given = f"({type(model).__name__}, {type(file).__name__})"
        raise ExportError(f"validate: model must come first and file second, got {given}")
    if not isinstance(model, nn.Module):
        raise ExportError(f"validate: model must be a torch.nn.Module, got {type(model).__name__}")


def _kind_to_run(path: Path) -> str:
    """Return `TORCHSCRIPT` or `ONNX`, or say what else the file is."""
    if not path.is_file():
        raise ExportError(f"{speaker()}: file must be a file that exists, got {path}")
    try:
        kind = kind_of(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ExportError(f"{speaker()}: cannot read {path}: {error}") from error
    if kind in (TORCHSCRIPT, ONNX):
        return kind
    if kind is None:
        raise ExportError(f"{speaker()}: {path} is neither a TorchScript nor an ONNX file")
    raise ExportError(f"{speaker()}: file must be a TorchScript or an ONNX file, {path} is {_OTHER_KINDS[kind]}")


def check_torchscript(
    path: Path,
    ready: Prepared,
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    atol: float | None = None,
) -> dict[str, Any]:
    """Run the file in a new process that imports torch and loads the operator library, nothing else."""
    if ops.LIBRARY is None:
        raise ExportError(
            f"{speaker()}: a TorchScript file is checked in a new process with the compiled operator library, and here "
            "plain PyTorch computes; install a library for this torch, or pass validate=False and check it where one is"
        )
    shapes = ready.clip(shapes)
    batches = [ready.inputs_at(*shape) for shape in shapes]
    with staging(Path(tempfile.gettempdir())) as folder:
        inputs, outputs = folder / "inputs", folder / "outputs"
        with inputs.open("wb") as file:
            torch.save(batches, file)
        command = [sys.executable, "-c", _FRESH_PROCESS, ops.LIBRARY.resolve(), path.resolve(), inputs, outputs]
        done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise ExportError(f"{speaker()}: {path.name} does not run in a new process: {_reason(done)}")
        results = torch.load(outputs, weights_only=True)
    runtime = f"torch {torch.__version__}, TorchScript in a new process, {ready.device.type}"
    return _compare(ready, shapes, batches, results, runtime=runtime, atol=atol)


def _reason(done: subprocess.CompletedProcess) -> str:
    """Return in one line why a process failed: the last error that it reported, or the signal that ended it."""
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    *_, last = re.split(r"^(?=\S*(?:Error|Exception)\b)", done.stderr, flags=re.MULTILINE)
    return " ".join(last.split())


def check_onnx(
    path: Path,
    ready: Prepared,
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    atol: float | None = None,
) -> dict[str, Any]:
    """Check the file with the ONNX checker and run it in ONNX Runtime on the CPU."""
    onnx = require("onnx")
    require("onnx.checker")
    onnxruntime = require("onnxruntime")
    shapes = ready.clip(shapes)
    batches = [ready.inputs_at(*shape) for shape in shapes]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; warnings tell how nodes were placed
    try:
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        results = [
            [torch.from_numpy(array) for array in session.run(None, _feeds(names, tensors))] for tensors in batches
        ]
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ExportError(
            f"{speaker()}: ONNX Runtime cannot run {path.name}: {type(error).__name__}: {reason}"
        ) from error
    runtime = f"onnxruntime {onnxruntime.__version__}, CPU"
    return _compare(ready, shapes, batches, results, runtime=runtime, atol=atol)


def _feeds(names: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Any]:
    return {name: tensor.cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}


def _compare(
    ready: Prepared,
    shapes: Sequence[tuple[int, int]],
    batches: Iterable[tuple[Tensor, ...]],
    results: Iterable[Sequence[Tensor]],
    *,
    runtime: str,
    atol: float | None,
) -> dict[str, Any]:
    if atol is None:
        atol = max((TOLERANCES.get(dtype, 0.0) for dtype in ready.dtypes), default=TOLERANCES["float32"])
    report, failures = [], []
    for (batch, sequence), inputs, found in zip(shapes, batches, results, strict=True):
        with unspoken():
            expected = ready.module(*inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        if [tuple(t.shape) for t in found] != [tuple(t.shape) for t in expected]:
            shapes_found = [tuple(t.shape) for t in found]
            raise ExportError(
                f"{speaker()}: at batch {batch}, sequence {sequence} the file returns shapes {shapes_found}"
            )
        pairs = [
            _difference(_that_count(a, name, ready, inputs), _that_count(b, name, ready, inputs))
            for name, a, b in zip(ready.module.outputs, found, expected, strict=True)
        ]
        difference = max(diff for diff, _ in pairs)
        report.append({"batch": batch, "sequence": sequence, "max_abs_diff": difference})
        if any(diff > atol * max(1.0, magnitude) for diff, magnitude in pairs):
            failures.append(f"{difference:.2e} at batch {batch}, sequence {sequence}")
    if failures:
        raise ExportError(
            f"{speaker()}: the file must agree with the model within {atol:g}, it differs by {'; '.join(failures)} "
            f"({runtime})"
        )
    largest = max(entry["max_abs_diff"] for entry in report)
    return {"runtime": runtime, "atol": atol, "max_abs_diff": largest, "shapes": report}


def _that_count(output: Tensor, name: str, ready: Prepared, inputs: Sequence[Tensor]) -> Tensor:
    """Return the values that mean something: those of tokens, not of padding.

    Padding may have no token that it can attend to, and then each runtime makes up something else. An answer for a
    whole sequence may be read off its first position, so it counts where that is a token; a `SequenceClassifier` never
    reads it off padding.
    """
    if "attention_mask" not in ready.module.inputs:
        return output
    mask = inputs[ready.module.inputs.index("attention_mask")].bool().to(output.device)
    if name in PER_TOKEN or output.dim() > 2:
        return output[mask] if output.shape[:2] == mask.shape else output
    if isinstance(ready.module.model, SequenceClassifier) or len(output) != len(mask):
        return output
    return output[mask[:, 0]]


def _difference(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the largest difference (infinite where only one of them is finite) and the largest finite magnitude."""
    found, expected = found.double(), expected.detach().cpu().double()
    same = (found == expected) | (found.isnan() & expected.isnan())
    difference = torch.where(same, 0.0, (found - expected).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    magnitude = expected.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs()
    return difference.max().item(), magnitude.max().item()
