"""The files of AdapterHub: a JSON document beside a pickle, of which only plain tensors are read, or safetensors.

Where both files of tensors stand in a folder, both are read, and they must hold the same: `adapters` reads the one or
the other, as its caller asks.
"""

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adapterx.checkpoint.document import PACKAGE_VERSION, named_errors, open_regular, read_json
from adapterx.checkpoint.folder import move_into_place, staging
from adapterx.checkpoint.formats import ADAPTERHUB, recognise
from adapterx.errors import CheckpointError, speaker

VERSION = "adapters.1.3.0"
_SPARE = 2**24  # bytes that a file may have beyond what its tensors need


class Kind(NamedTuple):
    """What `adapters` calls the files of one thing that it saves."""

    document: str
    pickle: str
    safetensors: str


ADAPTER = Kind("adapter_config.json", "pytorch_adapter.bin", "adapter.safetensors")
HEAD = Kind("head_config.json", "pytorch_model_head.bin", "model_head.safetensors")
FUSION = Kind("adapter_fusion_config.json", "pytorch_model_adapter_fusion.bin", "model_adapter_fusion.safetensors")


def read_document(folder: Path, kind: Kind) -> dict[str, Any]:
    """Return the JSON document of an adapter, a head or a fusion of AdapterHub.

    Raises:
        CheckpointError: it cannot be read, or is another library's.
    """
    path = folder / kind.document
    with named_errors(path):
        if not path.exists():
            raise CheckpointError(f"{speaker()}: {path} does not exist")
    document = read_json(path)
    library = recognise(document, path)
    if library not in (None, ADAPTERHUB) or "config" not in document:
        other = f"it is that of {library}" if library else "it has no 'config'"
        raise CheckpointError(f"{speaker()}: {path} must be written by AdapterHub's adapters, {other}")
    return document


def read_tensors(folder: Path, kind: Kind, *, largest: int) -> dict[str, Tensor]:
    """Return the tensors of an adapter, a head or a fusion, on the CPU.

    Args:
        folder: where they are.
        kind: whose they are.
        largest: how many bytes they may take, more being a mistake or malice; pickles have some of their own.

    Raises:
        CheckpointError: there is no file, it is damaged, too large, or holds other than plain tensors; or two files
            hold different ones.
    """
    found = {}
    for name, read in ((kind.pickle, _read_pickle), (kind.safetensors, _read_safetensors)):
        path = folder / name
        with named_errors(path):
            if not path.exists():
                continue
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > largest + _SPARE:
                raise CheckpointError(
                    f"{speaker()}: {path} must not exceed {largest + _SPARE} bytes for the adapter that its document "
                    f"describes, got {os.fstat(file.fileno()).st_size}"
                )
            found[name] = read(file, path)
    if not found:
        raise CheckpointError(f"{speaker()}: {folder} must hold {kind.pickle} or {kind.safetensors}")
    first, *others = found.values()
    if any(first.keys() != other.keys() or any(not torch.equal(first[k], other[k]) for k in first) for other in others):
        raise CheckpointError(
            f"{speaker()}: {kind.pickle} and {kind.safetensors} of {folder} must hold the same, they differ; take one "
            "of them away"
        )
    return first


def _read_pickle(file: BinaryIO, path: Path) -> dict[str, Tensor]:
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"{speaker()}: {path} must not be compressed inside, as torch.save leaves it")
    file.seek(0)
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's bytes make the reader raise nearly anything
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{speaker()}: {path} must hold tensors only, as torch.save writes a state dict: {type(error).__name__}: "
            f"{reason}"
        ) from error
    if not isinstance(tensors, Mapping) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in tensors.items()
    ):
        raise CheckpointError(f"{speaker()}: {path} must hold a dictionary of names and tensors")
    if strange := sorted(key for key, tensor in tensors.items() if not _is_plain(tensor)):
        raise CheckpointError(
            f"{speaker()}: {path} must hold plain floating-point tensors whose numbers stand in the file, "
            f"{', '.join(strange[:4])} {'is' if len(strange) == 1 else 'are'} of another kind"
        )
    return {key: tensor.detach() for key, tensor in tensors.items()}


def _is_plain(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or not tensor.is_floating_point():
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()  # an expanded view takes none


def _read_safetensors(file: BinaryIO, path: Path) -> dict[str, Tensor]:
    try:
        tensors = load(file.read())
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{speaker()}: {path} is not a valid safetensors file: {error}") from error
    if strange := sorted(key for key, tensor in tensors.items() if not tensor.is_floating_point()):
        raise CheckpointError(
            f"{speaker()}: {path} must hold floating-point tensors, {strange[0]} has {tensors[strange[0]].dtype}"
        )
    return tensors


def write_files(
    folder: Path,
    kind: Kind,
    document: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    others: Sequence[tuple[str, bytes]] = (),
) -> None:
    """Write a document and its tensors as `adapters` does; the document comes last.

    Without names for the same tensor, safetensors are written beside the pickle.

    Args:
        folder: made if it is not there.
        kind: whose files they are.
        document: keys beside those that every document has.
        tensors: by key; several keys may have the same tensor.
        others: name and content of further files.

    Raises:
        CheckpointError: another library's file stands in the folder, or it cannot be written.
    """
    with named_errors(folder):
        path = folder / kind.document
        if path.exists() and recognise(read_json(path), path) not in (None, ADAPTERHUB):
            raise CheckpointError(f"{speaker()}: {folder} must not hold the files of another library, got {path.name}")
        plain = _plain_tensors(tensors)
        content = {"version": VERSION, "written_by": f"adapterx {PACKAGE_VERSION}", **document}
        files = [*others, (kind.pickle, _pickled(plain))]
        shared = len({tensor.data_ptr() for tensor in plain.values()}) < len(plain)
        if not shared:
            files.append((kind.safetensors, save(plain)))
        files.append((kind.document, json.dumps(content, indent=2, sort_keys=True).encode()))
        with staging(folder, prefix=".adapterhub.") as staged:
            for name, data in files:
                (staged / name).write_bytes(data)
            if shared:  # an older file beside the new one would contradict it
                (folder / kind.safetensors).unlink(missing_ok=True)
            move_into_place([(staged / name, folder / name) for name, _ in files])


def _plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in float32 on the CPU; keys of one tensor have one copy, as `adapters` writes them."""
    copies: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    return {key: copies[id(tensor)] for key, tensor in tensors.items()}


def _pickled(tensors: dict[str, Tensor]) -> bytes:
    content = io.BytesIO()
    torch.save(tensors, content)
    return content.getvalue()
