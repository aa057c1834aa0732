"""What runs: compositions of adapters as values, and the programs that a module runs for them. Knows no model."""

from adapterx.compose.expression import (
    Average,
    BatchSplit,
    Composition,
    Fuse,
    Parallel,
    Split,
    Stack,
)
from adapterx.compose.naming import adapter_names_in
from adapterx.compose.parse import composition_from_dict, composition_to_dict, parse_composition

__all__ = [
    "Average",
    "BatchSplit",
    "Composition",
    "Fuse",
    "Parallel",
    "Split",
    "Stack",
    "adapter_names_in",
    "composition_from_dict",
    "composition_to_dict",
    "parse_composition",
]
