"""AdapterFusion itself: attention over what several adapters give, as a module that knows no model."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapterx.config import check_finite, check_size, shown
from adapterx.errors import ConfigError

FUSIONS = "adapterx_fusions"
"""Name of the child of an adapted module that holds its fusions."""

FIRST_TEMPERATURE = 50.0
# How much one backward pass takes off: after a thousand of them the temperature is 1 (about).
TEMPERATURE_STEP = FIRST_TEMPERATURE / 1000.0
_INIT_SIGMA = 0.02
# Beside the ones on the diagonal of `value`, where AdapterHub begins too.
_OFF_DIAGONAL = 1e-6


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Describe the attention of an AdapterFusion; the defaults are the dynamic variant of Pfeiffer et al. 2021.

    `FusionConfig(value=False, regularization=False)` is the static variant of AdapterHub.

    Args:
        query: whether the query is a trained linear map of what the adapters read, or that itself.
        key: whether the keys are trained linear maps of what the adapters give, or that itself.
        value: whether the result goes through a trained linear map without bias. Applying it to each value before
            the softmax weighs them, as AdapterHub's `value_before_softmax` may ask for, gives the same.
        query_before_ln: whether a query of `"normed_sum"` adapters is the sublayer's output, before the residual stream
            is added and the sum is normed; other adapters read that anyway.
        regularization: whether `fusion_regularization` counts the value map's distance from the identity.
        residual_before: whether keys and values hold the residual, or it is added to the result.
        temperature: whether the softmax begins at temperature 50, which each backward pass lowers by 0.05 down to 1.
        value_initialized: whether the value map begins as the identity, or as small random numbers.
        dropout: probability of dropping a score before the softmax in training, in [0, 1).

    Raises:
        ConfigError: a value breaks its rule.

    Source:
        Pfeiffer et al. 2021 (AdapterFusion), section 3; the options are those of AdapterHub.
    """

    query: bool = True
    key: bool = True
    value: bool = True
    query_before_ln: bool = False
    regularization: bool = True
    residual_before: bool = False
    temperature: bool = False
    value_initialized: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type is bool and not isinstance(getattr(self, field.name), bool):
                value = shown(getattr(self, field.name))
                raise ConfigError(f"FusionConfig: {field.name} must be True or False, got {value}")
        if self.regularization and not self.value:
            raise ConfigError("FusionConfig: regularization must be False where value is False, got True")
        dropout = check_finite("FusionConfig", "dropout", self.dropout)
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"FusionConfig: dropout must be in [0, 1), got {dropout!r}")
        object.__setattr__(self, "dropout", dropout)  # the dataclass is frozen for everyone else

    def to_dict(self) -> dict[str, object]:
        """Return the values as JSON can hold them; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "FusionConfig":
        """Build a config from `to_dict`'s form.

        Raises:
            ConfigError: `values` is not a mapping, has unknown keys, or breaks a rule.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"FusionConfig: values must be a mapping, got {type(values).__name__}")
        if unknown := sorted(set(map(str, values)) - {field.name for field in fields(cls)}):
            raise ConfigError(f"FusionConfig: unknown keys: {', '.join(unknown[:8])}; a newer adapterx may know them")
        return cls(**values)


