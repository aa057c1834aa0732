"""Compare adapters, a head and full fine-tuning on MR with several seeds: the table behind the demo's single run.

    python benchmarks/bench_movie_reviews.py --seeds 0 1 2      # about half an hour on two cores

The settings are the command line's defaults, chosen on the development split (`--split dev`), never on the test
sentences. Rows are appended to benchmarks/results/movie_reviews.csv.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

from harness import RESULTS, append_rows, environment

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import demo
import movie_reviews

COLUMNS = (
    *("benchmark", "method", "metric", "value", "seed", "split", "train_examples", "test_examples"),
    *("trainable_fraction", "train_seconds", "threads", "device", "torch", "adapterx", "commit", "date"),
)


def count_rows(path: Path) -> int:
    """Count the sentences of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return sum(1 for _ in csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(demo.METHODS), choices=list(demo.METHODS))
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--output", type=Path, default=Path("runs/bench_movie_reviews"))
    options = parser.parse_args()
    data = movie_reviews.prepare(options.output / "data")
    data["test"] = data[options.split]
    data["dev"] = movie_reviews.prepare(options.output / "curve", dev=256)["dev"]  # for the learning curves only
    path = RESULTS / "movie_reviews.csv"
    for seed in options.seeds:
        for method in options.methods:
            figures = demo.train(method, data, demo.model_folder(), options.output / str(seed), seed)
            row = {
                "benchmark": "movie_reviews",
                "method": method,
                "metric": "accuracy",
                "value": figures["test"]["accuracy"],
                "seed": seed,
                "split": options.split,
                "train_examples": count_rows(data["train"]),
                "test_examples": count_rows(data["test"]),
                "trainable_fraction": f"{figures['trainable_fraction']:.5f}",
                "train_seconds": f"{figures['train_seconds']:.1f}",
                **environment(),
            }
            print(json.dumps(row), flush=True)
            if options.split == "test":
                append_rows(path, [row], COLUMNS)


if __name__ == "__main__":
    main()
