"""Where adapters go: which modules of a model they hang on, what they read there, and how wide they are."""

from adapterx.targets.find import Target, block_of, find_blocks, find_targets
from adapterx.targets.ports import Input, NormedSum, Output, Port

__all__ = ["Input", "NormedSum", "Output", "Port", "Target", "block_of", "find_blocks", "find_targets"]
