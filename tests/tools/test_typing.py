"""The package is typed: its stub says what the library registers, and a user's program checks against it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapterx import ops

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "adapterx" / "_operators.pyi"
PYTHON_TYPES = {"Tensor": "Tensor", "Optional[Tensor]": "Tensor | None", "str": "str", "float": "float", "int": "int"}
PYTHON_TYPES |= {"bool": "bool", "List[bool]": "list[bool]", "List[int]": "list[int]", "Optional[int]": "int | None"}


def stub_classes():
    tree = ast.parse(STUB.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def registered():
    names = [schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("adapterx::")]
    return sorted({name.removeprefix("adapterx::") for name in names})


def test_the_stub_has_the_operators_that_are_registered():
    classes = stub_classes()
    listed = {node.name: ast.unparse(node.returns) for node in classes.pop("Operators").body}
    assert sorted(listed) == registered()
    assert sorted(listed.values()) == sorted(classes)


@pytest.mark.parametrize("name", registered())
def test_signatures_are_the_registered_schemas(name):
    schema = getattr(ops.operators, name).default._schema
    classes = stub_classes()
    class_name = next(ast.unparse(node.returns) for node in classes["Operators"].body if node.name == name)
    call = next(node for node in classes[class_name].body if node.name == "__call__")
    arguments = [*call.args.args[1:], *call.args.kwonlyargs]
    stub = [(argument.arg, ast.unparse(argument.annotation)) for argument in arguments]
    assert stub == [(argument.name, PYTHON_TYPES[str(argument.type)]) for argument in schema.arguments]
    assert [argument.arg for argument in call.args.kwonlyargs] == [a.name for a in schema.arguments if a.kwarg_only]
    defaults = len(call.args.defaults) + sum(default is not None for default in call.args.kw_defaults)
    assert defaults == sum(argument.has_default_value() for argument in schema.arguments)
    returns = [PYTHON_TYPES[str(value.type)] for value in schema.returns]
    assert ast.unparse(call.returns) == (returns[0] if len(returns) == 1 else f"tuple[{', '.join(returns)}]")


PROGRAM = """
import torch
from torch import Tensor, nn

import adapterx
from adapterx import ops
from adapterx.export import read_metadata, to_torchscript

model: nn.Module = nn.Sequential(nn.Linear(8, 8))
config = adapterx.AdapterConfig(bottleneck_dim=4, target_modules=("0",), placement="sequential")
report: adapterx.Attachment = adapterx.attach(model, config, "a", dtype=torch.float32)
adapterx.set_active(model, adapterx.Average("a", adapterx.Stack("b"), weights=[1.0, 2.0]))
blocks: tuple[int, ...] = adapterx.adapters(model)["a"].blocks
with adapterx.mixed(model, ["a", None]) as same:
    same(torch.randn(2, 8))
trained: list[nn.Parameter] = [parameter for _, parameter in adapterx.adapter_parameters(model)]
x, down, up = torch.randn(2, 8), torch.randn(4, 8), torch.randn(8, 4)
y: Tensor = ops.bottleneck_adapter(x, x, down, None, up, None, activation="gelu", scaling=1.0)
z: str = ops.operators.build_info()
metadata: dict[str, object] = to_torchscript(model, "model.pt", validate=False) or read_metadata("model.pt")
"""
MISTAKES = """
adapterx.attach(model, {"bottleneck_dim": 4})  # arg-type
adapterx.AdapterConfig(bottleneck=4)  # call-arg
adapterx.set_active(model, 3)  # arg-type
adapterx.Average("a", "b", weights="ab")  # arg-type
ops.operators.build_info(1)  # call-arg
ops.operators.bottleneck_adapter.default(x)  # call-arg
ops.operators.no_such_operator  # attr-defined
w: str = adapterx.attach(model, config)  # assignment
"""


def test_a_users_program_type_checks_and_its_mistakes_are_found(tmp_path):
    pytest.importorskip("mypy", reason="pip install 'adapterx[docs]'")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + MISTAKES, encoding="utf-8")
    done = subprocess.run(
        # silent: what mypy has to say inside of packages, ours among them, is not the user's business.
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", program.name],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": str(ROOT / "build" / "mypy"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    lines = (PROGRAM + MISTAKES).splitlines()
    found = {int(line.split(":")[1]): line for line in done.stdout.splitlines() if ": error:" in line}
    wanted = {number: line.partition("  # ")[2] for number, line in enumerate(lines, 1) if "  # " in line}
    assert found.keys() == wanted.keys(), done.stdout + done.stderr
    assert all(found[number].endswith(f"[{code}]") for number, code in wanted.items()), done.stdout


def test_the_package_says_that_it_is_typed():
    """The wheel takes the whole folder (tool.scikit-build); test_distribution.py looks at the source distribution."""
    assert (ROOT / "adapterx" / "py.typed").read_bytes() == b""
