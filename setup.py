"""Build the operator library `adapterx/libadapterx.so`; everything else stands in pyproject.toml.

Environment variables: ADAPTERX_CUDA=0|1 decides about the CUDA kernels (unset: where a CUDA build of torch and a
toolkit are found); CUDA_HOME names the toolkit, TORCH_CUDA_ARCH_LIST the architectures, MAX_JOBS how many compilers run
at a time; ADAPTERX_LINEINFO=1 keeps the line numbers of the kernels for profilers.
"""

import os
import sys
from pathlib import Path

import torch
from setuptools import Extension, setup

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT))  # pip's build backend leaves the source folder out
import cuda_toolkit  # noqa: E402

# Some compilers link their C++ library into whatever they build. Seen from outside, that copy and the one that PyTorch
# runs on would use each other's locales: a number in an error's words then ends the process.
LINK_ARGUMENTS = ["-Wl,--exclude-libs,libstdc++.a"] if sys.platform == "linux" else []
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]  # torch's headers leave parameters unused


def sources(cuda: bool) -> list[str]:
    """List what the library is made of; CMakeLists.txt lists the same."""
    patterns = ["csrc/kernels/cpu/*.cpp", "csrc/ops/*.cpp"]
    patterns += ["csrc/kernels/cuda/*.cpp", "csrc/kernels/cuda/*.cu"] if cuda else []
    found = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}
    return sorted(name for name in found if cuda or not name.startswith("csrc/ops/cuda"))


def decide() -> cuda_toolkit.Decision:
    """Decide about the CUDA kernels and say so in the log of the build; end it in words where they cannot be built."""
    setting = os.environ.get("ADAPTERX_CUDA")
    try:
        decision = cuda_toolkit.decide(setting, torch.__version__, torch.version.cuda, cuda_toolkit.find_toolkit)
        if decision.toolkit:
            os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_toolkit.architectures(
                os.environ.get("TORCH_CUDA_ARCH_LIST"),
                cuda_toolkit.known_architectures(decision.toolkit.nvcc),
                cuda_toolkit.visible_capabilities(),
            )
    except cuda_toolkit.BuildError as error:
        sys.exit(f"adapterx: {error}")
    print(f"adapterx: building the {decision.message}", file=sys.stderr)
    return decision


def nvcc_flags(num_files: int, num_architectures: int) -> list[str]:
    """Return the flags for nvcc; cores that are left when every file has one compile its architectures side by side."""
    flags = ["-O3", f"-Xcompiler={','.join([*WARNINGS, '-fvisibility=hidden'])}"]
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    threads = min(num_architectures, jobs // num_files)
    flags += [f"--threads={threads}"] if threads > 1 else []
    return flags + (["-lineinfo"] if os.environ.get("ADAPTERX_LINEINFO") == "1" else [])


def operator_library(toolkit: cuda_toolkit.Toolkit | None) -> Extension:
    """Describe the library, with CUDA kernels where there is a toolkit."""
    version = (ROOT / "version.txt").read_text().strip()
    macros, options = [("ADAPTERX_VERSION", f'"{version}"')], {"extra_link_args": LINK_ARGUMENTS}
    # -g0: debug information makes the library ten times as large.
    flags = {"cxx": ["-O3", "-g0", "-fvisibility=hidden", *WARNINGS]}
    files = sources(cuda=toolkit is not None)
    if toolkit:
        archs = os.environ["TORCH_CUDA_ARCH_LIST"]
        macros += [("ADAPTERX_WITH_CUDA", None), ("ADAPTERX_CUDA_VERSION", f'"{toolkit.version}"')]
        macros += [("ADAPTERX_CUDA_ARCHITECTURES", f'"{archs}"')]
        flags["nvcc"] = nvcc_flags(sum(name.endswith(".cu") for name in files), len(archs.split(";")))
        options = {
            "include_dirs": [str(folder) for folder in toolkit.include_dirs],
            "libraries": ["c10_cuda", "torch_cuda"],
            "extra_link_args": [*LINK_ARGUMENTS, *(str(library) for library in toolkit.libraries)],
        }
    # py_limited_api: do not link libtorch_python, the library has no Python dependency.
    return cpp_extension.CppExtension(
        "adapterx.libadapterx", files, extra_compile_args=flags, define_macros=macros, py_limited_api=True, **options
    )


DECISION = decide()
if DECISION.toolkit:
    # torch would guess the toolkit from the place of nvcc, which may be a script or a link.
    os.environ["CUDA_HOME"] = str(DECISION.toolkit.root)
from torch.utils import cpp_extension  # noqa: E402


class BuildOperatorLibrary(cpp_extension.BuildExtension):
    """Give the library a plain name (it holds no Python module) and put it in place in one step.

    A process that has the old library mapped keeps it: the new file is renamed over the old one, never written into it.
    """

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1], "libadapterx.so"))

    def copy_file(self, infile: str, outfile: str, *args, **kwargs) -> tuple[str, bool]:
        if not str(outfile).endswith(".so"):
            return super().copy_file(infile, outfile, *args, **kwargs)
        temporary = f"{outfile}.new"
        result = super().copy_file(infile, temporary, *args, **kwargs)
        os.replace(temporary, outfile)
        return outfile, result[1]


setup(ext_modules=[operator_library(DECISION.toolkit)], cmdclass={"build_ext": BuildOperatorLibrary})
