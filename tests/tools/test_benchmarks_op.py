"""The benchmark and the sweep of the operator for a GPU, run on the CPU with what belongs to a GPU replaced."""

import argparse

import bench_op
import bench_op_cuda
import cuda_timing
import harness
import op_calls
import op_sweep
import plan_table
import pytest
import tables
import torch
from fake_gpu import TINY, fake_machine, read
from gpu_limits import GPUS
from predictions import moved_us, predicted_us
from roofline import predict

from adapterx import ops


def test_the_benchmark_of_the_operator(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_op_cuda, "SHAPES", (TINY, (5000, 8, 2)))
    monkeypatch.setattr(bench_op_cuda, "OTHER_DTYPE_SHAPES", (TINY,))
    monkeypatch.setattr(bench_op_cuda, "COMPILED_SHAPES", (TINY,))
    monkeypatch.setattr(bench_op_cuda, "MIN_SAMPLE_MS", 0.01)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    bench_op.main(["--device", "cuda", "--repeats", "2", "--results", str(tmp_path)])
    rows = read(tmp_path, "bench_op_cuda_NVIDIA_Fake.csv")
    found = {(row["num_tokens"], row["dtype"], row["mode"], row["implementation"], row["metric"]) for row in rows}
    for mode in ("forward", "forward_backward"):
        for peer in ("adapterx cublas", "eager", "torch.compile"):
            assert ("6", "bfloat16", mode, peer, "time / adapterx") in found
            assert ("6", "bfloat16", mode, peer, "graph time / adapterx") in found
        for metric in ("time", "time / copy", "graph time / copy", "bandwidth", "launches"):
            assert ("6", "float16", mode, "adapterx", metric) in found
        assert ("6", "float16", mode, "torch.compile", "time") not in found
        assert ("5000", "bfloat16", mode, "adapterx", "graph time") not in found
    table = tables.cuda_table()
    assert "NVIDIA Fake (sm_90)" in table
    assert "| 6 × 8, 2 | bfloat16 | forward + backward |" in table
    assert table.splitlines()[2].endswith("| 3 |")


def test_a_compiler_that_fails_does_not_end_the_benchmark(gpu, monkeypatch, capsys):
    def fail(*tensors, **options):
        raise ImportError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    monkeypatch.setattr(bench_op_cuda, "COMPILED_SHAPES", (TINY,))
    rows = bench_op_cuda.run_case(harness.Case("forward", *TINY, torch.bfloat16), fake_machine(), 1)
    assert "torch.compile" not in {row["implementation"] for row in rows}
    assert "torch.compile fails here: ImportError: no compiler" in capsys.readouterr().out


