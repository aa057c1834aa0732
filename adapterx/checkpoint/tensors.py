"""The tensors of an adapter by the names that they have in its file, attached or planned, and memory for them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from adapterx.adapters import active_adapters, adapter_names, check_known
from adapterx.couplings import INVERTIBLES, Couplings, HeadCouplings
from adapterx.errors import UnknownAdapterError, speaker, speaking_as
from adapterx.host import ADAPTERS, AdapterSet
from adapterx.planning import Plan
from adapterx.route import SwitchableModules
from adapterx.sharding import gathered, reshard


@speaking_as("adapter_state")
def adapter_state(model: nn.Module, name: str | None = None) -> dict[str, Tensor]:
    """Return what `save_adapter` writes of an adapter, by the names in its file.

    Where FSDP2 has sharded the model this is collective, as everything that saves and restores is: all processes call
    it, and each gets whole tensors.

    Args:
        model: the module that was given to `attach`.
        name: which adapter; None takes the only one, or the only active one.

    Returns:
        Tensors without gradients, which share the memory of the adapter's; of a sharded one, whole copies on the CPU.

    Raises:
        UnknownAdapterError: the adapter is not attached, or None does not say which one.
        CheckpointError: DeepSpeed ZeRO-3 has partitioned the model.
    """
    reshard(model)
    return gathered(dict(adapter_tensors(model, resolve_name(model, name))))


def resolve_name(model: nn.Module, name: str | None) -> str:
    """Return the name of the adapter that is meant; None means the only one, or the only active one.

    Raises:
        UnknownAdapterError: it is not attached, or None does not say which one.
    """
    if name is not None:
        check_known(model, [name])
        return name
    for names in (adapter_names(model), active_adapters(model)):
        if len(names) == 1:
            return names[0]
    raise UnknownAdapterError(
        f"{speaker()}: name must be given, since not exactly one adapter is attached or active; attached are "
        f"{', '.join(map(repr, sorted(adapter_names(model)))) or 'none'}"
    )


def adapter_tensors(model: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield an adapter's tensors under `<module>.adapterx.<key>`, those of trained copies under `<module>.<key>`."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, SwitchableModules) and name in module:
            if isinstance(module, HeadCouplings):  # what is at the embeddings, too
                continue
            if isinstance(module, (AdapterSet, Couplings)):
                yield from new_tensors(path, module[name], seen)
            else:
                for key, tensor in module[name].state_dict().items():
                    yield f"{path.rpartition('.')[0]}.{key}", tensor


def new_tensors(prefix: str, adapter: nn.Module, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an adapter on one module, but for those that it shares with a module before."""
    for key, tensor in adapter.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield f"{prefix}.{key}", tensor.detach()


def plan_tensors(plan: Plan) -> dict[str, Tensor]:
    """Return the tensors of what an attachment will hang on the model, by the names that they have in a file."""
    found, seen = {}, set()
    for path, adapter in plan.adapters.items():
        found |= new_tensors(f"{path}.{ADAPTERS}", adapter, seen)
    for path, copied in plan.copies.items():
        found |= {f"{path}.{key}": tensor for key, tensor in copied.state_dict().items()}
    if plan.invertible is not None:
        found |= new_tensors(f"{plan.ends.module}.{INVERTIBLES}", plan.invertible, seen)
    return found


def adapter_modules(model: nn.Module, name: str) -> list[nn.Module]:
    """Return the modules that are an adapter's: on base modules, trained copies, at the ends of the model."""
    hung = (module for module in model.modules() if isinstance(module, SwitchableModules) and name in module)
    return [module[name] for module in hung]


def plan_modules(plan: Plan) -> list[nn.Module]:
    """Return the modules that an attachment will hang on the model."""
    ends = () if plan.invertible is None else (plan.invertible,)
    return [*plan.adapters.values(), *plan.copies.values(), *ends]


def give_memory(modules: Sequence[nn.Module]) -> None:
    """Give parameters and persistent buffers on the meta device memory on the CPU, with whatever is in it.

    What modules share they share afterwards; what has memory stays as it is.
    """
    given: dict[int, Tensor] = {}
    for module in (inner for each in modules for inner in each.modules()):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or not tensor.is_meta or name in module._non_persistent_buffers_set:
                continue
            if id(tensor) not in given:
                empty = torch.empty_like(tensor, device="cpu")
                is_parameter = isinstance(tensor, nn.Parameter)
                given[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
            setattr(module, name, given[id(tensor)])
