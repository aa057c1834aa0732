"""The C++ program of export/cpp_loader: built as its README says, run on exported models, compared with PyTorch."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
import tiny_export as tiny

from adapterx import attach, ops, set_active
from adapterx.config import AdapterConfig
from adapterx.export import to_torchscript

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ((2, 8), (3, 19))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    build = tmp_path_factory.mktemp("cpp_loader")
    options = [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}", "-DCMAKE_BUILD_TYPE=Debug"]
    options += ["-GNinja"] if shutil.which("ninja") else []
    for command in (
        ["cmake", "-S", ROOT / "export" / "cpp_loader", "-B", build, *options],
        ["cmake", "--build", build],
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return build / "run_adapted"


def run(*arguments):
    return subprocess.run(list(map(str, arguments)), capture_output=True, text=True)


def numbers(line, shape):
    """Return the sum and the first values of a line such as `input 2 x 8: output [2, 3], sum 1.5, begins 1 2 3`."""
    head, total, first = line.split(", sum ")[0], *line.split(", sum ")[1].split(", begins ")
    assert head.startswith("input {} x {}: output [".format(*shape))
    return torch.tensor([float(total), *map(float, first.split())], dtype=torch.float64)


@torch.no_grad()
def expected(model, inputs, shape):
    ids = torch.arange(5, 5 + shape[0] * shape[1]).reshape(shape)
    named = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    values = tiny.output_of(model, {name: named[name] for name in inputs}).double().flatten()
    return torch.cat([values.sum()[None], values[:3]])


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_the_program_gives_what_pytorch_gives(program, name, tmp_path):
    model = tiny.MODELS[name][0]()
    if name == "bert":
        attach(model.base_model, AdapterConfig(bottleneck_dim=2), "second")
        tiny.randomise(model)
        set_active(model.base_model, ["default", "second"])
    document = to_torchscript(model, tmp_path / "model.pt", validate=False)
    done = run(program, tmp_path / "model.pt", ops.LIBRARY)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"adapters: {'default second' if name == 'bert' else 'default'}"
    assert len(lines) == 3
    for line, shape in zip(lines[1:], SHAPES, strict=True):
        wanted = expected(model, document["inputs"], shape)
        torch.testing.assert_close(numbers(line, shape), wanted, rtol=1e-5, atol=1e-4)


def test_wrong_arguments_are_told_in_words(program, tmp_path):
    for arguments in ((), ("model.pt",), ("model.pt", "library", "more")):
        done = run(program, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: run_adapted MODEL.pt LIBADAPTERX.so\n")
    done = run(program, "model.pt", tmp_path / "missing.so")
    assert done.returncode == 1
    assert done.stderr.startswith("run_adapted: cannot load the operator library: ")
    (tmp_path / "model.pt").write_bytes(b"no archive")
    done = run(program, tmp_path / "model.pt", ops.LIBRARY)
    assert done.returncode == 1
    assert done.stderr.startswith("run_adapted: ")
