"""`adapterx train`: from a table of labelled texts to a run folder that can be evaluated, used and exported."""

import json
import math
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from adapterx.adapters import summary
from adapterx.attachment import attach
from adapterx.checkpoint import save_adapter, save_head
from adapterx.checkpoint.folder import discard, newest_complete
from adapterx.cli import runs
from adapterx.cli.examples import Examples, label_ids, load_examples, ordered_labels
from adapterx.cli.models import check_known, embedded_tokens, load_text_model, quiet_transformers, resolve_max_length
from adapterx.cli.options import OPTIONS, TrainOptions
from adapterx.cli.reporting import draw_learning_curve, print_figures, say
from adapterx.cli.runs import is_main_process, to_json
from adapterx.config import AdapterConfig
from adapterx.errors import AdapterxError, CheckpointError, ConfigError, TrainingError
from adapterx.heads import SequenceClassifier
from adapterx.training import examples_per_class, seed_everything, stratified_split

if TYPE_CHECKING:
    from adapterx.cli.trainer import Encoded
    from adapterx.integrations.transformers import AdapterTrainer

Json = dict[str, Any]  # what is written as JSON


def train(options: TrainOptions) -> Json:
    """Train, evaluate, and write the run folder; return the metrics.

    Raises:
        AdapterxError: the data or the model cannot be used, or training failed; nothing good is lost.
    """
    output = options.output.absolute()
    training, held_out, labels = read_data(options)
    if is_main_process():
        runs.prepare_folder(output, resume=options.resume, overwrite=options.overwrite)
    from adapterx.cli.trainer import build_trainer, encoded

    quiet_transformers()
    if options.threads:
        torch.set_num_threads(options.threads)
    tokenizer, base = load_text_model(options.model)
    max_length = resolve_max_length(options.max_length, tokenizer, base)
    classifier = build_classifier(base, options, len(labels))

    found = {"labels": labels, "max_length": max_length, "content of the data": training.digest()}
    if held_out:
        found["content of the evaluation data"] = held_out.digest()
    begin(output, options.record() | found, resume=options.resume)

    reading = (labels, tokenizer, max_length, embedded_tokens(base))
    rows, held_out_rows = (part and encoded(part, *reading) for part in (training, held_out))
    check_known(rows, tokenizer)
    if full := sum(len(row["input_ids"]) >= max_length for row in rows):
        say(f"{full} of {len(rows)} texts reach {max_length} tokens; what lies beyond is not read (--max-length)")
    trainer = build_trainer(classifier, tokenizer, options, rows, held_out_rows, output / runs.CHECKPOINTS)
    seconds = run_trainer(trainer, output / runs.CHECKPOINTS, resume=options.resume)
    metrics = final_metrics(trainer, options.method, rows, held_out_rows, seconds)
    if is_main_process():
        columns = {"text_column": training.text_column, "label_column": training.label_column}
        record = columns | {"labels": labels, "max_length": max_length}
        write_run(output, classifier, tokenizer, options, record, metrics)
        print_summary(output, metrics)
    return metrics


def read_data(options: TrainOptions) -> tuple[Examples, Examples | None, list[str]]:
    """Return the training examples, the held-out ones (None if there are none), and the labels in order."""
    columns = {"text_column": options.text_column, "label_column": options.label_column}
    examples, held_out = load_examples(options.data, **columns), None
    labels = ordered_labels(examples.labels, options.data)
    if options.eval_data is not None:
        recorded = (examples.text_column, examples.label_column)
        held_out = load_examples(options.eval_data, **columns, recorded=recorded, default_split="validation")
        label_ids(held_out, labels, options.eval_data)
    elif options.eval_fraction:
        kept, apart = stratified_split(examples.labels, options.eval_fraction, seed=options.seed)
        examples, held_out = examples.take(kept), examples.take(apart)
    if options.examples_per_class is not None:
        examples = examples.take(examples_per_class(examples.labels, options.examples_per_class, seed=options.seed))
    return examples, held_out, labels


def build_classifier(base: nn.Module, options: TrainOptions, num_labels: int) -> SequenceClassifier:
    """Put a seeded head on the base model and make trainable what the method trains."""
    seed_everything(options.seed)
    classifier = SequenceClassifier(base, num_labels, pooling=options.pooling, dropout=options.head_dropout)
    if options.method == "head":
        base.requires_grad_(False)
    if options.adapter is not None:
        say(str(attach(base, options.adapter, seed=options.seed)).splitlines()[0])
    return classifier


def begin(output: Path, asked: Json, *, resume: bool) -> None:
    """Note what the run was started with; when it is resumed, refuse other options.

    Raises:
        ConfigError: something differs; the text says what.
    """
    path = output / runs.CHECKPOINTS / runs.STARTED_WITH
    if resume:
        if found := differences(started_with(json.loads(path.read_bytes())), json.loads(to_json(asked))):
            raise ConfigError(f"train: --resume needs the options of the first run, these differ: {'; '.join(found)}")
    elif is_main_process():
        runs.clear_folder(output)
        runs.write(path, to_json(asked))


