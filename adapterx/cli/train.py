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
from adapterx.checkpoint.folder import discard, newest_complete, write_atomically
from adapterx.cli.examples import Examples, label_ids, load_examples, ordered_labels
from adapterx.cli.models import load_base, load_tokenizer, quiet_transformers, resolve_max_length
from adapterx.cli.options import TrainOptions, differences
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
from adapterx.training import examples_per_class, seed_everything, stratified_split

if TYPE_CHECKING:
    from adapterx.cli.wiring import EncodedExamples
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
    from adapterx.cli.wiring import as_dataset, build_trainer, report_cut

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
            **columns,
            hints=(examples.text_column, examples.label_column),
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


def run_trainer(trainer: "AdapterTrainer", options: TrainOptions, checkpoints: Path) -> float:
    """Train and return the seconds it took; whatever stops it, say how to go on."""
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
            getattr(callback, "close", int)()  # the progress bar gives the terminal back
    return time.perf_counter() - start


def final_metrics(
    trainer: "AdapterTrainer", options: TrainOptions, datasets: list["EncodedExamples | None"], seconds: float
) -> dict[str, Any]:
    """Score the trained model on every held-out example and gather what is worth keeping."""
    training, held_out = datasets
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in trainer.model.parameters())
    metrics: dict[str, Any] = {"method": options.method, "accuracy": None, "macro_f1": None, "loss": None}
    metrics["majority_baseline"] = None
    if held_out:
        from adapterx.cli.wiring import by_length

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


def clean_log(entry: dict[str, float]) -> dict[str, float | None]:
    """Keep what a curve needs: no speeds, which differ from run to run, and None for what is not finite."""
    kept = {name: value for name, value in entry.items() if not name.endswith(("_runtime", "_per_second"))}
    return {name: value if math.isfinite(value) else None for name, value in kept.items()}


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
