"""The floors of the house: imports only go down (docs/architecture.md), in Python by `ast`, in C++ by include lines."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = [  # lowest first; a module may import from its own floor and from those below
    {"errors", "config", "targets", "structure", "reference"},
    {"ops"},
    {"bottleneck", "heads", "mixing"},
    {"grouping"},
    {"modules"},
    {"attachment", "composition", "plan"},
    {"checkpoint", "training"},
    {"export", "integrations"},
    {"cli", "__init__", "__main__"},
]
HEAVY = {
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "typer",
    "rich",
    "matplotlib",
}
FORBIDDEN_IN_KERNELS = re.compile(r'#include\s*[<"](torch|ATen|c10|onnxruntime|pybind11|Python\.h)')
FORBIDDEN_IN_OPS = re.compile(r'#include\s*[<"](Python\.h|pybind11|torch/extension\.h|torch/python\.h)')


def floor_of(room: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if room in rooms)


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "adapterx").parts
    return parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> list[str]:
    rooms = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            if node.module == "adapterx":
                rooms += [alias.name for alias in node.names]
            elif node.module and node.module.startswith("adapterx."):
                rooms.append(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            rooms += [a.name.split(".")[1] for a in node.names if a.name.startswith("adapterx.")]
    return rooms


PYTHON_FILES = sorted((ROOT / "adapterx").rglob("*.py"))
KERNEL_FILES = sorted(p for p in (ROOT / "csrc/kernels").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})
OPS_FILES = sorted(p for p in (ROOT / "csrc/ops").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in PYTHON_FILES}
    assert rooms <= set().union(*FLOORS), f"give these rooms a floor: {sorted(rooms - set().union(*FLOORS))}"


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_go_down(path):
    own = floor_of(room_of(path))
    known = set().union(*FLOORS)
    upwards = [room for room in imported_rooms(path) if room in known and floor_of(room) > own]
    assert not upwards, f"{path.relative_to(ROOT)} imports from above: {upwards}"


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_are_framework_free(path):
    assert not FORBIDDEN_IN_KERNELS.search(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", OPS_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_operator_library_has_no_python(path):
    assert not FORBIDDEN_IN_OPS.search(path.read_text(encoding="utf-8"))


def test_import_needs_torch_and_safetensors_only():
    code = f"import sys, adapterx, adapterx.export; print(sorted({HEAVY!r} & {{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_path_of_a_machine_is_committed():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    text = re.compile(rb"/(home|root|work)/[A-Za-z0-9_.]+/")
    guilty = [
        name
        for name in tracked.stdout.split("\0")
        if name and (ROOT / name).is_file() and text.search((ROOT / name).read_bytes())
    ]
    assert not guilty