def started_with(before: Json) -> Json:
    """Return the record of an interrupted run; options that its version did not know stand at their defaults."""
    filled = {option.name: option.default for option in OPTIONS if not option.metadata["free"]} | before
    if filled.get("adapter"):
        filled["adapter"] = {field.name: field.default for field in fields(AdapterConfig)} | filled["adapter"]
    return json.loads(to_json(filled))


def differences(before: Json, now: Json) -> list[str]:
    """Return `name: old -> new` for every value that differs, looking into nested ones."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new)
        elif old != new:
            found.append(f"{name}: {old} -> {new}")
    return found


def run_trainer(trainer: "AdapterTrainer", checkpoints: Path, *, resume: bool) -> float:
    """Train and return the seconds it took; whatever stops it, say how to go on."""
    newest, skipped = newest_complete(checkpoints) if resume else (None, [])
    for reason in skipped:
        say(f"skipped: {reason}")
    if resume:
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
    trainer: "AdapterTrainer", method: str, training: "Encoded", held_out: "Encoded | None", seconds: float
) -> Json:
    """Score the trained model on every held-out example and gather what is worth keeping."""
    scores: dict[str, float] = {}
    if held_out:
        from adapterx.cli.trainer import by_length

        scores = trainer.predict(by_length(held_out)).metrics
        ids = [row["labels"] for row in training]
        most_frequent = max(sorted(set(ids)), key=ids.count)
        scores["majority_baseline"] = sum(row["labels"] == most_frequent for row in held_out) / len(held_out)
    parameters = summary(trainer.model)
    return {
        "method": method,
        "accuracy": scores.get("test_accuracy"),
        "macro_f1": scores.get("test_macro_f1"),
        "loss": scores.get("test_loss"),
        "majority_baseline": scores.get("majority_baseline"),
        "train_examples": len(training),
        "eval_examples": len(held_out or ()),
        "steps": trainer.state.global_step,
        "train_seconds": round(seconds, 2),
        "trainable_parameters": parameters.trainable,
        "total_parameters": parameters.total,
        "trainable_fraction": parameters.trainable / parameters.total,
        "history": [clean_log(entry) for entry in trainer.state.log_history if {"loss", "eval_loss"} & entry.keys()],
    }


def clean_log(entry: dict[str, float]) -> dict[str, float | None]:
    """Keep what a curve needs: no speeds, which differ from run to run, and None for what is not finite."""
    kept = {name: value for name, value in entry.items() if not name.endswith(("_runtime", "_per_second"))}
    return {name: value if math.isfinite(value) else None for name, value in kept.items()}


def write_run(
    output: Path, classifier: SequenceClassifier, tokenizer: Any, options: TrainOptions, found: Json, metrics: Json
) -> None:
    """Write the run folder, `run.json` last, and discard the checkpoints unless they are to be kept.

    Raises:
        TrainingError: it could not be written; the checkpoints are still there.
    """
    model = str(Path(options.model).absolute()) if Path(options.model).is_dir() else options.model
    record = {"format_version": runs.FORMAT_VERSION, "method": options.method, "base_model": model} | found
    record |= {"seed": options.seed, "options": options.record(), "versions": runs.versions()}
    try:
        with runs.staged(output, last=runs.RECORD) as folder:
            if options.method == "full":
                classifier.base_model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            elif options.method == "adapters":
                save_adapter(classifier.base_model, folder)
            save_head(classifier, folder)
            sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
            metrics["adapter_file_bytes"] = sizes.get("adapter_model.safetensors")
            metrics["saved_bytes"] = sum(sizes.values())
            (folder / runs.METRICS).write_bytes(to_json(metrics))
            draw_learning_curve(metrics["history"], folder / runs.CURVE)
            (folder / runs.RECORD).write_bytes(to_json(record))
    except (OSError, SafetensorError, CheckpointError) as error:
        raise TrainingError(
            f"train: training is done, but its result could not be written to {output} ({error}); the checkpoints are "
            "intact: make room and repeat the command with --resume"
        ) from error
    if not options.keep_checkpoints:
        for folder in (output / runs.CHECKPOINTS).glob("checkpoint-*"):
            discard(folder)
        discard(output / runs.CHECKPOINTS)


def print_summary(output: Path, metrics: Json) -> None:
    """Print the figures that matter and what to do next."""
    shown = {name: metrics[name] for name in ("accuracy", "macro_f1", "majority_baseline") if metrics[name] is not None}
    shown["trained"] = f"{metrics['trainable_parameters']:,} parameters ({100 * metrics['trainable_fraction']:.2f} %)"
    shown["saved"] = f"{metrics['saved_bytes'] / 1024:,.0f} KiB"
    shown["training"] = f"{metrics['train_seconds']:.0f} s"
    print_figures(str(output), shown)
    say(f"next: adapterx predict {output} 'some text'")
