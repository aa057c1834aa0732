"""What an adapter looks like: plain, validated values, without a link to the modules that are built from them."""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import islice

from adapterx import reference
from adapterx.errors import ConfigError

PLACEMENTS = ("sequential", "parallel", "normed_sum", "residual_sum", "parallel_residual")
POSITIONS = ("attention", "cross_attention", "feed_forward")
DEFAULT_POSITIONS = ("attention", "feed_forward")
ADDED_TO = ("sum", "sum_plus_residual", "normed_plus_residual", "normed")
_ADDED_TO_BY_PLACEMENT = {"normed_sum": ADDED_TO, "residual_sum": ADDED_TO[:2]}  # all others: "sum"
ACTIVATIONS = tuple(reference.ACTIVATIONS)
LEARNED_SCALINGS = ("learned", "learned_per_channel")
INITS = ("houlsby", "xavier", "he")
UP_INITS = ("zero", "near_zero")
# Far above what any model needs, and low enough that a stranger's file cannot make the reader run for hours.
LARGEST_SIZE = 2**63 - 1
MOST_ENTRIES = 10_000
LONGEST_EXPRESSION = 2_000


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Describe one bottleneck adapter, `h' = residual + scaling * up_proj(activation(down_proj(hidden_states)))`.

    Lists are accepted wherever a tuple is named and become tuples.

    Args:
        bottleneck_dim: width m of the bottleneck, in elements. Exactly one of this and `reduction_factor` is given.
        reduction_factor: hidden size divided by m; m is rounded down and at least 1.
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
        activation: one of `ACTIVATIONS`; `"gelu"` is the exact (erf) form.
        scaling: factor on the branch, or `"learned"` (one trainable factor), or `"learned_per_channel"` (one per
            hidden channel); the trainable ones start at 1.
        dropout: probability of dropping an element of the scaled branch in training, in [0, 1).
        down_bias: whether `down_proj` has a bias.
        up_bias: whether `up_proj` has a bias.
        init: distribution of the `down_proj` weight: `"houlsby"` (normal, sigma 0.01, cut at two sigma), `"xavier"`
            (uniform) or `"he"` (Kaiming uniform with a = sqrt(5), as in MAM adapters).
        init_up: `"zero"` (the adapted model starts as exactly the base model) or `"near_zero"`.
        layers: indices of the blocks that get adapters; None means all.
        target_modules: suffixes of module names, or one string: a regular expression for the whole name. None
            chooses by `positions`.
        modules_to_save: names of modules (such as `"classifier"`) of which the adapter trains and saves a copy.

    Raises:
        ConfigError: a value breaks its rule.

    Source:
        Houlsby et al. 2019, section 2.1; Pfeiffer et al. 2021; He et al. 2021, section 3.
    """

    bottleneck_dim: int | None = None
    reduction_factor: float | None = None
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
    layers: tuple[int, ...] | None = None
    target_modules: str | tuple[str, ...] | None = None
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
        scaling, dropout = check_branch(
            "AdapterConfig",
            activation=self.activation,
            scaling=self.scaling,
            dropout=self.dropout,
            down_bias=self.down_bias,
            up_bias=self.up_bias,
            init=self.init,
            init_up=self.init_up,
        )
        self._set("scaling", scaling)
        self._set("dropout", dropout)
        self._check_places()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen for everyone else

    def _check_size(self) -> None:
        if (self.bottleneck_dim is None) == (self.reduction_factor is None):
            raise ConfigError(
                "AdapterConfig: exactly one of bottleneck_dim and reduction_factor must be given, got "
                f"bottleneck_dim={shown(self.bottleneck_dim)} and reduction_factor={shown(self.reduction_factor)}"
            )
        if self.bottleneck_dim is not None:
            check_size("AdapterConfig", "bottleneck_dim", self.bottleneck_dim)
        else:
            self._set("reduction_factor", check_finite("AdapterConfig", "reduction_factor", self.reduction_factor))
            if self.reduction_factor < 1.0:
                raise ConfigError(f"AdapterConfig: reduction_factor must be at least 1, got {self.reduction_factor!r}")

    def _check_places(self) -> None:
        positions = _names("positions", self.positions)
        if not positions or not set(positions) <= set(POSITIONS):
            raise ConfigError(f"AdapterConfig: positions must be one or more of {POSITIONS}, got {positions!r}")
        # In one order, so that equal meanings are equal values.
        self._set("positions", tuple(position for position in POSITIONS if position in positions))
        self._set("modules_to_save", _names("modules_to_save", self.modules_to_save))
        if self.layers is not None:
            self._set("layers", _block_indices(self.layers))
        if isinstance(self.target_modules, str):
            _check_expression(self.target_modules)
        elif self.target_modules is not None:
            self._set("target_modules", _names("target_modules", self.target_modules))
        if self.target_modules is not None and not self.target_modules:
            raise ConfigError("AdapterConfig: target_modules must name at least one module, got nothing")

    def resolve_bottleneck_dim(self, hidden_size: int) -> int:
        """Return the width m of the bottleneck, in elements, for a module of that hidden size."""
        if self.bottleneck_dim is not None:
            return self.bottleneck_dim
        return max(1, int(hidden_size / self.reduction_factor))

    def to_dict(self) -> dict[str, object]:
        """Return the values as JSON can hold them (tuples become lists); `from_dict` is the inverse."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

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
) -> tuple[float | str, float]:
    """Check what `AdapterConfig` and `BottleneckAdapter` have in common; return scaling and dropout as plain numbers.

    Raises:
        ConfigError: a value breaks its rule; the message names `owner`.
    """
    check_choice(owner, "activation", activation, ACTIVATIONS)
    check_choice(owner, "init", init, INITS)
    check_choice(owner, "init_up", init_up, UP_INITS)
    for name, value in (("down_bias", down_bias), ("up_bias", up_bias)):
        if not isinstance(value, bool):
            raise ConfigError(f"{owner}: {name} must be True or False, got {shown(value)}")
    if isinstance(scaling, str):
        check_choice(owner, "scaling", scaling, LEARNED_SCALINGS, alternative="a number, ")
    else:
        scaling = check_finite(owner, "scaling", scaling)
    dropout = check_finite(owner, "dropout", dropout)
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"{owner}: dropout must be in [0, 1), got {dropout!r}")
    return scaling, dropout


