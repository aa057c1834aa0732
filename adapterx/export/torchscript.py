"""Export to TorchScript: one file that needs the operator library, but no Python, transformers or adapterx."""

import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.checkpoint.output import place_output
from adapterx.errors import ExportError, speaking_as, unspoken
from adapterx.export.embedded import DOCUMENT
from adapterx.export.metadata import describe, path_from, staging, text_of
from adapterx.export.positional import Prepared, prepared, quiet_tracing
from adapterx.export.validation import check_torchscript

OPERATOR = "adapterx::bottleneck_adapter"
_ROOT = "model"  # the folder that all members of the archive are in
_IN_MEMORY_UP_TO = 2 * 2**30  # bytes of weights; serializing in memory takes about three times as much


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
        path: the file, replaced in one step if it exists, with its mode; its folder is made. A link is followed, a pipe
            or a device is written into.
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
    path = path_from(path, "path")
    if path.is_dir():
        raise ExportError(f"to_torchscript: path must be a file, {path} is a folder")
    with (
        prepared(model, example=example) as ready,
        staging(_folder_to_stage_in(path)) as folder,
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
            archive.writestr(f"{_ROOT}/extra/{DOCUMENT}", text_of(document))
        place_output(final, path)
    return document


def _folder_to_stage_in(path: Path) -> Path:
    """Return the folder of the file that a path means; what is no file, such as a pipe, is written in one go."""
    if path.exists() and not path.is_file():
        return Path(tempfile.gettempdir())
    return Path(os.path.realpath(path)).parent


def _trace(ready: Prepared, *, freeze: bool) -> torch.jit.ScriptModule:
    try:
        with quiet_tracing(), unspoken():
            traced = torch.jit.trace(ready.module, ready.example, check_trace=False)
            return torch.jit.freeze(traced) if freeze else traced
    except Exception as error:
        raise ExportError(f"to_torchscript: the model cannot be traced: {type(error).__name__}: {error}") from error


def _save(traced: torch.jit.ScriptModule, path: Path) -> None:
    """Write the archive; PyTorch's own writer ends the process where it meets a full disk, so it gets none."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in traced.state_dict().values())
    with quiet_tracing():
        try:
            if size <= _IN_MEMORY_UP_TO:
                with path.open("wb") as file:
                    torch.jit.save(traced, file)
            else:
                _check_space(path, size + size // 20)
                traced.save(str(path))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ExportError(f"to_torchscript: the model cannot be written as TorchScript: {reason}") from error


def _check_space(path: Path, size: int) -> None:
    """Reserve the space for a file and give it back; an OSError says that it is not there."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


def _without_sources(source: Path, target: Path) -> None:
    """Copy the archive without its debug records: they hold the paths of source files on this machine."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                name = _ROOT + entry.filename[entry.filename.index("/") :]
                new.writestr(zipfile.ZipInfo(name), old.read(entry), compress_type=entry.compress_type)
    os.unlink(source)
