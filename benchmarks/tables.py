"""Write the tables of README.md and docs/cuda.md anew: `python benchmarks/tables.py`.

The README's come from the rows in benchmarks/results/, those of docs/cuda.md from the instruction budgets. A table
stands between `<!-- table: NAME -->` and `<!-- end -->`. `--check` changes nothing and fails where a table is not what
its source gives, so that pages and numbers cannot drift apart.
"""

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from harness import RESULTS
from limits import counted_table, limit_table
from predictions import prediction_table

ROOT = Path(__file__).parent.parent


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


Found = dict[tuple[str, ...], dict[str, str]]  # rows by the values of some columns
CASE = ("benchmark", "num_tokens", "hidden_size", "bottleneck_dim", "dtype", "mode")


def cell(found: Found, key: tuple[str, ...], digits: int = 2, factor: float = 1.0) -> str:
    """Return the median of a row, or a dash where it was not measured."""
    return f"{factor * float(found[key]['median']):.{digits}f}" if key in found else "–"


def table_of(name: str, heads: tuple[str, ...], line: Callable[[Found, tuple[str, ...]], list[str]]) -> str:
    """Return a table of one results file, a line per case, and where the numbers come from."""
    rows = read_rows(name)
    found = latest(rows, (*CASE, "implementation", "metric"))
    cases = dict.fromkeys(tuple(row[column] for column in CASE) for row in rows)
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(line(found, case)) + " |" for case in cases]
    row = rows[-1]
    source = f"Medians of {row['repeats']} rounds in turns; {row['device']}, torch {row['torch']}, {row['date']}"
    return "\n".join([*lines, "", f"{source}: `benchmarks/results/{name}`."])


def shape_of(case: tuple[str, ...]) -> str:
    """Return the sizes of a case."""
    return f"{case[1]} × {case[2]}, {case[3]}"


def cuda_line(found: Found, case: tuple[str, ...]) -> list[str]:
    """Compare the operator on a GPU with its peers and with a copy of the bytes that it must move."""
    peers = ("adapterx cublas", "eager", "torch.compile")
    return [
        shape_of(case),
        case[4],
        case[5].replace("_backward", " + backward"),
        cell(found, (*case, "adapterx", "time"), 1, 1e3),
        cell(found, (*case, "adapterx", "bandwidth"), 0),
        cell(found, (*case, "adapterx", "time / copy")),
        *(cell(found, (*case, peer, "time / adapterx")) for peer in peers),
        cell(found, (*case, "adapterx", "graph time"), 1, 1e3),
        cell(found, (*case, "adapterx", "launches"), 0),
    ]


CUDA_HEADS = (
    *("tokens × hidden, bottleneck", "dtype", "mode", "adapterx, µs", "GB/s", "/ copy"),
    *("cuBLASLt / adapterx", "eager / adapterx", "torch.compile / adapterx", "in a graph, µs", "launches"),
)


def cuda_table() -> str:
    """Show what was measured on GPUs, or else what is predicted."""
    names = sorted(path.name for path in RESULTS.glob("bench_op_cuda_*.csv") if "_sweep_" not in path.name)
    if not names:
        return "Not measured yet. `make gpu-check` on a machine with a GPU measures it.\n\n" + prediction_table()
    return "\n\n".join(table_of(name, CUDA_HEADS, cuda_line) for name in names)


# Tokens, hidden_size, bottleneck_dim: the sweep's cells that the page shows.
SWEPT = (
    *((16, 768, 64), (16, 4096, 64), (1024, 768, 64), (1024, 4096, 64)),
    *((16384, 1024, 64), (16384, 2048, 64), (16384, 4096, 16), (16384, 4096, 64), (16384, 4096, 128)),
)


def swept_line(found: Found, shape: tuple[int, int, int], mode: str) -> list[str]:
    """Compare the fastest plan of a cell with cuBLASLt, which is one of them, in microseconds."""
    sizes = tuple(map(str, shape))
    times = {key[4]: 1e3 * float(row["median"]) for key, row in found.items() if key[:4] == (*sizes, mode)}
    plan = min(times, key=times.get)
    ratio = f"{times['cublas'] / times[plan]:.2f}"
    return [shape_of(("", *sizes)), mode, plan, f"{times[plan]:.1f}", f"{times['cublas']:.1f}", ratio]


