"""The benchmarks for a GPU, run on the CPU with the clock, the graphs and the profiler of a GPU replaced."""

import argparse
import csv

import bench_grouped
import bench_model
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
from predictions import PASSES, predict_us

from adapterx import ops

TINY = (6, 8, 2)


def fake_machine(**changes):
    values = {"device": "cpu", "name": "NVIDIA Fake (sm_90)", "slug": "NVIDIA_Fake", "cache_bytes": 0}
    return harness.Machine(**{"sample": harness.host_sampler(), **values, **changes})


@pytest.fixture
def gpu(monkeypatch):
    """Let the CPU stand in for a GPU; compiling is left out, it is slow."""

    def capture(function, calls):
        return lambda: [function() for _ in range(calls)]

    monkeypatch.setattr(cuda_timing, "cuda_machine", fake_machine)
    monkeypatch.setattr(cuda_timing, "capture", capture)
    monkeypatch.setattr(cuda_timing, "launch_count", lambda function: 3)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def read(folder, name):
    """Return the rows that the stand-in has written, under the name that a GPU would have given them."""
    path = folder / name
    (folder / name.replace("_cuda", "_cpu")).rename(path)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_machine_names_its_files_and_its_copies(tmp_path):
    machine = fake_machine(device="cuda", cache_bytes=1000)
    assert machine.results(tmp_path, "bench_op").name == "bench_op_cuda_NVIDIA_Fake.csv"
    assert machine.results(tmp_path, "bench_op", "sweep").name == "bench_op_cuda_sweep_NVIDIA_Fake.csv"
    assert harness.cpu_machine().results(tmp_path, "bench_op").name == "bench_op_cpu.csv"
    assert machine.copies(2001) == 1
    assert machine.copies(400) * 400 > 2000
    assert machine.copies(1) == harness.MAX_COPIES
    assert fake_machine().copies(1) == 1


def test_rotation_and_pins(monkeypatch):
    seen = []
    turn = harness.rotate([lambda: seen.append("a"), lambda: seen.append("b")])
    for _ in range(3):
        turn()
    assert "".join(seen) == "aba"
    for before in ("tile", None):
        if before is None:
            monkeypatch.delenv("ADAPTERX_CUDA_PATH", raising=False)
        else:
            monkeypatch.setenv("ADAPTERX_CUDA_PATH", before)
        with harness.pinned("cublas"):
            assert harness.os.environ["ADAPTERX_CUDA_PATH"] == "cublas"
        assert harness.os.environ.get("ADAPTERX_CUDA_PATH") == before


def test_contexts_are_entered_around_samples():
    seen = []
    harness.time_in_turns(
        {name: lambda: seen.append(harness.os.environ["ADAPTERX_CUDA_PATH"]) for name in ("one", "two")},
        repeats=1,
        sample=lambda function, calls: function() or 10.0,
        contexts={name: lambda name=name: harness.pinned(name) for name in ("one", "two")},
    )
    assert seen == ["one", "one", "two", "two", "one", "two"]


def test_ratios_to_a_limit_and_bandwidth():
    case = harness.Case("forward", 3, 8, 2, torch.float32)
    samples = {"adapterx": [2.0], "eager": [6.0], "copy": [1.0]}
    rows = harness.rows_of(
        "bench", case, samples, subject="adapterx", moved_bytes=4e6, flop=2e6, limit="copy", machine=fake_machine()
    )
    found = {(row["implementation"], row["metric"]): row["median"] for row in rows}
    assert found["adapterx", "time / copy"] == 2.0
    assert found["eager", "time / copy"] == 6.0
    assert found["eager", "time / adapterx"] == 3.0
    assert found["adapterx", "bandwidth"] == pytest.approx(2.0)
    assert found["copy", "bandwidth"] == pytest.approx(4.0)
    assert ("copy", "throughput") not in found
    assert not [key for key in found if key[0] == "copy" and "/" in key[1]]
    assert {row["device"] for row in rows} == {"NVIDIA Fake (sm_90)"}


def test_a_deadline_passes():
    now = [0.0]
    deadline = harness.Deadline(5.0, clock=lambda: now[0])
    assert not deadline.passed()
    now[0] = 5.0
    assert deadline.passed()
    assert not harness.Deadline(None).passed()


def test_bytes_are_those_of_the_formula():
    forward = harness.Case("forward", 16384, 4096, 64, torch.bfloat16)
    hidden = 16384 * 4096 * 2
    weights = (2 * 4096 * 64 + 64 + 4096) * 2
    narrow = 16384 * 64 * 2
    assert op_calls.input_bytes(forward) == hidden + weights
    assert op_calls.moved_bytes(forward) == 2 * hidden + weights
    both = harness.Case("forward_backward", *(16384, 4096, 64), torch.bfloat16)
    assert op_calls.moved_bytes(both) == 5 * hidden + 3 * weights + 2 * narrow
    assert op_calls.flop_count(both) == 3 * op_calls.flop_count(forward)


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
    assert plan_table.measured_rows(capability, times["backward"])


