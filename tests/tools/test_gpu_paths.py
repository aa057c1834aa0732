"""What checks and times the paths on a GPU, on the processor, with bugs planted in the operator."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from fake_gpu import fake_machine

from adapterx import ops, reference

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda"))
import call_library
import check_path
import facts
import time_paths

RIGHT = ops.bottleneck_adapter


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Write facts into a file, on the CPU, with two small shapes."""
    monkeypatch.setenv(facts.PLACE, str(tmp_path / "facts.jsonl"))
    monkeypatch.setenv(check_path.PIN, "auto")
    for module in (check_path, time_paths, call_library):
        monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(check_path, "SHAPES", ((7, 24, 6), (4, 16, 3)))
    monkeypatch.setattr(check_path, "SMALL", 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return tmp_path / "facts.jsonl"


def check(path, monkeypatch, place, operator=RIGHT):
    monkeypatch.setattr(ops, "bottleneck_adapter", operator)
    monkeypatch.setattr(sys, "argv", ["check_path.py", path])
    place.unlink(missing_ok=True)
    return check_path.main(), facts.read_facts(place, "check")


def test_a_right_path_is_right_in_every_form_and_dtype(place, monkeypatch):
    code, found = check("auto", monkeypatch, place)
    assert code == 0
    assert {(fact["form"], fact["dtype"]) for fact in found} == {
        (form, dtype) for form in ("plain", "grouped") for dtype in ("bfloat16", "float16", "float32", "float64")
    }
    assert {fact["ok"] for fact in found} == {True}
    assert set(found[0]["errors"]) == {"inferred", "output", *check_path.NAMES}
    assert facts.read_facts(place, "checked")[0]["served"] == len(found)
    assert len(check("tile:64x8", monkeypatch, place)[1]) == len(found) // 2  # no wide dtypes


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        return weight.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.1


def forgets_the_last_column(*tensors, **options):
    output = RIGHT(*tensors, **options)
    return torch.cat([output[:, :-1], torch.zeros_like(output[:, -1:])], 1)


def doubles_a_gradient(h, r, down, *rest, **options):
    return RIGHT(h, r, WrongGradient.apply(down), *rest, **options)


def leaves_memory_as_it_was(h, *tensors, **options):
    output = RIGHT(h, *tensors, **options)
    return torch.where(torch.arange(len(h))[:, None] == 3, torch.empty_like(output).fill_(float("nan")), output)


def swaps_adapters(*tensors, adapter_indices=None, **options):
    indices = adapter_indices if adapter_indices is None else (adapter_indices - 1).clamp_min(-1)
    return RIGHT(*tensors, **options, adapter_indices=indices)


@pytest.mark.parametrize(
    ("operator", "wrong"),
    [
        (forgets_the_last_column, {"inferred", "output"}),
        (doubles_a_gradient, {"down_weight"}),
        (leaves_memory_as_it_was, {"inferred", "output"}),
        (swaps_adapters, {"inferred", "output"}),
    ],
)
def test_wrong_numbers_are_seen(operator, wrong, place, monkeypatch):
    code, found = check("tile", monkeypatch, place, operator)
    assert code == 1
    failed = [fact for fact in found if not fact["ok"]]
    assert len(failed) >= len(found) / 2
    assert all(wrong <= set(fact["wrong"]) for fact in failed)


def test_other_bits_are_seen(place, monkeypatch):
    calls = iter(range(10**6))

    def rounds_otherwise(*tensors, **options):
        return RIGHT(*tensors, **options) * (1 if next(calls) % 4 < 2 else 1.0005)

    code, found = check("tile", monkeypatch, place, rounds_otherwise)
    assert code == 1
    assert any("output" in fact["other_bits"] for fact in found)


def test_refusals_are_no_failures_and_faults_are(place, monkeypatch):
    def refuses(*tensors, **options):
        raise ValueError("bottleneck_adapter: ADAPTERX_CUDA_PATH must name a path that serves this call")

    code, found = check("tile:32x8", monkeypatch, place, refuses)
    assert code == 0
    assert {fact["ok"] for fact in found} == {"refused"}

    def fails(*tensors, **options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    code, found = check("tile:32x8", monkeypatch, place, fails)
    assert code == 1
    assert facts.read_facts(place, "checked") == []
    assert [fact["ok"] for fact in found] == [False]  # the rest would be blamed on other cases

    def raises(*tensors, **options):
        raise ValueError("hidden_states must be contiguous")

    code, found = check("tile:32x8", monkeypatch, place, raises)
    assert code == 1
    assert len(found) > 1


def test_a_library_without_kernels_is_told_so(place, monkeypatch, capsys):
    monkeypatch.setattr(call_library, "build_info", lambda: {"cuda": False})
    assert call_library.main() == 1
    assert "the library must have CUDA kernels" in capsys.readouterr().err
    monkeypatch.setattr(call_library, "build_info", lambda: {"cuda": "13.0"})
    assert call_library.main() == 0
    monkeypatch.setattr(ops, "bottleneck_adapter", lambda *arguments: RIGHT(*arguments) * 1.01)
    assert call_library.main() == 1


# --- times


@pytest.fixture
def times(place, tmp_path, monkeypatch):
    """Return a function that times two shapes by three paths, and gives back the facts of the times."""
    for name, value in {
        "SHAPES": ((64, 16, 6), (9, 24, 4)),
        "HEADLINE": (64, 16, 6),
        "PATHS": ("tile:32x8", "tile:64x8", "auto"),
        "GROUPED_PATHS": ("tile:32x8", "auto"),
        "GROUPS": 3,
        "SEQUENCE": 8,
        "ROUNDS": 2,
        "MIN_SAMPLE_MS": 0.01,
    }.items():
        monkeypatch.setattr(time_paths, name, value)
    monkeypatch.setattr(time_paths.harness, "cpu_machine", fake_machine)

    def run(operator=RIGHT, *options):
        monkeypatch.setattr(ops, "bottleneck_adapter", operator)
        monkeypatch.setattr(sys, "argv", ["time_paths.py", "--results", str(tmp_path), *options])
        time_paths.main()
        return facts.read_facts(place, "time")

    return run


def described(found):
    return [(fact["mode"], fact["shape"][0], fact["picked"]) for fact in found]


def refuses_the_new_one(*tensors, **options):
    if os.environ[check_path.PIN] == "tile:32x8":
        raise ValueError("bottleneck_adapter: ADAPTERX_CUDA_PATH must name a path that serves this call")
    return RIGHT(*tensors, **options)


def test_every_path_is_timed_beside_its_rivals(times, tmp_path):
    found = times(refuses_the_new_one)
    modes = ["forward", "grad_input", "weight_gradients", "backward"]
    assert described(found) == [
        *((mode, 64, "") for mode in modes),
        *((mode, 9, "") for mode in modes),
        *(("forward", 64, "sequences"), ("backward", 64, "sequences"), ("forward", 64, "tokens")),
    ]
    forward, backward = found[0], found[3]
    assert set(forward["us"]) == {"tile:64x8", "auto", "copy", "eager"}
    assert forward["refused"] == ["tile:32x8"]
    assert set(backward["us"]) == {"tile:32x8", "tile:64x8", "auto", "copy", "eager"}
    assert set(found[-1]["us"]) == {"auto", "copy", "one adapter"}
    assert all(0 <= value < 0.02 for fact in found for value in fact["difference"].values())
    with (tmp_path / "bench_paths_cpu_NVIDIA_Fake.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["implementation"] for row in rows} >= {"copy", "eager", "tile:64x8", "one adapter"}
    assert {row["device"] for row in rows} == {"NVIDIA Fake (sm_90)"}


def test_wrong_results_are_seen_beside_the_times(times):
    found = times(lambda *tensors, **options: RIGHT(*tensors, **options) * 1.5)
    assert min(found[0]["difference"].values()) > 0.3


def test_the_formula_of_the_backward_pass_is_that_of_autograd():
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in ((5, 8), (3, 8), (3,), (8, 3), (8,))]
    leaves = [tensor.requires_grad_() for tensor in tensors]
    h, down, down_bias, up, _ = leaves
    cotangent = torch.randn(5, 8, dtype=torch.float64)
    options = {"activation": time_paths.ACTIVATION, "scaling": time_paths.SCALING}
    wanted = torch.autograd.grad(reference.bottleneck_adapter(h, *leaves, **options), leaves, cotangent)
    with torch.no_grad():
        found = time_paths.formula_of_backward((True,) * 5, cotangent, h, h @ down.t() + down_bias, down, up)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_times_go_on_without_the_path_that_ended_the_process(times, place):
    calls = []

    def crashes(*tensors, **options):
        if os.environ[check_path.PIN] == "tile:64x8" and len(tensors[0]) == 9:
            raise KeyboardInterrupt  # as if the process ended here
        calls.append(len(tensors[0]))
        return RIGHT(*tensors, **options)

    with pytest.raises(KeyboardInterrupt):
        times(crashes)
    before = len(facts.read_facts(place, "time"))
    assert before == 4
    calls.clear()
    found = times(crashes)
    assert len(found) == 11
    assert len({json.dumps([f["mode"], f["shape"], f["picked"]]) for f in found}) == 11  # none twice
    left_out = facts.read_facts(place, "left out")
    assert [(fact["path"], fact["shape"][0]) for fact in left_out] == [("tile:64x8", 9)]
    assert all("tile:64x8" not in fact["us"] for fact in found[before:])
    assert "auto" in found[before]["us"]


def test_a_case_whose_rounds_ended_the_process_is_left_out(times, place, monkeypatch):
    in_turns = time_paths.harness.time_in_turns

    def crashes(graphs, **options):
        if len(facts.read_facts(place, "time")) == 1:
            raise KeyboardInterrupt
        return in_turns(graphs, **options)

    monkeypatch.setattr(time_paths.harness, "time_in_turns", crashes)
    with pytest.raises(KeyboardInterrupt):
        times()
    monkeypatch.setattr(time_paths.harness, "time_in_turns", in_turns)
    found = times()
    assert len(found) == 10
    assert ("grad_input", 64, "") not in described(found)
    assert all("tile:64x8" in fact["us"] for fact in found[1:] if not fact["picked"])


def test_a_path_that_fails_or_is_left_out_costs_no_other(times):
    def fails(*tensors, **options):
        if os.environ[check_path.PIN] == "tile:32x8":
            raise RuntimeError("the cuBLASLt path failed: not supported")
        return RIGHT(*tensors, **options)

    found = times(fails, "--without", "tile:64x8", "--seconds", "100")
    assert "not supported" in found[0]["failed"]["tile:32x8"]
    assert set(found[0]["us"]) == {"auto", "copy", "eager"}


def test_a_context_that_broke_ends_the_process(times):
    def breaks(*tensors, **options):
        raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        times(breaks)


def test_what_there_was_no_time_for_is_said(times, place):
    assert times(RIGHT, "--seconds", "0") == []
    assert len(facts.read_facts(place, "no time")) == 11
