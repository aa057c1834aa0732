"""Examples as the Hugging Face Trainer wants them, and the Trainer. Imports transformers; only `train` uses it."""

import math
from pathlib import Path
from typing import Any

import torch
import transformers

from adapterx.cli.examples import Examples, label_ids
from adapterx.cli.models import encode
from adapterx.cli.options import TrainOptions, uses_gpu
from adapterx.cli.progress import ProgressLine
from adapterx.cli.recipes import CURVE_EXAMPLES, EVAL_BATCH_SIZE
from adapterx.cli.reporting import say
from adapterx.heads import SequenceClassifier
from adapterx.integrations.transformers import AdapterTrainer
from adapterx.training import classification_scores, stratified_split


class EncodedExamples(torch.utils.data.Dataset):
    """Token ids and a class id for every example."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def label_ids(self) -> list[int]:
        """Return the class id of every example."""
        return [row["labels"] for row in self.rows]


def as_dataset(examples: Examples, labels: list[str], tokenizer: Any, max_length: int) -> EncodedExamples:
    """Encode examples, keeping their order."""
    rows = encode(tokenizer, examples.texts, max_length)
    for row, label in zip(rows, label_ids(examples, labels, "the data"), strict=True):
        row["labels"] = label
    return EncodedExamples(rows)


def by_length(dataset: EncodedExamples, positions: list[int] | None = None) -> EncodedExamples:
    """Return the examples, short ones first: batches of equal length hold little padding."""
    rows = dataset.rows if positions is None else [dataset.rows[i] for i in positions]
    return EncodedExamples(sorted(rows, key=lambda row: len(row["input_ids"])))


def report_cut(dataset: EncodedExamples, max_length: int) -> None:
    """Say how many training texts fill the length limit, since what lies beyond it is never read."""
    full = sum(len(row["input_ids"]) >= max_length for row in dataset.rows)
    if full:
        say(f"{full} of {len(dataset)} texts reach {max_length} tokens; what lies beyond is not read (--max-length)")


def build_trainer(
    classifier: SequenceClassifier,
    tokenizer: Any,
    options: TrainOptions,
    training: EncodedExamples,
    held_out: EncodedExamples | None,
    checkpoints: Path,
) -> AdapterTrainer:
    """Wire the Hugging Face Trainer."""
    recipe = options.recipe()
    on_gpu = uses_gpu(options)
    steps = math.ceil(len(training) / recipe.batch_size) * recipe.epochs
    # The name of the option changed between the major versions; the meaning, a share of all steps, did not.
    warmup = "warmup_steps" if int(transformers.__version__.split(".")[0]) >= 5 else "warmup_ratio"
    arguments = transformers.TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=EVAL_BATCH_SIZE,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type="linear",
        bf16=options.precision == "bf16",
        fp16=options.precision == "fp16",
        seed=options.seed,
        eval_strategy="epoch" if held_out else "no",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=options.keep_best,
        metric_for_best_model="accuracy" if options.keep_best else None,
        greater_is_better=True if options.keep_best else None,
        logging_steps=max(1, steps // 50),
        disable_tqdm=True,
        report_to="none",
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=options.method == "full",  # adapters and a head are always used
        **{warmup: recipe.warmup_ratio},
    )
    watched = None
    if held_out:
        ids, size = held_out.label_ids(), len(held_out)
        # A curve does not need every example; a choice of the best epoch does.
        few = not options.keep_best and size > CURVE_EXAMPLES
        watched = by_length(
            held_out, stratified_split(ids, CURVE_EXAMPLES / size, seed=options.seed)[1] if few else None
        )
    trainer = AdapterTrainer(
        model=classifier,
        args=arguments,
        train_dataset=training,
        eval_dataset=watched,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: classification_scores(p.predictions.argmax(-1).tolist(), p.label_ids.tolist()),
        callbacks=[ProgressLine(recipe.epochs)],
        head_learning_rate=recipe.head_learning_rate,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer
