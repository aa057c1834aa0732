"""Tell the folders apart that three libraries write under one file name, `adapter_config.json`.

| library | the document | the tensors |
|---|---|---|
| adapterx | `"format": "adapterx"` (0.1.0: `"format_version"` alone) | `adapter_model.safetensors` |
| PEFT | `"peft_type"` | `adapter_model.safetensors` or `.bin` |
| AdapterHub's `adapters` | `"config"` and `"version": "adapters.1.3.0"`, formerly `"3.2.1"`, beside `"model_type"` | `pytorch_adapter.bin` or `adapter.safetensors` |

What a document records of itself decides, never the names of the files beside it.
"""  # noqa: E501 - a table row cannot be wrapped

from pathlib import Path
from typing import Any

from adapterx.checkpoint.document import named_errors, read_json
from adapterx.errors import CheckpointError, speaker, speaking_as

OWN, PEFT, ADAPTERHUB = "adapterx", "peft", "adapterhub"
PEFT_TYPE = "ADAPTERX_BOTTLENECK"  # of those that adapterx.integrations.peft has saved by PEFT


@speaking_as("format_of")
def format_of(folder: str | Path) -> str | None:
    """Return which library wrote the adapter in a folder; nothing but its JSON document is read.

    Returns:
        `"adapterx"`, `"peft"`, `"adapterhub"`, or None: there is no `adapter_config.json`, or it is nobody's.

    Raises:
        CheckpointError: the document cannot be read, or its marks contradict each other.
    """
    path = Path(folder) / "adapter_config.json"
    with named_errors(path):
        if not path.exists():
            return None
    return recognise(read_json(path), path)


def recognise(document: dict[str, Any], path: Path) -> str | None:
    """Return which library wrote a document that was read from `path`; result and errors as in `format_of`."""
    if "format" in document:
        if document["format"] != OWN:
            raise CheckpointError(f"{speaker()}: format of {path} must be {OWN!r}, got {document['format']!r}")
        return OWN
    marks = {
        OWN: "format_version" in document,  # all that 0.1.0 wrote
        PEFT: "peft_type" in document,
        ADAPTERHUB: _is_adapterhub(document),
    }
    found = [library for library, marked in marks.items() if marked]
    if len(found) > 1:
        raise CheckpointError(f"{speaker()}: {path} must be of one library, it has the marks of {' and '.join(found)}")
    return found[0] if found else None


def check_own_format(document: dict[str, Any], path: Path) -> None:
    """Refuse the documents of other libraries, in words that say whose they are and what to do.

    Raises:
        CheckpointError: PEFT or AdapterHub wrote it.
    """
    library = recognise(document, path)
    if library == PEFT:
        own = document["peft_type"] == PEFT_TYPE
        first = "import adapterx.integrations.peft and " if own else ""
        raise CheckpointError(
            f"{speaker()}: {path} must be written by adapterx, it is PEFT's (peft_type {document['peft_type']!r}); "
            f"{first}load it with peft: PeftModel.from_pretrained(model, {str(path.parent)!r})"
            f"{', or let adapterx.integrations.peft.from_peft turn it into adapterx' if own else ''}"
        )
    if library == ADAPTERHUB:
        version = document.get("version")
        raise CheckpointError(
            f"{speaker()}: {path} must be written by adapterx, it is AdapterHub's (version {version!r}); the "
            "functions of adapterx.integrations.adapterhub read it, and `adapterx convert` turns it into adapterx's"
        )


def _is_adapterhub(document: dict[str, Any]) -> bool:
    version = document.get("version")
    if not isinstance(version, str) or not isinstance(document.get("config"), (dict, str)):
        return False
    # Before its renaming the library wrote its bare number; then only the other keys tell that it is its own.
    return version.startswith("adapters.") or {"model_type", "model_class", "hidden_size"} <= document.keys()
