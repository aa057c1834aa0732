"""The floors of the house: imports only go down, there are no circles, and errors name who speaks.

A room's floor is the length of its longest path down through the imports (docs/architecture.md shows them). Rooms are
the modules of the package, the command line's and the exporters' among them; in C++ a room is a header or a source.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from source_rules import (
    PACKAGE,
    ROOT,
    Message,
    error_messages,
    imported_modules,
    longest_paths,
    module_name,
    python_files,
)

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
# What a group of rooms may never import, whatever floor they came to stand on: knowledge that must not travel.
FORBIDDEN = {
    "adapterx.compose": (
        "adapterx.records",
        "adapterx.host",
        "adapterx.adapters",
        "adapterx.active",
        "adapterx.attachment",
    ),
    "adapterx.targets": ("adapterx.compose", "adapterx.bottleneck", "adapterx.ops", "adapterx.host"),
    "adapterx.checkpoint": ("adapterx.export", "adapterx.integrations", "adapterx.cli"),
    "adapterx.export": ("adapterx.integrations", "adapterx.cli"),
    "adapterx.integrations": ("adapterx.export", "adapterx.cli"),
    "adapterx.config": ("adapterx.host", "adapterx.bottleneck", "adapterx.targets"),
    "adapterx.ops": ("adapterx.config", "adapterx.bottleneck"),
}
FILES = python_files()
KNOWN = {module_name(path) for path in FILES}
# A package's face hands names on; to import from it is to import from what it holds, and that must be no circle either.
ARROWS = {module_name(path): imported_modules(path, KNOWN) for path in FILES}


def group_of(module: str) -> str:
    """The part of the package that a module belongs to: `adapterx.compose.program` belongs to `adapterx.compose`."""
    return ".".join(module.split(".")[:2])


def test_modules_import_each_other_in_no_circle():
    floors = longest_paths(ARROWS)
    assert max(floors.values()) < 30  # a taller house is one to think about


def test_the_parts_of_the_package_form_no_circle():
    parts = {}
    for module, others in ARROWS.items():
        if module != "adapterx":
            parts.setdefault(group_of(module), set()).update(map(group_of, others - {"adapterx"}))
    longest_paths({part: others - {part} for part, others in parts.items()})


def test_nothing_inside_imports_the_face_of_the_package():
    outside = ("adapterx.cli", "adapterx.export", "adapterx.integrations")
    guilty = [m for m, others in ARROWS.items() if "adapterx" in others and not m.startswith(outside)]
    assert not guilty, f"import from the room itself, not from adapterx: {guilty}"


@pytest.mark.parametrize("part", FORBIDDEN)
def test_what_a_part_may_not_know(part):
    inside = [module for module in ARROWS if module == part or module.startswith(f"{part}.")]
    assert inside, f"{part} is no more: mend the table"
    guilty = [
        f"{module} imports {other}"
        for module in inside
        for other in ARROWS[module]
        if any(other == forbidden or other.startswith(f"{forbidden}.") for forbidden in FORBIDDEN[part])
    ]
    assert not guilty


def test_a_circle_is_seen(tmp_path):
    assert longest_paths({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": 2, "b": 1, "c": 0}
    with pytest.raises(AssertionError, match="circle: b -> c -> b"):
        longest_paths({"a": {"b"}, "b": {"c"}, "c": {"b"}})


# --- C++ --------------------------------------------------------------------------------------------------------------

SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
CPP_FILES = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in SUFFIXES)
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
FORBIDDEN_IN_KERNELS = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|onnxruntime|pybind11|Python\.h)')
FORBIDDEN_IN_OPS = re.compile(r'#\s*include\s*[<"](Python\.h|pybind11|torch/extension\.h|torch/python\.h)')


def included(path: Path) -> set[Path]:
    """The files of csrc that a file includes, beside itself or from the root of the sources."""
    found = set()
    for name in INCLUDE.findall(path.read_text(encoding="utf-8")):
        for folder in (path.parent, ROOT / "csrc"):
            if (candidate := (folder / name).resolve()) in CPP_FILES:
                found.add(candidate)
                break
    return found


CPP_ARROWS = {path: included(path) for path in CPP_FILES}


def test_sources_include_each_other_in_no_circle():
    assert sum(map(len, CPP_ARROWS.values())) > 50, "the include lines are not read any more"
    longest_paths({str(path): set(map(str, others)) for path, others in CPP_ARROWS.items()})


def test_kernels_know_no_operators_and_each_device_only_itself():
    for path, others in CPP_ARROWS.items():
        folders = [str(other.relative_to(ROOT / "csrc").parent) for other in others]
        own = str(path.relative_to(ROOT / "csrc").parent)
        if own.startswith("kernels"):
            assert not [folder for folder in folders if folder.startswith("ops")], path
        if own.startswith("kernels/cpu"):
            assert not [folder for folder in folders if folder.startswith("kernels/cuda")], path
        if own.startswith("kernels/cuda"):
            assert not [folder for folder in folders if folder.startswith("kernels/cpu")], path
        if own == "kernels":
            assert not [folder for folder in folders if folder != "kernels"], path


@pytest.mark.parametrize("path", CPP_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sources_are_framework_free_or_at_least_without_python(path):
    kernels = ROOT / "csrc" / "kernels"
    pattern = FORBIDDEN_IN_KERNELS if kernels in path.parents else FORBIDDEN_IN_OPS
    assert not pattern.search(path.read_text(encoding="utf-8"))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_errors_begin_with_the_name_of_who_speaks(path):
    silent = [message.place for message in error_messages(path) if message.head is None]
    assert not silent, "begin with `<function>: ` or `{speaker()}: ` (CONTRIBUTING.md)"


# Functions of PEFT by which its users call what is here.
PEFTS = {"get_peft_model", "add_adapter", "add_weighted_adapter", "delete_adapter", "save_pretrained"}


def test_the_names_that_speak_are_public():
    """A head that is written out is a function, a class or a command that a user can call."""
    text = "".join(path.read_text(encoding="utf-8") for path in FILES)
    defined = set(re.findall(r"^(?:def|class) ([A-Za-z]\w*)", text, re.MULTILINE))
    commands = set(re.findall(r"@app\.command\([^)]*\)\ndef (\w+)", text))
    heads = {message.head for path in FILES for message in error_messages(path) if message.head}
    unknown = {head for head in heads if not head.startswith("{")} - defined - commands - KNOWN - PEFTS
    assert not unknown


def test_a_message_without_a_head_is_seen(tmp_path, monkeypatch):
    source = tmp_path / "room.py"
    source.write_text(
        'raise ValueError("attach: name must be new")\nraise ValueError(f"{speaker()}: no")\n'
        'raise ConfigError("labels must be two")\nraise ConfigError(f"{path} is damaged")\n'
    )
    monkeypatch.setattr("source_rules.ROOT", tmp_path)
    assert list(error_messages(source)) == [
        Message("room.py:1", "attach"),
        Message("room.py:2", "{speaker()}"),
        Message("room.py:3", None),
        Message("room.py:4", None),
    ]


# --- the whole --------------------------------------------------------------------------------------------------------


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


def test_files_and_functions_stay_readable():
    """At most 300 lines a file; the package's own, since a reader meets these first."""
    long = [f"{path.relative_to(ROOT)}: {n}" for path in FILES if (n := len(path.read_text().splitlines())) > 300]
    assert not long
    assert PACKAGE.is_dir()
