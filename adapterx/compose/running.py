"""What a step is, and how several run."""

from collections.abc import Callable

from torch import Tensor

from adapterx.targets.ports import Call

# Takes the hidden states that the step before gave; asks its port, with the call, what to read and what to add to.
Step = Callable[[Call, Tensor], Tensor]


def run_steps(steps: tuple[Step, ...], call: Call, hidden_states: Tensor) -> Tensor:
    """Run the steps one after the other."""
    for step in steps:
        hidden_states = step(call, hidden_states)
    return hidden_states
