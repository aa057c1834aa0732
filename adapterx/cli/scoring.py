"""`adapterx evaluate` and `adapterx predict`: use a trained run on new texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapterx.cli.examples import label_ids, load_examples
from adapterx.cli.models import embedded_tokens, encode
from adapterx.cli.recipes import EVAL_BATCH_SIZE
from adapterx.cli.runs import Run, load_run, read_record
from adapterx.cli.texts import Wanted
from adapterx.errors import CheckpointError, speaker
from adapterx.training import classification_scores


@torch.inference_mode()
def logits_of(run: Run, texts: Sequence[str], *, batch_size: int = EVAL_BATCH_SIZE) -> Tensor:
    """Return float32 logits `(texts, labels)`, in the order of the texts, on the CPU.

    Raises:
        CheckpointError: they are not finite, so that no label is likelier than another.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = run.classifier.to(device)
    rows = encode(run.tokenizer, texts, run.record["max_length"], embedded=embedded_tokens(run.classifier.base_model))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))  # little padding in each batch
    logits = torch.empty(len(rows), len(run.labels))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        # `pad` advises fast tokenizers to pad while encoding, which batches sorted by length cannot do.
        run.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        batch = run.tokenizer.pad([rows[i] for i in chosen], return_tensors="pt").to(device)
        names = ("input_ids", "attention_mask", "token_type_ids")
        output = classifier(**{name: batch[name] for name in names if name in batch})
        logits[chosen] = output["logits"].float().cpu()
    if not logits.isfinite().all():
        text = texts[int((~logits.isfinite()).any(dim=1).nonzero()[0])]
        raise CheckpointError(
            f"{speaker()}: the logits of a run must be finite, those of {run.folder} are not for {text[:80]!r}"
        )
    return logits


def evaluate(
    folder: Path,
    data: str,
    *,
    text_column: str | None,
    label_column: str | None,
    model: str | None,
    other_base: bool = False,
) -> dict[str, Any]:
    """Score a run on labelled data.

    Raises:
        AdapterxError: the run or the data cannot be used.
    """
    record = read_record(folder)  # the data come before the model, which takes longer to load than they to be refused
    recorded = (record.get("text_column"), record.get("label_column"))
    examples = load_examples(
        data, text_column=text_column, label_column=label_column, recorded=recorded, default_split="test"
    )
    truth = torch.tensor(label_ids(examples, record["labels"], data))
    run = load_run(folder, model=model, other_base=other_base)
    logits = logits_of(run, examples.texts)
    guesses = logits.argmax(dim=1)
    counts = truth.bincount(minlength=len(run.labels))
    metrics: dict[str, Any] = {"data": data.encode("utf-8", "backslashreplace").decode(), "examples": len(truth)}
    metrics |= classification_scores(guesses.tolist(), truth.tolist())
    metrics["loss"] = torch.nn.functional.cross_entropy(logits, truth).item()
    metrics["majority_baseline"] = counts.max().item() / len(truth)
    metrics["classes"] = {}
    for i, label in enumerate(run.labels):
        hits = ((guesses == i) & (truth == i)).sum().item()
        guessed = (guesses == i).sum().item()
        metrics["classes"][label] = {
            "precision": hits / guessed if guessed else None,
            "recall": hits / counts[i].item() if counts[i] else None,
            "examples": counts[i].item(),
        }
    return metrics


def class_line(scores: dict[str, Any]) -> str:
    """Return the scores of one class as `evaluate` prints them."""
    shown = [f"{n} {'-' if scores[n] is None else format(scores[n], '.3f')}" for n in ("precision", "recall")]
    return f"{', '.join(shown)}, {scores['examples']} examples"


def predict(run: Run, wanted: Wanted) -> list[dict[str, Any]]:
    """Return for each text its other columns, its likeliest label, and the probability of every label."""
    probabilities = logits_of(run, wanted.texts).softmax(dim=1)
    best = probabilities.argmax(dim=1).tolist()
    return [
        {
            **columns,
            "text": text,
            "label": run.labels[i],
            "probability": round(row[i].item(), 6),
            "probabilities": {label: round(p, 6) for label, p in zip(run.labels, row.tolist(), strict=True)},
        }
        for columns, text, i, row in zip(wanted.columns, wanted.texts, best, probabilities, strict=True)
    ]
