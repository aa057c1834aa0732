"""`adapterx train`: from data to a run folder that can be evaluated, used and exported."""

import os
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from adapterx.adapters import summary
from adapterx.attachment import attach
from adapterx.checkpoint import save_adapter
from adapterx.checkpoint.folder import discard, newest_complete
from adapterx.cli import resuming, runs
from adapterx.cli.bases import describe_base
from adapterx.cli.data.examples import Examples
from adapterx.cli.loading import quiet_transformers
from adapterx.cli.models import embedded_tokens, resolve_max_length
from adapterx.cli.options import TrainOptions
from adapterx.cli.process import is_main_process
from adapterx.cli.recipes import CURVE_EXAMPLES
from adapterx.cli.records import CHECKPOINTS, CURVE, METRICS, RECORD, describe_file, to_document
from adapterx.cli.reporting import draw_learning_curve, print_figures, say
from adapterx.cli.tasks import TASKS
from adapterx.cli.tasks.batches import check_known
from adapterx.cli.tasks.task import Asked, Encoded, Encoder, Json, Task
from adapterx.errors import AdapterxError, CheckpointError, ConfigError, TrainingError
from adapterx.training import examples_per_class, seed_everything, stratified_split

if TYPE_CHECKING:
    from adapterx.integrations.transformers import AdapterTrainer


def train(options: TrainOptions) -> Json:
    """Train, evaluate, and write the run folder; return the metrics.

    Raises:
        AdapterxError: the data or the model cannot be used, or training failed; nothing good is lost.
    """
    check_launch()
    output = options.output.absolute()
    data = read_data(options)
    with ExitStack() as held:
        if is_main_process():
            held.enter_context(runs.reserved(output, resume=options.resume, overwrite=options.overwrite))
        held.enter_context(resuming.telling_how_to_go_on(output))
        return train_into(output, options, *data)


def check_launch() -> None:
    """Refuse what `accelerate launch` may ask for by the environment: the first process alone writes the run.

    Raises:
        ConfigError: the model is to be shared out among the processes.
    """
    for variable, option in (("ACCELERATE_USE_FSDP", "--use_fsdp"), ("ACCELERATE_USE_DEEPSPEED", "--use_deepspeed")):
        if os.environ.get(variable, "false").lower() == "true":
            raise ConfigError(
                f"train: every process must hold the whole model, got {option} from accelerate launch; leave it out, "
                "or train by AdapterTrainer in a program of your own (docs/distributed.md)"
            )


def train_into(output: Path, options: TrainOptions, training: Examples, held_out: Examples | None, known: Json) -> Json:
    """Train on what `read_data` returned, into a folder that is kept for this training; errors as in `train`."""
    from adapterx.cli.trainer import build_trainer

    quiet_transformers()
    before = resuming.started_with(output) if options.resume else {}
    options = resuming.as_before(options, before)
    if options.threads:
        torch.set_num_threads(options.threads)
    task = TASKS[options.task]
    tokenizer, base = task.load(options.model)
    described, known = describe_base(base, tokenizer), task.meet(known, tokenizer)
    max_length = resolve_max_length(options.max_length, tokenizer, base, task.max_length)
    model = build_model(base, options, known)
    task.prepare(model, training, known, options.record())

    # Before an older run is deleted: texts may be refused here.
    encoder = Encoder(tokenizer, max_length, embedded_tokens(base), options.record())
    rows = task.encode(training, known, encoder)
    check_known(rows, tokenizer)
    held_out_rows = held_out and task.encode(held_out, known, encoder)
    watched = held_out_rows
    # A curve does not need every example; a choice of the best epoch does.
    if held_out and not options.keep_best and len(held_out.texts) > CURVE_EXAMPLES:
        share = CURVE_EXAMPLES / len(held_out.texts)
        _, few = stratified_split(task.strata(held_out), share, seed=options.seed)
        watched = task.encode(held_out.take(few), known, encoder)

    found = known | {"max_length": max_length, "content of the data": training.digest()}
    if held_out:
        found["content of the evaluation data"] = held_out.digest()
    found |= {f"{part} of the base model": digest[:16] for part, digest in described.items()}
    found["processes"] = resuming.processes()
    if options.resume:
        resuming.go_on(options, found, before)
    elif is_main_process():
        resuming.begin(output, options, found)

    if unread := task.unread(training, rows, max_length):
        say(unread)
    trainer = build_trainer(model, tokenizer, options, known, rows, watched, output / CHECKPOINTS)
    seconds = run_trainer(trainer, output / CHECKPOINTS, resume=options.resume)
    metrics = final_metrics(trainer, options, known, rows, held_out_rows, seconds, tokenizer)
    metrics |= {"train_examples": len(training.texts), "eval_examples": len(held_out.texts) if held_out else 0}
    if is_main_process():
        columns = {"text_column": training.text_column, "label_column": training.label_column}
        record = columns | known | {"max_length": max_length}
        if options.method != "full":  # the run folder of which holds the whole model
            record["base"] = described
        task.settle(model, known)
        write_run(output, model, tokenizer, options, record, metrics)
        print_summary(output, task, metrics)
    return metrics


