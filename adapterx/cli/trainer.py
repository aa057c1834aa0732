"""What the Hugging Face Trainer is given: rows, arguments, callbacks, what scores. Only `train` imports this module."""

import math
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from adapterx.cli.options import TrainOptions
from adapterx.cli.pacing import SaveEvery, StopEarly
from adapterx.cli.progress import ProgressLine
from adapterx.cli.tasks import TASKS
from adapterx.cli.tasks.batches import by_length
from adapterx.cli.tasks.task import Encoded, Json
from adapterx.integrations import transformers as integration
from adapterx.integrations.transformers import AdapterTrainer


def build_trainer(
    model: nn.Module,
    tokenizer: "transformers.PreTrainedTokenizerBase",
    options: TrainOptions,
    known: Json,
    training: Encoded,
    watched: Encoded | None,
    checkpoints: Path,
) -> AdapterTrainer:
    """Build the Trainer.

    Args:
        model: to train.
        tokenizer: of the base model.
        options: of the run.
        known: what the task learnt from the data.
        training: the rows to train on.
        watched: the rows that are scored after every epoch.
        checkpoints: the folder for them.
    """
    task = TASKS[options.task]
    watched = by_length(watched) if watched else None
    metric = task.best(known)
    best = metric if options.keep_best else None
    callbacks = [ProgressLine(metric[0]), SaveEvery(options.save_steps)]
    if options.early_stopping is not None:
        callbacks.append(StopEarly(options.early_stopping, *metric, options.early_stopping_threshold or 0.0))
    trainer_class = getattr(integration, task.trainer)
    arguments_class = getattr(transformers, task.trainer_arguments)
    trainer = trainer_class(
        model=model,
        args=arguments_class(
            **training_arguments(options, checkpoints, num_examples=len(training), evaluates=bool(watched), best=best)
        ),
        train_dataset=training,
        eval_dataset=watched,
        data_collator=task.collator(tokenizer, model),
        compute_metrics=task.scorer(watched, known, tokenizer) if watched else None,
        callbacks=callbacks,
        head_learning_rate=options.head_learning_rate,
        **task.for_trainer(),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def scores_of(
    trainer: AdapterTrainer,
    options: TrainOptions,
    known: Json,
    rows: Encoded,
    tokenizer: "transformers.PreTrainedTokenizerBase",
) -> dict[str, float]:
    """Return what the trained model scores on these rows, by the names of the metrics."""
    rows = by_length(rows)
    trainer.compute_metrics = TASKS[options.task].scorer(rows, known, tokenizer)
    found = trainer.predict(rows).metrics
    return {name.removeprefix("test_"): value for name, value in clean_log(found).items()}


def clean_log(entry: dict[str, float]) -> dict[str, float | None]:
    """Keep what a curve needs, in order: no speeds, which differ from run to run, and None for what is not finite."""
    kept = {name: entry[name] for name in sorted(entry) if not name.endswith(("_time", "_runtime", "_per_second"))}
    return {name: value if math.isfinite(value) else None for name, value in kept.items()}


def training_arguments(
    options: TrainOptions, checkpoints: Path, *, num_examples: int, evaluates: bool, best: tuple[str, bool] | None
) -> dict[str, Any]:
    """Return the options in the Trainer's words; `best` is the metric to choose an epoch by, and its direction."""
    batches = math.ceil(num_examples / options.batch_size)
    steps = options.max_steps or math.ceil(batches / options.gradient_accumulation) * options.epochs
    # The name of the option changed between the major versions; the meaning, a share of all steps, did not.
    warmup = "warmup_steps" if int(transformers.__version__.split(".")[0]) >= 5 else "warmup_ratio"
    chosen = {}
    if best is not None:
        chosen = {"load_best_model_at_end": True, "metric_for_best_model": best[0], "greater_is_better": best[1]}
    task = TASKS[options.task]
    return dict(
        output_dir=str(checkpoints),
        num_train_epochs=options.epochs or 1,
        max_steps=options.max_steps or -1,
        gradient_accumulation_steps=options.gradient_accumulation,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=task.eval_batch_size,
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
        **chosen,
        **task.for_arguments(options.record()),
    )
