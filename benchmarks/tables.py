"""Write the tables of README.md anew from the rows in benchmarks/results/: `python benchmarks/tables.py`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. `--check` changes nothing and fails where a table is
not what the rows give, so that README and rows cannot drift apart.
"""

import argparse
import csv
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from harness import RESULTS

README = Path(__file__).parent.parent / "README.md"


def read_rows(name: str) -> list[dict[str, str]]:
    """Return the rows of one results file, or none where it does not exist."""
    path = RESULTS / name
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def latest(rows: Iterable[dict[str, str]], key: tuple[str, ...]) -> dict[tuple[str, ...], dict[str, str]]:
    """Keep the last row of each key: later rows stand further down."""
    return {tuple(row[column] for column in key): row for row in rows}


def operator_table() -> str:
    """Compare the operator with eager PyTorch and torch.compile, one line per shape, mode and dtype."""
    rows = [row for row in read_rows("bench_op_cpu.csv") if row["threads"] == "2"]
    found = latest(rows, ("num_tokens", "hidden_size", "bottleneck_dim", "dtype", "mode", "implementation", "metric"))
    lines = [
        "| tokens × hidden, bottleneck | dtype | mode | adapterx, ms | eager / adapterx | torch.compile / adapterx |",
        "|---|---|---|---|---|---|",
    ]
    for (tokens, hidden, bottleneck, dtype, mode, implementation, metric), row in found.items():
        if implementation != "adapterx" or metric != "time":
            continue
        ratios = []
        for peer in ("eager", "torch.compile"):
            ratio = found[(tokens, hidden, bottleneck, dtype, mode, peer, "time / adapterx")]
            ratios.append(f"{float(ratio['median']):.2f} [{float(ratio['p20']):.2f}, {float(ratio['p80']):.2f}]")
        shape = f"{tokens} × {hidden}, {bottleneck}"
        mode = mode.replace("_backward", " + backward")
        lines.append(f"| {shape} | {dtype} | {mode} | {float(row['median']):.3f} | {ratios[0]} | {ratios[1]} |")
    if len(lines) == 2:
        return "Not measured yet."
    row = next(reversed(found.values()))
    source = (
        f"Median [20th, 80th percentile] of {row['repeats']} rounds in turns; {row['device']}, {row['threads']} threads"
    )
    return "\n".join(
        [*lines, "", f"{source}, torch {row['torch']}, {row['date']}: `benchmarks/results/bench_op_cpu.csv`."]
    )


def demo_table() -> str:
    """Show accuracy on MR per method, the mean over the seeds."""
    rows = [row for row in read_rows("movie_reviews.csv") if row["metric"] == "accuracy"]
    if not rows:
        return "Not measured yet."
    lines = ["| method | trainable | accuracy, mean | per seed |", "|---|---|---|---|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = latest((row for row in rows if row["method"] == method), ("seed",))
        values = [float(row["value"]) for row in own.values()]
        fraction = float(next(iter(own.values()))["trainable_fraction"])
        seeds = " / ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {method} | {100 * fraction:.2f} % | {sum(values) / len(values):.3f} | {seeds} |")
    row = rows[-1]
    sizes = f"{row['train_examples']} training sentences, {row['test_examples']} held-out ones"
    note = f"{sizes}; {row['device']}, {row['date']}"
    return "\n".join([*lines, "", f"{note}: `benchmarks/results/movie_reviews.csv`."])


TABLES = {"operator": operator_table, "movie_reviews": demo_table}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    old = new = README.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(\n<!-- end -->)"
        new = re.sub(pattern, lambda match, table=table: match[1] + table() + match[2], new, flags=re.DOTALL)
    if options.check:
        if old != new:
            print("README.md: tables are not those of benchmarks/results/; run `make bench-table`", file=sys.stderr)
        return int(old != new)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
