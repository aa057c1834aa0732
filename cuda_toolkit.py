"""Find the CUDA toolkit and decide whether the operator library gets its CUDA kernels.

CMake runs this file before it, or torch's own package file, would look for a toolkit. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# For the architectures that the kernels are tuned for, oldest first; the newest is kept as PTX for later ones.
ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0")
OLDEST_ARCHITECTURE = (8, 0)  # cp.async, and mma.sync for bfloat16
# Ours, and those that ATen/cuda/CUDAContext.h includes. Small toolkits leave them to pip's packages.
OWN_HEADERS = ("cuda_runtime_api.h", "cublasLt.h")
HEADERS = (*OWN_HEADERS, "cublas_v2.h", "cusparse.h", "cusolverDn.h")
LIBRARIES = ("cudart", "cublasLt")


class BuildError(Exception):
    """The CUDA kernels cannot be built as asked; the message says what was looked for."""


@dataclass(frozen=True)
class Place:
    """Somewhere a toolkit may be: how messages call it, and the folder that should hold bin/nvcc (None: no such)."""

    name: str
    root: Path | None
    chosen: bool = False  # by the user: another toolkit does not stand in for it


@dataclass(frozen=True)
class Toolkit:
    """A toolkit that serves: the folder with bin/nvcc, its version such as 13.0, what to compile and link with."""

    root: Path
    version: str
    include_dirs: tuple[Path, ...] = ()
    libraries: tuple[Path, ...] = ()  # files: pip's packages have versioned names only, which -l does not find

    @property
    def nvcc(self) -> Path:
        """The compiler itself, not a script that calls it."""
        return self.root / "bin" / "nvcc"


@dataclass
class Search:
    """What a search came to; `looked` and `refused` hold one phrase a place."""

    toolkit: Toolkit | None = None
    looked: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Decision:
    """The toolkit to build with, or None for the CPU library; `message` belongs into the log of the build."""

    toolkit: Toolkit | None
    message: str


def run(*command: str | Path) -> str:
    """Return what a program prints, the empty string where it does not run."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def nvcc_version(nvcc: Path) -> str | None:
    """Ask nvcc for its version, such as 13.0."""
    found = re.search(r"release (\d+\.\d+)", run(nvcc, "--version")) if nvcc.is_file() else None
    return found.group(1) if found else None


def root_of_compiler(nvcc: str) -> Path:
    """Find the toolkit of an nvcc that may be a link, or a script that starts the compiler elsewhere: it knows."""
    top = re.search(r"^#\$ TOP=(.+)$", run(nvcc, "--dryrun", "-c", "kernel.cu"), re.MULTILINE)
    return Path(top.group(1)).resolve() if top else Path(nvcc).resolve().parents[1]


def pip_packages() -> list[Path]:
    """List pip's folders that may hold the packages of NVIDIA."""
    folders = [Path(path) for path in (sysconfig.get_path("purelib"), *sys.path) if path]
    return [folder / "nvidia" for folder in dict.fromkeys(folders) if (folder / "nvidia").is_dir()]


def newest_first(folders: list[Path]) -> list[Path]:
    """Sort by the numbers in the names."""
    return sorted(folders, key=lambda folder: [int(n) for n in re.findall(r"\d+", folder.name)], reverse=True)


def places(environ: Mapping[str, str], local: Path, packages: list[Path]) -> list[Place]:
    """List where a toolkit may be, best first."""
    found = []
    for name in ("CUDA_HOME", "CUDA_PATH"):
        value = environ.get(name)
        found.append(Place(f"{name}={value}", Path(value), True) if value else Place(f"{name} (not set)", None))
    on_path = shutil.which("nvcc", path=environ.get("PATH", ""))
    root = root_of_compiler(on_path) if on_path else None
    found.append(Place(f"{on_path} on PATH (of {root})", root) if on_path else Place("PATH (no nvcc)", None))
    for pattern, folders in (
        (f"{local}/cuda*", [*local.glob("cuda"), *newest_first(list(local.glob("cuda-*")))]),
        ("nvidia/cu*/bin/nvcc of pip's packages", newest_first([f for p in packages for f in p.glob("cu[0-9]*")])),
    ):
        found += [Place(str(folder), folder) for folder in folders] or [Place(f"{pattern} (none)", None)]
    return found


