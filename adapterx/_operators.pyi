"""Types of `torch.ops.adapterx`. Written by `make docs` from the registered schemas; do not edit.

For type checkers only: at run time there is no such module. `adapterx.ops.operators` has these types.
"""

from typing import Protocol

from torch import Tensor

class BottleneckAdapterOperator(Protocol):
    @property
    def default(self) -> BottleneckAdapterOperator: ...
    def __call__(
        self,
        hidden_states: Tensor,
        residual: Tensor | None,
        down_weight: Tensor,
        down_bias: Tensor | None,
        up_weight: Tensor,
        up_bias: Tensor | None,
        activation: str,
        scaling: float,
        adapter_indices: Tensor | None = None,
    ) -> Tensor: ...

class BottleneckAdapterBackwardOperator(Protocol):
    @property
    def default(self) -> BottleneckAdapterBackwardOperator: ...
    def __call__(
        self,
        grad_output: Tensor,
        hidden_states: Tensor | None,
        pre_activation: Tensor | None,
        down_weight: Tensor | None,
        up_weight: Tensor | None,
        activation: str,
        scaling: float,
        add_grad_output: bool,
        output_mask: list[bool],
        adapter_indices: Tensor | None = None,
        num_adapters: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...

class BottleneckAdapterTrainOperator(Protocol):
    @property
    def default(self) -> BottleneckAdapterTrainOperator: ...
    def __call__(
        self,
        hidden_states: Tensor,
        residual: Tensor | None,
        down_weight: Tensor,
        down_bias: Tensor | None,
        up_weight: Tensor,
        up_bias: Tensor | None,
        activation: str,
        scaling: float,
        adapter_indices: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...

class BuildInfoOperator(Protocol):
    @property
    def default(self) -> BuildInfoOperator: ...
    def __call__(self) -> str: ...

class SortTokensOperator(Protocol):
    @property
    def default(self) -> SortTokensOperator: ...
    def __call__(
        self,
        adapter_indices: Tensor,
        num_tokens: int,
        num_adapters: int,
    ) -> Tensor: ...

class Operators(Protocol):
    @property
    def bottleneck_adapter(self) -> BottleneckAdapterOperator: ...
    @property
    def bottleneck_adapter_backward(self) -> BottleneckAdapterBackwardOperator: ...
    @property
    def bottleneck_adapter_train(self) -> BottleneckAdapterTrainOperator: ...
    @property
    def build_info(self) -> BuildInfoOperator: ...
    @property
    def sort_tokens(self) -> SortTokensOperator: ...