def sweep_table() -> str:
    """Show what the plans take on the device alone, of every GPU that was swept."""
    parts = []
    for path in sorted(RESULTS.glob("bench_op_cuda_sweep_*.csv")):
        rows = [row for row in read_rows(path.name) if row["metric"] == "time"]
        found = latest(rows, ("num_tokens", "hidden_size", "bottleneck_dim", "mode", "implementation"))
        cells = {key[:4] for key in found}
        heads = ("tokens × hidden, bottleneck", "call", "plan", "µs", "cuBLASLt, µs", "cuBLASLt / plan")
        lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for shape in SWEPT:
            for mode in ("forward", "backward"):
                if (*map(str, shape), mode) in cells:
                    lines.append("| " + " | ".join(swept_line(found, shape, mode)) + " |")
        row = rows[-1]
        source = f"Medians of {row['repeats']} rounds in turns, bfloat16; {row['device']}, torch {row['torch']}"
        parts.append("\n".join([*lines, "", f"{source}, {row['date']}: `benchmarks/results/{path.name}`."]))
    return "\n\n".join(parts) or "Not measured yet."


def grouped_line(found: Found, case: tuple[str, ...]) -> list[str]:
    """Compare the grouped form with one adapter for all rows and with loops over the adapters."""
    _, adapters, picked = case[0].split(", ")
    return [
        shape_of(case),
        f"{adapters}, {picked}",
        case[5].replace("_backward", " + backward"),
        cell(found, (*case, "adapterx", "time"), 3),
        cell(found, (*case, "adapterx", "time / one adapter")),
        *(cell(found, (*case, peer, "time / adapterx")) for peer in ("loop", "adapter_names")),
    ]


GROUPED_HEADS = (
    *("tokens × hidden, bottleneck", "picked by", "mode", "adapterx, ms", "/ one adapter"),
    *("loop / adapterx", "adapter_names / adapterx"),
)


def grouped_table() -> str:
    """Show the grouped form on every machine that it was measured on."""
    names = sorted(path.name for path in RESULTS.glob("bench_grouped_*.csv"))
    return "\n\n".join(table_of(name, GROUPED_HEADS, grouped_line) for name in names) or "Not measured yet."


def model_line(found: Found, case: tuple[str, ...]) -> list[str]:
    """Show what adapters add to a model."""
    return [
        case[0].split(", ")[1],
        f"{case[5]}, {case[1]} tokens",
        cell(found, (*case, "base", "time"), 2),
        *(cell(found, (*case, name, "time / base"), 3) for name in ("adapterx", "eager")),
    ]


def model_table() -> str:
    """Show the overhead of adapters on a whole model, GPU by GPU."""
    heads = ("model", "mode", "without adapters, ms", "adapterx / without", "eager adapters / without")
    names = sorted(path.name for path in RESULTS.glob("bench_model_cuda_*.csv"))
    return "\n\n".join(table_of(name, heads, model_line) for name in names) or "Not measured yet."


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


def many_adapters_table() -> str:
    """Show what is done for one adapter among the first hundred and among the last of a thousand."""
    rows = read_rows("bench_many_adapters_cpu.csv")
    found = {name: float(row["median"]) for (name,), row in latest(rows, ("implementation",)).items()}
    if not found:
        return "Not measured yet."
    lines = [
        "| for one adapter, processor time | among the first 100, ms | among the last 100 of 1,000, ms |",
        "|---|---|---|",
    ]
    told = {"attach": "attach", "switch": "switch to it", "mixed": "open `mixed` for 32 sequences", "detach": "detach"}
    for action, words in told.items():
        first, last = found[f"{action} #1 to #100"], found[f"{action} #901 to #1000"]
        lines.append(f"| {words} | {first:.2f} | {last:.2f} |")
    memory, weights = found["memory of one adapter"], found["weights of one adapter"]
    sizes = f"{memory:.2f} MiB an adapter, {weights:.2f} of these its weights"
    single = max(float(row["median"]) for row in rows if row["metric"] == "overhead per sublayer")
    note = f"BERT-mini (4 blocks), {sizes}; Python adds {single:.0f} µs or less to a sublayer with a single adapter"
    return "\n".join(
        [
            *lines,
            "",
            f"{note}. {rows[-1]['device']}, {rows[-1]['date']}: `benchmarks/results/bench_many_adapters_cpu.csv`.",
        ]
    )


def fan_out_line(found: Found, case: tuple[str, ...]) -> list[str]:
    """Compare one input under several adapters with as many passes, and with a batch of copies."""
    return [
        case[0].split(", ")[1],
        case[1],
        cell(found, (*case, "fan_out", "time"), 0),
        *(cell(found, (*case, peer, "time / fan_out")) for peer in ("passes", "mixed")),
    ]


def fan_out_table() -> str:
    """Show what `fan_out` saves."""
    heads = ("where", "tokens", "fan_out, ms", "8 passes / fan_out", "one `mixed` batch / fan_out")
    name = "bench_fan_out_cpu.csv"
    return table_of(name, heads, fan_out_line) if read_rows(name) else "Not measured yet."


