"""What tells one base model from another: its type, and the weights of the modules that an adapter hangs on.

Only those modules are recorded, so that a head, resized embeddings, trained copies or a wrapper make no other model of
it. Values are compared exactly where both sides store one dtype, else by a sample of them, as far as the coarser dtype
can tell. What holds no plain floating-point weights here (quantised, offloaded, none at all) is not compared. What
FSDP2 has sharded is gathered module by module, and these functions are collective then.
"""

import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.errors import CheckpointError, speaker
from adapterx.host import base_modules
from adapterx.sharding import gathered, is_sharded
from adapterx.targets.layouts import model_type_of

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16
)}  # fmt: skip
_SAMPLE = 8  # values per module; two models of one shape differ in nearly all of them
_SMALLEST = 2.0**-24  # what float16 can tell from zero


def record_base(model: nn.Module, paths: Iterable[str]) -> dict[str, Any]:
    """Return what a file records of the model that an adapter was trained on, for `check_same_base`.

    Args:
        model: the model that the adapter's names are relative to.
        paths: qualified names of the adapted modules.

    Returns:
        `"model_types"`, of all parts that enclose adapted modules, and `"weights"`, by name what tells those of an
        adapted module from others: dtypes, SHA-256, and a sample. None stands for one that cannot be compared.
    """
    paths = list(paths)
    return {"model_types": sorted(_model_types(model, paths)), "weights": _record_weights(model, paths)}


def check_record(record: Any, source: str) -> None:
    """Refuse what `record_base` cannot have returned; `source` names the file.

    Raises:
        CheckpointError: there are other keys or values.
    """
    types, weights = (
        (record.get(key) for key in ("model_types", "weights")) if isinstance(record, dict) else (None, None)
    )
    if not isinstance(types, list) or not all(isinstance(name, str) for name in types) or not isinstance(weights, dict):
        raise CheckpointError(f"{speaker()}: base_check of {source} must hold 'model_types' and 'weights'")
    for path, own in weights.items():
        if own is not None and not _is_record(own):
            raise CheckpointError(
                f"{speaker()}: base_check of {source} must hold what save_adapter records, for {path!r}"
            )


def check_same_base(
    model: nn.Module, record: Mapping[str, Any], described: Mapping[str, Any], source: str, *, trained: bool = False
) -> None:
    """Refuse a base model that is not the one which a file was written for.

    Args:
        model: the model that the names in the record are relative to.
        record: what `record_base` returned.
        described: what `describe_base` returned, for the message.
        source: names the file in messages.
        trained: whether weights that require a gradient are left out, because the model is training them itself.

    Raises:
        CheckpointError: the type of the model, or the weights of a module, differ.
    """
    known = ", ".join(repr(value) for key in ("name", "class") if isinstance(value := described.get(key), str))
    wanted = f"the base model must be the one that {source} was saved from ({known or 'without a name'})"
    allow = "; check_base=False takes another one"
    types, own_types = record["model_types"], _model_types(model, record["weights"])
    if types and own_types and not own_types & set(types):
        raise CheckpointError(f"{speaker()}: {wanted}, of model type {types}, got {sorted(own_types)}{allow}")
    compared = [path for path, recorded in record["weights"].items() if recorded is not None]
    if trained:
        compared = [path for path in compared if not _trains(model.get_submodule(path))]
    for path, own in _record_weights(model, compared).items():
        if own is not None and not same_weights(record["weights"][path], own):
            raise CheckpointError(f"{speaker()}: {wanted}, got other weights in {path}{allow}")


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and values of all tensors, whatever order they come in.

    A gigabyte takes a core about a second; the tensors are shared out among the cores.

    Raises:
        CheckpointError: a tensor has no values in memory, as on the meta device or where a model is offloaded.
    """
    without = sorted(name for name, tensor in tensors.items() if not has_values(tensor))
    if without:
        raise CheckpointError(f"{speaker()}: the base weights must be in memory, got none for {without[:8]}")
    return _combined(tensors, _digests([tensors[name] for name in sorted(tensors)]))


def has_values(tensor: Tensor) -> bool:
    """Tell whether a tensor is a plain one whose values are in memory: not meta, sharded, offloaded or packed."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return False
    if tensor.is_meta or tensor.is_quantized:
        return False
    if tensor.numel() == 0:
        return True
    # FSDP takes the memory of parameters away and leaves their shapes.
    last = tensor.storage_offset() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _combined(tensors: Mapping[str, Tensor], digests: Iterable[str]) -> str:
    """Return one SHA-256 for tensors of which each has its digest, in order of their names."""
    lines = [
        f"{name!r} {tensors[name].dtype} {list(tensors[name].shape)} {digest}\n"
        for name, digest in zip(sorted(tensors), digests, strict=True)
    ]
    return hashlib.sha256("".join(lines).encode("utf-8", "backslashreplace")).hexdigest()


