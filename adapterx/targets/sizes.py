"""How wide a module is: what it reads and what it returns, in elements."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from adapterx.errors import TargetError, speaker

_HUNG = "adapterx"  # how the children of a base module are named that attachments hang there
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)  # never called
# Modules of transformers that read the weights of children and never call them, so that no hook on those would run: the
# names of the children. Of an attention that reads all of its projections the whole counts as one projection.
_READ_NOT_CALLED = {
    "WavLMAttention": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "TDNNLayer": ("kernel",),
    "VideoMAESelfAttention": ("query", "key", "value"),
    "MambaMixer": ("dt_proj",),
    "MobileBertLMPredictionHead": ("decoder", "dense"),
    "LongcatFlashTopkRouter": ("classifier",),
    "DetrMHAttentionMap": ("k_linear", "k_proj"),
    "ConditionalDetrMHAttentionMap": ("k_linear", "k_proj"),
    "DabDetrMHAttentionMap": ("k_linear",),
    "MaskFormerDetrMHAttentionMap": ("k_linear", "k_proj"),
}


def reads_all_projections(module: nn.Module) -> bool:
    """Tell whether a module is an attention that reads the weights of all its projections and calls none."""
    return isinstance(module, nn.MultiheadAttention) or type(module).__name__ == "WavLMAttention"


def in_out_sizes(module: nn.Module) -> tuple[int, int] | None:
    """Return the input and output widths of a linear map (`nn.Linear` and its quantised kin, `Conv1D`), or None."""
    if reads_all_projections(module):
        return module.embed_dim, module.embed_dim
    for names in (("in_features", "out_features"), ("nx", "nf")):
        sizes = tuple(getattr(module, name, None) for name in names)
        if all(isinstance(size, int) for size in sizes):
            return sizes
    return None


def norm_size(module: nn.Module) -> int | None:
    """Return the width of a layer whose only weight is a vector (LayerNorm, RMSNorm), or None."""
    weight = module._parameters.get("weight")
    return weight.shape[0] if weight is not None and weight.dim() == 1 else None


def suits(modules: Mapping[str, nn.Module], name: str) -> bool:
    """Tell whether an adapter can hang on a module, and how wide it would be."""
    try:
        module_sizes(modules, name)
    except TargetError:
        return False
    return True


def module_sizes(modules: Mapping[str, nn.Module], name: str) -> tuple[int, int]:
    """Return the widths of what a module reads and returns.

    Raises:
        TargetError: the module cannot be adapted, or its widths cannot be told.
    """
    module = modules[name]
    _refuse_unsuitable(modules, name)
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, module.embedding_dim
    sizes = in_out_sizes(module)
    if sizes is None and (size := norm_size(module)) is not None:
        sizes = (size, size)
    weight = getattr(module, "weight", None)
    if sizes is None and isinstance(weight, Tensor) and weight.dim() == 2:
        sizes = (weight.shape[1], weight.shape[0])
    if sizes is None:
        size = _width_around(modules, name) or config_hidden_size(modules, name)
        if size is None:
            raise TargetError(
                f"{speaker()}: the hidden size of {name} ({type(module).__name__}) cannot be told; target_modules "
                "should name modules with in_features and out_features, or the model needs a config.hidden_size"
            )
        sizes = (size, size)
    return sizes


def width_received(modules: Mapping[str, nn.Module], sublayer: str, output: str, hidden_size: int) -> int:
    """Return the width of what a sublayer receives, whose output projection `output` returns `hidden_size`.

    A sublayer has no size of its own; it reads the residual stream, which its output projection writes. Only where none
    of its other projections could read that, as in a first block that narrows, it reads what all of them read.
    """
    if (sizes := in_out_sizes(modules[sublayer])) is not None:
        return sizes[0]
    inner = [in_out_sizes(module) for module in own_modules(modules[sublayer]) if module is not modules[output]]
    widths = {sizes[0] for sizes in inner if sizes is not None}
    return widths.pop() if len(widths) == 1 else hidden_size


def _refuse_unsuitable(modules: Mapping[str, nn.Module], name: str) -> None:
    module, parent = modules[name], modules.get(name.rpartition(".")[0])
    kind = type(module).__name__
    reason = None
    if isinstance(parent, nn.MultiheadAttention) or name.rpartition(".")[2] in _READ_NOT_CALLED.get(
        type(parent).__name__, ()
    ):
        owner = "torch.nn.MultiheadAttention" if isinstance(parent, nn.MultiheadAttention) else type(parent).__name__
        reason = f"{owner} reads its weights without calling it; name {name.rpartition('.')[0]} instead"
    elif isinstance(module, CONTAINERS):
        reason = f"a {kind} is never called"
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        reason = f"the last axis of a {kind} is not its channels"
    if reason:
        raise TargetError(f"{speaker()}: {name} cannot be adapted, because {reason}")


def own_children(module: nn.Module) -> dict[str, nn.Module]:
    """Return the children of a module by name, without what earlier attachments have hung there.

    What is found must not depend on the adapters that a model has already, and must not look through thousands of them.
    """
    return {key: child for key, child in module._modules.items() if child is not None and not key.startswith(_HUNG)}


def own_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and what is inside, without what earlier attachments have hung there."""
    yield module
    for child in own_children(module).values():
        yield from own_modules(child)


def has_matrix(module: nn.Module) -> bool:
    """Tell whether a module, or one inside, has a parameter of two dimensions or more."""
    return any(p is not None and p.dim() > 1 for each in own_modules(module) for p in each._parameters.values())


def _width_around(modules: Mapping[str, nn.Module], name: str) -> int | None:
    """Return the width of the norms beside a module of a block, which norm what it reads or returns."""
    block = modules.get(name.rpartition(".")[0])
    sizes = {norm_size(child) for child in block._modules.values() if child is not None} if block is not None else set()
    sizes -= {None}
    return sizes.pop() if len(sizes) == 1 else None


def config_hidden_size(modules: Mapping[str, nn.Module], name: str) -> int | None:
    """Return `hidden_size` of the nearest enclosing module that has a config."""
    parts = name.split(".")
    for depth in range(len(parts), -1, -1):
        config = getattr(modules.get(".".join(parts[:depth])), "config", None)
        for attribute in ("hidden_size", "d_model"):
            size = getattr(config, attribute, None)
            if isinstance(size, int) and not isinstance(size, bool):
                return size
    return None
