"""Classification heads of AdapterHub: read into a `ClassificationHead`, and written for its `...AdapterModel` classes.

Its heads are one linear layer, or two with tanh between them, on the hidden state of the first token (of decoders: the
last that is no padding), or on what BERT's pooler, a layer with tanh too, makes of the first.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapterx.checks import check_finite
from adapterx.errors import CheckpointError, ConfigError, speaker, speaking_as
from adapterx.heads import ClassificationHead
from adapterx.integrations.adapterhub.files import HEAD, read_document, read_tensors, write_files

_LAST = ("gpt2", "llama", "mistral")  # decoders: the last token, not the first
_CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "electra": "Electra",
    "distilbert": "DistilBert",
    "albert": "Albert",
    "gpt2": "GPT2",
    "llama": "Llama",
    "mistral": "Mistral",
}
# Heads of transformers' own classes: what their layers are called, from the last one back.
_STATIC = {
    "BertForSequenceClassification": ("classifier", None),
    "AlbertForSequenceClassification": ("classifier", None),
    "RobertaForSequenceClassification": ("classifier.out_proj", "classifier.dense"),
    "XLMRobertaForSequenceClassification": ("classifier.out_proj", "classifier.dense"),
}
_LARGEST = 2**30  # bytes: more labels than any head has


@speaking_as("load_head")
def load_head(folder: str | Path, model: nn.Module | None = None) -> ClassificationHead:
    """Build the classification head that AdapterHub's `adapters` has saved beside an adapter.

    It reads the first token that is no padding (`pooling="cls"`), which is the first one where padding comes last.

    Args:
        folder: what `save_adapter` or `save_head` of `adapters` wrote: `head_config.json` and its tensors.
        model: the base model, of which heads that use its pooler take a copy of the pooler's layer; None where none is
            needed.

    Returns:
        A new head in float32 on the CPU, for `SequenceClassifier.head`; its logits are those of `adapters`. The names
        of the labels stand in `head_config.json`.

    Raises:
        CheckpointError: the files are missing or damaged, or hold another kind of head, which the message names.
    """
    folder = Path(folder)
    document = read_document(folder, HEAD)
    tensors = read_tensors(folder, HEAD, largest=_LARGEST)
    options, last, first = _described(document, folder)
    pooling = "last" if document.get("model_type") in _LAST else "cls"
    wanted = {f"{name}.{kind}" for name in (last, first) if name for kind in ("weight", "bias")}
    if wanted != tensors.keys():
        raise CheckpointError(
            f"{speaker()}: {folder} must hold the tensors {', '.join(sorted(wanted))} of its head, got "
            f"{', '.join(sorted(tensors)[:8])}"
        )
    layers = {"linear": (tensors[f"{last}.weight"], tensors[f"{last}.bias"])}
    if first:
        layers["dense"] = (tensors[f"{first}.weight"], tensors[f"{first}.bias"])
    elif options["use_pooler"]:
        layers["dense"] = _pooler(model, folder)
    return _built(layers, pooling, options, folder)


def _described(document: Mapping[str, Any], folder: Path) -> tuple[Mapping[str, Any], str, str | None]:
    """Return the options of a head, and what its last and its first linear layer are called (None: there is one)."""
    source, options = folder / HEAD.document, document["config"]
    if options is None:
        static = _STATIC.get(document.get("model_class"))
        if static is None:
            known = ", ".join(_STATIC)
            raise _refused(source, "model_class", f"be one whose head is known ({known})", document.get("model_class"))
        return {"use_pooler": static[1] is None}, *static
    if not isinstance(options, Mapping) or options.get("head_type") != "classification":
        given = options.get("head_type") if isinstance(options, Mapping) else options
        raise _refused(source, "head_type", "be 'classification' for a ClassificationHead", given)
    layers, pooler = options.get("layers"), options.get("use_pooler", False)
    if layers not in (1, 2) or (layers == 2 and pooler):
        raise _refused(source, "layers", "be 1, or 2 without use_pooler, for a ClassificationHead", layers)
    if layers == 2 and options.get("activation_function") != "tanh":
        raise _refused(
            source, "activation_function", "be 'tanh' between two layers", options.get("activation_function")
        )
    if not options.get("bias", True):
        raise _refused(source, "bias", "be true", False)
    prefix = f"heads.{document.get('name')}"
    return {"use_pooler": bool(pooler), **options}, f"{prefix}.{3 * layers - 2}", f"{prefix}.1" if layers == 2 else None


def _pooler(model: nn.Module | None, folder: Path) -> tuple[Tensor, Tensor]:
    found = (
        [] if model is None else [m for name, m in model.named_modules() if name.endswith(("pooler", "pooler.dense"))]
    )
    layer = next((module for module in found if isinstance(module, nn.Linear)), None)
    if layer is None:
        raise CheckpointError(
            f"{speaker()}: model must be a base model with a pooler, whose layer the head in {folder} stands on, got "
            f"{type(model).__name__}"
        )
    return layer.weight.detach(), layer.bias.detach()


def _built(
    layers: Mapping[str, tuple[Tensor, Tensor]], pooling: str, options: Mapping[str, Any], folder: Path
) -> ClassificationHead:
    weight = layers["linear"][0]
    labels, size = weight.shape if weight.dim() == 2 else (0, 0)
    shapes = {"linear": ((labels, size), (labels,)), "dense": ((size, size), (size,))}
    wrong = [name for name, pair in layers.items() if tuple(tuple(t.shape) for t in pair) != shapes[name]]
    if wrong or not labels or options.get("num_labels", labels) != labels:
        raise CheckpointError(
            f"{speaker()}: the tensors of {folder} must be those of a head of {options.get('num_labels')} labels"
        )
    try:
        dropout = check_finite("ClassificationHead", "dropout", options.get("dropout_prob") or 0.0)
        head = ClassificationHead(size, labels, pooling=pooling, dropout=dropout, dense="dense" in layers)
    except ConfigError as error:
        raise CheckpointError(f"{speaker()}: {folder} does not describe a head: {error}") from error
    with torch.no_grad():
        for name, (weight, bias) in layers.items():
            layer = getattr(head, name)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return head


@speaking_as("save_head")
def save_head(head: ClassificationHead, folder: str | Path, name: str, model_type: str) -> None:
    """Write a classification head for the flexible heads of AdapterHub's `adapters` 1.3.0.

    Args:
        head: with `pooling` `"cls"`, or `"last"` for a decoder; padding must come last there.
        folder: made if it is not there; the adapter may stand in the same one.
        name: the head's name there; `adapters` activates the one that is called as the adapter.
        model_type: `config.model_type` of the base model; the head is for its class, such as `BertAdapterModel`.

    Raises:
        CheckpointError: `adapters` has no such head, or the folder cannot be written, or holds another library's files.
    """
    if model_type not in _CLASSES:
        raise CheckpointError(f"save_head: model_type must be one of {', '.join(_CLASSES)}, got {model_type!r}")
    pooling = "last" if model_type in _LAST else "cls"
    if head.pooling != pooling:
        raise CheckpointError(f"save_head: head must have pooling {pooling!r} for {model_type!r}, got {head.pooling!r}")
    layers = 1 if head.dense is None else 2
    options = {
        "activation_function": "tanh",
        "bias": True,
        "dropout_prob": head.dropout.p,
        "head_type": "classification",
        "label2id": {f"LABEL_{index}": index for index in range(head.num_labels)},
        "layers": layers,
        "num_labels": head.num_labels,
        "use_pooler": False,
    }
    document = {
        "config": options,
        "hidden_size": head.hidden_size,
        "model_class": f"{_CLASSES[model_type]}AdapterModel",
        "model_name": None,
        "model_type": model_type,
        "name": name,
    }
    numbered = {3 * layers - 2: head.linear} | ({1: head.dense} if head.dense is not None else {})
    tensors = {
        f"heads.{name}.{number}.{kind}": getattr(layer, kind)
        for number, layer in sorted(numbered.items())
        for kind in ("weight", "bias")
    }
    write_files(Path(folder), HEAD, document, tensors)


def _refused(source: Path, option: str, rule: str, value: Any) -> CheckpointError:
    return CheckpointError(f"{speaker()}: {option} of {source} must {rule}, got {value!r}")
