"""`adapterx convert`: an adapter of AdapterHub, with its head, becomes one of adapterx, or the other way round."""

from pathlib import Path
from typing import Any

from torch import nn

from adapterx.checkpoint import format_of, load_adapter, load_head, save_adapter, save_head
from adapterx.checkpoint.document import read_json
from adapterx.checkpoint.formats import ADAPTERHUB, OWN
from adapterx.cli.models import load_base, quiet_transformers
from adapterx.errors import CheckpointError, ConfigError, speaker
from adapterx.heads import ClassificationHead, SequenceClassifier
from adapterx.integrations import adapterhub
from adapterx.targets.layouts import model_type_of

LIBRARIES = (OWN, ADAPTERHUB)
_HEAD = "head_config.json"


def convert_folder(
    source: Path, target: Path, *, to: str | None, base: str | None, name: str | None, check_base: bool
) -> dict[str, Any]:
    """Write the adapter in a folder, and the head beside it, as the other library saves them.

    Args:
        source: what `save_adapter` of either library wrote.
        target: made if it is not there.
        to: `"adapterx"` or `"adapterhub"`; None takes the one that `source` is not of.
        base: the base model; None takes the one that `source` names.
        name: the adapter's name in the new folder; None keeps it.
        check_base: whether the base model must be that of the adapter, as far as its folder tells.

    Returns:
        What was converted, for a table.

    Raises:
        CheckpointError: the folder holds no adapter, or one that the other library cannot have, in words.
        ConfigError: no base model is named, or there is nothing to convert.
    """
    library = _library_of(source)
    to = to or next(other for other in LIBRARIES if other != library)
    if to == library:
        raise ConfigError(f"{speaker()}: to must be another library than that of {source}, which is {library}")
    if target.exists() and target.samefile(source):
        raise ConfigError(f"{speaker()}: target must be another folder than {source}")
    quiet_transformers()
    model = load_base(base or _recorded_base(source, library), whole=True)
    if library == ADAPTERHUB:
        report = adapterhub.load_adapter(model, source, name, check_base=check_base)
        save_adapter(model, target)
    else:
        report = load_adapter(model, source, name, check_base=check_base)
        adapterhub.save_adapter(model, target)
    facts = {"adapter": report.name, "modules": len(report.targets), "written for": to, "folder": str(target)}
    if (source / _HEAD).exists():
        facts["head"] = _convert_head(source, target, model, report.name, library)
    return facts


def _library_of(source: Path) -> str:
    library = format_of(source)
    if library not in LIBRARIES:
        found = f"that of {library}" if library else "none"
        raise CheckpointError(
            f"{speaker()}: source must hold an adapter of adapterx or AdapterHub, {source} has {found}"
        )
    return library


def _recorded_base(source: Path, library: str) -> str:
    document = read_json(source / "adapter_config.json")
    described = document.get("base_model") if library == OWN else {"name": document.get("model_name")}
    found = described.get("name") if isinstance(described, dict) else None
    if not isinstance(found, str) or not found:
        raise ConfigError(f"{speaker()}: base must be given, {source} does not name the base model of its adapter")
    return found


def _convert_head(source: Path, target: Path, model: nn.Module, name: str, library: str) -> str:
    """Write the head beside the adapter; return what it is, in words."""
    if library == OWN:
        head = load_head(source)
        adapterhub.save_head(head, target, name, model_type_of(dict(model.named_modules())) or "")
        return f"{head.num_labels} labels"
    head, labels = adapterhub.load_head(source, model), _labels(read_json(source / _HEAD))
    save_head(_classifier(model, head), target, metadata={"labels": labels} if labels else None)
    return f"{head.num_labels} labels{': ' + ', '.join(labels[:20]) if labels else ''}"


def _classifier(model: nn.Module, head: ClassificationHead) -> SequenceClassifier:
    classifier = SequenceClassifier(model, head.num_labels, hidden_size=head.hidden_size)
    classifier.head = head
    return classifier


def _labels(document: dict[str, Any]) -> list[str]:
    """Return the names of the labels in the order of their numbers; none where the document has no whole list."""
    options = document.get("config")
    table = (options if isinstance(options, dict) else document).get("label2id")
    if not isinstance(table, dict) or sorted(map(str, table.values())) != sorted(map(str, range(len(table)))):
        return []
    return sorted(table, key=lambda label: int(table[label]))
