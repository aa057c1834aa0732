"""The harness of the benchmarks where it serves a GPU: files, copies, pins, ratios, deadlines, bytes."""

import time

import harness
import op_calls
import pytest
import torch
from fake_gpu import fake_machine
from forks import Fork


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


def test_a_process_that_hangs_is_ended(capfd):
    def hang():
        with harness.ended_after(0.1):
            time.sleep(60)

    assert Fork(hang).wait()[0] == 1
    assert "Timeout" in capfd.readouterr().err
    with harness.ended_after(0.05):
        pass
    time.sleep(0.1)