def complete(root: Path, version: str, packages: list[Path], headers: tuple[str, ...] = HEADERS) -> Toolkit:
    """Add the headers and libraries, from the toolkit or else from pip's packages, and refuse where one is missing."""
    major = version.split(".")[0]
    includes = [root / "include", *root.glob("targets/*/include")]
    libraries = [root / "lib64", root / "lib", *root.glob("targets/*/lib")]
    for package in packages:
        includes += sorted(package.glob("*/include"))
        libraries += sorted(package.glob("*/lib"))
    # A compiler looks there anyway, and -I/usr/include would upset the order of its other headers.
    system_includes, system_libraries = [Path("/usr/include")], sorted(Path("/usr/lib").glob("*-linux-gnu"))
    wanted = {name: [folder / name for folder in includes + system_includes] for name in headers}
    for name in LIBRARIES:
        files = (f"lib{name}.so", f"lib{name}.so.{major}")
        wanted[name] = [folder / file for folder in libraries + system_libraries for file in files]
    found = {name: next((path for path in paths if path.exists()), None) for name, paths in wanted.items()}
    missing = sorted(name for name, path in found.items() if path is None)
    if missing:
        raise BuildError(
            f"the CUDA toolkit {root} (CUDA {version}) lacks {', '.join(missing)}, and so do pip's nvidia packages; "
            f"looked in: {', '.join(map(str, includes + libraries))}; install the missing parts, e.g. `pip install "
            "nvidia-cublas nvidia-cusparse nvidia-cusolver nvidia-cuda-runtime`, or set ADAPTERX_CUDA=0"
        )
    folders = dict.fromkeys(found[name].parent for name in headers)
    return Toolkit(
        root,
        version,
        tuple(folder for folder in folders if folder not in system_includes),
        tuple(found[name] for name in LIBRARIES),
    )


def find_toolkit(
    torch_cuda: str | None,
    environ: Mapping[str, str] = os.environ,
    local: Path = Path("/usr/local"),
    packages: list[Path] | None = None,
) -> Search:
    """Find the first toolkit of torch's major version; a CUDA_HOME or CUDA_PATH of another version ends the search.

    With `torch_cuda` None, for a build without torch, any version serves, and torch's headers may be missing.
    """
    packages = pip_packages() if packages is None else packages
    search = Search()
    for place in places(environ, local, packages):
        version = nvcc_version(place.root / "bin" / "nvcc") if place.root else None
        if version and (torch_cuda is None or version.split(".")[0] == torch_cuda.split(".")[0]):
            headers = OWN_HEADERS if torch_cuda is None else HEADERS
            search.toolkit = complete(place.root, version, packages, headers)
            return search
        if version:
            search.refused.append(f"{place.name} is CUDA {version}")
        search.looked.append(f"{place.name}{f' is CUDA {version}' if version else ' (no bin/nvcc)' * bool(place.root)}")
        if version and place.chosen:
            return search
    return search


