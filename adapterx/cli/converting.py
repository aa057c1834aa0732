"""`adapterx convert`: an adapter of adapterx, AdapterHub or PEFT, or a fusion, becomes one of another library."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from adapterx import checkpoint
from adapterx.checkpoint import format_of, load_head, save_head
from adapterx.checkpoint.document import read_json
from adapterx.checkpoint.formats import ADAPTERHUB, OWN, PEFT
from adapterx.cli.converting_peft import convert_peft
from adapterx.cli.loading import quiet_transformers
from adapterx.cli.models import load_base
from adapterx.errors import CheckpointError, ConfigError, speaker
from adapterx.heads import ClassificationHead, SequenceClassifier
from adapterx.integrations import adapterhub
from adapterx.integrations.adapterhub.files import ADAPTER, FUSION, HEAD
from adapterx.integrations.adapterhub.fusions import fused_names
from adapterx.targets.layouts import model_type_of

_FUNCTIONS = {OWN: checkpoint, ADAPTERHUB: adapterhub}  # both call alike what loads and saves
_BY_MODEL = tuple(_FUNCTIONS)
LIBRARIES = (*_BY_MODEL, PEFT)
_ADAPTER, _HEAD = ADAPTER.document, HEAD.document  # both libraries name these files alike
_FUSION = {OWN: "fusion_config.json", ADAPTERHUB: FUSION.document}


def convert_folder(
    source: Path, target: Path, *, to: str | None, base: str | None, name: str | None, check_base: bool
) -> dict[str, Any]:
    """Write the adapter or the fusion in a folder, and the heads beside adapters, as the other library saves them.

    The adapters of a fusion are looked for in folders of their names, inside its folder or else beside it; they are
    written inside the new folder.

    Args:
        source: what `save_adapter` or `save_fusion` of either library wrote.
        target: made if it is not there.
        to: `"adapterx"`, `"adapterhub"` or `"peft"`; None takes adapterx, or AdapterHub where `source` is of adapterx.
        base: the base model; None takes the one that `source`, or the first adapter of the fusion, names. Between
            adapterx and PEFT none is needed.
        name: the adapter's name in the new folder; None keeps it.
        check_base: whether the base model must be that of the adapter, as far as its folder tells.

    Returns:
        What was converted, for a table.

    Raises:
        CheckpointError: the folder holds neither, or what the other library cannot have, in words; or an adapter of
            the fusion is missing.
        ConfigError: no base model is named, there is nothing to convert, or a fusion is to be renamed.
    """
    if target.exists() and target.samefile(source):
        raise ConfigError(f"{speaker()}: target must be another folder than {source}")
    if PEFT in (to, format_of(source)):
        others = partial(convert_folder, check_base=check_base)
        return convert_peft(source, target, to=to, base=base, name=name, others=others)
    library = _library_of(source)
    parts = _parts_of_fusion(source, library)
    if parts and name is not None:
        raise ConfigError(f"{speaker()}: name must not be given for a fusion, whose adapters keep their names")
    to = to or next(other for other in _BY_MODEL if other != library)
    if to == library:
        raise ConfigError(f"{speaker()}: to must be another library than that of {source}, which is {library}")
    quiet_transformers()
    first = next(iter(parts.values())) if parts else source
    model = load_base(base or _recorded_base(first, library), whole=True)
    load = _FUNCTIONS[library]
    for part, folder in (parts or {name: source}).items():
        report = load.load_adapter(model, folder, part, active=not parts, check_base=check_base)
    written = {"written for": to, "folder": str(target)}
    if not parts:
        head = _write_adapter(model, report.name, source, target, to)
        facts = {"adapter": report.name, "modules": len(report.targets), **written}
        return facts if head is None else facts | {"head": head}
    load.load_fusion(model, source)
    with tempfile.TemporaryDirectory() as trial:  # all that is refused is refused before anything is written
        _write_fusion(model, parts, Path(trial), to)
    heads = _write_fusion(model, parts, target, to)
    return {"fusion": ", ".join(parts), **written} | {f"head of {part}": head for part, head in heads.items() if head}


def _write_adapter(model: nn.Module, name: str, source: Path, target: Path, to: str) -> str | None:
    """Write an attached adapter and the head beside it; return what that is, in words."""
    _FUNCTIONS[to].save_adapter(model, target, name)
    return _convert_head(source, target, model, name, to) if (source / _HEAD).exists() else None


def _write_fusion(model: nn.Module, parts: dict[str, Path], target: Path, to: str) -> dict[str, str | None]:
    """Write the fusion of a model and its adapters; return the heads of these, in words."""
    _FUNCTIONS[to].save_fusion(model, target)
    return {name: _write_adapter(model, name, folder, target / name, to) for name, folder in parts.items()}


def _parts_of_fusion(source: Path, library: str) -> dict[str, Path]:
    """Return name and folder of the adapters of a fusion; nothing where the folder holds an adapter."""
    path = source / _FUSION[library]
    if not path.exists():
        return {}
    names = _fused(read_json(path), library)
    named = isinstance(names, list) and all(isinstance(name, str) and Path(name).name == name for name in names)
    if not names or not named:
        raise CheckpointError(f"{speaker()}: {path} must fuse adapters by their names, got {names!r}")
    found = {}
    for name in names:
        places = [folder for folder in (source / name, source.parent / name) if (folder / _ADAPTER).exists()]
        if not places:
            raise CheckpointError(
                f"{speaker()}: source fuses {', '.join(names)}; {name} must stand in {source / name} or "
                f"{source.parent / name}, neither holds an adapter"
            )
        found[name] = places[0]
    return found


def _fused(document: dict[str, Any], library: str) -> Any:
    if library == ADAPTERHUB:
        return fused_names(document)
    composition = document.get("composition")
    return composition.get("parts") if isinstance(composition, dict) else None


def _library_of(source: Path) -> str:
    """Return which library wrote the adapter or the fusion in a folder."""
    library = format_of(source)
    fused = [own for own, document in _FUSION.items() if (source / document).exists()]
    if library is not None and fused:
        raise CheckpointError(f"{speaker()}: source must hold an adapter or a fusion, {source} holds both")
    if fused:
        library = fused[0]
    if library not in _BY_MODEL:
        found = f"{source} has that of {library}" if library else f"{source} has none"
        inside = [str(path.parent) for own in (_ADAPTER, *_FUSION.values()) for path in sorted(source.glob(f"*/{own}"))]
        hint = f"; there are some in {', '.join(inside[:8])}" if inside else ""
        raise CheckpointError(
            f"{speaker()}: source must hold an adapter or a fusion of adapterx or AdapterHub, {found}{hint}"
        )
    return library


def _recorded_base(source: Path, library: str) -> str:
    document = read_json(source / _ADAPTER)
    described = document.get("base_model") if library == OWN else {"name": document.get("model_name")}
    found = described.get("name") if isinstance(described, dict) else None
    if not isinstance(found, str) or not found:
        raise ConfigError(f"{speaker()}: base must be given, {source} does not name the base model of its adapter")
    return found


def _convert_head(source: Path, target: Path, model: nn.Module, name: str, to: str) -> str:
    """Write the head beside the adapter; return what it is, in words."""
    if to == ADAPTERHUB:
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
