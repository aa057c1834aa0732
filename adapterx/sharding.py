"""Tensors that FSDP2 has shared out among processes: gather them whole, fill them, and let one process write.

A sharded parameter is a `DTensor`: each process holds some of its rows. What gathers is collective: every process of
the mesh must come to the same call, or those that do wait. `fully_shard` puts its parameters in place of those of the
model, and for the length of a forward pass, sometimes longer, whole ones in place of these.
"""

import hashlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.errors import CheckpointError, ConfigError, TargetError, speaker


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is a `DTensor`, of which this process may hold a part only."""
    # Nobody can have one before the module is imported, which takes half a second.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, detached; collective where it is sharded."""
    tensor = tensor.detach()
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors in order of their names, the same in every process; collective where one is sharded.

    Sharded ones come to the CPU, one after the other: together they may not fit beside the shards of the model.
    """
    return {
        name: whole(tensors[name]).cpu() if is_sharded(tensors[name]) else tensors[name].detach()
        for name in sorted(tensors)
    }


def like(own: Tensor, value: Tensor) -> Tensor:
    """Return whole values as a tensor of the layout of `own`: where that is sharded, this process keeps its part."""
    if not is_sharded(own):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(device=own.device_mesh.device_type, dtype=own.dtype)
    # Every process has the values: nothing needs to be sent.
    return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)


def check_gathered(model: nn.Module) -> None:
    """Refuse a model whose parameters DeepSpeed ZeRO-3 has partitioned: what it leaves of them is empty.

    Raises:
        CheckpointError: it has, and they are not gathered now.
    """
    if any(not p.numel() and getattr(p, "ds_numel", 0) for p in model.parameters()):
        raise CheckpointError(
            f"{speaker()}: parameters must be in memory, got some that DeepSpeed ZeRO-3 has partitioned; in all "
            "processes enter deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0), and call "
            "this in the first one"
        )


def reshard(model: nn.Module) -> None:
    """Let FSDP2 put its shards back where a forward pass left whole parameters: those are copies, and go.

    Raises:
        CheckpointError: ZeRO-3 has partitioned the model.
    """
    check_gathered(model)
    if "torch.distributed.fsdp" in sys.modules and torch.distributed.is_initialized():
        model.state_dict()  # its hooks do so, also for parameters that an enclosing module manages


def written_once(model: nn.Module, write: Callable[[], None]) -> None:
    """Write something of a model: this process, whichever it is; where it is sharded, the first of the mesh for all.

    Collective where the model is sharded.

    Args:
        model: of which it is written.
        write: writes what has been gathered.

    Raises:
        CheckpointError: the process that writes could not, or ZeRO-3 has partitioned the model.
    """
    check_gathered(model)
    if (mesh := _mesh_of(model)) is None:
        write()
        return
    failed = torch.ones(1, device=mesh.device_type)
    try:
        if not any(mesh.get_coordinate()):
            write()
        failed.zero_()
    finally:  # whatever happened, the others must be told before it goes on its way
        for dim in range(mesh.ndim):
            torch.distributed.all_reduce(failed, torch.distributed.ReduceOp.MAX, group=mesh.get_group(dim))
    if failed.item():
        raise CheckpointError(f"{speaker()}: the first process must be able to write for all, see its error")


def check_agreed(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse adapters that other processes which share the model do not name; collective where it is sharded.

    FSDP2 sums the gradients of all processes in one piece, whatever parameters they are of.

    Raises:
        ConfigError: they name others.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    if (mesh := _mesh_of(model)) is None:
        return
    names = sorted(set(names))
    digest = hashlib.sha256("\n".join(names).encode()).digest()
    mine = torch.tensor([int.from_bytes(digest[:6], "big")], device=mesh.device_type)
    least, most = mine.clone(), mine
    for dim in range(mesh.ndim):
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN, group=mesh.get_group(dim))
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=mesh.get_group(dim))
    if not torch.equal(least, most):
        raise ConfigError(
            f"{speaker()}: names must hold the same adapters in every process that shares the model, got {names} in "
            "this one; sort the batches so, or train under DistributedDataParallel"
        )


def _mesh_of(model: nn.Module) -> Any:
    return next((parameter.device_mesh for parameter in model.parameters() if is_sharded(parameter)), None)


def gathered_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer as one process would have it, on the CPU; collective where it is sharded."""
    document = optimizer.state_dict()
    state = {
        key: {name: whole(value).cpu() if isinstance(value, Tensor) else value for name, value in values.items()}
        for key, values in sorted(document["state"].items())
    }
    return document | {"state": state}


def load_optimizer(optimizer: torch.optim.Optimizer, document: Mapping[str, Any]) -> None:
    """Load what `gathered_optimizer` returned, for whatever number of processes; each keeps its part."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def placed(parameter: nn.Parameter, value: Any) -> Any:
        has_shape = isinstance(value, Tensor) and value.shape == parameter.shape and value.dim()
        return like(parameter, value) if has_shape else value

    state = {
        key: {name: placed(parameters[key], value) for name, value in values.items()}
        for key, values in document["state"].items()
    }
    optimizer.load_state_dict({**document, "state": state})


def own_class(model: nn.Module) -> type[nn.Module]:
    """Return the class that a module had before `fully_shard` gave it one that is derived from it."""
    return type(model).__bases__[-1] if _is_fsdp_module(model) else type(model)


def _is_fsdp_module(module: nn.Module) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def check_not_sharded(modules: Collection[nn.Module]) -> None:
    """Refuse to hang something new in a sharded model: FSDP2 would neither shard it nor sum its gradients.

    Args:
        modules: all of the model, but for what adapterx has added: a thousand adapters would be looked through.

    Raises:
        TargetError: it is sharded.
    """
    own = (parameter for module in modules for parameter in module._parameters.values() if parameter is not None)
    if any(map(_is_fsdp_module, modules)) or any(map(is_sharded, own)):
        raise TargetError(
            f"{speaker()}: model must not be sharded yet, got one with sharded parameters, in which the gradients of "
            "new ones would differ from process to process; attach before fully_shard or accelerate's prepare, and "
            "copy saved weights into the sharded adapter with restore_adapter"
        )