def decide(
    setting: str | None, torch: str | None, torch_cuda: str | None, find: Callable[[str | None], Search]
) -> Decision:
    """Decide from ADAPTERX_CUDA, torch's version, the CUDA version it was built with (None: a CPU build) and a search.

    With `torch` None the kernels are built alone, without the operators.

    Raises:
        BuildError: the setting is none of the known ones, or CUDA kernels were asked for and cannot be built, or the
            only toolkit is of another major version than torch's.
    """
    if setting not in (None, "", "0", "1"):
        raise BuildError(
            "ADAPTERX_CUDA must be 1 (with CUDA kernels), 0 (without) or unset (with them where a CUDA build of torch "
            f"and a toolkit are found), got {setting!r}"
        )
    if setting == "0":
        return Decision(None, "CPU library: ADAPTERX_CUDA=0")
    if torch is None:
        return decide_without_torch(asked=setting == "1", find=find)
    if torch_cuda is None:
        if setting == "1":
            raise BuildError(
                f"ADAPTERX_CUDA=1 needs a CUDA build of torch, got torch {torch}, which is built without CUDA"
            )
        return Decision(None, f"CPU library: torch {torch} is built without CUDA")
    search = find(torch_cuda)
    if search.toolkit:
        found = f"CUDA {search.toolkit.version} in {search.toolkit.root}"
        return Decision(search.toolkit, f"library with CUDA kernels: {found}, torch {torch} (CUDA {torch_cuda})")
    major = torch_cuda.split(".")[0]
    reason = (
        f"no CUDA {major} toolkit for torch {torch} (CUDA {torch_cuda}) was found; looked for bin/nvcc in: "
        f"{'; '.join(search.looked)}"
    )
    if setting == "1" or search.refused:
        cause = "ADAPTERX_CUDA=1, but " if setting == "1" else ""
        raise BuildError(f"{cause}{reason}; {remedy(torch_cuda)}, or set ADAPTERX_CUDA=0 for the CPU library")
    return Decision(None, f"CPU library, WITHOUT CUDA kernels: {reason}; {remedy(torch_cuda)}")


def decide_without_torch(*, asked: bool, find: Callable[[str | None], Search]) -> Decision:
    """Build the CUDA kernels alone where they are asked for, by any toolkit; never leave them out in silence."""
    if not asked:
        return Decision(None, "CPU kernels alone: without the operators, ADAPTERX_CUDA=ON adds those for CUDA")
    search = find(None)
    if search.toolkit:
        found = f"CUDA {search.toolkit.version} in {search.toolkit.root}"
        return Decision(search.toolkit, f"kernels alone, with those for CUDA: {found}")
    raise BuildError(
        f"ADAPTERX_CUDA=ON, but no CUDA toolkit was found; looked for bin/nvcc in: {'; '.join(search.looked)}; "
        "install a CUDA toolkit and name its folder in CUDA_HOME, or set ADAPTERX_CUDA=OFF for the CPU kernels"
    )


def remedy(torch_cuda: str) -> str:
    """Say how to get a toolkit; as pip packages they exist from CUDA 13 on."""
    advice = f"install a CUDA {torch_cuda} toolkit and name its folder in CUDA_HOME"
    if int(torch_cuda.split(".")[0]) < 13:
        return advice
    names = " ".join(f"'nvidia-{name}=={torch_cuda}.*'" for name in ("cuda-nvcc", "nvvm", "cuda-crt", "cuda-cccl"))
    return f"{advice}, or `pip install {names}`"


def visible_capabilities() -> list[tuple[int, int]]:
    """Ask the driver for the compute capabilities of this machine's GPUs; an empty list where there is none."""
    lines = run("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").split()
    return sorted({(int(a), int(b)) for a, b in (line.split(".") for line in lines if re.fullmatch(r"\d+\.\d+", line))})


def architectures(given: str | None, known: list[tuple[int, int]], visible: list[tuple[int, int]]) -> str:
    """Return what to compile for, written as in TORCH_CUDA_ARCH_LIST.

    Args:
        given: the value of TORCH_CUDA_ARCH_LIST, which is kept as it is if the kernels can be compiled for it.
        known: what the toolkit compiles for.
        visible: the GPUs of this machine. PyTorch's own default is these; without any it is all that the kernels know.
    """
    if given:
        entries = [entry for entry in re.split(r"[;\s]+", given) if entry]
        numbers = [tuple(map(int, n)) for entry in entries for n in re.findall(r"^(\d+)\.(\d+)", entry)]
        if old := [number for number in numbers if number < OLDEST_ARCHITECTURE]:
            raise BuildError(
                "TORCH_CUDA_ARCH_LIST must name compute capabilities from 8.0 on (the kernels use tensor cores and "
                f"asynchronous copies), got {old[0][0]}.{old[0][1]} in {given!r}"
            )
        return ";".join(entries)
    served = [max((k for k in known if k <= card), default=None) for card in visible if card >= OLDEST_ARCHITECTURE]
    own = [tuple(map(int, entry.split("."))) for entry in ARCHITECTURES]
    chosen = sorted({card for card in served if card}) or [arch for arch in own if arch in known]
    return ";".join(f"{major}.{minor}" for major, minor in chosen) + "+PTX"


