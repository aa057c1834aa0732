"""`adapterx info`: what is installed, what a folder holds, what would be adapted in a model."""

import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapterx import ops
from adapterx.adapters import summary
from adapterx.attachment import attach
from adapterx.checkpoint.pair import read_document
from adapterx.cli.data.tables import first_line
from adapterx.cli.loading import quiet_transformers
from adapterx.cli.models import load_base
from adapterx.cli.recipes import BOTTLENECK_DIM
from adapterx.cli.records import METRICS, read_metrics, versions
from adapterx.cli.runs import read_record, state_of, tidy
from adapterx.cli.tasks import task_of
from adapterx.config import AdapterConfig
from adapterx.errors import ConfigError, unspoken
from adapterx.serving import what_runs_where
from adapterx.training import unused_adapters

_FOR_MACHINES = ("base_check", "tensors")  # hashes, samples and shapes, a screen of each


def installation() -> dict[str, Any]:
    """Return versions and what the operator library was built for."""
    facts = (
        versions()
        | {"python": platform.python_version(), "operator library": ops.LIBRARY or "plain PyTorch"}
        | ops.build_info()
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return facts | {"threads": torch.get_num_threads(), "GPU": gpu}


def describe(target: str) -> dict[str, Any] | str:
    """Return what the folder of a run, an adapter or a fusion holds, or in words how a model would be adapted.

    Raises:
        AdapterxError: the folder is damaged, or it is no model.
    """
    folder = Path(target)
    if state_of(folder) == "complete":
        return _run_folder(folder) | _sizes(folder)
    if state_of(folder) == "interrupted":
        return f"{target} holds an interrupted run; finish it with `adapterx train --resume {target}`"
    if (folder / "adapter_config.json").exists():
        return _adapter_folder(folder) | _sizes(folder)
    if (folder / "fusion_config.json").exists():
        return _stored_facts(read_document(folder, "fusion")) | _sizes(folder)
    return _base_model(target)


def as_json(told: dict[str, Any] | str) -> str:
    """Return what is told as a JSON object; what is lines for a person stands in `report`."""
    facts = {"report": told.splitlines()} if isinstance(told, str) else told
    return json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n"


def _sizes(folder: Path) -> dict[str, str]:
    return {
        path.name: f"{path.stat().st_size / 1024:,.1f} KiB"
        for path in sorted(folder.glob("*.safetensors"))
        if path.exists()
    }


def _run_folder(folder: Path) -> dict[str, Any]:
    tidy(folder)
    record = read_record(folder)
    task = task_of(record)
    facts = {"task": task.name} | {name: record[name] for name in ("method", "base_model", "max_length", "seed")}
    facts |= {name: _shown(record[name]) for name in task.recorded if record[name] is not None}
    if record["options"]["adapter"]:
        facts["adapter"] = _compact(record["options"]["adapter"])
        facts |= _what_runs_where(record["options"]["adapter"])
    if (folder / METRICS).exists():
        metrics = read_metrics(folder)
        for name in (*task.figures, "trainable_fraction", "train_seconds"):
            if metrics.get(name) is not None:
                facts[name] = metrics[name]
    return facts


def _shown(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return ", ".join(map(str, value[:20])) + (" ..." if len(value) > 20 else "")


def _adapter_folder(folder: Path) -> dict[str, Any]:
    stored = read_document(folder, "adapter")
    return _stored_facts(stored) | _what_runs_where(stored.get("config"))


def _stored_facts(stored: dict[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in stored.items() if key not in _FOR_MACHINES}
    return {key: _compact(value) if isinstance(value, dict) else value for key, value in shown.items()}


def _what_runs_where(config: Any) -> dict[str, str]:
    """Return in words what the fused kernels do not serve; nothing where they serve all, or where none can tell."""
    try:
        told = what_runs_where(AdapterConfig.from_dict(config))
    except ConfigError:  # of a later version
        return {}
    return {"in plain PyTorch": "; ".join(told)} if told else {}


def _compact(config: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in config.items() if value not in (None, [], False))


def _base_model(model: str) -> str:
    quiet_transformers()
    base = load_base(model)
    width = min(BOTTLENECK_DIM, getattr(base.config, "hidden_size", BOTTLENECK_DIM))  # toy models are narrower
    attached = attach(base, AdapterConfig(bottleneck_dim=width))
    return "\n".join(filter(None, (str(attached), str(summary(base)), _what_does_not_run(base))))


def _what_does_not_run(base: nn.Module) -> str:
    """Try the adapters on four tokens; name the modules on which none ran, or why it could not be tried."""
    try:
        with unspoken():
            base(input_ids=torch.ones(1, 4, dtype=torch.int64))[0].float().sum().backward()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return f"whether all of them run could not be tried: {first_line(error)}"
    unused = [path for paths in unused_adapters(base).values() for path in paths]
    return f"no gradient reaches those on {', '.join(unused)}: they would learn nothing" if unused else ""
