"""The module of the build that finds CUDA toolkits, and toolkits of shell scripts for it to find."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load_module(path):
    """Import a file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


build = load_module(ROOT / "cuda_toolkit.py")

NVCC = """#!/bin/sh
case "$*" in
*--version*) echo "Cuda compilation tools, release {version}, V{version}.88";;
*--dryrun*) echo "#$ TOP={root}/bin/.." >&2;;
*--list-gpu-arch*) printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_100\\ncompute_120\\n';;
*) exit 1;;
esac
"""


def make_toolkit(root, version="13.0", *, headers=build.HEADERS, libraries=("libcudart.so", "libcublasLt.so")):
    """Lay out a toolkit whose compiler answers questions."""
    for folder in ("bin", "include", "lib64"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    make_program(root / "bin" / "nvcc", NVCC.format(version=version, root=root))
    for folder, names in (("include", headers), ("lib64", libraries)):
        for name in names:
            (root / folder / name).touch()
    return root


def make_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path
