"""Parameterised hypercomplex multiplication: weights as sums of Kronecker products, much of which modules share.

The weight of a map from `input_size` to `output_size` is the transpose of the sum over i of `kron(rule_i, block_i)`,
with `dim` rules of `(dim, dim)` and as many blocks of `(input_size / dim, output_size / dim)`. It is put together once
in each forward pass and then serves as any other weight does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from adapterx.checks import check_choice, check_finite, check_flags, check_size, shown
from adapterx.errors import ConfigError

BLOCK_INITS = ("xavier_normal", "xavier_uniform", "normal")
RULE_INITS = ("normal", "uniform")


@dataclass(frozen=True, kw_only=True)
class PHMConfig:
    """Describe the maps of an adapter as sums of Kronecker products (Compacter).

    Args:
        dim: number of products, n; it divides the sizes of both maps.
        rank: of a factorised block.
        bias: whether the maps have biases, as far as `down_bias` and `up_bias` of the adapter allow.
        init: distribution of the blocks: `"xavier_normal"`, `"xavier_uniform"` or `"normal"` (sigma `init_range`).
        c_init: distribution of the rules: `"normal"` (sigma `init_range`) or `"uniform"` (from -1 to 1).
        init_range: sigma of what is drawn from a normal distribution.
        learn: whether the rules are trained; they are saved in any case.
        factorized_weight: whether each block is a product of two thin matrices of `rank` columns and rows.
        shared_weight: whether all modules of an adapter share their blocks, those of the down projection and those
            of the up projection; the modules must be of one size.
        factorized_rule: whether each rule is a product of a column and a row.
        shared_rule: whether all maps of an adapter share one set of rules.

    Raises:
        ConfigError: a value breaks its rule.

    Source:
        Mahabadi et al. 2021 (Compacter); Zhang et al. 2021 (PHM).
    """

    dim: int = 4
    rank: int = 1
    bias: bool = True
    init: str = "xavier_normal"
    c_init: str = "normal"
    init_range: float = 1e-4
    learn: bool = True
    factorized_weight: bool = True
    shared_weight: bool = False
    factorized_rule: bool = False
    shared_rule: bool = True

    def __post_init__(self) -> None:
        owner = "PHMConfig"
        for name in ("dim", "rank"):
            check_size(owner, name, getattr(self, name))
        check_choice(owner, "init", self.init, BLOCK_INITS)
        check_choice(owner, "c_init", self.c_init, RULE_INITS)
        flags = ("bias", "learn", "factorized_weight", "shared_weight", "factorized_rule", "shared_rule")
        check_flags(owner, **{name: getattr(self, name) for name in flags})
        object.__setattr__(self, "init_range", check_finite(owner, "init_range", self.init_range))
        if self.init_range <= 0.0:
            raise ConfigError(f"PHMConfig: init_range must be above 0, got {self.init_range!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "PHMConfig":
        """Build a config from a mapping of its values.

        Raises:
            ConfigError: `values` is not a mapping, has keys that no version of this class knows, or breaks a rule.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"PHMConfig: values must be a mapping, got {shown(values)}")
        if unknown := sorted(set(map(str, values)) - {field.name for field in fields(cls)}):
            raise ConfigError(
                f"PHMConfig: unknown keys: {', '.join(map(repr, unknown[:8]))}; a newer adapterx may know"
            )
        return cls(**values)


