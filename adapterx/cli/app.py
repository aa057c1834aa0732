"""The commands and their help. Everything heavy is imported inside a command, so that `--help` answers at once."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adapterx.cli import help
from adapterx.cli.recipes import BOTTLENECK_DIM, EVAL_FRACTION, INIT, MAX_LENGTH
from adapterx.cli.reporting import errors_in_one_line, print_figures, say
from adapterx.errors import ConfigError

app = typer.Typer(
    name="adapterx",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=help.PROGRAM,
)

DATA, ADAPTER, TRAINING, OUTPUT = "Data", "Adapter", "Training", "Output"


def _option(help_text: str, panel: str | None = None, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, show_default=False, **settings)


@app.command(help=help.TRAIN)
def train(
    model: Annotated[str, _option("Base model: a folder in the Hugging Face layout, or a hub name.", DATA)],
    data: Annotated[
        str, _option("Training data: .csv .tsv .jsonl .json .parquet, or a dataset as name:configuration@split.", DATA)
    ],
    output: Annotated[Path, _option("Folder of the run; new or empty.", OUTPUT)],
    eval_data: Annotated[str | None, _option("Held-out data, likewise.", DATA)] = None,
    eval_fraction: Annotated[
        float | None,
        _option(f"Without --eval-data: share of the data to hold out (default {EVAL_FRACTION}, 0 for none).", DATA),
    ] = None,
    text_column: Annotated[
        str | None, _option("Column of the texts (default: text, sentence, review, ...).", DATA)
    ] = None,
    label_column: Annotated[str | None, _option("Column of the labels (default: label, category, ...).", DATA)] = None,
    examples_per_class: Annotated[int | None, _option("Few-shot: train on K examples of each class.", DATA)] = None,
    max_length: Annotated[int | None, _option(f"Tokens read of each text (default {MAX_LENGTH}).", DATA)] = None,
    method: Annotated[
        str,
        _option("What is trained: adapters (default), head (on the frozen model), or full (every weight).", TRAINING),
    ] = "adapters",
    pooling: Annotated[
        str, _option("How tokens become one vector: mean (default), cls, last (decoders).", TRAINING)
    ] = "mean",
    epochs: Annotated[int | None, _option("Passes over the data (default: the method's).", TRAINING)] = None,
    learning_rate: Annotated[float | None, _option("Peak learning rate (default: the method's).", TRAINING)] = None,
    head_learning_rate: Annotated[float | None, _option("Peak learning rate of the head.", TRAINING)] = None,
    batch_size: Annotated[int | None, _option("Examples in a batch, on each device.", TRAINING)] = None,
    warmup_ratio: Annotated[float | None, _option("Share of the steps in which the rate rises.", TRAINING)] = None,
    weight_decay: Annotated[float | None, _option("AdamW's weight decay.", TRAINING)] = None,
    head_dropout: Annotated[float | None, _option("Dropout before the head's linear layer.", TRAINING)] = None,
    precision: Annotated[str, _option("fp32 (default), bf16, or fp16 (GPU).", TRAINING)] = "fp32",
    keep_best: Annotated[
        bool,
        _option("Keep the epoch with the best held-out accuracy, not the last; then report on other data.", TRAINING),
    ] = False,
    seed: Annotated[int, _option("Seed of everything that is drawn (default 0).", TRAINING)] = 0,
    threads: Annotated[int | None, _option("CPU threads.", TRAINING)] = None,
    device: Annotated[str, _option("auto (default: a GPU where there is one) or cpu.", TRAINING)] = "auto",
    bottleneck_dim: Annotated[
        int | None, _option(f"Width of the bottleneck (default {BOTTLENECK_DIM}).", ADAPTER)
    ] = None,
    reduction_factor: Annotated[float | None, _option("Hidden size divided by the width, instead.", ADAPTER)] = None,
    placement: Annotated[str | None, _option("sequential (default) or parallel.", ADAPTER)] = None,
    positions: Annotated[
        list[str] | None, _option("attention, feed_forward; repeat for both (default: both).", ADAPTER)
    ] = None,
    activation: Annotated[str | None, _option("gelu (default), relu, silu, tanh, ...", ADAPTER)] = None,
    scaling: Annotated[str | None, _option("A number (default 1), learned, or learned_per_channel.", ADAPTER)] = None,
    dropout: Annotated[float | None, _option("Dropout of the branch (default 0).", ADAPTER)] = None,
    down_bias: Annotated[bool | None, _option("Bias of the down projection (default: yes).", ADAPTER)] = None,
    up_bias: Annotated[bool | None, _option("Bias of the up projection (default: yes).", ADAPTER)] = None,
    init: Annotated[str | None, _option(f"houlsby, xavier or he (default {INIT}).", ADAPTER)] = None,
    init_up: Annotated[str | None, _option("zero (default: starts as the base model) or near_zero.", ADAPTER)] = None,
    layers: Annotated[str | None, _option("Only these blocks, such as 0,1,8-11 (default: all).", ADAPTER)] = None,
    target_modules: Annotated[
        list[str] | None, _option("Suffix of module names to adapt instead; repeat for several.", ADAPTER)
    ] = None,
    target_regex: Annotated[str | None, _option("Regular expression for whole module names, instead.", ADAPTER)] = None,
    modules_to_save: Annotated[
        list[str] | None, _option("Module of which the adapter trains a copy; repeat for several.", ADAPTER)
    ] = None,
    resume: Annotated[
        bool, _option("Continue an interrupted run; the other options must be the same.", OUTPUT)
    ] = False,
    overwrite: Annotated[bool, _option("Discard an earlier run in the output folder.", OUTPUT)] = False,
    keep_checkpoints: Annotated[bool, _option("Keep the checkpoints when the run is complete.", OUTPUT)] = False,
) -> None:
    """Train on labelled texts and write a run folder: adapter, head, metrics, learning curve."""
    given = {
        "bottleneck_dim": bottleneck_dim, "reduction_factor": reduction_factor, "placement": placement,
        "positions": tuple(positions) if positions else None, "activation": activation, "dropout": dropout,
        "down_bias": down_bias, "up_bias": up_bias, "init": init, "init_up": init_up,
        "modules_to_save": tuple(modules_to_save) if modules_to_save else None,
    }  # fmt: skip
    with errors_in_one_line():
        if target_modules and target_regex:
            raise ConfigError("--target-modules and --target-regex exclude each other")
        given["target_modules"] = target_regex or (tuple(target_modules) if target_modules else None)
        given["scaling"] = None if scaling is None else _number_or_name(scaling)
        given["layers"] = None if layers is None else _block_list(layers)
        from adapterx.cli.options import TrainOptions

        options = TrainOptions(
            model=model, data=data, output=str(output), eval_data=eval_data, eval_fraction=eval_fraction,
            text_column=text_column, label_column=label_column, method=method,
            adapter={name: value for name, value in given.items() if value is not None},
            pooling=pooling, epochs=epochs, learning_rate=learning_rate, head_learning_rate=head_learning_rate,
            batch_size=batch_size, warmup_ratio=warmup_ratio, weight_decay=weight_decay, head_dropout=head_dropout,
            max_length=max_length, precision=precision, examples_per_class=examples_per_class, keep_best=keep_best,
            keep_checkpoints=keep_checkpoints, seed=seed, threads=threads, device=device, resume=resume,
            overwrite=overwrite,
        )  # fmt: skip
        options.check()  # before the slow imports
        from adapterx.cli.train import train as run

        run(options)


def _number_or_name(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _block_list(value: str) -> tuple[int, ...]:
    blocks: list[int] = []
    try:
        for part in value.split(","):
            first, _, last = part.partition("-")
            blocks += range(int(first), int(last or first) + 1)
    except ValueError:
        raise ConfigError(f"layers must be block numbers such as 0,1,8-11, got {value!r}") from None
    return tuple(blocks)


RunFolder = Annotated[Path, typer.Argument(help="Folder that `adapterx train` wrote.", show_default=False)]
BaseModel = Annotated[str | None, _option("Base model, where it has moved since the training.")]


@app.command(help=help.EVALUATE)
def evaluate(
    run: RunFolder,
    data: Annotated[str, _option("Labelled data: .csv .tsv .jsonl .json .parquet, or name:configuration@split.")],
    text_column: Annotated[str | None, _option("Column of the texts.")] = None,
    label_column: Annotated[str | None, _option("Column of the labels.")] = None,
    model: BaseModel = None,
    output: Annotated[Path | None, _option("Also write the figures, as JSON, to this file.")] = None,
    as_json: Annotated[bool, _option("Print JSON instead of tables.", None, "--json")] = False,
) -> None:
    """Score a run on labelled data: accuracy, macro-F1, loss, and the baseline of always guessing one label."""
    with errors_in_one_line():
        from adapterx.cli.runs import to_json
        from adapterx.cli.scoring import evaluate as score

        metrics = score(run, data, text_column=text_column, label_column=label_column, model=model)
        if output is not None:
            _write(output, to_json(metrics))
        if as_json:
            typer.echo(to_json(metrics).decode(), nl=False)
            return
        print_figures(
            f"{run} on {data}", {name: value for name, value in metrics.items() if name not in ("classes", "data")}
        )
        if len(metrics["classes"]) <= 20:
            told = {label: _class_line(scores) for label, scores in metrics["classes"].items()}
            print_figures("classes", told)


def _class_line(scores: dict[str, Any]) -> str:
    shown = [
        f"{name} {'-' if scores[name] is None else format(scores[name], '.3f')}" for name in ("precision", "recall")
    ]
    return f"{', '.join(shown)}, {scores['examples']} examples"


def _write(path: Path, content: bytes) -> None:
    from adapterx.checkpoint.folder import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


@app.command(help=help.PREDICT)
def predict(
    run: RunFolder,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts, or - to read one a line from standard input.", show_default=False)
    ] = None,
    file: Annotated[str | None, _option("A table with a text column, or .txt with one text a line.")] = None,
    text_column: Annotated[str | None, _option("Column of the texts.")] = None,
    form: Annotated[str, _option("text (default), jsonl (with every probability), or csv.", None, "--format")] = "text",
    model: BaseModel = None,
    output: Annotated[Path | None, _option("Write here instead of printing.")] = None,
) -> None:
    """Label texts, with probabilities."""
    with errors_in_one_line():
        from adapterx.cli import scoring
        from adapterx.cli.runs import load_run

        if form not in scoring.FORMATS:
            raise ConfigError(f"format must be one of {', '.join(scoring.FORMATS)}, got {form!r}")
        wanted = scoring.texts_to_label(texts or [], file, sys.stdin.buffer, text_column)
        rendered = scoring.render(scoring.predict(load_run(run, model=model), wanted), form)
        if output is not None:
            _write(output, rendered.encode())
        else:
            typer.echo(rendered, nl=False)


@app.command(help=help.EXPORT)
def export(
    run: RunFolder,
    form: Annotated[
        str, _option("torchscript, onnx (one node per adapter), or onnx-portable.", None, "--format")
    ] = "onnx",
    output: Annotated[Path | None, _option("Folder to write to (default: RUN/export).")] = None,
    opset: Annotated[int, _option("ONNX operator set (default 20).")] = 20,
    freeze: Annotated[bool, _option("TorchScript: freeze and fold constants.")] = False,
    model: BaseModel = None,
) -> None:
    """Write the adapted model with its head as TorchScript or ONNX, and check the file against PyTorch."""
    with errors_in_one_line():
        if form not in ("torchscript", "onnx", "onnx-portable"):
            raise ConfigError(f"format must be one of torchscript, onnx, onnx-portable, got {form!r}")
        from adapterx.cli.runs import load_run, to_json
        from adapterx.export import to_onnx, to_torchscript

        loaded = load_run(run, model=model)
        folder = output or run / "export"
        folder.mkdir(parents=True, exist_ok=True)
        if form == "torchscript":
            to_torchscript(loaded.classifier, folder / "model.pt", freeze=freeze)
        else:
            to_onnx(loaded.classifier, folder, mode="portable" if form == "onnx-portable" else "function", opset=opset)
        loaded.tokenizer.save_pretrained(folder)
        _write(folder / "labels.json", to_json(loaded.labels))
        say(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


@app.command(help=help.INFO)
def info(
    target: Annotated[
        str | None, typer.Argument(help="A run folder, an adapter folder, or a base model.", show_default=False)
    ] = None,
) -> None:
    """Tell what is installed, what a folder holds, or which modules of a model would be adapted."""
    with errors_in_one_line():
        from adapterx.cli import inspection

        if target is None:
            print_figures("adapterx", inspection.installation())
            return
        kind, folder = inspection.kind_of(target), Path(target)
        if kind == "interrupted":
            say(f"{target} holds an interrupted run; finish it with `adapterx train ... --resume`")
        elif kind == "model":
            say(inspection.base_model(target))
        else:
            facts = inspection.run_folder(folder) if kind == "run" else inspection.adapter_folder(folder)
            print_figures(target, facts)
