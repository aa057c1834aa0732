"""How the stages on a GPU use compute-sanitizer and Nsight Compute, and what they find on a machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda"))
import gpu_machine
import gpu_tools

MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 2 bytes
=========     at void adapterx::cuda::bottleneck_tile_kernel<...>(...)+0x1230
=========     by thread (0,0,0) in block (0,0,0)
=========
kernel_driver: all results are finite
========= ERROR SUMMARY: 1 error
"""
NCU = """==PROF== Connected to process 1
kernel_driver: all results are finite
==PROF== Disconnected
"ID","Kernel Name","dram__bytes.sum","dram__throughput.avg.pct_of_peak_sustained_elapsed","gpu__time_duration.sum"
"","","Mbyte","%","us"
"0","bottleneck_tile_kernel","268.1","81.2","77.3"
"1","weight_gradient_kernel","301.0","70.5","90.0"
"""


def test_sanitizers_are_judged_by_status_and_place():
    judge = gpu_tools.judge_sanitizer
    assert judge("memcheck", 0, "kernel_driver: all results are finite") is None
    assert "Invalid __global__ read" in judge("memcheck", gpu_tools.SANITIZER_ERROR, MEMCHECK)
    assert "did not end well" in judge("memcheck", 0, "Traceback ...")
    assert "did not end well" in judge("racecheck", 1, "Unrecognized option")
    uninitialised = MEMCHECK.replace("Invalid __global__ read", "Uninitialized __global__ memory read")
    assert "Uninitialized" in judge("initcheck", gpu_tools.SANITIZER_ERROR, uninitialised)
    others = uninitialised.replace("adapterx::cuda::bottleneck_tile_kernel", "cublasLt::splitKreduce_kernel")
    assert judge("initcheck", gpu_tools.SANITIZER_ERROR, others) is None
    assert judge("memcheck", gpu_tools.SANITIZER_ERROR, others) is not None


def test_hazards_are_counted_and_do_not_decide():
    assert gpu_tools.count_hazards("========= RACECHECK SUMMARY: 12 hazards displayed (0 errors, 12 warnings)") == 12
    assert gpu_tools.count_hazards(MEMCHECK) == 1
    assert gpu_tools.count_hazards("nothing") == 0
    required = {tool for tool in gpu_tools.SANITIZERS if gpu_tools.sanitizer_step(tool, 60.0).required}
    assert required == {"memcheck", "initcheck"}


def test_sanitizer_commands(monkeypatch):
    for help_text, option in (("  --kernel-name arg", "--kernel-name"), ("  --kernel-regex arg", "--kernel-regex")):
        monkeypatch.setattr(gpu_tools, "say", lambda command, text=help_text: text)
        command = gpu_tools.sanitizer_command("racecheck")
        assert command[command.index(option) + 1] == "kns=adapterx"
        assert command[-3:] == [sys.executable, gpu_tools.DRIVER, "--without-cublas"]
        assert "kns=adapterx" not in gpu_tools.sanitizer_command("initcheck")
        assert gpu_tools.sanitizer_command("memcheck")[-1] == gpu_tools.DRIVER
        assert gpu_tools.sanitizer_command("memcheck", "tile:64x8,cublas")[-2:] == ["--paths", "tile:64x8,cublas"]


def test_counters_are_read_between_other_lines():
    rows = gpu_tools.read_counters(NCU)
    assert [row["kernel"] for row in rows] == ["bottleneck_tile_kernel", "weight_gradient_kernel"]
    assert rows[0][gpu_tools.SHARE] == "81.2"
    assert gpu_tools.read_counters("==ERROR== ERR_NVGPUCTRPERM") == []
    step = gpu_tools.ncu_step("tile:64x8", 30.0)
    assert "does not permit" in step.judge(1, "==ERROR== ERR_NVGPUCTRPERM")
    assert "no counters" in step.judge(0, "nothing")
    assert step.judge(0, NCU) is None
    assert step.judge(0, "kernel_driver: refused: ...") is None  # a path that does not serve this device
    assert not step.required
    command = step.command(30.0)
    assert command[-4:] == [sys.executable, gpu_tools.DRIVER, "--target", "tile:64x8"]
    assert [command[i + 1] for i, word in enumerate(command) if word == "--section"] == list(gpu_tools.SECTIONS)