class Factors(nn.Module):
    """Equally many matrices `(count, rows, columns)`, whole, or each as a product of rank `rank`.

    Where several maps share them, each has this very module for a child: it stays one, moved, copied and emptied too.
    """

    def __init__(
        self, count: int, rows: int, columns: int, rank: int | None, *, learn: bool = True, **place: object
    ) -> None:
        super().__init__()
        self.size, self.rank = (count, rows, columns), rank
        if rank is None:
            shapes = {"matrices": self.size}
        else:
            shapes = {"left": (count, rows, rank), "right": (count, rank, columns)}
        for name, shape in shapes.items():
            tensor = torch.empty(shape, **place)
            if learn:
                self.register_parameter(name, nn.Parameter(tensor))
            else:  # a parameter would be trained with its adapter
                self.register_buffer(name, tensor)

    def product(self) -> Tensor:
        """Return the matrices, `(count, rows, columns)`."""
        return self.matrices if self.rank is None else self.left @ self.right

    def draw(self, init: str, sigma: float, generator: torch.Generator | None) -> None:
        """Draw all numbers from a distribution, on the CPU in float32."""
        for tensor in self._tensors():
            drawn = torch.empty(tensor.shape, dtype=torch.float32, device="cpu")
            for matrix in drawn:
                if init.startswith("xavier"):
                    getattr(nn.init, f"{init}_")(matrix, generator=generator)
                elif init == "normal":
                    matrix.normal_(std=sigma, generator=generator)
                else:
                    matrix.uniform_(-1.0, 1.0, generator=generator)
            tensor.copy_(drawn)

    def zero(self) -> None:
        """Let the product be zero, and its gradient not."""
        self._tensors()[-1].zero_()

    def _tensors(self) -> list[Tensor]:
        return [*self._parameters.values(), *self._buffers.values()]


class PHMProjection(nn.Module):
    """A linear map of an adapter, which has its weight from a sum of Kronecker products.

    Args:
        input_size: width of what it reads, in elements.
        output_size: width of its result, in elements.
        bias: whether it has a bias, if `config` has one too.
        config: of the products.
        name: `"down"` or `"up"`, under which its blocks are shared.
        shared: what is there already of what maps share; what is new is put there.
        place: device and dtype of the parameters.

    Raises:
        ConfigError: a size is no multiple of `config.dim`, or the maps that share blocks differ in size.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        bias: bool,
        config: PHMConfig,
        name: str,
        shared: dict[str, Factors],
        **place: object,
    ) -> None:
        super().__init__()
        dim = config.dim
        for size in (input_size, output_size):
            if size % dim:
                raise ConfigError(
                    f"BottleneckAdapter: input_size, hidden_size and bottleneck_dim must be multiples of phm.dim, "
                    f"which is {dim}, got {input_size} -> {output_size} for the {name} projection"
                )
        self.config = config
        rank = config.rank if config.factorized_weight else None
        rule, blocks = shared.get("rule"), shared.get(name)
        if rule is None or not config.shared_rule:
            rule = Factors(dim, dim, dim, 1 if config.factorized_rule else None, learn=config.learn, **place)
        if blocks is None or not config.shared_weight:
            blocks = Factors(dim, input_size // dim, output_size // dim, rank, **place)
        if blocks.size != (dim, input_size // dim, output_size // dim):
            sizes = f"{blocks.size[1] * dim} -> {blocks.size[2] * dim} and {input_size} -> {output_size}"
            raise ConfigError(
                f"BottleneckAdapter: phm.shared_weight must be False where modules differ in size, got {sizes}"
            )
        shared |= {"rule": rule, name: blocks}
        self.rule, self.blocks = rule, blocks
        self.bias = nn.Parameter(torch.empty(output_size, **place)) if bias and config.bias else None

    @property
    def weight(self) -> Tensor:
        """The weight as `nn.Linear` has it, `(output_size, input_size)`, put together anew."""
        blocks = self.blocks.product()
        rule = self.rule.product().to(blocks)
        # Of the input, index a counts the parts of size I, i within one; of the output, b and o.
        return torch.einsum("nab,nio->boai", rule, blocks).flatten(2, 3).flatten(0, 1)

    def draw(self, init: str, generator: torch.Generator | None) -> None:
        """Draw the weight as `config` says, which takes the place of `init`; `"zero"` makes it zero. No bias is set."""
        config = self.config
        self.rule.draw(config.c_init, config.init_range, generator)
        self.blocks.draw(config.init, config.init_range, generator)
        if init == "zero":
            self.blocks.zero()

    def extra_repr(self) -> str:
        """Return what `print(model)` shows beside the children."""
        dim, rows, columns = self.blocks.size
        return f"{dim * rows} -> {dim * columns}, dim={dim}, bias={self.bias is not None}"
