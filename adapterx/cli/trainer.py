"""What the Hugging Face Trainer is given: encoded examples, arguments, callbacks. Only `train` imports this module."""

import math
from pathlib import Path
from typing import Any

import transformers

from adapterx.cli.examples import Examples, label_ids
from adapterx.cli.models import encode
from adapterx.cli.options import TrainOptions
from adapterx.cli.progress import ProgressLine
from adapterx.cli.recipes import CURVE_EXAMPLES, EVAL_BATCH_SIZE
from adapterx.heads import SequenceClassifier
from adapterx.integrations.transformers import AdapterTrainer
from adapterx.training import classification_scores, stratified_split

Encoded = list[dict[str, Any]]  # token ids and, as `labels`, the class id of every example


def encoded(examples: Examples, labels: list[str], tokenizer: Any, max_length: int, embedded: int | None) -> Encoded:
    """Encode examples, keeping their order; `embedded` as in `encode`."""
    ids = label_ids(examples, labels, "the data")
    rows = encode(tokenizer, examples.texts, max_length, embedded=embedded)
    return [row | {"labels": label} for row, label in zip(rows, ids, strict=True)]


def by_length(rows: Encoded) -> Encoded:
    """Return the examples, short ones first: batches of equal length hold little padding."""
    return sorted(rows, key=lambda row: len(row["input_ids"]))


def build_trainer(
    classifier: SequenceClassifier,
    tokenizer: Any,
    options: TrainOptions,
    training: Encoded,
    held_out: Encoded | None,
    checkpoints: Path,
) -> AdapterTrainer:
    """Build the Trainer; after every epoch it scores the held-out examples, or enough of them for a curve."""
    watched = held_out
    # A curve does not need every example; a choice of the best epoch does.
    if held_out and not options.keep_best and len(held_out) > CURVE_EXAMPLES:
        share = CURVE_EXAMPLES / len(held_out)
        _, few = stratified_split([row["labels"] for row in held_out], share, seed=options.seed)
        watched = [held_out[i] for i in few]
    trainer = AdapterTrainer(
        model=classifier,
        args=training_arguments(options, checkpoints, num_examples=len(training), evaluates=bool(held_out)),
        train_dataset=training,
        eval_dataset=by_length(watched) if watched else None,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: classification_scores(p.predictions.argmax(-1).tolist(), p.label_ids.tolist()),
        callbacks=[ProgressLine(options.epochs)],
        head_learning_rate=options.head_learning_rate,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def training_arguments(
    options: TrainOptions, checkpoints: Path, *, num_examples: int, evaluates: bool
) -> transformers.TrainingArguments:
    """Return the options in the Trainer's words."""
    steps = math.ceil(num_examples / options.batch_size) * options.epochs
    # The name of the option changed between the major versions; the meaning, a share of all steps, did not.
    warmup = "warmup_steps" if int(transformers.__version__.split(".")[0]) >= 5 else "warmup_ratio"
    best = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "greater_is_better": True}
    return transformers.TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=EVAL_BATCH_SIZE,
        weight_decay=options.weight_decay,
        lr_scheduler_type="linear",
        bf16=options.precision == "bf16",
        fp16=options.precision == "fp16",
        seed=options.seed,
        eval_strategy="epoch" if evaluates else "no",
        save_strategy="epoch",
        save_total_limit=2,
        logging_steps=max(1, steps // 50),
        disable_tqdm=True,
        report_to="none",
        use_cpu=not options.uses_gpu,
        dataloader_pin_memory=options.uses_gpu,
        ddp_find_unused_parameters=options.method == "full",  # adapters and a head are always used
        **{warmup: options.warmup_ratio},
        **(best if options.keep_best else {}),
    )
