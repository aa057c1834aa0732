"""`adapterx train`: from a table of labelled texts to a run folder that can be evaluated, used and exported."""

import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from adapterx.attachment import attach
from adapterx.checkpoint import save_adapter, save_head
from adapterx.cli.examples import Examples, label_ids, load_examples, ordered_labels
from adapterx.cli.models import encode, load_base, load_tokenizer, quiet_transformers, resolve_max_length
from adapterx.cli.options import TrainOptions, differences
from adapterx.cli.recipes import CURVE_EXAMPLES, EVAL_BATCH_SIZE
from adapterx.cli.reporting import draw_learning_curve, print_figures, say
from adapterx.cli.runs import (
    CHECKPOINTS,
    CURVE,
    FORMAT_VERSION,
    METRICS,
    OPTIONS,
    RECORD,
    clear_folder,
    is_main_process,
    prepare_folder,
    staged,
    to_json,
    versions,
)
from adapterx.errors import AdapterxError, ConfigError, TrainingError
from adapterx.heads import SequenceClassifier
from adapterx.integrations.sealing import discard, newest_complete, write_atomically
from adapterx.training import classification_scores, examples_per_class, seed_everything, stratified_split

if TYPE_CHECKING:
    from adapterx.integrations.transformers import AdapterTrainer


def train(options: TrainOptions) -> dict[str, Any]:
    """Train, evaluate, and write the run folder; return the metrics.

    Raises:
        AdapterxError: the options, the data or the model cannot be used, or training failed; nothing good is lost.
    """
    options.check()
    output = Path(options.output).absolute()
    training, held_out, labels = read_data(options)
    if is_main_process():
        prepare_folder(output, resume=options.resume, overwrite=options.overwrite)
    quiet_transformers()
    if options.threads:
        torch.set_num_threads(options.threads)
    tokenizer, base = load_tokenizer(options.model), load_base(options.model)
    max_length = resolve_max_length(options.max_length, tokenizer, base)
    classifier = build_classifier(base, options, len(labels))

    asked = options.resolved() | {"labels": labels, "max_length": max_length, "content of the data": training.digest()}
    if held_out:
        asked["content of the evaluation data"] = held_out.digest()
    checkpoints = output / CHECKPOINTS
    if options.resume:
        check_same_options(checkpoints / OPTIONS, asked)
    elif is_main_process():
        clear_folder(output)
        checkpoints.mkdir()
        write_atomically(checkpoints / OPTIONS, to_json(asked))

    datasets = [as_dataset(part, labels, tokenizer, max_length) if part else None for part in (training, held_out)]
    report_cut(datasets[0], max_length)
    trainer = build_trainer(classifier, tokenizer, options, *datasets, checkpoints)
    seconds = run_trainer(trainer, options, checkpoints)
    metrics = final_metrics(trainer, options, datasets, seconds)
    if is_main_process():
        record = {
            "format_version": FORMAT_VERSION,
            "method": options.method,
            "base_model": str(Path(options.model).absolute()) if Path(options.model).is_dir() else options.model,
            "labels": labels,
            "max_length": max_length,
            "text_column": training.text_column,
            "label_column": training.label_column,
            "seed": options.seed,
            "options": options.resolved(),
            "versions": versions(),
        }
        write_run(output, classifier, tokenizer, record, metrics)
        if not options.keep_checkpoints:
            for folder in checkpoints.glob("checkpoint-*"):
                discard(folder)
            discard(checkpoints)
        print_summary(output, metrics)
    return metrics


def read_data(options: TrainOptions) -> tuple[Examples, Examples | None, list[str]]:
    """Return the training examples, the held-out ones (None if there are none), and the labels in order."""
    columns = {"text_column": options.text_column, "label_column": options.label_column}
    examples = load_examples(options.data, **columns)
    labels = ordered_labels(examples.labels, options.data)
    held_out = None
    if options.eval_data is not None:
        held_out = load_examples(
            options.eval_data,
            text_column=examples.text_column,
            label_column=examples.label_column,
            default_split="validation",
        )
        label_ids(held_out, labels, options.eval_data)
    elif share := options.share_held_out():
        kept, apart = stratified_split(examples.labels, share, seed=options.seed)
        examples, held_out = examples.take(kept), examples.take(apart)
    if options.examples_per_class is not None:
        examples = examples.take(examples_per_class(examples.labels, options.examples_per_class, seed=options.seed))
    return examples, held_out, labels


def build_classifier(base: nn.Module, options: TrainOptions, num_labels: int) -> SequenceClassifier:
    """Put a seeded head on the base model and make trainable what the method trains."""
    seed_everything(options.seed)
    dropout = options.recipe().head_dropout
    classifier = SequenceClassifier(base, num_labels, pooling=options.pooling, dropout=dropout)
    config = options.adapter_config()
    if options.method == "head":
        base.requires_grad_(False)
    if config is not None:
        say(str(attach(base, config, seed=options.seed)).splitlines()[0])
    return classifier


