"""Memory and time of adapters on a frozen base of a billion parameters: `python benchmarks/bench_large_base.py`.

A model of the shape of Llama 3.2 1B, with random weights in bfloat16, gets Houlsby adapters (float32), trains on one
sequence and saves them. Each phase runs in a process of its own, after the phases that it needs; its peak is the most
that the process held while it ran (VmHWM, reset before), the model included. Beside it stands what full fine-tuning
would need for weights, gradients and Adam's two moments alone, computed from the number of parameters.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
import torch
from torch import nn

from adapterx import AdapterConfig, attach, save_adapter
from adapterx.training import parameter_groups

SHAPE = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
PHASES = ("build", "attach", "train", "train, checkpointing", "save")
NEEDS = {
    "full fine-tuning, all in bfloat16 (computed)": 2 + 2 + 2 * 2,
    "full fine-tuning, float32 (computed)": 4 + 4 + 2 * 4,
}


def random_model(shape: dict[str, object]) -> nn.Module:
    """Return a language model with random weights in bfloat16, each drawn once."""
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(**shape, use_cache=False)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    for name, parameter in model.named_parameters():
        parameter.data.fill_(1.0) if "norm" in name else parameter.data.uniform_(-0.03, 0.03)
    return model


def status(key: str) -> float:
    """Return an entry of this process's memory, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"status: {key} must be in /proc/self/status, it is not")


def measured(act: Callable[[], object]) -> dict[str, float]:
    """Return the seconds that an action took, and the most memory that the process held meanwhile, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start = time.perf_counter()
    act()
    return {"seconds": time.perf_counter() - start, "peak": status("VmHWM")}


def run_phase(phase: str, shape: dict[str, object], length: int, steps: int, bottleneck: int) -> dict[str, object]:
    """Run the phases that come before, then measure this one; return what was found."""
    torch.manual_seed(0)
    holder: list[nn.Module] = []
    found = measured(lambda: holder.append(random_model(shape)))
    model = holder.pop()
    found["parameters"] = sum(p.numel() for p in model.parameters())
    if phase == "build":
        return found

    def hang() -> None:
        attach(model, AdapterConfig(bottleneck_dim=bottleneck), seed=0)

    if phase == "attach":
        return found | measured(hang)
    hang()
    found["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if phase == "save":
        with tempfile.TemporaryDirectory() as folder:
            return found | measured(lambda: save_adapter(model, folder))
    if phase == "train, checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=1e-4))
    ids = torch.randint(0, shape["vocab_size"], (1, length))
    times: list[float] = []
    losses: list[float] = []

    def train() -> None:
        for _ in range(steps):
            start = time.perf_counter()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter() - start)
            losses.append(loss.item())

    found |= measured(train)
    return found | {"seconds": min(times), "losses": losses}


def phase_in_a_process(phase: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Run one phase in a process of its own."""
    command = [sys.executable, __file__, "--phase", phase, "--length", str(arguments.length)]
    command += [
        "--steps",
        str(arguments.steps),
        "--bottleneck",
        str(arguments.bottleneck),
        "--layers",
        str(arguments.layers),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print, and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--bottleneck", type=int, default=64)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--phase", choices=PHASES, help="run this one here, and print what was found as JSON")
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "bench_large_base_cpu.csv")
    arguments = parser.parse_args()
    shape = SHAPE | {"num_hidden_layers": arguments.layers}
    if arguments.phase:
        found = run_phase(arguments.phase, shape, arguments.length, arguments.steps, arguments.bottleneck)
        print(json.dumps(found))
        return
    case = harness.Case("train", arguments.length, SHAPE["hidden_size"], arguments.bottleneck, torch.bfloat16)
    common = harness.describe("large_base", case, 1)
    rows = []

    def note(name: str, metric: str, unit: str, value: float) -> None:
        print(f"{name:50} {metric:12} {value:16,.2f} {unit}", flush=True)
        rows.append(
            common
            | {"implementation": name, "metric": metric, "unit": unit}
            | dict.fromkeys(("median", "p20", "p80"), value)
        )

    for phase in PHASES:
        found = phase_in_a_process(phase, arguments)
        note(phase, "peak memory", "MiB", found["peak"])
        note(phase, "time", "s", found["seconds"])
    for name, each in NEEDS.items():
        note(name, "memory", "MiB", found["parameters"] * each / 2**20)
    note("base", "parameters", "millions", found["parameters"] / 1e6)
    note("adapters", "parameters", "millions", found["trainable"] / 1e6)
    harness.append_rows(arguments.output, rows)


if __name__ == "__main__":
    main()
