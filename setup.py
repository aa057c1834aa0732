"""Build the operator library `adapterx/libadapterx.so`; everything else stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
SOURCES = sorted(
    str(path.relative_to(ROOT)) for folder in ("csrc/kernels/cpu", "csrc/ops") for path in (ROOT / folder).glob("*.cpp")
)


class BuildOperatorLibrary(BuildExtension):
    """Give the library a plain name: it holds no Python module and serves every Python version."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1], "libadapterx.so"))


setup(
    ext_modules=[
        CppExtension(
            "adapterx.libadapterx",
            SOURCES,
            extra_compile_args={"cxx": ["-O3", "-fvisibility=hidden", "-Wall", "-Wextra"]},
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildOperatorLibrary},
)
