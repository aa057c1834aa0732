"""Look at the folder of a base model before a library reads it: what is missing or damaged is named in one line."""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from adapterx.checkpoint.document import MAX_DOCUMENT_BYTES, named_errors, read_file
from adapterx.cli.paths import is_utf8
from adapterx.errors import CheckpointError, speaker

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
READ = (".json", ".txt", ".model", ".safetensors", ".jinja")  # endings of files that the libraries may open
TOKENIZERS = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "tekken")  # how names of their files begin
TOKENIZER_ENDINGS = (".model", ".spm", ".vocab", ".tiktoken", ".codes")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)  # `name` or `owner/name`
MOST_LAYERS = 10_000  # the deepest models have hundreds; a library builds what a config asks for without end


def check_base_folder(model: str) -> bool:
    """Return whether `model` is a folder here (else it is a name on a hub), and refuse folders that cannot serve.

    Raises:
        CheckpointError: it is no name and no folder, or a file of the folder is missing, damaged, or would run code.
    """
    path = Path(model)
    with named_errors(path):
        if not path.is_dir():
            # What is no hub name can only be meant as a path.
            if path.exists() or model.startswith((".", "~")) or not _HUB_NAME.fullmatch(model):
                raise CheckpointError(
                    f"{speaker()}: model must be a hub name or a folder, no such folder exists: {model or repr(model)}"
                )
            return False
        names = sorted(file.name for file in path.iterdir())
        for name in names:
            if name.endswith(READ) and not (path / name).is_file():  # a pipe would be waited for
                raise CheckpointError(f"{speaker()}: {path / name} must be a regular file")
    if not is_utf8(path.absolute()):
        raise CheckpointError(f"{speaker()}: the path of the model folder must be UTF-8, got {model!r}")
    if CONFIG not in names:
        adapter = " (it holds an adapter, not the model that it belongs to)" if "adapter_config.json" in names else ""
        raise CheckpointError(f"{speaker()}: the model folder {model} has no {CONFIG}{adapter}")
    _check_config(path / CONFIG)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if name in names:
            _read_object(path / name)
    _check_weights(path, names)
    return True


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a folder without any file that a tokenizer could be made of.

    Raises:
        CheckpointError: it has none.
    """
    if not any(path.name.startswith(TOKENIZERS) or path.suffix in TOKENIZER_ENDINGS for path in folder.iterdir()):
        raise CheckpointError(
            f"{speaker()}: {folder} must hold the vocabulary of its tokenizer (tokenizer.json, vocab.txt, "
            "tokenizer.model or what else its class reads), it has no such file"
        )


def _read_object(path: Path) -> dict[str, Any]:
    # Less strict than documents of our own: other libraries write NaN and Infinity into theirs.
    try:
        document = json.loads(read_file(path, MAX_DOCUMENT_BYTES).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{speaker()}: {path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{speaker()}: {path} must hold a JSON object, got {type(document).__name__}")
    return document


def unreadable_json(folder: Path) -> str | None:
    """Return the name of a file that should be JSON and is not, to say why a library failed; None: all are."""
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError, OSError):
            return path.name
    return None


def _check_config(path: Path) -> None:
    config = _read_object(path)
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{speaker()}: {path} must name a model_type, got {config.get('model_type')!r}")
    deep = {k: v for k, v in config.items() if "layer" in k and isinstance(v, (int, float)) and v > MOST_LAYERS}
    for name, value in deep.items():
        raise CheckpointError(f"{speaker()}: {path}: {name} must be at most {MOST_LAYERS}, got {value}")


def _check_weights(folder: Path, names: list[str]) -> None:
    if WEIGHTS in names:
        files = [WEIGHTS]
    elif INDEX in names:
        table = _read_object(folder / INDEX).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            raise CheckpointError(f"{speaker()}: {folder / INDEX} must hold a weight_map, from weights to files")
        files = sorted(set(table.values()))
        if strange := [name for name in files if Path(name).name != name]:
            raise CheckpointError(f"{speaker()}: {folder / INDEX} must name files beside it, got {strange[0]!r}")
        if absent := [name for name in files if name not in names]:
            raise CheckpointError(f"{speaker()}: the model folder {folder} lacks {absent[0]}, which {INDEX} names")
    else:
        _refuse_without_weights(folder, names)
    for name in files:
        try:
            with safe_open(folder / name, framework="pt") as file:
                empty = not file.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{speaker()}: {folder / name} is damaged or cut short: {error}") from error
        if empty:
            raise CheckpointError(f"{speaker()}: {folder / name} holds no weights")


def _refuse_without_weights(folder: Path, names: list[str]) -> None:
    pickled = [name for name in names if name.endswith(PICKLES)]
    others = [name for name in names if name.endswith(".safetensors")]
    if pickled and not others:
        raise CheckpointError(
            f"{speaker()}: the model folder {folder} has only {pickled[0]}: a pickle can run any program when it is "
            "loaded, so it is refused; convert it where you trust it: "
            "model.save_pretrained(folder, safe_serialization=True)"
        )
    found = f" of the name {WEIGHTS} and no {INDEX} beside {others[0]}" if others else ""
    raise CheckpointError(f"{speaker()}: the model folder {folder} has no .safetensors file{found}")
