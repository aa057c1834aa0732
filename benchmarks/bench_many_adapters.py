"""Time what is done for one adapter among many: `python benchmarks/bench_many_adapters.py`.

A model of four blocks (BERT-mini) gets a thousand adapters. Rows of the first, the last and all hundreds between say
what it takes to attach one, to switch to it, to open a `mixed` block of 32 sequences, and to detach it, and how much
memory each takes beyond its weights. `--overhead` instead times a sublayer: what the adapter's hook adds to a module
that returns what it receives, for each composition that is a single adapter.
"""

import argparse
import gc
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import torch
from torch import nn

from adapterx import (
    AdapterConfig,
    Average,
    BatchSplit,
    Stack,
    adapter_parameters,
    attach,
    detach,
    mixed,
    set_active,
)

BOTTLENECK, HIDDEN, BLOCKS = 16, 256, 4
SINGLES = {
    "name": "a",
    "Stack('a')": Stack("a"),
    "Average('a')": Average("a"),
    "BatchSplit('a')": BatchSplit("a", batch_sizes=2),
    "Stack(Average(Stack('a')))": Stack(Average(Stack("a"))),
}


def mini_model() -> nn.Module:
    """Return BERT-mini with random weights."""
    import transformers

    config = transformers.BertConfig(
        hidden_size=HIDDEN, num_hidden_layers=BLOCKS, num_attention_heads=4, intermediate_size=4 * HIDDEN
    )
    return transformers.BertModel(config).eval()


def resident_mebibytes() -> float:
    """Return the memory that this process holds, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def milliseconds(act: Callable[[], object]) -> float:
    """Return how long an action took, in time of the processor: what else runs on the machine does not count."""
    start = time.process_time()
    act()
    return 1000 * (time.process_time() - start)


def measure_many(count: int) -> Iterator[dict[str, object]]:
    """Attach, switch and detach `count` adapters, and yield a row for each hundred and each action."""
    model, config = mini_model(), AdapterConfig(bottleneck_dim=BOTTLENECK)
    case = harness.Case("eager", 0, HIDDEN, BOTTLENECK, torch.float32)
    actions = ("attach", "switch", "mixed", "detach")
    times: dict[str, dict[int, list[float]]] = {action: {} for action in actions}
    size = 0

    def note(action: str, number: int, act: Callable[[], object]) -> None:
        times[action].setdefault(number // 100, []).append(milliseconds(act))

    def open_mixed(number: int) -> None:
        with mixed(model, [f"n{number - number % 8 if number % 3 else number}", f"n{number}", None, "n0"] * 8):
            pass

    gc.collect()
    before = resident_mebibytes()
    for number in range(count):
        note("attach", number, lambda name=f"n{number}": attach(model, config, name, active=False, seed=0))
        note("switch", number, lambda name=f"n{number}": set_active(model, name))
        note("mixed", number, lambda number=number: open_mixed(number))
        size = size or sum(p.numel() * p.element_size() for _, p in adapter_parameters(model, "n0"))
    gc.collect()
    taken = (resident_mebibytes() - before) / count
    for number in range(count):
        note("detach", count - 1 - number, lambda name=f"n{number}": detach(model, name))
    for action, (hundred, samples) in ((a, item) for a in actions for item in sorted(times[a].items())):
        name = f"{action} #{100 * hundred + 1} to #{100 * hundred + len(samples)}"
        yield row(case, len(samples), name, "time", "ms", harness.quantiles(samples))
    for name, value in (("weights of one adapter", size / 2**20), ("memory of one adapter", taken)):
        yield row(case, count, name, "memory", "MiB", {"median": value, "p20": value, "p80": value})


class Echo(nn.Module):
    """A module that returns what it receives; adapters take its widths from the attributes."""

    in_features = out_features = 32

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return them."""
        return hidden_states


def measure_overhead(repeats: int) -> Iterator[dict[str, object]]:
    """Yield for each composition how much longer than the bare module and the operator an adapted sublayer takes."""
    from adapterx import ops

    model, untouched, hidden_states = nn.Sequential(Echo()), Echo(), torch.randn(2, 4, 32)
    attach(model, AdapterConfig(bottleneck_dim=4, target_modules=("0",)), "a")
    adapter = model[0].adapterx["a"]
    weights = (adapter.down_proj.weight, adapter.down_proj.bias, adapter.up_proj.weight, adapter.up_proj.bias)
    case = harness.Case("forward", 8, 32, 4, torch.float32)

    def bare() -> None:
        untouched(hidden_states)

    def adapted() -> None:
        model[0](hidden_states)

    def operator() -> None:
        ops.bottleneck_adapter(hidden_states, hidden_states, *weights, "gelu", 1.0)

    samples: dict[str, list[float]] = {name: [] for name in SINGLES}
    calls = 2000
    with torch.no_grad():
        for _ in range(repeats):
            alone = milliseconds(lambda: [bare() for _ in itertools.repeat(None, calls)])
            alone += milliseconds(lambda: [operator() for _ in itertools.repeat(None, calls)])
            for name, composition in SINGLES.items():
                set_active(model, composition)
                both = milliseconds(lambda: [adapted() for _ in itertools.repeat(None, calls)])
                samples[name].append(1000 * (both - alone) / calls)
    for name, values in samples.items():
        yield row(case, repeats, name, "overhead per sublayer", "us", harness.quantiles(values))


def row(case: harness.Case, repeats: int, name: str, metric: str, unit: str, values: dict) -> dict[str, object]:
    """Return one row of the results."""
    described = harness.describe("many_adapters", case, repeats)
    return described | values | {"implementation": name, "metric": metric, "unit": unit}


def main() -> None:
    """Measure, print, and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "bench_many_adapters_cpu.csv")
    arguments = parser.parse_args()
    rows = list(measure_overhead(arguments.repeats) if arguments.overhead else measure_many(arguments.count))
    for each in rows:
        print(f"{each['implementation']:40} {each['metric']:22} {each['median']:9.3f} {each['unit']}")
    harness.append_rows(arguments.output, rows)


if __name__ == "__main__":
    main()