class AdapterFusion(nn.Module):
    """Attend over what several adapters give: `softmax(query(x) . key(z_i) / temperature)` weighs `value(z_i)`.

    The weights belong to the module and not to single adapters, so any number of them can be attended to. The keys and
    values of the formula are never formed: `q . (W z + b) = (W^T q) . z + q . b`, and the value map is linear, so three
    products of `hidden_size` x `hidden_size` serve a token, however many adapters there are.

    Args:
        hidden_size: width of what the adapters give, in elements.
        config: which maps there are, and how they begin.
        query_size: width of what the query reads, in elements; None takes `hidden_size`.
        generator: source of the random numbers, on the CPU; None takes the global one.
        device: where the parameters live.
        dtype: floating dtype of the parameters.

    Raises:
        ConfigError: a value breaks its rule, or the query is not mapped and has another width.

    Source:
        Pfeiffer et al. 2021 (AdapterFusion), section 3.
    """

    def __init__(
        self,
        hidden_size: int,
        config: FusionConfig,
        *,
        query_size: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        query_size = hidden_size if query_size is None else query_size
        for name, size in (("hidden_size", hidden_size), ("query_size", query_size)):
            check_size("AdapterFusion", name, size)
        if query_size != hidden_size and not config.query:
            raise ConfigError(
                f"AdapterFusion: query must be True where it reads {query_size} elements and the adapters give "
                f"{hidden_size}, got False"
            )
        self.config, self.hidden_size = config, hidden_size
        place = {"device": device or "cpu", "dtype": dtype}
        self.query = nn.utils.skip_init(nn.Linear, query_size, hidden_size, **place) if config.query else None
        self.key = nn.utils.skip_init(nn.Linear, hidden_size, hidden_size, **place) if config.key else None
        self.value = (
            nn.utils.skip_init(nn.Linear, hidden_size, hidden_size, bias=False, **place) if config.value else None
        )
        temperature = torch.tensor(FIRST_TEMPERATURE, device=place["device"]) if config.temperature else None
        self.register_buffer("temperature", temperature)
        self.record: list[Tensor] | None = None  # where `fusion_attention` wants the attention of each run
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise all parameters, for example after `to_empty` has given a meta model its memory."""
        for linear in (self.query, self.key, self.value):
            if linear is None or linear.weight.is_meta:
                continue
            if linear is self.value and self.config.value_initialized:
                linear.weight.fill_(_OFF_DIAGONAL).fill_diagonal_(1.0)
                continue
            # Drawn on the CPU in float32, so that a seed means the same weights on every device and in every dtype.
            draw = torch.empty(linear.weight.shape, dtype=torch.float32, device="cpu")
            linear.weight.copy_(draw.normal_(std=_INIT_SIGMA, generator=generator))
            if linear.bias is not None:
                linear.bias.zero_()
        if self.temperature is not None and not self.temperature.is_meta:
            self.temperature.fill_(FIRST_TEMPERATURE)

    def forward(self, query: Tensor, branches: Tensor, residual: Tensor) -> Tensor:
        """Return the residual and the attended branches.

        Args:
            query: `(..., query_size)`, what the adapters read; any floating dtype.
            branches: `(adapters, ..., hidden_size)`, what each of them would add.
            residual: `(..., hidden_size)`.

        Returns:
            `(..., hidden_size)` in the dtype of `residual`.
        """
        dtype = next((parameter.dtype for parameter in self.parameters()), branches.dtype)
        values = branches.to(dtype)
        if self.config.residual_before:
            values = values + residual.to(dtype)
        attention = self.attention(query.to(dtype), values)
        mixed = (attention.unsqueeze(-1) * values).sum(0)
        if self.value is not None:
            mixed = functional.linear(mixed, self.value.weight)
        return (mixed if self.config.residual_before else residual + mixed).to(residual.dtype)

    def attention(self, query: Tensor, values: Tensor) -> Tensor:
        """Return the weights of the values, `(adapters, ...)`, which sum to 1 over the adapters."""
        projected = query if self.query is None else functional.linear(query, self.query.weight, self.query.bias)
        if self.key is None:
            scores = (projected * values).sum(-1)
        else:
            scores = (functional.linear(projected, self.key.weight.t()) * values).sum(-1)
            scores = scores + (projected * self.key.bias).sum(-1)
        scores = functional.dropout(scores, self.config.dropout, self.training)
        if self.temperature is not None:
            scores = self._cooled(scores)
        attention = torch.softmax(scores, dim=0)
        if self.record is not None:
            self.record.append(attention.detach().movedim(0, -1))
        return attention

    def _cooled(self, scores: Tensor) -> Tensor:
        """Divide by the temperature, and lower it with the backward pass: checkpoints run a forward pass twice."""
        # By its reciprocal, a tensor of its own, so that lowering it leaves what the backward pass reads.
        cooled = scores * self.temperature.reciprocal().to(scores.dtype)
        if self.training and cooled.requires_grad:
            if torch.compiler.is_compiling():  # which has no hooks between two of its operations
                self._cool()
            else:
                cooled.register_hook(lambda _gradient: self._cool())
        return cooled

    @torch.no_grad()
    def _cool(self) -> None:
        self.temperature.sub_(TEMPERATURE_STEP).clamp_(min=1.0)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows beside the children."""
        return f"hidden_size={self.hidden_size}"


class FusionSet(nn.ModuleDict):
    """All fusions of one base module, by name; child `adapterx_fusions` of that module.

    Attributes:
        parts: by name of the fusion, the names of the adapters that it fuses, of stacked ones a tuple.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, tuple[str | tuple[str, ...], ...]] = {}

    def hang(self, name: str, fusion: AdapterFusion, parts: tuple[str | tuple[str, ...], ...]) -> None:
        """Add a fusion of the adapters `parts`."""
        self[name] = fusion
        self.parts[name] = parts

    def remove(self, name: str) -> None:
        """Take a fusion off."""
        del self[name]
        del self.parts[name]

    def rename_adapter(self, old: str, new: str) -> None:
        """Give an adapter another name, and fusions that are named after their adapters with it."""
        for name, parts in list(self.parts.items()):
            fusion = self[name]
            renamed = _renamed(parts, old, new)
            self.remove(name)
            self.hang(_name_of(renamed) if name == _name_of(parts) else name, fusion, renamed)

    def remove_those_of(self, adapters: Collection[str]) -> None:
        """Take off the fusions that fuse one of these adapters."""
        for name, parts in list(self.parts.items()):
            fused = {each for part in parts for each in ((part,) if isinstance(part, str) else part)}
            if not fused.isdisjoint(adapters):
                self.remove(name)


def _renamed(parts: tuple, old: str, new: str) -> tuple:
    return tuple(
        _renamed(part, old, new) if isinstance(part, tuple) else new if part == old else part for part in parts
    )


def _name_of(parts: tuple) -> str:
    """Return the name that a fusion of these adapters has by default, as `Fuse.key` says it."""
    return ",".join(part[-1] if isinstance(part, tuple) else part for part in parts)
