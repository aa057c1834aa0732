"""Measure what Houlsby adapters add to a frozen Llama-shaped model with random weights: forward, prefill and decode.

    python benchmarks/bench_model.py --device cuda    # layers of Llama 2 7B in bfloat16
    python benchmarks/bench_model.py --device cpu     # a small model in float32, to see that it works

Two models share their weights: one is bare ("base"), the other has an adapter behind every attention and every
feed-forward sublayer ("adapterx"; "eager" computes the same adapters with the plain formula). The ratio to the base is
formed round by round. "forward" has no cache; "prefill" fills one; "decode" adds a token to a filled one; "decode
graph" is a CUDA graph of one token a sequence without cache, so that the host is no limit. Rows are appended to
benchmarks/results/bench_model_DEVICE.csv; num_tokens is the number of rows in each adapter.
"""

import argparse
import contextlib
import copy
import inspect
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cuda_timing
import torch
import transformers
from harness import RESULTS, Case, Deadline, Machine, append_rows, cpu_machine, rows_of, time_in_turns

from adapterx import AdapterConfig, attach, ops, reference


@dataclass(frozen=True)
class Scale:
    """The size of the model and of the batches."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    bottleneck_dim: int
    dtype: torch.dtype
    forward: tuple[int, int]  # sequences, tokens
    prefill: tuple[int, int]
    decode: tuple[int, int]  # sequences, tokens in the cache


SCALES = {
    "cpu": Scale(256, 688, 2, 4, 16, torch.float32, (2, 64), (1, 64), (2, 16)),
    "cuda": Scale(4096, 11008, 8, 32, 64, torch.bfloat16, (8, 2048), (1, 2048), (8, 512)),
}
SUBJECT = "adapterx"
# "eager" runs the model with adapters too, with the plain formula in place of the operator.
CONTEXTS = {
    "eager": lambda: unittest.mock.patch.object(ops, "bottleneck_adapter", reference.bottleneck_adapter),
}


def make_models(scale: Scale, device: str) -> dict[str, torch.nn.Module]:
    """Return the bare model and, with the same weights, the adapted one."""
    config = transformers.LlamaConfig(
        hidden_size=scale.hidden_size,
        intermediate_size=scale.intermediate_size,
        num_hidden_layers=scale.num_layers,
        num_attention_heads=scale.num_heads,
        num_key_value_heads=scale.num_heads,
        vocab_size=32000,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(scale.dtype)
    try:
        with torch.device(device):
            base = transformers.LlamaModel(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    adapted = copy.deepcopy(base, memo=shared)
    attach(adapted, AdapterConfig(bottleneck_dim=scale.bottleneck_dim, init_up="near_zero"))
    return {SUBJECT: adapted, "base": base, "eager": adapted}


def token_ids(shape: tuple[int, int], device: str) -> torch.Tensor:
    """Draw token numbers."""
    return torch.randint(3, 32000, shape, generator=torch.Generator(device).manual_seed(0), device=device)


def forward_call(model: torch.nn.Module, scale: Scale, device: str) -> Callable[[], object]:
    """Return a forward pass over whole sequences."""
    ids = token_ids(scale.forward, device)
    return lambda: model(input_ids=ids, use_cache=False)


def prefill_call(model: torch.nn.Module, scale: Scale, device: str) -> Callable[[], object]:
    """Return a forward pass that fills a cache."""
    ids = token_ids(scale.prefill, device)
    return lambda: model(input_ids=ids, use_cache=True)


def decode_call(model: torch.nn.Module, scale: Scale, device: str) -> Callable[[], object]:
    """Return one step of generation, which forgets its token again."""
    ids, last = token_ids(scale.decode, device), token_ids((scale.decode[0], 1), device)
    cache = transformers.DynamicCache(config=model.config)
    # transformers is about to rename the argument.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    with torch.inference_mode():
        model(input_ids=ids, use_cache=True, **{name: cache})

    def step() -> object:
        output = model(input_ids=last, use_cache=True, **{name: cache})
        cache.crop(-1)
        return output

    return step


def token_call(model: torch.nn.Module, scale: Scale, device: str) -> Callable[[], object]:
    """Return a forward pass over one token a sequence, without cache."""
    last = token_ids((scale.decode[0], 1), device)
    return lambda: model(input_ids=last, use_cache=False)


MODES = {"forward": forward_call, "prefill": prefill_call, "decode": decode_call}
GRAPH_MODE = "decode graph"
GRAPH_DEVICES = ("cuda",)


def rows_per_adapter(mode: str, scale: Scale) -> int:
    """Return the number of tokens that an adapter sees in one call."""
    sequences, tokens = {"forward": scale.forward, "prefill": scale.prefill}.get(mode, (scale.decode[0], 1))
    return sequences * tokens


def in_inference_mode(function: Callable[[], object]) -> Callable[[], object]:
    """Return the function without autograd."""

    def call() -> object:
        with torch.inference_mode():
            return function()

    return call


def captured(functions: dict[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """Return the replays of CUDA graphs of the functions; none where the model cannot be captured."""
    graphs = {}
    for name, function in functions.items():
        try:
            with CONTEXTS.get(name, contextlib.nullcontext)():
                graphs[name] = cuda_timing.capture(function, 1)
        except RuntimeError as error:
            print(f"bench_model: {name} cannot be captured in a CUDA graph: {str(error)[:300]}", flush=True)
            return {}
    return graphs


def batches(machine: Machine, deadline: Deadline, repeats: int) -> Iterator[list[dict[str, object]]]:
    """Measure mode by mode, and yield the rows of each, until the time is up."""
    scale = SCALES[machine.device]
    models = make_models(scale, machine.device)
    modes = [*MODES, *([GRAPH_MODE] if machine.device in GRAPH_DEVICES else [])]
    for mode in modes:
        if deadline.passed():
            print(f"bench_model: out of time, not measured: {mode}", flush=True)
            continue
        make = MODES.get(mode, token_call)
        functions = {name: in_inference_mode(make(model, scale, machine.device)) for name, model in models.items()}
        contexts = CONTEXTS
        if mode == GRAPH_MODE:
            functions, contexts = captured(functions), {}
        if functions:
            samples = time_in_turns(functions, repeats=repeats, sample=machine.sample, contexts=contexts)
            case = Case(mode, rows_per_adapter(mode, scale), scale.hidden_size, scale.bottleneck_dim, scale.dtype)
            title = f"bench_model, Llama with {scale.num_layers} layers"
            yield rows_of(title, case, samples, subject=SUBJECT, limit="base", machine=machine)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default 15)")
    parser.add_argument("--seconds", type=float, help="skip what is left after so many seconds")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--dry-run", action="store_true", help="print the rows, do not store them")
    options = parser.parse_args(arguments)
    machine = cuda_timing.cuda_machine() if options.device == "cuda" else cpu_machine()
    for rows in batches(machine, Deadline(options.seconds), options.repeats):
        for row in rows:
            spread = f"{row['median']:9.4f} [{row['p20']:.4f}, {row['p80']:.4f}] {row['unit']}"
            print(f"{row['mode']:13} {row['num_tokens']:6} {row['implementation']:10} {row['metric']:16} {spread}")
        if not options.dry_run:
            append_rows(machine.results(options.results, "bench_model"), rows)


if __name__ == "__main__":
    main()
