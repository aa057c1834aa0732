"""Bring an export to its folder: the model, the data of a large one, the index of ONNX models, and what stands beside.

A reader never sees a model with the data of another, nor an index that tells of another model, whenever the writing
process is killed: data stand under a name made of their hash, which only their own model mentions, and come first; an
index that tells of the old model forgets it before the new model comes, and learns of the new one afterwards.

What stands beside models, such as a tokenizer and the names of classes, belongs to every one of them. It comes before
the first model and is the same for as long as a model is there: other files need another folder, or an explicit word
that the models may go. Of several processes that write to one folder each waits for its turn.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterx.checkpoint.folder import move_into_place
from adapterx.checkpoint.lock import locked
from adapterx.errors import ExportError, speaker
from adapterx.export.embedded import DOCUMENT
from adapterx.export.metadata import read_metadata, text_of

FILES = {"function": "model.onnx", "portable": "model.portable.onnx"}
TORCHSCRIPT_FILE = "model.pt"
# What transformers may write for a tokenizer, and its earlier versions and other tokenizers of its kind.
_BESIDE = ("tokenizer*", "vocab*", "merges.txt", "spiece.model", "sentencepiece*.model", "special_tokens_map.json")
_BESIDE += ("added_tokens.json", "chat_template*", "labels.json")


def publish(
    staged: Path,
    out_dir: Path,
    name: str,
    document: Mapping[str, Any],
    *,
    beside: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Bring a finished model from the staging folder to its place.

    Args:
        staged: holds the model `name`, its data if it has any, and the files beside it.
        out_dir: where the files go; what belonged to an earlier model of that name is deleted.
        name: one of `FILES`, or `TORCHSCRIPT_FILE`.
        document: the model's metadata, for `adapterx_export.json`, which lists ONNX models.
        beside: names of files in `staged` that belong to the model.
        overwrite: models whose files beside them differ may be deleted.

    Raises:
        ExportError: models are there that have other files beside them.
        CheckpointError: another process takes too long.
        OSError: a file cannot be written or renamed.
    """
    with locked(out_dir):
        if beside:
            check_beside(staged, out_dir, beside, overwrite=overwrite)
            _place_beside(staged, out_dir, beside)
        data = sorted(path.name for path in staged.iterdir() if _is_data_of(name, path.name))
        recorded = _recorded(out_dir)
        if name in recorded:
            _move_index(staged, out_dir, {key: value for key, value in recorded.items() if key != name})
        move_into_place([(staged / file, out_dir / file) for file in (*data, name)])
        if name in FILES.values():
            _move_index(staged, out_dir, {**recorded, name: document})
        _delete_data(out_dir, name, but=data)


def check_beside(staged: Path, out_dir: Path, beside: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a folder with models beside which other files stand than those staged, unless they may go.

    Raises:
        ExportError: there are such models, and `overwrite` is not given.
    """
    models = _models_in(out_dir)
    differing = _differing(staged, out_dir, beside)
    if models and differing and not overwrite:
        raise ExportError(
            f"{speaker()}: output must hold no model of another run, got {models[0]} in {out_dir}, beside which "
            f"{differing[0]} is another; choose another folder, or --overwrite"
        )


def _place_beside(staged: Path, out_dir: Path, beside: Sequence[str]) -> None:
    differing = _differing(staged, out_dir, beside)
    if not differing:
        return
    for name in (DOCUMENT, *_models_in(out_dir)):
        (out_dir / name).unlink(missing_ok=True)
        _delete_data(out_dir, name)
    old = {path.name for pattern in _BESIDE for path in out_dir.glob(pattern) if path.is_file()}
    for name in old - set(beside):
        (out_dir / name).unlink()
    move_into_place([(staged / name, out_dir / name) for name in differing])


def _models_in(out_dir: Path) -> list[str]:
    return [name for name in (TORCHSCRIPT_FILE, *FILES.values()) if os.path.lexists(out_dir / name)]


def _differing(staged: Path, out_dir: Path, beside: Sequence[str]) -> list[str]:
    return [name for name in sorted(beside) if not _same(staged / name, out_dir / name)]


def _same(one: Path, other: Path) -> bool:
    """Tell whether two files hold the same; what is no file is another."""
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    return one.read_bytes() == other.read_bytes()


def _delete_data(out_dir: Path, name: str, *, but: Sequence[str] = ()) -> None:
    for path in out_dir.iterdir():
        if _is_data_of(name, path.name) and path.name not in but:
            path.unlink()


def _is_data_of(name: str, file: str) -> bool:
    """Tell whether a file holds the data of the model, under its name of today or that of adapterx 0.1.0."""
    return re.fullmatch(rf"{re.escape(name)}(\.[0-9a-f]{{16}})?\.data", file) is not None


def _recorded(out_dir: Path) -> dict[str, Any]:
    """Return what the index in the folder tells of files that are there."""
    try:
        old = read_metadata(out_dir).get("files")
    except ExportError:  # none yet, or not ours: the files themselves hold their metadata
        old = None
    if not isinstance(old, dict):
        return {}
    return {key: value for key, value in old.items() if key in FILES.values() and (out_dir / key).is_file()}


def _move_index(staged: Path, out_dir: Path, files: Mapping[str, Any]) -> None:
    (staged / DOCUMENT).write_text(text_of({"files": files}), encoding="utf-8")
    move_into_place([(staged / DOCUMENT, out_dir / DOCUMENT)])
