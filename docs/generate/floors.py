"""Compute the floors of the package from its imports: a room stands above everything that it imports."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "adapterx"


def room_of(path: Path) -> str:
    """Return the folder or the file, below the package, that a file belongs to."""
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


def imports() -> dict[str, set[str]]:
    """Return which rooms each room imports."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    rooms = {room_of(path) for path in paths}
    found: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        found[room_of(path)] |= (_imported(path) & rooms) - {room_of(path)}
    return found


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith(f"{PACKAGE}.")}
    return names


def floors() -> list[list[str]]:
    """Return the rooms by floor, the lowest first.

    Raises:
        ValueError: rooms import each other in a circle.
    """
    left, levels, below = imports(), [], set()
    while left:
        level = sorted(room for room, needed in left.items() if needed <= below)
        if not level:
            raise ValueError(f"floors: rooms must not import each other in a circle, got {sorted(left)}")
        levels.append(level)
        below |= set(level)
        left = {room: needed for room, needed in left.items() if room not in below}
    return levels


def drawing() -> str:
    """Return the floors as docs/architecture.md shows them, the highest first."""
    return "\n".join(["```", *(" · ".join(level) for level in reversed(floors())), "```"])
