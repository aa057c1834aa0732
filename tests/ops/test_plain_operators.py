"""The operators in plain PyTorch, which compute where no compiled library is for the torch at hand.

They are registered once a process, in place of the compiled ones; so the operators' own tests run in a process of their
own with ADAPTERX_LIBRARY=python, as far as they ask for what users see.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapterx import ops
from adapterx.errors import ExtensionError
from adapterx.plain import operators

ROOT = Path(__file__).resolve().parents[2]
FILES = ("test_ops_errors.py", "test_ops_transforms.py", "test_ops_grouped.py")
# Operators, nodes and words that only the compiled library has; what is slow is asked once, below.
LEFT_OUT = (
    "gradgradcheck",
    "opcheck",
    "backward_operator",
    "training_operator",
    "bit_for_bit",
    "saved_for_backward",
    "keeps_one_node",
    "fused_backward",
    "layouts_without_a_kernel",
)


def run_plain(*command, **environ):
    environment = {**os.environ, "ADAPTERX_LIBRARY": "python", **environ}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_tests_of_the_operators_pass():
    files = [f"tests/ops/{name}" for name in FILES]
    left_out = " and ".join(f"not {words}" for words in LEFT_OUT)
    done = run_plain("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", left_out, *files)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 150


REST = """
import json, torch
import adapterx
from adapterx import ops, reference

torch.manual_seed(0)
shapes = ((4, 3, 8), (4, 3, 6), (5, 2, 8), (5, 2), (5, 6, 2), (5, 6))
tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
h, r, *stacks = tensors
indices = torch.tensor([4, -1, 0, 4])
rest = ("gelu", 0.5)
facts = {"library": str(ops.LIBRARY), "info": adapterx.build_info()}
wanted = reference.bottleneck_adapter(*tensors, *rest, indices)
facts["grouped"] = float((ops.bottleneck_adapter(*tensors, *rest, indices) - wanted).abs().max())
single = [tensor.clone().requires_grad_() for tensor in (h, r, *(stack[0] for stack in stacks))]
checks = torch.library.opcheck(torch.ops.adapterx.bottleneck_adapter, (*single, *rest))
facts["opcheck"] = sorted(set(checks.values()))

single_and_grouped = ((single, None), ([tensor.clone().requires_grad_() for tensor in tensors], indices))
facts["derivatives"] = [torch.autograd.gradgradcheck(lambda *t: ops.bottleneck_adapter(*t, *rest, chosen), given)
                        for given, chosen in single_and_grouped]

class Model(torch.nn.Module):
    def forward(self, h):
        return ops.bottleneck_adapter(h, r, *(stack[0] for stack in stacks), *rest)

nodes = torch.export.export(Model(), (h,)).graph.nodes
facts["export"] = [str(node.target) for node in nodes if "adapterx" in str(node.target)]

poisoned = h.clone()
poisoned[2] = float("nan")  # the tokens of adapter 0

def loss(weights):
    return ops.bottleneck_adapter(poisoned, r, weights, *stacks[1:], *rest, indices)[[0, 3]].sum()

weights = stacks[0].clone().requires_grad_()
eager, = torch.autograd.grad(loss(weights), weights)
graph, = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(weights), weights)
facts["finite"] = [bool(torch.isfinite(gradient[4]).all()) for gradient in (eager, graph)]
facts["equal"] = bool(torch.allclose(eager[4], graph[4], rtol=1e-12))
try:
    ops.bottleneck_adapter(*tensors, *rest, indices + 1)
except ValueError as error:
    facts["range"] = str(error)
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts():
    done = run_plain("-W", "error::UserWarning", "-c", REST)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_there_is_no_library_and_the_wish_is_fulfilled_in_silence(facts):
    assert facts["library"] == "None"
    assert facts["info"]["torch"] == torch.__version__
    assert not facts["info"]["compiler"]
    assert facts["info"].keys() == ops.build_info().keys()


def test_pytorchs_own_check_of_operators(facts):
    assert facts["opcheck"] == ["SUCCESS"]


def test_second_derivatives(facts):
    assert facts["derivatives"] == [True, True]


def test_an_exported_graph_has_the_operator_as_one_node(facts):
    assert facts["export"] == ["adapterx.bottleneck_adapter.default"]


def test_grouped_as_the_reference_and_an_index_out_of_range_is_refused(facts):
    assert facts["grouped"] == 0.0
    assert facts["range"] == (
        "bottleneck_adapter: adapter_indices must be -1 (no adapter) or the number of one of the 5 adapters, "
        "got 5 for token 0"
    )


def test_what_is_not_finite_stays_with_its_own_adapter(facts):
    assert facts["finite"] == [True, True]
    assert facts["equal"]


def test_the_schemas_are_those_of_the_compiled_library():
    for schema in operators.SCHEMAS:
        parsed = torch._C.parse_schema(f"adapterx::{schema}")
        name = parsed.name.removeprefix("adapterx::")
        assert str(parsed) == str(getattr(torch.ops.adapterx, name).default._schema)


# --- which library is loaded


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.delenv("ADAPTERX_LIBRARY", raising=False)
    monkeypatch.setattr(ops, "_FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("version", "minor"), [("2.13.0+cpu", "2.13"), ("2.11.0", "2.11"), ("2.15.0a0+git1234", "2.15"), ("3.0.1", "3.0")]
)
def test_the_library_is_that_of_torchs_minor_version(version, minor, folder, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    (folder / f"libadapterx-torch{minor}.so").touch()
    (folder / "libadapterx-torch2.1.so").touch()
    assert ops._find_library() == folder / f"libadapterx-torch{minor}.so"


def test_without_a_library_for_this_torch_a_warning_says_so_and_what_to_do(folder, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.16.0")
    words = (
        r"no compiled operators for torch 2\.16 \(it was installed without any\).*`pip install --no-build-isolation \.`"
    )
    with pytest.warns(UserWarning, match=words):
        assert ops._find_library() is None
    for minor in ("2.13", "2.11"):
        (folder / f"libadapterx-torch{minor}.so").touch()
    with pytest.warns(UserWarning, match=r"torch 2\.16 \(there are some for torch 2\.11, 2\.13\)"):
        assert ops._find_library() is None


def test_a_library_that_is_named_must_exist_and_load(folder, monkeypatch):
    monkeypatch.setenv("ADAPTERX_LIBRARY", str(folder / "mine.so"))
    with pytest.raises(
        ExtensionError, match=r"ADAPTERX_LIBRARY must name a file that exists, or be python, got .*mine"
    ):
        ops._load_library()
    (folder / "mine.so").write_bytes(b"not a library")
    with pytest.raises(ExtensionError, match=r"mine\.so does not load under torch .*--no-build-isolation"):
        ops._load_library()
