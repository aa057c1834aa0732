"""Everything that writes or reads checkpoints: adapters, heads, what a training run trains; strict, without pickle."""

from adapterx.checkpoint.adapter import load_adapter, restore_adapter, save_adapter
from adapterx.checkpoint.formats import format_of
from adapterx.checkpoint.fusion import load_fusion, save_fusion
from adapterx.checkpoint.head import load_head, restore_head, save_head
from adapterx.checkpoint.rewriting import average_saved_adapters, rename_saved_adapter
from adapterx.checkpoint.tensors import adapter_state
from adapterx.checkpoint.trained import restore_trained, save_trained, trainable_state

__all__ = [
    "adapter_state",
    "average_saved_adapters",
    "format_of",
    "load_adapter",
    "load_fusion",
    "load_head",
    "rename_saved_adapter",
    "restore_adapter",
    "restore_head",
    "restore_trained",
    "save_adapter",
    "save_fusion",
    "save_head",
    "save_trained",
    "trainable_state",
]