def check_same_options(path: Path, asked: dict[str, Any]) -> None:
    """Refuse to resume a run under other options.

    Raises:
        ConfigError: something differs; the text says what.
    """
    found = differences(json.loads(path.read_bytes()), json.loads(to_json(asked)))
    if found:
        raise ConfigError(f"--resume needs the options of the first run, these differ: {'; '.join(found)}")


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
) -> "AdapterTrainer":
    """Wire the Hugging Face Trainer."""
    import transformers

    from adapterx.cli.progress import ProgressLine
    from adapterx.integrations.transformers import AdapterTrainer

    recipe = options.recipe()
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    if options.precision == "fp16" and not on_gpu:
        raise ConfigError("precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
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


def run_trainer(trainer: "AdapterTrainer", options: TrainOptions, checkpoints: Path) -> float:
    """Train and return the seconds it took; whatever stops it, say how to go on."""
    from adapterx.cli.progress import ProgressLine

    newest, skipped = newest_complete(checkpoints) if options.resume else (None, [])
    for reason in skipped:
        say(f"skipped: {reason}")
    if options.resume:
        say(f"resuming from {newest.name}" if newest else "no complete checkpoint yet: starting from the beginning")
    start = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    except KeyboardInterrupt:
        say(f"interrupted at step {trainer.state.global_step}; continue with the same command and --resume")
        sys.exit(130)
    except AdapterxError:
        if is_main_process() and newest_complete(checkpoints)[0] is None:
            discard(checkpoints)  # nothing to resume, so the next attempt finds the folder as it was
        raise
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressLine):
                callback.close()
    return time.perf_counter() - start


def final_metrics(
    trainer: "AdapterTrainer", options: TrainOptions, datasets: list[EncodedExamples | None], seconds: float
) -> dict[str, Any]:
    """Score the trained model on every held-out example and gather what is worth keeping."""
    training, held_out = datasets
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in trainer.model.parameters())
    metrics: dict[str, Any] = {"method": options.method, "accuracy": None, "macro_f1": None, "loss": None}
    metrics["majority_baseline"] = None
    if held_out:
        scores = trainer.predict(by_length(held_out)).metrics
        metrics |= {name: scores[f"test_{name}"] for name in ("accuracy", "macro_f1", "loss")}
        ids = training.label_ids()
        most_frequent = max(sorted(set(ids)), key=ids.count)
        metrics["majority_baseline"] = held_out.label_ids().count(most_frequent) / len(held_out)
    return metrics | {
        "train_examples": len(training),
        "eval_examples": len(held_out) if held_out else 0,
        "steps": trainer.state.global_step,
        "train_seconds": round(seconds, 2),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "trainable_fraction": trainable / total,
        "history": [clean_log(entry) for entry in trainer.state.log_history if {"loss", "eval_loss"} & entry.keys()],
    }


def clean_log(entry: dict[str, float]) -> dict[str, float]:
    """Keep what a curve needs; drop speeds, which differ from run to run."""
    return {name: value for name, value in entry.items() if not name.endswith(("_runtime", "_per_second"))}


def write_run(
    output: Path, classifier: SequenceClassifier, tokenizer: Any, record: dict[str, Any], metrics: dict[str, Any]
) -> None:
    """Write the run folder, `run.json` last.

    Raises:
        TrainingError: it could not be written; the checkpoints are still there.
    """
    try:
        _write_run(output, classifier, tokenizer, record, metrics)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"training is done, but its result could not be written to {output} ({error}); the checkpoints are intact: "
            "make room and repeat the command with --resume"
        ) from error


def _write_run(
    output: Path, classifier: SequenceClassifier, tokenizer: Any, record: dict[str, Any], metrics: dict[str, Any]
) -> None:
    with staged(output, last=RECORD) as folder:
        if record["method"] == "full":
            classifier.base_model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        elif record["method"] == "adapters":
            save_adapter(classifier.base_model, folder)
        save_head(classifier, folder)
        sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
        metrics["adapter_file_bytes"] = sizes.get("adapter_model.safetensors")
        metrics["saved_bytes"] = sum(sizes.values())
        (folder / METRICS).write_bytes(to_json(metrics))
        draw_learning_curve(metrics["history"], folder / CURVE)
        (folder / RECORD).write_bytes(to_json(record))


def print_summary(output: Path, metrics: dict[str, Any]) -> None:
    """Print the figures that matter and what to do next."""
    shown = {name: metrics[name] for name in ("accuracy", "macro_f1", "majority_baseline") if metrics[name] is not None}
    shown["trained"] = f"{metrics['trainable_parameters']:,} parameters ({100 * metrics['trainable_fraction']:.2f} %)"
    shown["saved"] = f"{metrics['saved_bytes'] / 1024:,.0f} KiB"
    shown["training"] = f"{metrics['train_seconds']:.0f} s"
    print_figures(str(output), shown)
    say(f"next: adapterx predict {output} 'some text'")
