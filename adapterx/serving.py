"""Which options of an adapter the fused kernels serve, in words."""

from adapterx.config import AdapterConfig
from adapterx.reference import ACTIVATIONS


def what_runs_where(config: AdapterConfig) -> tuple[str, ...]:
    """Return in words what of a configuration the fused kernels do not serve, and what runs in its place."""
    told = []
    if config.activation not in ACTIVATIONS:
        told.append(f"activation {config.activation!r}: the kernels have none such, so both maps run in plain PyTorch")
    if config.phm is not None:
        told.append("phm: the weights are put together in plain PyTorch once a forward pass, then as usual")
    around = [
        name
        for name, used in (
            ("norm_before", config.norm_before),
            ("norm_after", config.norm_after),
            ("gating", config.gating),
            ("stochastic_depth", config.stochastic_depth),
        )
        if used
    ]
    if around:
        told.append(f"{', '.join(around)}: in plain PyTorch around the branch, and the residual is added there too")
    if config.invertible is not None:
        told.append(f"invertible {config.invertible!r}: its maps as those of the branch, what couples them in PyTorch")
    return tuple(told)
