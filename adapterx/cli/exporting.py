"""`adapterx export`: a model with its tokenizer and the names of its classes, in one folder that is never a mixture."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from adapterx.cli.tasks.task import Run
from adapterx.errors import ExportError, speaker
from adapterx.export import to_onnx, to_torchscript
from adapterx.export.metadata import staging
from adapterx.export.publishing import FILES, TORCHSCRIPT_FILE, check_beside, publish

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMATS = ("torchscript", "onnx", "onnx-portable")


def export_run(run: Run, folder: Path, form: str, *, opset: int, freeze: bool, overwrite: bool) -> None:
    """Write the model of a run, and beside it its tokenizer and what its task knows, such as the names of its classes.

    Args:
        run: what to export.
        folder: where to; made if needed.
        form: one of `FORMATS`.
        opset: see `to_onnx`.
        freeze: see `to_torchscript`.
        overwrite: delete models of other runs, whose tokenizer or labels differ, rather than refuse the folder.

    Raises:
        ExportError: see `to_onnx`; the models of the task cannot be exported; or the folder holds a model with another
            tokenizer or other labels.
    """
    known = run.task.beside_export(run)
    with staging(folder) as staged:
        _save_tokenizer(run.tokenizer, staged)
        for name, content in known.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (staged / name).write_text(text, encoding="utf-8")
        beside = sorted(path.name for path in staged.iterdir() if path.is_file())
        check_beside(staged, folder, beside, overwrite=overwrite)  # before the long work, and again at its end
        if form == "torchscript":
            name = TORCHSCRIPT_FILE
            document = to_torchscript(run.model, staged / name, freeze=freeze)
        else:
            mode = "portable" if form == "onnx-portable" else "function"
            name = FILES[mode]
            document = to_onnx(run.model, staged, mode=mode, opset=opset)
        publish(staged, folder, name, document, beside=beside, overwrite=overwrite)


def _save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # of the library tokenizers, which has no class of its own for a full disk
        reason = " ".join(str(error).split())
        raise ExportError(f"{speaker()}: cannot write the tokenizer to {folder.parent}: {reason}") from error