def test_tools_are_found_in_the_toolkit_and_missed_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name, folder in (("ncu", "nsight-compute"), ("compute-sanitizer", "compute-sanitizer")):
        monkeypatch.delenv("CUDA_HOME", raising=False)
        if gpu_machine.find_tool(name) is None:
            assert f"{name} was not found" in gpu_tools.not_found(name)
        tool = tmp_path / folder / name
        tool.parent.mkdir()
        tool.touch(0o755)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        assert gpu_machine.find_tool(name) == str(tool)
        assert gpu_tools.not_found(name) is None


def test_the_environment_is_that_of_the_checkout(monkeypatch):
    monkeypatch.setenv("ADAPTERX_CUDA_PATH", "cublas")
    monkeypatch.setenv("ADAPTERX_COMMIT", "abc1234")
    monkeypatch.delenv("ADAPTERX_LIBRARY", raising=False)
    environment = gpu_machine.environment_of_steps()
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)  # ninja stands there
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(gpu_machine.ROOT)
    assert environment["ADAPTERX_CUDA"] == "1"
    assert environment["ADAPTERX_COMMIT"] == "abc1234"
    assert {"ADAPTERX_CUDA_PATH", "ADAPTERX_LIBRARY"} & set(environment) == set()
    monkeypatch.setenv("ADAPTERX_LIBRARY", "elsewhere.so")
    assert gpu_machine.environment_of_steps()["ADAPTERX_LIBRARY"] == os.path.abspath("elsewhere.so")


def test_a_machine_without_a_gpu_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu_machine, "describe_gpu", lambda: {"gpu": None})
    monkeypatch.setattr(gpu_machine, "describe_tools", dict)
    assert gpu_machine.main() == 2
    assert "PyTorch must find a GPU, got none" in capsys.readouterr().err


def test_ceilings_are_measured(monkeypatch, capsys):
    monkeypatch.setattr(gpu_machine, "DEVICE", "cpu")
    gpu_machine.measure_ceilings()
    output = capsys.readouterr().out
    assert output.count('"fact": "ceiling"') == 2
    assert pytest.approx(0) != float(output.split('"best": ')[1].split(",")[0])


def test_the_library_that_is_carried(tmp_path, monkeypatch, capsys):
    """Built by the recipe of the check, for one architecture, in an environment that is used as it is; and loaded."""
    import gpu_library

    nvcc = tmp_path / "venv" / "lib" / "python3.11" / "site-packages" / "nvidia" / "cu13" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch()
    calls = []

    def build(folder, env):
        calls.append({name: env[name] for name in ("TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "ADAPTERX_CUDA")})
        library = folder / "library" / "adapterx" / "libadapterx-torch2.11.so"
        library.parent.mkdir(parents=True)
        library.write_bytes(b"x" * (1 << 20))
        return library

    def load(command, check):
        calls.append([str(part) for part in command[-4:]])
        return subprocess.CompletedProcess(command, loads)

    monkeypatch.setattr(gpu_library, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_library, "build_library", build)
    monkeypatch.setattr(gpu_library, "run_logged", lambda command, log, env: calls.append([str(c) for c in command]))
    monkeypatch.setattr(gpu_library.subprocess, "run", load)
    options = ["gpu_library.py", "--venv", str(tmp_path / "venv"), "--build", str(tmp_path / "build")]
    monkeypatch.setattr(sys, "argv", options)
    loads = 0
    assert gpu_library.main() == 0
    assert calls[0] == {"TORCH_CUDA_ARCH_LIST": "9.0", "CUDA_HOME": str(nvcc.parents[1]), "ADAPTERX_CUDA": "1"}
    assert calls[1][0] == str(nvcc)
    assert "-arch=sm_90" in calls[1]
    assert calls[1][-2:] == [str(tmp_path / "build/library/adapterx/ptx_self_test"), calls[1][-1]]
    assert calls[2] == ["--cuda", "13.0", "--architectures", "9.0"]
    assert "1.0 MiB, ADAPTERX_LIBRARY=build/library/adapterx/libadapterx-torch2.11.so" in capsys.readouterr().out
    loads = 1
    (tmp_path / "build/library/adapterx/libadapterx-torch2.11.so").unlink()
    (tmp_path / "build/library/adapterx").rmdir()
    with pytest.raises(SystemExit, match="does not load"):
        gpu_library.main()
