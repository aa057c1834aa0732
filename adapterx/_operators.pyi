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
    ) -> tuple[Tensor, Tensor]: ...

class BuildInfoOperator(Protocol):
    @property
    def default(self) -> BuildInfoOperator: ...
    def __call__(self) -> str: ...

class GroupedBottleneckAdapterOperator(Protocol):
    @property
    def default(self) -> GroupedBottleneckAdapterOperator: ...
    def __call__(
        self,
        hidden_states: Tensor,
        residual: Tensor | None,
        adapter_indices: Tensor,
        down_weight: Tensor,
        down_bias: Tensor | None,
        up_weight: Tensor,
        up_bias: Tensor | None,
        activation: str,
        scaling: float,
    ) -> Tensor: ...

class GroupedBottleneckAdapterBackwardOperator(Protocol):
    @property
    def default(self) -> GroupedBottleneckAdapterBackwardOperator: ...
    def __call__(
        self,
        grad_output: Tensor,
        hidden_states: Tensor | None,
        pre_activation: Tensor | None,
        adapter_indices: Tensor,
        down_weight: Tensor | None,
        up_weight: Tensor | None,
        num_groups: int,
        activation: str,
        scaling: float,
        add_grad_output: bool,
        output_mask: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...

class GroupedBottleneckAdapterTrainOperator(Protocol):
    @property
    def default(self) -> GroupedBottleneckAdapterTrainOperator: ...
    def __call__(
        self,
        hidden_states: Tensor,
        residual: Tensor | None,
        adapter_indices: Tensor,
        down_weight: Tensor,
        down_bias: Tensor | None,
        up_weight: Tensor,
        up_bias: Tensor | None,
        activation: str,
        scaling: float,
    ) -> tuple[Tensor, Tensor]: ...

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
    def grouped_bottleneck_adapter(self) -> GroupedBottleneckAdapterOperator: ...
    @property
    def grouped_bottleneck_adapter_backward(self) -> GroupedBottleneckAdapterBackwardOperator: ...
    @property
    def grouped_bottleneck_adapter_train(self) -> GroupedBottleneckAdapterTrainOperator: ...
