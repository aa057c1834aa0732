"""Read what the libraries of a wheel ask of a machine, and fail where that is more than the wheel's name says.

    python distribution/audit.py dist/*.whl

The name says manylinux_2_28: it must run where glibc is 2.28, with the libstdc++ of that time (GCC 8), beside any build
of torch of the right minor version. Beyond those a library may need nothing, and may look in no folder of its own.
"""

import argparse
import re
import sys
import zipfile
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

# Newest versions of the symbols; those of libstdc++ and libgcc are of PEP 600's table for manylinux_2_28.
LATEST = {"GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
SYSTEM = {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "libpthread.so.0"}
TORCH = {"libtorch.so", "libtorch_cpu.so", "libc10.so"}
LIBRARY = re.compile(r"adapterx/libadapterx-torch(\d+\.\d+)\.so")
NAME = re.compile(r"adapterx-[^-]+-py3-none-manylinux_(\d+)_(\d+)_x86_64")


@dataclass
class Library:
    """What a library needs: files, and versions of symbols by their family, such as `GLIBC`."""

    needed: set[str] = field(default_factory=set)
    run_paths: list[str] = field(default_factory=list)
    versions: dict[str, set[tuple[int, ...]]] = field(default_factory=dict)

    def newest(self, family: str) -> str:
        """Return the newest version of a family, as text."""
        return ".".join(map(str, max(self.versions.get(family, {(0,)}))))


def read(content: bytes) -> Library:
    """Read the dynamic section of an ELF file."""
    library, elf = Library(), ELFFile(BytesIO(content))
    for section in elf.iter_sections():
        if isinstance(section, DynamicSection):
            for tag in section.iter_tags():
                if tag.entry.d_tag == "DT_NEEDED":
                    library.needed.add(tag.needed)
                elif tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                    library.run_paths.append(str(getattr(tag, "rpath", None) or getattr(tag, "runpath", "")))
        elif isinstance(section, GNUVerNeedSection):
            for _, entries in section.iter_versions():
                for entry in entries:
                    family, _, version = entry.name.partition("_")
                    if re.fullmatch(r"\d+(\.\d+)*", version):
                        library.versions.setdefault(family, set()).add(tuple(map(int, version.split("."))))
    return library


def problems_of(name: str, library: Library, glibc: tuple[int, int]) -> list[str]:
    """Return what a library asks for beyond what it may."""
    foreign = sorted(library.needed - SYSTEM - TORCH)
    problems = [f"{name}: needs {other}, which is neither of the system nor of torch" for other in foreign]
    missing = sorted(TORCH - {"libtorch.so"} - library.needed)
    problems += [f"{name}: does not need {other}, which has what it calls" for other in missing]
    problems += [f"{name}: looks for libraries in {path}" for path in library.run_paths]
    for family, latest in {"GLIBC": glibc, **LATEST}.items():
        late = sorted(version for version in library.versions.get(family, ()) if version > latest)
        problems += [
            f"{name}: needs {family}_{'.'.join(map(str, version))}, later than {family}_{'.'.join(map(str, latest))}"
            for version in late
        ]
    return problems


def audit(wheel: Path) -> tuple[dict[str, Library], list[str]]:
    """Return the libraries of a wheel by the minor version of torch, and the problems."""
    named = NAME.match(wheel.name)
    if not named:
        return {}, [f"{wheel.name}: the name must be adapterx-<version>-py3-none-manylinux_<glibc>_x86_64.whl"]
    glibc, libraries, problems = (int(named[1]), int(named[2])), {}, []
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if ".so" not in Path(name).name:
                continue
            found = LIBRARY.fullmatch(name)
            if not found:
                problems.append(f"{name}: is no library that adapterx would load")
                continue
            libraries[found[1]] = read(archive.read(name))
            problems += problems_of(name, libraries[found[1]], glibc)
    return libraries, problems + ([] if libraries else [f"{wheel.name}: holds no library"])


def main() -> int:
    """Audit the wheels; print a line for each library."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="+", type=Path)
    status = 0
    for wheel in parser.parse_args().wheels:
        libraries, problems = audit(wheel)
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.2f} MiB")
        for minor, library in sorted(libraries.items()):
            needs = ", ".join(f"{family}_{library.newest(family)}" for family in ("GLIBC", "GLIBCXX", "CXXABI"))
            print(f"  for torch {minor}: needs {needs}")
        print("\n".join(f"  {problem}" for problem in problems) if problems else "  nothing beyond what its name says")
        status |= bool(problems)
    return status


if __name__ == "__main__":
    sys.exit(main())
