"""Checkpoints of AdapterHub's `adapters`, read and written; the library itself is not needed."""

from adapterx.integrations.adapterhub.fusions import load_fusion, save_fusion
from adapterx.integrations.adapterhub.heads import load_head, save_head
from adapterx.integrations.adapterhub.reader import load_adapter, read_config
from adapterx.integrations.adapterhub.writer import save_adapter

__all__ = [
    "load_adapter",
    "load_fusion",
    "load_head",
    "read_config",
    "save_adapter",
    "save_fusion",
    "save_head",
]
