"""What an adapter looks like: plain, validated values, without a link to the modules that are built from them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial

from adapterx.branch_options import BRANCH, check_branch
from adapterx.checks import (
    check_block_indices,
    check_choice,
    check_expression,
    check_finite,
    check_flags,
    check_names,
    check_size,
    shown,
)
from adapterx.errors import ConfigError
from adapterx.per_block import PerBlock
from adapterx.phm import PHMConfig

PLACEMENTS = ("sequential", "parallel", "normed_sum", "residual_sum", "parallel_residual")
POSITIONS = ("attention", "cross_attention", "feed_forward")
DEFAULT_POSITIONS = ("attention", "feed_forward")
ADDED_TO = ("sum", "sum_plus_residual", "normed_plus_residual", "normed")
_ADDED_TO_BY_PLACEMENT = {"normed_sum": ADDED_TO, "residual_sum": ADDED_TO[:2]}  # all others: "sum"
# Options that files of earlier versions lack.
ADDED = (
    "norm_before",
    "norm_after",
    "gating",
    "stochastic_depth",
    "phm",
    "invertible",
    "invertible_reduction_factor",
    "train_norms",
)
INVERTIBLE = ("nice", "glow")
# A wider bottleneck than this many times the hidden size is a mistake, and would let a stranger's file take all memory.
SMALLEST_FACTOR = 1 / 1024


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Describe one bottleneck adapter, `h' = residual + scaling * up_proj(activation(down_proj(hidden_states)))`.

    Lists are accepted wherever a tuple is named and become tuples.

    Args:
        bottleneck_dim: width m of the bottleneck, in elements, or a mapping from block indices, and `"default"` for the
            others, to widths. Exactly one of this and `reduction_factor` is given.
        reduction_factor: hidden size divided by m, or such a mapping; m is rounded down and at least 1. Below 1 the
            bottleneck is wider than the hidden states, down to 1/1024.
        placement: `"sequential"` reads and changes the sublayer's output (Houlsby et al. 2019); `"parallel"` reads
            what the sublayer reads and adds to its output (He et al. 2021); `"normed_sum"` reads the LayerNorm of the
            sublayer's output and the residual stream, and adds before it is normed again (Pfeiffer et al. 2021). In
            models that norm before each sublayer instead, `"residual_sum"` reads that sum without a LayerNorm, and
            `"parallel_residual"` reads the residual stream where `"parallel"` reads what was normed of it.
        added_to: what a `"normed_sum"` branch is added to: `"sum"` (output + residual), `"sum_plus_residual"` (the
            residual once more) or `"normed_plus_residual"`, and the result goes through the LayerNorm; or `"normed"`,
            the LayerNorm's result, which is not normed again. `"residual_sum"` takes the first two.
        positions: behind which sublayers of each block adapters stand: `"attention"`, `"cross_attention"` (the decoder
            attends to the encoder), `"feed_forward"`. The default, without the second, is Houlsby's choice,
            `("feed_forward",)` Pfeiffer's. Not used when `target_modules` is given.
        activation: one of `adapterx.activations.ACTIVATIONS`; `"gelu"` is the exact (erf) form, `"prelu"` has one
            trainable slope. Those that the kernels do not know run in plain PyTorch.
        scaling: factor on the branch, or `"learned"` (one trainable factor), or `"learned_per_channel"` (one per
            hidden channel); the trainable ones start at 1.
        dropout: probability of dropping an element of the scaled branch in training, in [0, 1).
        down_bias: whether `down_proj` has a bias.
        up_bias: whether `up_proj` has a bias.
        init: distribution of the `down_proj` weight: `"houlsby"` (normal, sigma 0.01, cut at two sigma), `"xavier"`
            (uniform) or `"he"` (Kaiming uniform with a = sqrt(5), as in MAM adapters).
        init_up: `"zero"` (the adapted model starts as exactly the base model) or `"near_zero"`.
        norm_before: whether a trainable LayerNorm stands before `down_proj`.
        norm_after: `"branch"` for a trainable LayerNorm of the scaled branch, `"sum"` for one of residual + branch,
            with which the adapted model does not start as the base model; None for neither.
        gating: whether the branch is multiplied by a trainable gate, one number for each example: the mean over its
            tokens, padding included, of `sigmoid(w · token + b)` of what is read.
        stochastic_depth: probability of dropping the whole branch of an example in training, in [0, 1).
        phm: makes both maps sums of Kronecker products (Compacter), with an initialisation of their own in place of
            `init`; a `PHMConfig` or a mapping of its values. None leaves them as they are.
        layers: indices of the blocks that get adapters; None means all.
        target_modules: suffixes of module names, or one string: a regular expression for the whole name. None
            chooses by `positions`.
        invertible: `"nice"` or `"glow"` for an invertible adapter between the embeddings and the first block, which is
            undone before the head of a language model (MAD-X); None for none. It starts as the identity.
        invertible_reduction_factor: width of half the embeddings, divided by that of its bottleneck.
        train_norms: whether the adapter trains copies of the model's own norms in the blocks that it adapts, as Houlsby
            et al. trained theirs; the base model's stay as they are.
        modules_to_save: names of modules (such as `"classifier"`) of which the adapter trains and saves a copy.

    Raises:
        ConfigError: a value breaks its rule.

    Source:
        Houlsby et al. 2019, section 2.1; Pfeiffer et al. 2021; He et al. 2021, section 3; gating: Mao et al. 2022
        (UniPELT); stochastic depth: Huang et al. 2016; invertible: Pfeiffer et al. 2020.
    """

    bottleneck_dim: int | Mapping[int | str, int] | None = None
    reduction_factor: float | Mapping[int | str, float] | None = None
    placement: str = "sequential"
    added_to: str = "sum"
    positions: tuple[str, ...] = DEFAULT_POSITIONS
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
    phm: PHMConfig | None = None
    layers: tuple[int, ...] | None = None
    target_modules: str | tuple[str, ...] | None = None
    invertible: str | None = None
    invertible_reduction_factor: float = 2.0
    train_norms: bool = False
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_size()
        for name, allowed in (("placement", PLACEMENTS), ("added_to", ADDED_TO)):
            check_choice("AdapterConfig", name, getattr(self, name), allowed)
        allowed = _ADDED_TO_BY_PLACEMENT.get(self.placement, ("sum",))
        if self.added_to not in allowed:
            raise ConfigError(
                f"AdapterConfig: added_to must be {' or '.join(map(repr, allowed))} where placement is "
                f"{self.placement!r}, got {self.added_to!r}"
            )
        if isinstance(self.phm, Mapping):
            self._set("phm", PHMConfig.from_dict(self.phm))
        numbers = check_branch("AdapterConfig", **self.branch_options())
        for name, value in numbers.items():
            self._set(name, value)
        check_flags("AdapterConfig", train_norms=self.train_norms)
        if self.invertible is not None:
            check_choice("AdapterConfig", "invertible", self.invertible, INVERTIBLE, alternative="None, ")
        name = "invertible_reduction_factor"
        self._set(name, _factor("AdapterConfig", name, self.invertible_reduction_factor))
        self._check_places()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen for everyone else

    def _check_size(self) -> None:
        if (self.bottleneck_dim is None) == (self.reduction_factor is None):
            raise ConfigError(
                "AdapterConfig: exactly one of bottleneck_dim and reduction_factor must be given, got "
                f"bottleneck_dim={shown(self.bottleneck_dim)} and reduction_factor={shown(self.reduction_factor)}"
            )
        for name, check in (("bottleneck_dim", _width), ("reduction_factor", _factor)):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                self._set(name, PerBlock("AdapterConfig", name, value, check))
            elif value is not None:
                self._set(name, check("AdapterConfig", name, value))

    def _check_places(self) -> None:
        names = partial(check_names, "AdapterConfig")
        positions = names("positions", self.positions)
        if not positions or not set(positions) <= set(POSITIONS):
            raise ConfigError(f"AdapterConfig: positions must be one or more of {POSITIONS}, got {positions!r}")
        # In one order, so that equal meanings are equal values.
        self._set("positions", tuple(position for position in POSITIONS if position in positions))
        self._set("modules_to_save", names("modules_to_save", self.modules_to_save))
        if self.layers is not None:
            self._set("layers", check_block_indices("AdapterConfig", "layers", self.layers))
        if isinstance(self.target_modules, str):
            check_expression("AdapterConfig", "target_modules", self.target_modules)
        elif self.target_modules is not None:
            self._set("target_modules", names("target_modules", self.target_modules))
        if self.target_modules is not None and not self.target_modules:
            raise ConfigError("AdapterConfig: target_modules must name at least one module, got nothing")

    def resolve_bottleneck_dim(self, hidden_size: int, block: int | None = None) -> int:
        """Return the width m of the bottleneck, in elements, for a module of that hidden size.

        Args:
            hidden_size: width of what the adapter adds to.
            block: index of the block that the module is in; None where it is in none.

        Raises:
            ConfigError: a mapping has neither the block nor `"default"`.
        """
        dim, factor = _of_block("bottleneck_dim", self.bottleneck_dim, block), None
        if dim is None:
            factor = _of_block("reduction_factor", self.reduction_factor, block)
            dim = max(1, int(hidden_size / factor))
        return dim

    def branch_options(self) -> dict[str, object]:
        """Return the options of the branch, for `BottleneckAdapter`."""
        return {name: getattr(self, name) for name in BRANCH}

    def to_dict(self) -> dict[str, object]:
        """Return the values as JSON can hold them (tuples become lists); `from_dict` is the inverse.

        Options that were added after version 0.1.0 are left out at their defaults: older versions read such files.
        """
        values = {name: _as_json(value) for name, value in vars(self).items()}
        defaults = {field.name: field.default for field in fields(self) if field.name in ADDED}
        return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "AdapterConfig":
        """Build a config from `to_dict`'s form.

        Raises:
            ConfigError: `values` is not a mapping, has keys that no version of this class knows, or breaks a rule.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"AdapterConfig: values must be a mapping, got {type(values).__name__}")
        unknown = sorted(set(map(str, values)) - {field.name for field in fields(cls)})
        if unknown:
            names = [key if key.isidentifier() else repr(key) for key in unknown[:8]]
            more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
            raise ConfigError(f"AdapterConfig: unknown keys: {', '.join(names)}{more}; a newer adapterx may know them")
        return cls(**values)


def _width(owner: str, name: str, value: object) -> int:
    check_size(owner, name, value)
    return value


def _factor(owner: str, name: str, value: object) -> float:
    factor = check_finite(owner, name, value)
    if factor < SMALLEST_FACTOR:
        raise ConfigError(f"{owner}: {name} must be at least 1/1024, got {value!r}")
    return factor


def _of_block(name: str, value: float | PerBlock | None, block: int | None) -> float | None:
    """Return the number for a block, of a mapping or the one for all."""
    if not isinstance(value, PerBlock):
        return value
    number = value.of_block(block)
    if number is None:
        where = "modules outside the blocks" if block is None else f"block {block}"
        raise ConfigError(f"AdapterConfig: {name} must hold a number for {where}, or 'default', got {value!r}")
    return number


def _as_json(value: object) -> object:
    if isinstance(value, PerBlock):
        return value.to_dict()
    if isinstance(value, PHMConfig):
        return asdict(value)
    return list(value) if isinstance(value, tuple) else value
