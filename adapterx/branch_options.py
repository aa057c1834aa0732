"""The options that `AdapterConfig` and `BottleneckAdapter` have in common, and their rules."""

from adapterx.activations import ACTIVATIONS
from adapterx.checks import check_choice, check_finite, check_flags, check_probability, shown
from adapterx.errors import ConfigError
from adapterx.phm import PHMConfig

LEARNED_SCALINGS = ("learned", "learned_per_channel")
INITS = ("houlsby", "xavier", "he")
UP_INITS = ("zero", "near_zero")
AFTER = ("branch", "sum")
BRANCH = (
    "activation",
    "scaling",
    "dropout",
    "down_bias",
    "up_bias",
    "init",
    "init_up",
    "norm_before",
    "norm_after",
    "gating",
    "stochastic_depth",
    "phm",
)


def check_branch(
    owner: str,
    *,
    activation: str,
    scaling: float | str,
    dropout: float,
    down_bias: bool,
    up_bias: bool,
    init: str,
    init_up: str,
    norm_before: bool,
    norm_after: str | None,
    gating: bool,
    stochastic_depth: float,
    phm: PHMConfig | None,
) -> dict[str, float | str]:
    """Check the options `BRANCH`; return those that are numbers, as plain ones.

    Raises:
        ConfigError: a value breaks its rule; the message names `owner`.
    """
    check_choice(owner, "activation", activation, ACTIVATIONS)
    check_choice(owner, "init", init, INITS)
    check_choice(owner, "init_up", init_up, UP_INITS)
    check_flags(owner, down_bias=down_bias, up_bias=up_bias, norm_before=norm_before, gating=gating)
    if norm_after is not None:
        check_choice(owner, "norm_after", norm_after, AFTER, alternative="None, ")
    if not isinstance(phm, PHMConfig | None):
        raise ConfigError(f"{owner}: phm must be a PHMConfig, or None, got {shown(phm)}")
    if isinstance(scaling, str):
        check_choice(owner, "scaling", scaling, LEARNED_SCALINGS, alternative="a number, ")
    else:
        scaling = check_finite(owner, "scaling", scaling)
    return {
        "scaling": scaling,
        "dropout": check_probability(owner, "dropout", dropout),
        "stochastic_depth": check_probability(owner, "stochastic_depth", stochastic_depth),
    }
