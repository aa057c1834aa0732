"""`adapterx train`: from a table of labelled texts to a run folder that can be evaluated, used and exported."""

import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from adapterx.adapters import summary
from adapterx.attachment import attach
from adapterx.checkpoint import save_adapter, save_head
from adapterx.checkpoint.folder import discard, newest_complete
from adapterx.cli import resuming, runs
from adapterx.cli.bases import describe_base
from adapterx.cli.examples import Examples, label_ids, load_examples, ordered_labels
from adapterx.cli.models import check_known, embedded_tokens, load_text_model, quiet_transformers, resolve_max_length
from adapterx.cli.options import TrainOptions
from adapterx.cli.records import CHECKPOINTS, CURVE, METRICS, RECORD, describe_file, to_document
from adapterx.cli.reporting import draw_learning_curve, print_figures, say
from adapterx.cli.runs import is_main_process
from adapterx.errors import AdapterxError, CheckpointError, TrainingError
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
    data = read_data(options)
    with ExitStack() as held:
        if is_main_process():
            held.enter_context(runs.reserved(output, resume=options.resume, overwrite=options.overwrite))
        held.enter_context(resuming.telling_how_to_go_on(output))
        return train_into(output, options, *data)


def train_into(
    output: Path, options: TrainOptions, training: Examples, held_out: Examples | None, labels: list[str]
) -> Json:
    """Train on what `read_data` returned, into a folder that is kept for this training; errors as in `train`."""
    from adapterx.cli.trainer import build_trainer, encoded

    quiet_transformers()
    before = resuming.started_with(output) if options.resume else {}
    options = resuming.as_before(options, before)
    if options.threads:
        torch.set_num_threads(options.threads)
    tokenizer, base = load_text_model(options.model)
    known = describe_base(base, tokenizer)
    max_length = resolve_max_length(options.max_length, tokenizer, base)
    classifier = build_classifier(base, options, len(labels))

    # Before an older run is deleted: texts may be refused here.
    reading = (labels, tokenizer, max_length, embedded_tokens(base))
    rows, held_out_rows = (part and encoded(part, *reading) for part in (training, held_out))
    check_known(rows, tokenizer)

    found = {"labels": labels, "max_length": max_length, "content of the data": training.digest()}
    if held_out:
        found["content of the evaluation data"] = held_out.digest()
    found |= {f"{part} of the base model": digest[:16] for part, digest in known.items()}
    found["processes"] = resuming.processes()
    if options.resume:
        resuming.go_on(options, found, before)
    elif is_main_process():
        resuming.begin(output, options, found)

    if full := sum(len(row["input_ids"]) >= max_length for row in rows):
        say(f"{full} of {len(rows)} texts reach {max_length} tokens; what lies beyond is not read (--max-length)")
    trainer = build_trainer(classifier, tokenizer, options, rows, held_out_rows, output / CHECKPOINTS)
    seconds = run_trainer(trainer, output / CHECKPOINTS, resume=options.resume)
    metrics = final_metrics(trainer, options.method, rows, held_out_rows, seconds)
    if is_main_process():
        columns = {"text_column": training.text_column, "label_column": training.label_column}
        record = columns | {"labels": labels, "max_length": max_length}
        if options.method != "full":  # the run folder of which holds the whole model
            record["base"] = known
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
    """Keep what a curve needs, in order: no speeds, which differ from run to run, and None for what is not finite."""
    kept = {name: entry[name] for name in sorted(entry) if not name.endswith(("_runtime", "_per_second"))}
    return {name: value if math.isfinite(value) else None for name, value in kept.items()}


def write_run(
    output: Path, classifier: SequenceClassifier, tokenizer: Any, options: TrainOptions, found: Json, metrics: Json
) -> None:
    """Write the run folder, `run.json` last, and discard the checkpoints unless they are to be kept.

    Raises:
        TrainingError: it could not be written; the checkpoints are still there.
    """
    model = str(Path(options.model).absolute()) if Path(options.model).is_dir() else options.model
    record = {"method": options.method, "base_model": model} | found
    record |= {"seed": options.seed, "options": options.record(), "keep_checkpoints": options.keep_checkpoints}
    record |= resuming.machine(options)
    try:
        with runs.staged(output, last=RECORD) as folder:
            if options.method == "full":
                classifier.base_model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            elif options.method == "adapters":
                save_adapter(classifier.base_model, folder)
            save_head(classifier, folder)
            record["files"] = {path.name: describe_file(path) for path in sorted(folder.iterdir())}
            sizes = {name: each["bytes"] for name, each in record["files"].items() if name.endswith(".safetensors")}
            metrics["adapter_file_bytes"] = sizes.get("adapter_model.safetensors")
            metrics["saved_bytes"] = sum(sizes.values())
            (folder / METRICS).write_bytes(to_document(metrics))
            draw_learning_curve(metrics["history"], folder / CURVE)
            (folder / RECORD).write_bytes(to_document(record))
    except (OSError, SafetensorError, CheckpointError) as error:
        raise TrainingError(
            f"train: training is done, but its result could not be written to {output} ({error}); the checkpoints are "
            "intact: make room and repeat the command with --resume"
        ) from error
    if not options.keep_checkpoints:
        runs.discard_checkpoints(output)


def print_summary(output: Path, metrics: Json) -> None:
    """Print the figures that matter and what to do next."""
    shown = {name: metrics[name] for name in ("accuracy", "macro_f1", "majority_baseline") if metrics[name] is not None}
    shown["trained"] = f"{metrics['trainable_parameters']:,} parameters ({100 * metrics['trainable_fraction']:.2f} %)"
    shown["saved"] = f"{metrics['saved_bytes'] / 1024:,.0f} KiB"
    shown["training"] = f"{metrics['train_seconds']:.0f} s"
    print_figures(str(output), shown)
    say(f"next: adapterx predict {output} 'some text'")
