"""The commands. What is slow to import is imported where it is used, so that `--help` answers at once."""

from pathlib import Path
from typing import Annotated

import typer

from adapterx.cli import answers, inspection, library, scoring
from adapterx.cli.commands import PATH, BaseModel, OtherBase, Run, TextColumn, app, check_choice, command, option
from adapterx.cli.converting import LIBRARIES, convert_folder
from adapterx.cli.data.sources import Sources
from adapterx.cli.data.wanted import with_ids_first
from adapterx.cli.exporting import FORMATS, export_run
from adapterx.cli.options import TrainOptions, takes_train_options
from adapterx.cli.paths import check_file, check_folder, deliver
from adapterx.cli.records import to_json
from adapterx.cli.reporting import print_figures, print_matrix, put, say
from adapterx.cli.runs import load_run, read_record
from adapterx.cli.tasks import task_of
from adapterx.cli.tasks.task import Asked
from adapterx.cli.train import train as run_training
from adapterx.errors import ConfigError, speaker

__all__ = ["app", "library"]


@command
@takes_train_options
def train(options: TrainOptions) -> None:
    """Train on labelled texts and write a run folder: adapter, head, metrics, learning curve."""
    run_training(options)


@command
def evaluate(
    run: Run,
    data: Annotated[
        list[str], option("Labelled data: a file, pattern, folder or dataset, as for train; repeat for several.")
    ],
    text_column: TextColumn = None,
    label_column: Annotated[str | None, option("Column of the labels.")] = None,
    streaming: Annotated[
        bool,
        option("For data larger than memory: keep texts where temporary files are (TMPDIR).", "--streaming"),
    ] = False,
    model: BaseModel = None,
    other_base: OtherBase = False,
    output: Annotated[Path | None, option("Also write the figures, as JSON, to this file.", **PATH)] = None,
    as_json: Annotated[bool, option("Print JSON instead of tables.", "--json")] = False,
    confusion_matrix: Annotated[
        Path | None, option("Also write the confusion matrix, as CSV, to this file: a row for each true label.", **PATH)
    ] = None,
) -> None:
    """Score a run on labelled data, by the metrics of its task: accuracy, macro-F1, loss, a baseline, and others."""
    for file in (output, confusion_matrix):
        if file is not None:
            check_file(file)
    if "" in data:
        raise ConfigError(f"{speaker()}: data must not be empty")
    sources = Sources(data)
    metrics = scoring.evaluate(
        run,
        sources,
        text_column=text_column,
        label_column=label_column,
        model=model,
        other_base=other_base,
        streaming=streaming,
    )
    if output is not None:
        deliver(output, to_json(metrics))
    if confusion_matrix is not None:
        deliver(confusion_matrix, answers.matrix(metrics).encode("utf-8", "backslashreplace"))
    if as_json:
        put(to_json(metrics).decode())
        return
    tables = {name: part for name, part in metrics.items() if isinstance(part, dict)}
    print_figures(f"{run} on {sources}", {name: metrics[name] for name in metrics if name not in (*tables, "data")})
    for name, part in tables.items():
        if len(part) <= 20 and name == "confusion_matrix":
            print_matrix("confusion matrix (rows: true, columns: predicted)", part)
        elif len(part) <= 20:
            print_figures(name, {label: scoring.table_line(scores) for label, scores in part.items()})