def test_an_operator_that_fails_ends_the_benchmark(gpu, monkeypatch):
    monkeypatch.setattr(ops, "bottleneck_adapter", lambda *tensors, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench_op_cuda.run_case(harness.Case("forward", *TINY, torch.bfloat16), fake_machine(), 1)


def only_some_plans(monkeypatch):
    """Refuse the pin tile:64x8, as the operator does where a tile does not fit."""
    forward = ops.bottleneck_adapter

    def refuse(*tensors, **options):
        if harness.os.environ.get("ADAPTERX_CUDA_PATH") == "tile:64x8":
            raise ValueError("the tile must fit in shared memory")
        return forward(*tensors, **options)

    monkeypatch.setattr(ops, "bottleneck_adapter", refuse)


def test_the_sweep_gives_a_plan_table(gpu, tmp_path, monkeypatch):
    only_some_plans(monkeypatch)
    monkeypatch.setattr(op_sweep, "TOKENS", (1, 4))
    monkeypatch.setattr(op_sweep, "HIDDEN_SIZES", (8, 16))
    monkeypatch.setattr(op_sweep, "BOTTLENECK_DIMS", (2, 3))
    monkeypatch.setattr(op_sweep, "MIN_SAMPLE_MS", 0.01)
    bench_op.main(["--device", "cuda", "--sweep", "--repeats", "1", "--results", str(tmp_path)])
    name, capability, times = plan_table.read_sweep(tmp_path / "bench_op_cpu_sweep_NVIDIA_Fake.csv")
    assert (name, capability) == ("NVIDIA Fake", 90)
    assert {mode: len(cells) for mode, cells in times.items()} == {"forward": 8, "backward": 8}
    assert (64, 8) not in times["forward"][1, 8, 2]
    assert set(times["backward"][1, 8, 2]) == {plan_table.parse_plan(plan) for plan in op_sweep.PLANS}
    assert plan_table.grid_rows(capability, times["backward"])


def test_the_sweep_times_graphs_of_pinned_calls(gpu, monkeypatch):
    """What the host needs to launch a plan must not decide which one is in the table."""
    graphs = []

    def capture(function, calls):
        graphs.append((harness.os.environ["ADAPTERX_CUDA_PATH"], calls))
        return function

    monkeypatch.setattr(cuda_timing, "capture", capture)
    case = harness.Case("forward", *TINY, torch.bfloat16)
    machine = fake_machine(cache_bytes=1000, sample=lambda function, calls: 6.0)
    copies = machine.copies(op_calls.input_bytes(case))
    rows = op_sweep.run_case(case, machine, 1)
    assert copies > 1
    assert graphs == [(plan, copies) for plan in op_sweep.PLANS]
    assert {row["median"] for row in rows if row["metric"] == "time"} == {6.0 / copies}


def test_a_sweep_out_of_time_keeps_the_cells_it_has(gpu, monkeypatch, capsys):
    monkeypatch.setattr(op_sweep, "TOKENS", (1, 4))
    monkeypatch.setattr(op_sweep, "HIDDEN_SIZES", (8,))
    monkeypatch.setattr(op_sweep, "BOTTLENECK_DIMS", (2, 3))
    monkeypatch.setattr(op_sweep, "run_case", lambda case, machine, repeats, without: [case])
    ticks = iter(range(100))
    deadline = harness.Deadline(6, clock=lambda: next(ticks))
    cells = list(op_sweep.batches(fake_machine(), deadline, repeats=1, quick=False))
    assert [case.bottleneck_dim for (case,) in cells] == [2, 2, 2, 2, 3]
    assert "out of time in the plane of bottleneck_dim 3" in capsys.readouterr().out


def test_a_sweep_goes_on_behind_the_cell_that_ended_it(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(op_sweep, "TOKENS", (1, 4))
    monkeypatch.setattr(op_sweep, "HIDDEN_SIZES", (8,))
    monkeypatch.setattr(op_sweep, "BOTTLENECK_DIMS", (2,))
    monkeypatch.setattr(op_sweep, "MIN_SAMPLE_MS", 0.01)
    calls, run_case = [], op_sweep.run_case

    def run(case, *arguments):
        calls.append(op_sweep.cell_of(case))
        return 1 / 0 if len(calls) == 2 else run_case(case, *arguments)

    monkeypatch.setattr(op_sweep, "run_case", run)
    command = ["--device", "cuda", "--sweep", "--resume", "--repeats", "1", "--results", str(tmp_path)]
    with pytest.raises(ZeroDivisionError):
        bench_op.main(command)
    bench_op.main([*command, "--without", "cublas,tile:64x8"])
    assert calls == [("forward", 1, 8, 2), ("backward", 1, 8, 2), ("forward", 4, 8, 2), ("backward", 4, 8, 2)]
    assert "an earlier process ended in it: ('backward', 1, 8, 2)" in capsys.readouterr().out
    times = plan_table.read_sweep(tmp_path / "bench_op_cpu_sweep_NVIDIA_Fake.csv")[2]
    assert plan_table.CUBLAS in times["forward"][1, 8, 2]
    assert {plan_table.CUBLAS, (64, 8)} & set(times["forward"][4, 8, 2]) == set()


def test_parts_of_the_backward_pass_can_be_called_alone():
    gradients = {}
    for mode in op_sweep.MASKS:
        torch.manual_seed(3)
        gradients[mode] = op_sweep.make_call(harness.Case(mode, *TINY, torch.float64), "cpu", 0)()
    for name, mask in op_sweep.MASKS.items():
        for wanted, part, whole in zip(mask, gradients[name], gradients["backward"], strict=True):
            assert (part is not None) == wanted
            assert not wanted or torch.equal(part, whole)


def test_a_sweep_needs_a_gpu(capsys):
    with pytest.raises(SystemExit):
        bench_op.main(["--sweep"])
    assert "--sweep needs --device cuda" in capsys.readouterr().err


def test_the_benchmark_on_the_cpu_is_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_op, "TARGET_SHAPE", TINY)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    threads = str(torch.get_num_threads())
    bench_op.main(["--quick", "--repeats", "2", "--threads", threads, "--results", str(tmp_path)])
    rows = read(tmp_path, "bench_op_cpu.csv")
    assert {row["implementation"] for row in rows} == {"adapterx", "eager", "torch.compile"}
    assert {row["metric"] for row in rows} == {"time", "time / adapterx", "throughput"}
    assert len(rows) == 2 * 2 * (3 + 3 + 2)


def test_predictions_say_that_they_are_none_and_follow_the_roofline(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    table = tables.cuda_table()
    assert table.startswith("Not measured yet.")
    assert "not measurements" in table
    cell, gpu = (16384, 4096, 64), GPUS["H200"]
    assert moved_us(gpu, "copy", cell, "forward") == pytest.approx(63, rel=0.01)  # by hand: 2 x 134 MB at 4.3 TB/s
    assert moved_us(gpu, "eager", cell, "forward") == pytest.approx(219, rel=0.01)
    assert moved_us(gpu, "copy", cell, "forward + backward") == pytest.approx(157, rel=0.01)
    best, cublas, limit = predicted_us(gpu, cell, "forward")
    assert moved_us(gpu, "copy", cell, "forward") < best <= cublas == predict(gpu, "forward", cell, (0, 1)).us
    assert f"| 16384 × 4096, 64 | forward | {best:.1f} | {limit} |" in table
    both = predicted_us(gpu, cell, "forward + backward")
    assert both[1] == cublas + predict(gpu, "backward", cell, (0, 1)).us


def test_no_gpu_is_said_in_words():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeError, match="cuda_machine: PyTorch must find a GPU, got none"):
        bench_op.run_on_cuda(argparse.Namespace(seconds=None, sweep=False))
