"""Measure one input under eight adapters: `fan_out` against eight passes, and against one `mixed` batch of copies.

    python benchmarks/bench_fan_out.py    # about five minutes on two cores

The model has BERT-base's sizes and random weights, the adapters hang in its upper 7, 4 or 2 of 12 blocks. The results
of the three ways are compared before they are timed. Rows are appended to benchmarks/results/bench_fan_out_cpu.csv;
num_tokens is the number of tokens of the one input.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from harness import RESULTS, Case, append_rows, cpu_machine, rows_of, time_in_turns

from adapterx import AdapterConfig, adapter_parameters, attach, fan_out, mixed, set_active

NAMES = tuple(f"task-{number}" for number in range(8))
BLOCKS = 12
BOTTLENECK_DIM = 48
SUBJECT = "fan_out"
TOLERANCE = 1e-4  # float32, of hidden states that a LayerNorm has left


def make_model(adapted_blocks: int) -> torch.nn.Module:
    """Return a model with eight adapters in its upper blocks."""
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False).eval()
    layers = tuple(range(BLOCKS - adapted_blocks, BLOCKS))
    for seed, name in enumerate(NAMES):
        attach(model, AdapterConfig(bottleneck_dim=BOTTLENECK_DIM, layers=layers), name, seed=seed)
    with torch.no_grad():
        for _, parameter in adapter_parameters(model):
            parameter.normal_(0, 0.02)
    return model


def make_calls(model: torch.nn.Module, num_tokens: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the three ways to get `(8, num_tokens, hidden_size)` from one input."""
    ids = torch.randint(0, model.config.vocab_size, (1, num_tokens))

    def passes() -> torch.Tensor:
        outputs = []
        for name in NAMES:
            set_active(model, name)
            outputs.append(model(input_ids=ids).last_hidden_state)
        return torch.cat(outputs)

    def copies() -> torch.Tensor:
        with mixed(model, NAMES):
            return model(input_ids=ids.expand(len(NAMES), -1)).last_hidden_state

    def fan() -> torch.Tensor:
        with fan_out(model, NAMES) as run:
            outputs = run(input_ids=ids)
        return torch.cat([outputs[name].last_hidden_state for name in NAMES])

    return {SUBJECT: fan, "passes": passes, "mixed": copies}


def measure(adapted_blocks: int, num_tokens: int, repeats: int) -> list[dict[str, object]]:
    """Compare and time the three ways."""
    model = make_model(adapted_blocks)
    calls = make_calls(model, num_tokens)
    with torch.inference_mode():
        expected = calls["passes"]()
        for name, call in calls.items():
            difference = (call() - expected).abs().max().item()
            print(f"{name} differs from the passes by {difference:.1e}", flush=True)
            if difference > TOLERANCE:
                raise SystemExit(f"bench_fan_out: {name} must agree with the passes to {TOLERANCE}, got {difference}")
        samples = time_in_turns(calls, repeats=repeats)
    title = f"bench_fan_out, 8 adapters in {adapted_blocks} of {BLOCKS} blocks"
    case = Case("forward", num_tokens, model.config.hidden_size, BOTTLENECK_DIM, torch.float32)
    return rows_of(title, case, samples, subject=SUBJECT, machine=cpu_machine())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", default=[7, 4, 2], help="adapted blocks (default 7 4 2)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128], help="of the input (default 32 128)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default 9)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--dry-run", action="store_true", help="print the rows, do not store them")
    options = parser.parse_args(arguments)
    for adapted_blocks in options.blocks:
        for num_tokens in options.tokens:
            rows = measure(adapted_blocks, num_tokens, options.repeats)
            for row in rows:
                if row["unit"] in ("ms", "ratio"):
                    spread = f"{row['median']:9.3f} [{row['p20']:.3f}, {row['p80']:.3f}] {row['unit']}"
                    print(f"{row['benchmark']:46} {num_tokens:4} {row['implementation']:8} {row['metric']:14} {spread}")
            if not options.dry_run:
                append_rows(cpu_machine().results(options.results, "bench_fan_out"), rows)


if __name__ == "__main__":
    main()