def read_data(options: TrainOptions) -> tuple[Examples, Examples | None, Json]:
    """Return the training examples, the held-out ones (None if there are none), and what the task learnt from them."""
    task, settings = TASKS[options.task], options.record()
    asked = Asked(options.text_column, options.label_column, (None, None), settings, options.spool)
    examples, held_out = task.read(options.data, asked, default_split="train"), None
    known = task.learn(examples, settings, options.data)
    if options.eval_data is not None:
        likewise = replace(asked, recorded=(examples.text_column, examples.label_column))
        held_out = task.read(options.eval_data, likewise, default_split="validation")
        task.check(held_out, known, options.eval_data)
    elif options.eval_fraction:
        kept, apart = stratified_split(task.strata(examples), options.eval_fraction, seed=options.seed)
        examples, held_out = examples.take(kept), examples.take(apart)
    if options.examples_per_class is not None:
        examples = examples.take(examples_per_class(examples.labels, options.examples_per_class, seed=options.seed))
    return examples, held_out, known


def build_model(base: nn.Module, options: TrainOptions, known: Json) -> nn.Module:
    """Put a seeded head on the base model, where the task has one, and make trainable what the method trains."""
    seed_everything(options.seed)
    model = TASKS[options.task].build(base, options.record(), known)
    if options.method == "head":
        base.requires_grad_(False)
    if options.adapter is not None:
        say(str(attach(base, options.adapter, seed=options.seed)).splitlines()[0])
    return model


def run_trainer(trainer: "AdapterTrainer", checkpoints: Path, *, resume: bool) -> float:
    """Train and return the seconds it took; whatever stops it, say how to go on."""
    newest, skipped = newest_complete(checkpoints) if resume else (None, [])
    for reason in skipped:
        say(f"skipped: {reason}")
    if resume:
        say(f"resuming from {newest.name}" if newest else "no complete checkpoint yet: starting from the beginning")
    for callback in trainer.callback_handler.callbacks if newest else ():
        step = getattr(callback, "had_stopped", lambda _: None)(newest)
        trainer.args.max_steps = step or trainer.args.max_steps  # nothing is left to do but to load the best epoch
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
    trainer: "AdapterTrainer",
    options: TrainOptions,
    known: Json,
    training: Encoded,
    held_out: Encoded | None,
    seconds: float,
    tokenizer: Any,
) -> Json:
    """Score the trained model on every held-out example and gather what is worth keeping."""
    from adapterx.cli.trainer import clean_log, scores_of

    task = TASKS[options.task]
    scores: dict[str, float | None] = dict.fromkeys((*task.figures, "loss"))
    if held_out:
        scores |= scores_of(trainer, options, known, held_out, tokenizer)
        scores |= task.baselines(training, held_out, known)
    parameters = summary(trainer.model)
    return {
        "method": options.method,
        **scores,
        "steps": trainer.state.global_step,
        "train_seconds": round(seconds, 2),
        "trainable_parameters": parameters.trainable,
        "total_parameters": parameters.total,
        "trainable_fraction": parameters.trainable / parameters.total,
        "history": [clean_log(entry) for entry in trainer.state.log_history if {"loss", "eval_loss"} & entry.keys()],
    }


def write_run(
    output: Path, trained: nn.Module, tokenizer: Any, options: TrainOptions, found: Json, metrics: Json
) -> None:
    """Write the run folder, `run.json` last, and discard the checkpoints unless they are to be kept.

    Raises:
        TrainingError: it could not be written; the checkpoints are still there.
    """
    model = str(Path(options.model).absolute()) if Path(options.model).is_dir() else options.model
    task = TASKS[options.task]
    record = {"task": task.name, "method": options.method, "base_model": model} | found
    record |= {"seed": options.seed, "options": options.record(), "keep_checkpoints": options.keep_checkpoints}
    record |= resuming.machine(options)
    try:
        with runs.staged(output, last=RECORD) as folder:
            if options.method == "full":
                task.adapted(trained).save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            elif options.method == "adapters":
                save_adapter(task.adapted(trained), folder)
            task.save(trained, folder)
            record["files"] = {path.name: describe_file(path) for path in sorted(folder.iterdir())}
            sizes = {name: each["bytes"] for name, each in record["files"].items() if name.endswith(".safetensors")}
            metrics["adapter_file_bytes"] = sizes.get("adapter_model.safetensors")
            metrics["saved_bytes"] = sum(sizes.values())
            (folder / METRICS).write_bytes(to_document(metrics))
            draw_learning_curve(metrics["history"], folder / CURVE, task.best(found)[0])
            (folder / RECORD).write_bytes(to_document(record))
    except (OSError, SafetensorError, CheckpointError) as error:
        raise TrainingError(
            f"train: training is done, but its result could not be written to {output} ({error}); the checkpoints are "
            "intact: make room and repeat the command with --resume"
        ) from error
    if not options.keep_checkpoints:
        runs.discard_checkpoints(output)


def print_summary(output: Path, task: Task, metrics: Json) -> None:
    """Print the figures that matter and what to do next."""
    shown = {name: metrics[name] for name in task.figures if metrics[name] is not None}
    shown["trained"] = f"{metrics['trainable_parameters']:,} parameters ({100 * metrics['trainable_fraction']:.2f} %)"
    shown["saved"] = f"{metrics['saved_bytes'] / 1024:,.0f} KiB"
    shown["training"] = f"{metrics['train_seconds']:.0f} s"
    print_figures(str(output), shown)
    say(f"next: adapterx predict {output} 'some text'")