def _record_weights(model: nn.Module, paths: Iterable[str]) -> dict[str, dict[str, Any] | None]:
    """Return what the adapted modules hold of their own, without what adapterx has added.

    What is sharded is gathered module by module, in the same order in every process.
    """
    weights = {path: _own_weights(model.get_submodule(path)) for path in paths}
    sharded = [path for path, own in weights.items() if any(map(is_sharded, own.values()))]
    records = _records({path: own for path, own in weights.items() if path not in sharded})
    for path in sharded:
        if all(weight.dtype in _DTYPES.values() for weight in weights[path].values()):
            records |= _records({path: gathered(weights[path])})
    return {path: records.get(path) for path in weights}


def _records(weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
    """Return what is recorded of modules by their weights, without those that cannot be compared."""
    comparable = {path: own for path, own in weights.items() if _is_comparable(own)}
    digests = iter(_digests([own[name] for own in comparable.values() for name in sorted(own)]))
    return {
        path: {
            "dtypes": sorted({str(weight.dtype).removeprefix("torch.") for weight in own.values()}),
            "sha256": _combined(own, islice(digests, len(own))),
            "sample": list(_sample(own)),
        }
        for path, own in comparable.items()
    }


def _digests(tensors: list[Tensor]) -> list[str]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing leaves the interpreter to others
        return list(pool.map(_digest, tensors))


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy()).hexdigest()


def _is_comparable(weights: Mapping[str, Tensor]) -> bool:
    plain = all(has_values(weight) and weight.dtype in _DTYPES.values() for weight in weights.values())
    return plain and any(weight.numel() for weight in weights.values())


def _trains(module: nn.Module) -> bool:
    return any(weight.requires_grad for weight in _own_weights(module).values())


def _own_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a module by name relative to it, without those of adapters and trained copies."""
    return {
        f"{path}.{name}" if path else name: parameter
        for path, inner in base_modules(module).items()
        for name, parameter in inner._parameters.items()
        if parameter is not None
    }


def _sample(weights: Mapping[str, Tensor]) -> Iterator[float | None]:
    """Yield values evenly spread over the weights, laid end to end by name; None for one that is not finite."""
    total, begin = sum(weight.numel() for weight in weights.values()), 0
    wanted = [(2 * number + 1) * total // (2 * _SAMPLE) for number in range(_SAMPLE)]
    for name in sorted(weights):
        flat = weights[name].detach().reshape(-1)
        inside = [index - begin for index in wanted if begin <= index < begin + flat.numel()]
        values = flat[torch.tensor(inside, dtype=torch.int64, device=flat.device)].double().tolist()
        yield from (value if math.isfinite(value) else None for value in values)
        begin += flat.numel()


def same_weights(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two records of a module, as `record_base` makes them, may be of the same weights."""
    if one["dtypes"] == other["dtypes"]:
        return one["sha256"] == other["sha256"]
    # Each side may have been rounded once, by half a step of its dtype.
    step = sum(max(torch.finfo(_DTYPES[name]).eps for name in record["dtypes"]) / 2 for record in (one, other))
    pairs = zip(one["sample"], other["sample"], strict=True)
    return all(a is None or b is None or math.isclose(a, b, rel_tol=step, abs_tol=_SMALLEST) for a, b in pairs)


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or record.keys() != {"dtypes", "sha256", "sample"}:
        return False
    dtypes, digest, sample = record["dtypes"], record["sha256"], record["sample"]
    return (
        isinstance(dtypes, list)
        and len(dtypes) > 0
        and all(isinstance(name, str) and name in _DTYPES for name in dtypes)
        and isinstance(digest, str)
        and re.fullmatch("[0-9a-f]{64}", digest) is not None
        and isinstance(sample, list)
        and len(sample) == _SAMPLE
        and all(value is None or type(value) is float for value in sample)
    )


def _model_types(model: nn.Module, paths: Iterable[str]) -> set[str]:
    """Return `config.model_type` of everything that encloses one of the modules, and of the modules themselves."""
    found = {model_type_of({"": model})}
    for path in paths:
        module = model
        for part in path.split("."):
            module = getattr(module, part)
            found.add(model_type_of({"": module}))
    return found - {None}
