"""Export to TorchScript: one file that needs the operator library, but no Python, transformers or adapterx."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.checkpoint.folder import move_into_place
from adapterx.errors import ExportError, speaking_as, unspoken
from adapterx.export.embedded import DOCUMENT
from adapterx.export.metadata import describe, staging, text_of
from adapterx.export.positional import Prepared, prepared, quiet_tracing
from adapterx.export.validation import check_torchscript

OPERATOR = "adapterx::bottleneck_adapter"


@speaking_as("to_torchscript")
def to_torchscript(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    example: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    freeze: bool = False,
    validate: bool = True,
) -> dict[str, Any]:
    """Trace the model with its active adapters and write one TorchScript file.

    The file takes `input_ids`, `attention_mask` and, where the model has them, `token_type_ids`, all int64
    `(batch, sequence)` and in this order, and returns the logits or the last hidden states. Batch and sequence may have
    any size. It serves one device and one dtype: those of the model now. The model is left as it was.

    Args:
        model: a Hugging Face encoder, decoder (without cache) or classifier, or a `SequenceClassifier`; adapters are
            optional.
        path: the file, replaced in one step if it exists; its folder is made.
        example: tensors to trace with, by name or in the order above, `(batch, sequence)`, both at least 2. None makes
            them: 2 rows of 8 tokens, the second one padded.
        freeze: fold parameters into constants. The file is then no longer open to other adapter weights.
        validate: run the file in a new process at other shapes and compare it with the model.

    Returns:
        The metadata written into the file (`adapterx_export.json` among its extra files). `["validation"]` holds the
        largest absolute difference, over all shapes and per shape.

    Raises:
        ExportError: the model cannot be exported, the file cannot be written, or it disagrees with the model; what was
            at `path` before is then still there.
    """
    path = Path(path)
    if path.is_dir():
        raise ExportError(f"to_torchscript: path must be a file, {path} is a folder")
    with (
        prepared(model, example=example) as ready,
        staging(path.parent) as folder,
    ):
        traced = _trace(ready, freeze=freeze)
        nodes = sum(node.kind() == OPERATOR for node in traced.inlined_graph.nodes())
        document = describe(model, ready, kind="torchscript", frozen=freeze, adapter_nodes=nodes)
        raw, final = folder / "raw.pt", folder / "final.pt"
        _save(traced, raw)
        _without_sources(raw, final)
        if validate:
            document["validation"] = check_torchscript(final, ready)
        with zipfile.ZipFile(final, "a") as archive:
            archive.writestr(f"{_root(archive)}/extra/{DOCUMENT}", text_of(document))
        move_into_place([(final, path)])
    return document


def _trace(ready: Prepared, *, freeze: bool) -> torch.jit.ScriptModule:
    try:
        with quiet_tracing(), unspoken():
            traced = torch.jit.trace(ready.module, ready.example, check_trace=False)
            return torch.jit.freeze(traced) if freeze else traced
    except Exception as error:
        raise ExportError(f"to_torchscript: the model cannot be traced: {type(error).__name__}: {error}") from error


def _save(traced: torch.jit.ScriptModule, path: Path) -> None:
    with quiet_tracing():
        try:
            traced.save(str(path))
        except RuntimeError as error:
            raise ExportError(f"to_torchscript: cannot write {path.name}: {error}") from error


def _without_sources(source: Path, target: Path) -> None:
    """Copy the archive without its debug records: they hold the paths of source files on this machine."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry), compress_type=entry.compress_type)
    os.unlink(source)


def _root(archive: zipfile.ZipFile) -> str:
    return archive.namelist()[0].partition("/")[0]
