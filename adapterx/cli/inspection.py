"""`adapterx info`: what is installed, what a folder holds, what would be adapted in a model."""

import json
import platform
from pathlib import Path
from typing import Any

import torch

from adapterx.checkpoint.pair import read_document
from adapterx.cli.runs import CHECKPOINTS, METRICS, OPTIONS, RECORD, read_record, versions
from adapterx.errors import speaking_as


def installation() -> dict[str, Any]:
    """Return versions and what the operator library was built for."""
    from adapterx import ops

    facts: dict[str, Any] = dict(versions())
    facts["python"] = platform.python_version()
    facts["operator library"] = ops.LIBRARY
    facts |= ops.build_info()
    facts["threads"] = torch.get_num_threads()
    facts["GPU"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return facts


def _sizes(folder: Path) -> dict[str, str]:
    return {path.name: f"{path.stat().st_size / 1024:,.1f} KiB" for path in sorted(folder.glob("*.safetensors"))}


def run_folder(folder: Path) -> dict[str, Any]:
    """Return what a run folder holds."""
    record = read_record(folder)
    facts = {name: record[name] for name in ("method", "base_model", "max_length", "seed")}
    facts["labels"] = ", ".join(record["labels"][:20]) + (" ..." if len(record["labels"]) > 20 else "")
    if record["options"]["adapter"]:
        facts["adapter"] = _compact(record["options"]["adapter"])
    if (folder / METRICS).exists():
        metrics = json.loads((folder / METRICS).read_bytes())
        for name in ("accuracy", "macro_f1", "majority_baseline", "trainable_fraction", "train_seconds"):
            if metrics.get(name) is not None:
                facts[name] = metrics[name]
    return facts | _sizes(folder)


@speaking_as("info")
def adapter_folder(folder: Path) -> dict[str, Any]:
    """Return what an adapter folder holds."""
    stored = read_document(folder, "adapter")
    return {key: _compact(value) if isinstance(value, dict) else value for key, value in stored.items()} | _sizes(
        folder
    )


def _compact(config: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in config.items() if value not in (None, [], False))


def base_model(model: str) -> str:
    """Return which modules of a model the default adapter would be attached to, and how many parameters it adds."""
    from adapterx.attachment import attach, summary
    from adapterx.cli.models import load_base, quiet_transformers
    from adapterx.cli.recipes import BOTTLENECK_DIM
    from adapterx.config import AdapterConfig

    quiet_transformers()
    base = load_base(model)
    width = min(BOTTLENECK_DIM, getattr(base.config, "hidden_size", BOTTLENECK_DIM))  # toy models are narrower
    attached = attach(base, AdapterConfig(bottleneck_dim=width))
    return f"{attached}\n{summary(base)}"


def kind_of(target: str) -> str:
    """Return `"run"`, `"interrupted"`, `"adapter"` or `"model"`."""
    folder = Path(target)
    if (folder / RECORD).exists():
        return "run"
    if (folder / CHECKPOINTS / OPTIONS).exists():
        return "interrupted"
    return "adapter" if (folder / "adapter_config.json").exists() else "model"
