"""Bottleneck adapters for frozen Transformers: attach, train, save, combine and export them."""

import adapterx.startup  # noqa: F401 - first, for it prepares for Ctrl-C during the others
from adapterx.active import disabled, mixed, set_active, skip_layers
from adapterx.adapters import (
    Summary,
    active_adapters,
    adapter_names,
    adapter_parameters,
    adapters,
    merge_adapter,
    summary,
)
from adapterx.attachment import attach, detach, rename_adapter
from adapterx.bottleneck import BottleneckAdapter
from adapterx.checkpoint import (
    load_adapter,
    load_fusion,
    load_head,
    restore_adapter,
    restore_head,
    save_adapter,
    save_fusion,
    save_head,
)
from adapterx.checkpoint.document import PACKAGE_VERSION as __version__
from adapterx.combining import combine_adapters
from adapterx.compose import Average, BatchSplit, Fuse, Parallel, Split, Stack
from adapterx.config import AdapterConfig
from adapterx.dropping import adapter_drop
from adapterx.errors import (
    AdapterxError,
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    ExtensionError,
    TargetError,
    TrainingError,
    UnknownAdapterError,
)
from adapterx.fan_out import fan_out
from adapterx.fusing import (
    add_fusion,
    fusion_regularization,
    fusions,
    remove_fusion,
)
from adapterx.fusion import AdapterFusion, FusionConfig
from adapterx.heads import ClassificationHead, SequenceClassifier, TokenClassificationHead, TokenClassifier
from adapterx.host import AdapterSet
from adapterx.ops import build_info
from adapterx.phm import PHMConfig
from adapterx.pruning import fusion_attention, prune_fusion
from adapterx.records import Attachment
from adapterx.training import unused_adapters

__all__ = [
    "AdapterConfig",
    "AdapterFusion",
    "AdapterSet",
    "AdapterxError",
    "Attachment",
    "Average",
    "BatchSplit",
    "BottleneckAdapter",
    "CheckpointError",
    "ClassificationHead",
    "ConfigError",
    "DataError",
    "ExportError",
    "ExtensionError",
    "Fuse",
    "FusionConfig",
    "PHMConfig",
    "Parallel",
    "SequenceClassifier",
    "Split",
    "Stack",
    "Summary",
    "TargetError",
    "TokenClassificationHead",
    "TokenClassifier",
    "TrainingError",
    "UnknownAdapterError",
    "__version__",
    "active_adapters",
    "adapter_drop",
    "adapter_names",
    "adapter_parameters",
    "adapters",
    "add_fusion",
    "attach",
    "build_info",
    "combine_adapters",
    "detach",
    "disabled",
    "fan_out",
    "fusion_attention",
    "fusion_regularization",
    "fusions",
    "load_adapter",
    "load_fusion",
    "load_head",
    "merge_adapter",
    "mixed",
    "prune_fusion",
    "remove_fusion",
    "rename_adapter",
    "restore_adapter",
    "restore_head",
    "save_adapter",
    "save_fusion",
    "save_head",
    "set_active",
    "skip_layers",
    "summary",
    "unused_adapters",
]