def large_base_table() -> str:
    """Show what the phases of a training on a base of a billion parameters take, and what full fine-tuning needs."""
    name = "bench_large_base_cpu.csv"
    rows = read_rows(name)
    if not rows:
        return "Not measured yet."
    found = {key: float(row["median"]) for key, row in latest(rows, ("implementation", "metric")).items()}
    words = {
        "build": "build the base in bfloat16",
        "attach": "attach",
        "train": "a step of training, AdamW",
        "train, checkpointing": "the same with gradient checkpointing",
        "save": "save the adapter",
    }
    lines = ["| phase | peak of the process, MiB | seconds |", "|---|---|---|"]
    for phase, told in words.items():
        lines.append(f"| {told} | {found[phase, 'peak memory']:,.0f} | {found[phase, 'time']:.1f} |")
    for (implementation, metric), value in found.items():
        if metric == "memory":
            lines.append(f"| {implementation} | {value:,.0f} | |")
    base, trained = (found[what, "parameters"] for what in ("base", "adapters"))
    row = rows[-1]
    note = f"{base:,.0f} M parameters, {trained:.1f} M of adapters beside them, width {row['bottleneck_dim']}"
    where = f"{row['device']}, {row['threads']} thread, torch {row['torch']}, {row['date']}"
    return "\n".join([*lines, "", f"{note}; {where}: `benchmarks/results/{name}`."])


def tasks_table() -> str:
    """Compare adapters with a head alone, LoRA and full fine-tuning on tasks other than the demo's."""
    rows = read_rows("tasks.csv")
    if not rows:
        return "Not measured yet."
    names = {
        "conll": "CoNLL-2003, DistilBERT cased (65 M)",
        "brown": "romance of the Brown corpus, SmolLM2-135M-Instruct",
        "reverse": "words in reverse order, a random T5 of two layers",
    }
    methods = {"head": "head", "adapters": "adapters", "lora": "LoRA (query, value)", "full": "full fine-tuning"}
    lines = ["| task | metric | method | trained parameters | before | after, mean | per seed |", "|---" * 7 + "|"]
    sizes = []
    for task, told in names.items():
        own = latest((row for row in rows if row["task"] == task), ("method", "seed"))
        for method, words in methods.items():
            seeds = [row for (name, _), row in sorted(own.items()) if name == method]
            values = [float(row["value"]) for row in seeds]
            digits = 1 if task == "brown" else 3
            shown = (
                *(told if method == "head" else "", seeds[0]["metric"] if method == "head" else "", words),
                f"{int(seeds[0]['trainable_parameters']):,}",
                " / ".join(dict.fromkeys(f"{float(row['before']):.{digits}f}" for row in seeds)),
                f"{sum(values) / len(values):.{digits}f}",
                " / ".join(f"{value:.{digits}f}" for value in values),
            )
            lines.append("| " + " | ".join(shown) + " |")
        sizes.append(
            f"{task}: {seeds[0]['train_examples']} examples, {seeds[0]['epochs']} pass(es), scored on "
            f"{seeds[0]['test_examples']}"
        )
    where = f"{rows[-1]['device']}, torch {rows[-1]['torch']}, {rows[-1]['date']}"
    return "\n".join([*lines, "", f"{'; '.join(sizes)}. {where}: `benchmarks/results/tasks.csv`."])


PAGES = {
    "README.md": {
        "operator": operator_table,
        "movie_reviews": demo_table,
        "sweep": sweep_table,
        "cuda": cuda_table,
        "grouped": grouped_table,
        "model": model_table,
    },
    "docs/mixed.md": {"many_adapters": many_adapters_table, "fan_out": fan_out_table},
    "docs/tasks.md": {"tasks": tasks_table},
    "docs/large-bases.md": {"large_base": large_base_table},
    "docs/cuda.md": {"counted": counted_table, "limits": limit_table},
}


def with_tables(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """Return a page with its tables written anew.

    Raises:
        ValueError: the page has no place for a table.
    """
    for name, table in tables.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(\n<!-- end -->)"
        text, found = re.subn(pattern, lambda match, table=table: match[1] + table() + match[2], text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"with_tables: the page must have one place for the table {name}, got {found}")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = 0
    for page, tables in PAGES.items():
        old = (ROOT / page).read_text(encoding="utf-8")
        new = with_tables(old, tables)
        if old != new and options.check:
            print(f"{page}: tables are not what their sources give; run `make bench-table`", file=sys.stderr)
            stale = 1
        elif old != new:
            (ROOT / page).write_text(new, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