def known_architectures(nvcc: Path) -> list[tuple[int, int]]:
    """Ask nvcc what it compiles for."""
    return [divmod(int(number), 10) for number in re.findall(r"compute_(\d+)\b", run(nvcc, "--list-gpu-arch"))]


def torch_versions(torch: Path) -> tuple[str, str | None]:
    """Read the versions of torch and of its CUDA (None: a CPU build) from the folder of a wheel or of libtorch."""
    if (torch / "version.py").is_file():
        text = (torch / "version.py").read_text(encoding="utf-8")
        cuda = re.search(r"^cuda\b[^=]*= '([\d.]+)'", text, re.MULTILINE)
        return re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE).group(1), cuda.group(1) if cuda else None
    text = (torch / "build-version").read_text(encoding="utf-8").strip()
    cuda = re.search(r"\+cu(\d+)(\d)$", text)
    return text, ".".join(cuda.groups()) if cuda else None


def cmake_architectures(archs: str) -> str:
    """Rewrite a list as in TORCH_CUDA_ARCH_LIST for CUDA_ARCHITECTURES: 8.0;9.0+PTX is 80-real;90-real;90-virtual."""
    names = []
    for entry in archs.split(";"):
        found = re.fullmatch(r"(\d+)\.(\d+[a-z]?)(\+PTX)?", entry)
        if not found:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST must hold numbers such as 9.0 or 10.0+PTX for CMake, got {entry!r}")
        number = found.group(1) + found.group(2)
        names += [f"{number}-real", f"{number}-virtual"] if found.group(3) else [f"{number}-real"]
    return ";".join(names)


def cmake_code(decision: Decision) -> str:
    """Write the decision down for CMake."""
    values = {"CUDA_MESSAGE": decision.message, "WITH_CUDA": "ON" if decision.toolkit else "OFF"}
    if toolkit := decision.toolkit:
        given = os.environ.get("TORCH_CUDA_ARCH_LIST")
        archs = architectures(given, known_architectures(toolkit.nvcc), visible_capabilities())
        values["CUDA_COMPILER"] = str(toolkit.nvcc)
        values["CUDA_VERSION"] = toolkit.version
        values["CUDA_INCLUDE_DIRS"] = ";".join(map(str, toolkit.include_dirs))
        values["CUDA_LIBRARIES"] = ";".join(map(str, toolkit.libraries))
        values["CUDA_ARCHITECTURES"] = archs
        values["CUDA_CMAKE_ARCHITECTURES"] = cmake_architectures(archs)
    return "".join(f"set(ADAPTERX_{name} [==[{value}]==])\n" for name, value in values.items())


def main() -> int:
    """Print the decision as CMake code."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--setting", required=True, help="the option ADAPTERX_CUDA")
    parser.add_argument("--torch", type=Path, help="folder of torch, or of libtorch; none: a build without torch")
    arguments = parser.parse_args()
    setting = {"ON": "1", "OFF": "0", "AUTO": None}.get(arguments.setting.upper(), arguments.setting)
    beside_torch = arguments.torch.parent.glob("nvidia") if arguments.torch else []
    packages = list(dict.fromkeys([*pip_packages(), *beside_torch]))
    try:
        torch, torch_cuda = torch_versions(arguments.torch) if arguments.torch else (None, None)
        print(cmake_code(decide(setting, torch, torch_cuda, lambda cuda: find_toolkit(cuda, packages=packages))))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
