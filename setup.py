"""What `python setup.py ...` was to setuptools, for habits and tools that still say it: each word is handed to pip.

The build itself is one, by CMake (CMakeLists.txt, pyproject.toml). pip never reads this file.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PIP = [sys.executable, "-m", "pip"]
BUILDS = "--no-build-isolation"  # for the torch that is installed, docs/installing.md
COMMANDS = {
    "build_ext": [sys.executable, str(ROOT / "distribution" / "build_library.py")],  # always in place
    "develop": [*PIP, "install", BUILDS, "-e", str(ROOT)],
    "install": [*PIP, "install", BUILDS, str(ROOT)],
    "bdist_wheel": [*PIP, "wheel", BUILDS, "--no-deps", "--wheel-dir", "dist", str(ROOT)],
    "sdist": [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", "dist", str(ROOT)],
}


def main(arguments: list[str]) -> int:
    """Run the command that does what the word says; return its exit code."""
    words = [word for word in arguments if word != "--inplace"]
    if words in (["--version"], ["--name"]):
        print("adapterx" if words == ["--name"] else (ROOT / "version.txt").read_text(encoding="utf-8").strip())
        return 0
    if len(words) != 1 or words[0] not in COMMANDS:
        print(f"setup.py: a command must be one of {', '.join(COMMANDS)}, got {' '.join(words)!r}", file=sys.stderr)
        print(f"    what they stand for: pip install {BUILDS} -e . (docs/installing.md)", file=sys.stderr)
        return 2
    print(" ".join(COMMANDS[words[0]]), flush=True)
    return subprocess.run(COMMANDS[words[0]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
