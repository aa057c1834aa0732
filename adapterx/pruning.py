"""See what fusions attend to, and drop from them what they hardly use."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adapterx.compose import Fuse
from adapterx.errors import ConfigError, speaker, speaking_as
from adapterx.fusing import fusion_sets, fusions, plan_fusion, resolve_fusion
from adapterx.fusion import FUSIONS
from adapterx.host import ADAPTERS

Attention = dict[str, dict[str, list[Tensor]]]
"""By name of the fusion and of the module: `(..., parts)` for each run of the module, in order."""


@contextmanager
def fusion_attention(model: nn.Module) -> Iterator[Attention]:
    """Note the attention of every fusion inside the `with` block, run by run, without gradients.

    Args:
        model: any module that encloses the adapted ones; run it eagerly, not compiled or exported.

    Yields:
        `attention[fusion][module]`: a list with one tensor `(batch, tokens, parts)` for each run of the module, in the
        order of the parts that have an adapter there. Entries of a token sum to 1 over the parts.
    """
    attention: Attention = {}
    recording = []
    for path, hung in fusion_sets(model).items():
        for key, fusion in hung.items():
            fusion.record = attention.setdefault(key, {}).setdefault(path, [])
            recording.append(fusion)
    try:
        yield attention
    finally:
        for fusion in recording:
            fusion.record = None


def prune_fusion(
    model: nn.Module,
    fuse: Fuse | str,
    keep: int | Sequence[str],
    *,
    attention: Attention | None = None,
    name: str | None = None,
) -> Fuse:
    """Add a fusion of fewer adapters with the weights of another, which stays; nothing is detached or activated.

    Args:
        model: any module that encloses the adapted ones.
        fuse: the fusion to begin from.
        keep: the names of the adapters to keep (of stacks, the last ones), or how many: those that got the most
            attention.
        attention: what `fusion_attention` noted on examples; needed where `keep` is a number.
        name: of the new fusion; None makes it of the names.

    Returns:
        The new composition, for `set_active`.

    Raises:
        UnknownAdapterError: there is no such fusion.
        ConfigError: `keep` names none of its adapters, leaves fewer than two, or needs an attention that is not there.

    Source:
        Rücklé et al. 2021 (AdapterDrop), section 5.
    """
    with speaking_as("prune_fusion"):
        key = resolve_fusion(model, fuse)
        old = fusions(model)[key]
        by_name = {part if isinstance(part, str) else part.parts[-1]: part for part in old.parts}
        if isinstance(keep, int):
            use = attention_of_parts(model, key, attention or {})
            keep = sorted(use, key=use.get, reverse=True)[:keep]
        if strangers := sorted(set(keep) - set(by_name)):
            raise ConfigError(f"prune_fusion: keep must name adapters of {old!r}, got {strangers}")
        if len(set(keep)) < 2:
            raise ConfigError(f"prune_fusion: keep must leave two adapters or more, got {list(keep)}")
        kept = Fuse(*(part for part_name, part in by_name.items() if part_name in keep), name=name)
        first = next(hung[key] for hung in fusion_sets(model).values() if key in hung)
        plan = plan_fusion(model, kept, first.config, generator=torch.Generator().manual_seed(0))
    for path, fusion in plan.modules.items():
        source = model.get_submodule(path)._modules[FUSIONS][key]
        fusion.to(next(source.parameters(), torch.empty(0)).dtype).load_state_dict(source.state_dict())
    return plan.commit(active=False)


def attention_of_parts(model: nn.Module, key: str, attention: Attention) -> dict[str, float]:
    """Return the mean attention that each part of a fusion got, by name of its (last) adapter.

    Raises:
        ConfigError: nothing was noted of this fusion.
    """
    sums: dict[str, list[float]] = {}
    for path, hung in fusion_sets(model).items():
        for noted in attention.get(key, {}).get(path, ()) if key in hung else ():
            adapters = model.get_submodule(path)._modules[ADAPTERS]
            chains = [part if isinstance(part, tuple) else (part,) for part in hung.parts[key]]
            here = [chain[-1] for chain in chains if any(name in adapters for name in chain)]
            for name, mean in zip(here, noted.flatten(0, -2).float().mean(0).tolist(), strict=True):
                sums.setdefault(name, []).append(mean)
    if not sums:
        raise ConfigError(f"{speaker()}: attention must hold what fusion_attention noted of {key!r}, got nothing of it")
    return {name: sum(means) / len(means) for name, means in sums.items()}
