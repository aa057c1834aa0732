"""What an adapter looks like, as a configuration of PEFT."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from peft.config import PeftConfig

from adapterx.checkpoint.formats import PEFT_TYPE
from adapterx.config import DEFAULT_POSITIONS, AdapterConfig
from adapterx.errors import ConfigError

OWN = tuple(each.name for each in fields(AdapterConfig))


class AdapterxType(str, enum.Enum):
    """The method's name in PEFT's tables; `peft.PeftType` takes no members from outside."""

    ADAPTERX_BOTTLENECK = PEFT_TYPE


@dataclass
class BottleneckConfig(PeftConfig):
    """Describe a bottleneck adapter to `peft.get_peft_model`; the options are those of `adapterx.AdapterConfig`.

    Args:
        bottleneck_dim: width of the bottleneck, or one for each block.
        reduction_factor: hidden size divided by the width; 16 where neither is given.
        placement: what the adapter reads, and where its result goes.
        added_to: what a `"normed_sum"` branch is added to.
        positions: behind which sublayers adapters stand, where `target_modules` is None.
        activation: of the bottleneck.
        scaling: factor on the branch, or `"learned"`, or `"learned_per_channel"`.
        dropout: on the scaled branch, in training.
        down_bias: whether `down_proj` has a bias.
        up_bias: whether `up_proj` has a bias.
        init: distribution of the `down_proj` weight.
        init_up: `"zero"`, with which the model starts as the base model, or `"near_zero"`.
        norm_before: whether a LayerNorm stands before `down_proj`.
        norm_after: `"branch"`, `"sum"` or None: what a LayerNorm norms.
        gating: whether the branch of each example has a gate.
        stochastic_depth: probability of dropping the branch of an example in training.
        phm: makes both maps sums of Kronecker products; a mapping of the values of `PHMConfig`.
        layers: indices of the blocks that get adapters; None means all.
        target_modules: as PEFT means it: names or ends of names, one regular expression, or `"all-linear"`. None
            chooses by `positions`: the table of the model's type, or its structure.
        invertible: `"nice"`, `"glow"` or None.
        invertible_reduction_factor: of the invertible adapter.
        train_norms: whether copies of the norms in the adapted blocks are trained.
        modules_to_save: ends of names of modules that PEFT trains and saves a copy of, such as `"classifier"`.
        exclude_modules: as PEFT means it: what `target_modules` shall not take.
        adapted_modules: filled in by `get_peft_model`: the adapted modules, with position and sizes. An adapter that
            is loaded must find the same.
        base_check: what tells the base model from others, where `adapterx` has recorded it (`to_peft`); it is compared
            when the adapter is loaded. PEFT records none.

    Raises:
        ConfigError: a value breaks its rule.
    """

    bottleneck_dim: Any = None
    reduction_factor: Any = None
    placement: str = "sequential"
    added_to: str = "sum"
    positions: list[str] = field(default_factory=lambda: list(DEFAULT_POSITIONS))
    activation: str = "gelu"
    scaling: float | str = 1.0
    dropout: float = 0.0
    down_bias: bool = True
    up_bias: bool = True
    init: str = "houlsby"
    init_up: str = "zero"
    norm_before: bool = False
    norm_after: str | None = None
    gating: bool = False
    stochastic_depth: float = 0.0
    phm: dict[str, Any] | None = None
    layers: list[int] | None = None
    target_modules: list[str] | str | None = None
    invertible: str | None = None
    invertible_reduction_factor: float = 2.0
    train_norms: bool = False
    modules_to_save: list[str] | None = None
    exclude_modules: list[str] | str | None = None
    adapted_modules: dict[str, dict[str, Any]] | None = None
    base_check: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = AdapterxType.ADAPTERX_BOTTLENECK
        if self.bottleneck_dim is None and self.reduction_factor is None:
            self.reduction_factor = 16.0
        if self.exclude_modules and self.target_modules is None:
            raise ConfigError("BottleneckConfig: exclude_modules must be given with target_modules, which is None")
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                # PEFT appends to modules_to_save what is in it already, each time that an adapter is loaded.
                setattr(self, name, sorted(value) if isinstance(value, (set, frozenset)) else [*dict.fromkeys(value)])
        copied = self.modules_to_save
        for name, value in self.to_adapter_config().to_dict().items():
            setattr(self, name, value)
        self.modules_to_save = copied

    def to_adapter_config(self, chosen: Sequence[str] | None = None) -> AdapterConfig:
        """Return the options as adapterx takes them.

        Args:
            chosen: qualified names of the modules that `target_modules` means in a model; None leaves it as it is.

        Returns:
            All options but `modules_to_save`, where PEFT names the ends of names, if `chosen` is given.

        Raises:
            ConfigError: a value breaks its rule.
        """
        values = {name: getattr(self, name) for name in OWN}
        values["modules_to_save"] = () if chosen is not None else self.modules_to_save or ()
        if chosen:
            values["target_modules"] = tuple(chosen)
        try:
            return AdapterConfig(**values)
        except ConfigError as error:
            raise ConfigError(f"BottleneckConfig: {str(error).removeprefix('AdapterConfig: ')}") from error