@command
def predict(
    run: Run,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts, or - to read one a line from standard input.", show_default=False)
    ] = None,
    file: Annotated[
        str | None, option("A table, whose other columns are kept in jsonl and csv, or .txt with one text a line.")
    ] = None,
    text_column: TextColumn = None,
    id_column: Annotated[
        str | None, option("Column that tells the texts apart: it comes first, and no value may stand in it twice.")
    ] = None,
    streaming: Annotated[
        bool,
        option("For a --file larger than memory: keep texts where temporary files are (TMPDIR).", "--streaming"),
    ] = False,
    form: Annotated[str | None, option(answers.FORM_HELP, "--format")] = None,
    all_probabilities: Annotated[bool, option("In csv: a column for each label, called probabilities.LABEL.")] = False,
    model: BaseModel = None,
    other_base: OtherBase = False,
    output: Annotated[Path | None, option("Write here instead of printing.", **PATH)] = None,
    max_new_tokens: Annotated[int | None, option("Of language models: tokens of an answer at most (128).")] = None,
    num_beams: Annotated[int | None, option("Beams that are searched (1: greedy).")] = None,
    temperature: Annotated[float | None, option("Above 0 draws tokens, the more evenly the higher.")] = None,
    top_p: Annotated[float | None, option("Draw out of the tokens that have this probability together.")] = None,
    top_k: Annotated[int | None, option("Draw out of so many likeliest tokens.")] = None,
    seed: Annotated[int | None, option("Of what is drawn (0).")] = None,
) -> None:
    """Label texts, with probabilities; or whatever else the task of the run predicts."""
    if form is not None:
        check_choice("format", form, *answers.FORMATS)
    if output is not None:
        check_file(output)
    record = read_record(run)
    task = task_of(record)
    chosen = form or answers.usual_form(output)
    if all_probabilities and chosen == "text":
        raise ConfigError(f"{speaker()}: --all-probabilities needs --format csv or jsonl, which has them anyway")
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    how = {"max_new_tokens": max_new_tokens, "num_beams": num_beams} | sampling
    generation = scoring.generation_of(task, how)
    asked = Asked.again(record, text_column)
    if streaming:
        if texts or file is None or chosen == "text":
            raise ConfigError(f"{speaker()}: --streaming needs --file, and --format csv or jsonl")
        asked = scoring.streamed(asked, possible=task.streams, task=task)
    wanted = task.wanted(texts or [], file, asked)
    if id_column is not None:
        wanted = with_ids_first(wanted, id_column, task.answer)
    predictions = scoring.predict(load_run(run, model=model, other_base=other_base), wanted, generation)
    lines = answers.render(predictions, chosen, task, all_probabilities=all_probabilities)
    if not streaming:
        lines = ["".join(lines)]  # nothing is written if a line fails
    if output is not None:
        deliver(output, (line.encode("utf-8", "backslashreplace") for line in lines))
    else:
        for line in lines:
            put(line)


@command
def export(
    run: Run,
    form: Annotated[str, option("torchscript, onnx (one node per adapter), or onnx-portable.", "--format")] = "onnx",
    output: Annotated[Path | None, option("Folder to write to (default: RUN/export).", **PATH)] = None,
    opset: Annotated[int, option("ONNX operator set (default 20).")] = 20,
    freeze: Annotated[bool, option("TorchScript: freeze and fold constants.")] = False,
    overwrite: Annotated[bool, option("Delete models there that have another tokenizer or other labels.")] = False,
    model: BaseModel = None,
    other_base: OtherBase = False,
) -> None:
    """Write the adapted model with its head as TorchScript or ONNX, and check the file against PyTorch.

    The model takes input_ids, attention_mask and, where the base model does, token_type_ids; it returns logits.
    """
    check_choice("format", form, *FORMATS)
    folder = output or run / "export"
    check_folder(folder)
    loaded = load_run(run, model=model, other_base=other_base)
    export_run(loaded, folder, form, opset=opset, freeze=freeze, overwrite=overwrite)
    say(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


@command
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of an adapter or a fusion of adapterx or AdapterHub, or an adapter of PEFT.",
            show_default=False,
            **PATH,
        ),
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write to.", show_default=False, **PATH)],
    to: Annotated[
        str | None,
        option("adapterx, adapterhub or peft (default: adapterx, or adapterhub for an adapter of adapterx)."),
    ] = None,
    base: Annotated[str | None, option("Base model (default: the one that SOURCE names).")] = None,
    name: Annotated[str | None, option("Name of the adapter in TARGET (default: the one that it has).")] = None,
    other_base: OtherBase = False,
) -> None:
    """Turn an adapter of adapterx, AdapterHub or PEFT into one of another, with AdapterHub's head beside it.

    A fusion takes the adapters along that it fuses, from folders of their names inside its own or beside it. Between
    adapterx and PEFT no base model is needed.
    """
    if to is not None:
        check_choice("to", to, *LIBRARIES)
    check_folder(target)
    print_figures(str(source), convert_folder(source, target, to=to, base=base, name=name, check_base=not other_base))


@command
def info(
    target: Annotated[
        str | None,
        typer.Argument(help="The folder of a run, an adapter or a fusion, or a base model.", show_default=False),
    ] = None,
    as_json: Annotated[bool, option("Print JSON instead of tables.", "--json")] = False,
) -> None:
    """Tell what is installed, what a folder holds, or which modules of a model would be adapted."""
    told = inspection.installation() if target is None else inspection.describe(target)
    if as_json:
        put(inspection.as_json(told))
    elif isinstance(told, str):
        say(told)
    else:
        print_figures(target or "adapterx", told)
