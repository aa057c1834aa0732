"""Run a trained model on many rows: batches of equal length, answers in the order of the rows."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adapterx.cli.data.spool import chosen
from adapterx.cli.models import embedded_tokens
from adapterx.cli.recipes import EVAL_BATCH_SIZE
from adapterx.cli.tasks.task import Encoded, Encoder, Run
from adapterx.errors import CheckpointError, DataError, speaker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def encoder_of(run: Run) -> Encoder:
    """Return what made the rows that a run was trained on."""
    embedded = embedded_tokens(run.task.adapted(run.model))
    return Encoder(run.tokenizer, run.record["max_length"], embedded, run.record["options"])


def device_of(run: Run) -> torch.device:
    """Bring the model to a GPU where there is one, and return the device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run.model.to(device)
    return device


def check_known(rows: Encoded, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse texts of which the tokenizer knows no word: a model would learn nothing from them, and not say so.

    Raises:
        DataError: every token of every text is the unknown one.
    """
    unknown, marks = tokenizer.unk_token_id, set(tokenizer.all_special_ids)
    found = {number for row in rows for number in row["input_ids"]} - (marks - {unknown})
    if unknown is not None and found == {unknown}:
        raise DataError(
            f"{speaker()}: the tokenizer must know some words of the texts, it knows none (made for other languages?)"
        )


def by_length(rows: Encoded) -> Encoded:
    """Return the rows, short ones first: batches of equal length hold little padding."""
    lengths = [len(row["input_ids"]) for row in rows]
    return chosen(rows, sorted(range(len(rows)), key=lengths.__getitem__))


def batches_of(run: Run, rows: Encoded, batch_size: int = EVAL_BATCH_SIZE) -> Iterator[tuple[list[int], Any]]:
    """Yield positions in `rows` and the padded batch of their inputs, on the model's device."""
    device = device_of(run)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        # `pad` advises fast tokenizers to pad while encoding, which batches sorted by length cannot do.
        run.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        inputs = [{name: rows[i][name] for name in INPUTS if name in rows[i]} for i in part]
        yield part, run.tokenizer.pad(inputs, return_tensors="pt").to(device)


def logits_of_batch(run: Run, batch: Any, texts: Sequence[Any]) -> Tensor:
    """Return float32 logits on the CPU.

    Args:
        run: whose model is asked.
        batch: as `batches_of` yields it.
        texts: of the batch, for the message.

    Raises:
        CheckpointError: they are not finite, so that no label is likelier than another.
    """
    logits = run.model(**{name: batch[name] for name in INPUTS if name in batch})["logits"].float().cpu()
    finite = logits.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        text = str(texts[int((~finite).nonzero()[0])])
        raise CheckpointError(
            f"{speaker()}: the logits of a run must be finite, those of {run.folder} are not for {text[:80]!r}"
        )
    return logits
