"""Build the operator library `adapterx/libadapterx.so`; everything else stands in pyproject.toml."""

import os
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
VERSION = (ROOT / "version.txt").read_text().strip()
SOURCES = sorted(
    str(path.relative_to(ROOT)) for folder in ("csrc/kernels/cpu", "csrc/ops") for path in (ROOT / folder).glob("*.cpp")
)


class BuildOperatorLibrary(BuildExtension):
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


setup(
    ext_modules=[
        CppExtension(
            "adapterx.libadapterx",
            SOURCES,
            # -g0: debug information makes the library ten times as large. torch's headers leave parameters unused.
            extra_compile_args={
                "cxx": ["-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
            },
            define_macros=[("ADAPTERX_VERSION", f'"{VERSION}"')],
            py_limited_api=True,  # do not link libtorch_python: the library has no Python dependency
        )
    ],
    cmdclass={"build_ext": BuildOperatorLibrary},
)