def test_a_sweep_out_of_time_keeps_whole_planes(gpu, monkeypatch, capsys):
    monkeypatch.setattr(op_sweep, "TOKENS", (1, 4))
    monkeypatch.setattr(op_sweep, "HIDDEN_SIZES", (8,))
    monkeypatch.setattr(op_sweep, "BOTTLENECK_DIMS", (2, 3))
    monkeypatch.setattr(op_sweep, "run_case", lambda case, machine, repeats: [case])
    ticks = iter(range(100))
    deadline = harness.Deadline(6, clock=lambda: next(ticks))
    planes = list(op_sweep.batches(fake_machine(), deadline, repeats=1, quick=False))
    assert [len(plane) for plane in planes] == [4]
    assert "out of time in the plane of bottleneck_dim 3" in capsys.readouterr().out


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


@pytest.mark.parametrize("layout", bench_grouped.LAYOUTS)
def test_all_ways_to_mix_adapters_give_the_same(layout):
    case = harness.Case("forward_backward", 256, 8, 2, torch.float64)
    batch = bench_grouped.make_batch(case, 3, layout, "cpu", seed=1)
    outputs = {name: operator(batch) for name, (operator, _) in bench_grouped.OPERATORS.items()}
    for name in ("loop", "adapter_names"):
        torch.testing.assert_close(outputs[name], outputs["adapterx"])
    assert not torch.allclose(outputs["one adapter"], outputs["adapterx"])
    gradients = bench_grouped.make_call("adapterx", case, batch)()
    looped = bench_grouped.make_call("loop", case, batch)()
    torch.testing.assert_close(looped[0], gradients[0])
    torch.testing.assert_close(torch.stack(looped[1::4]), gradients[1])


def test_the_benchmark_of_the_grouped_operator(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_grouped, "SHAPES", {"cpu": (128, 8, 2, 2, torch.float32)})
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.grouped_table() == "Not measured yet."
    bench_grouped.main(["--device", "cuda", "--repeats", "1", "--results", str(tmp_path)])
    table = tables.grouped_table()
    assert "NVIDIA Fake (sm_90)" in table
    assert "| 128 × 8, 2 | 2 adapters, sequences of 64 | forward + backward |" in table
    assert "–" not in table


def test_the_benchmark_of_a_model(gpu, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    scale = bench_model.Scale(32, 48, 2, 4, 4, torch.float32, (2, 5), (1, 6), (2, 3))
    monkeypatch.setattr(bench_model, "SCALES", {"cpu": scale})
    monkeypatch.setattr(bench_model, "MODES", dict(bench_model.MODES))
    monkeypatch.setattr(bench_model, "GRAPH_DEVICES", ("cpu",))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    bench_model.main(["--device", "cuda", "--repeats", "1", "--results", str(tmp_path)])
    rows = read(tmp_path, "bench_model_cuda_NVIDIA_Fake.csv")
    modes = {row["mode"]: row["num_tokens"] for row in rows}
    assert modes == {"forward": "10", "prefill": "6", "decode": "2", "decode graph": "2"}
    metrics = {row["metric"] for row in rows if row["implementation"] == "eager"}
    assert metrics == {"time", "time / adapterx", "time / base"}
    assert "| Llama with 2 layers | decode graph, 2 tokens |" in tables.model_table()


def test_the_models_share_their_weights_and_differ_by_the_adapters():
    pytest.importorskip("transformers")
    scale = bench_model.Scale(32, 48, 2, 4, 4, torch.float32, (2, 5), (1, 6), (2, 3))
    models = bench_model.make_models(scale, "cpu")
    own = {id(parameter) for parameter in models["base"].parameters()}
    added = [name for name, parameter in models["adapterx"].named_parameters() if id(parameter) not in own]
    assert len(own) + len(added) == len(list(models["adapterx"].parameters()))
    assert len({name.split(".adapterx.")[0] for name in added}) == 4
    assert not [name for name, _ in models["base"].named_modules() if "adapterx" in name]
    for name, make in bench_model.MODES.items():
        calls = [make(models[kind], scale, "cpu") for kind in ("base", "adapterx")]
        base, adapted = (bench_model.in_inference_mode(call)()[0] for call in calls)
        assert base.shape == adapted.shape, name
        torch.testing.assert_close(base, adapted, atol=1e-2, rtol=0)
        assert not torch.equal(base, adapted)


def test_decoding_forgets_its_token():
    pytest.importorskip("transformers")
    scale = bench_model.Scale(32, 48, 2, 4, 4, torch.float32, (2, 5), (1, 6), (2, 3))
    step = bench_model.decode_call(bench_model.make_models(scale, "cpu")["base"], scale, "cpu")
    with torch.inference_mode():
        assert torch.equal(step()[0], step()[0])


def test_predictions_say_that_they_are_none_and_follow_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    table = tables.cuda_table()
    assert table.startswith("Not measured yet.")
    assert "not measurements" in table
    case = harness.Case("forward", 16384, 4096, 64, torch.bfloat16)
    assert predict_us("adapterx", case) == pytest.approx(63, rel=0.01)  # by hand: 2 x 134 MB at 4.3 TB/s
    assert predict_us("eager", case) == pytest.approx(219, rel=0.01)
    assert set(PASSES) == {"copy", "adapterx", "adapterx cublas", "eager"}


def test_no_gpu_is_said_in_words():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeError, match="cuda_machine: PyTorch must find a GPU, got none"):
        bench_op.run_on_cuda(argparse.Namespace(seconds=None, sweep=False))
