"""Where adapters go: which modules of a model they hang on, what they read there, and how wide they are."""

from adapterx.targets.ends import Ends, find_ends
from adapterx.targets.find import Target, block_of, find_blocks, find_targets
from adapterx.targets.norms import find_norms
from adapterx.targets.ports import Input, NormedOutput, NormedSum, Output, Port, ResidualSum

__all__ = [
    "Ends",
    "Input",
    "NormedOutput",
    "NormedSum",
    "Output",
    "Port",
    "ResidualSum",
    "Target",
    "block_of",
    "find_blocks",
    "find_ends",
    "find_norms",
    "find_targets",
]
