"""Print the folder of the torch that a build of the Python package is for, without importing it.

pip hides installed packages from a build that it isolates, and leaves the interpreter as it is: the folder where that
one keeps its packages is then looked into. Other tools isolate by an interpreter of their own, beside which no torch
lies.
"""

import importlib.util
import sys
import sysconfig
from pathlib import Path

COMMAND = "pip install --no-build-isolation"


def find_torch() -> Path:
    """Return the folder; end in words where there is none."""
    spec = importlib.util.find_spec("torch")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    folders += [Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
    for folder in map(Path, folders):
        if (folder / "version.py").is_file() and (folder / "include" / "ATen").is_dir():
            return folder
    sys.exit(
        f"a build needs the torch that the library is for, and {sys.executable} has none: install it first (any torch "
        f">= 2.11; a CPU build is enough), then build with `{COMMAND} .`"
    )


if __name__ == "__main__":
    print(find_torch().resolve())