def check_size(owner: str, name: str, value: object) -> None:
    """Raise ConfigError unless `value` is an integer from 1 up, and a size that tensors can have."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{owner}: {name} must be an integer, got {shown(value)}")
    if value < 1:
        raise ConfigError(f"{owner}: {name} must be at least 1, got {shown(value)}")
    if value > LARGEST_SIZE:
        raise ConfigError(f"{owner}: {name} must be at most {LARGEST_SIZE}, got {shown(value)}")


def check_finite(owner: str, name: str, value: object) -> float:
    """Return `value` as a float; raise ConfigError unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ConfigError(f"{owner}: {name} must be a finite number, got {shown(value)}")
    return float(value)


def check_choice(owner: str, name: str, value: object, allowed: tuple[str, ...], *, alternative: str = "") -> None:
    """Raise ConfigError unless `value` is one of the strings that are allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{owner}: {name} must be one of {alternative}{', '.join(allowed)}, got {shown(value)}")


def shown(value: object) -> str:
    """Return a value as a message quotes it: its `repr`, unless that is too long, too deep, or has too many digits."""
    if isinstance(value, int) and value.bit_length() > 8192:  # `repr` of such an integer raises ValueError
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (list, tuple, dict)) and len(value) > MOST_ENTRIES:
        return f"a {type(value).__name__} of {len(value)} entries"
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that cannot be shown"


def _check_expression(expression: str) -> None:
    if len(expression) > LONGEST_EXPRESSION:
        raise ConfigError(
            f"AdapterConfig: target_modules must be at most {LONGEST_EXPRESSION} characters long where it is a regular "
            f"expression, got {len(expression)}; a tuple of names may be longer"
        )
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError, MemoryError, Warning) as error:  # some turn warnings into errors
        raise ConfigError(
            "AdapterConfig: target_modules must be suffixes or a valid regular expression, "
            f"got {expression!r} ({error})"
        ) from error


def _names(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise ConfigError(f"AdapterConfig: {name} must be a sequence of strings, got {shown(value)}")
    names = _entries(name, value)
    if not all(isinstance(item, str) and item for item in names):
        raise ConfigError(f"AdapterConfig: {name} must hold strings that are not empty, got {shown(value)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"AdapterConfig: {name} must not repeat a name, got {shown(value)}")
    return names


def _block_indices(value: object) -> tuple[int, ...]:
    indices = () if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable) else _entries("layers", value)
    known = [isinstance(i, int) and not isinstance(i, bool) and 0 <= i < LARGEST_SIZE for i in indices]
    if not indices or not all(known) or len(set(indices)) < len(indices):
        raise ConfigError(f"AdapterConfig: layers must be different block indices from 0 up, got {shown(value)}")
    return tuple(sorted(indices))


def _entries(name: str, value: Iterable) -> tuple:
    """Return what `value` holds, which may be endless."""
    entries = tuple(islice(value, MOST_ENTRIES + 1))
    if len(entries) > MOST_ENTRIES:
        raise ConfigError(f"AdapterConfig: {name} must hold at most {MOST_ENTRIES} entries, got {shown(value)}")
    return entries
