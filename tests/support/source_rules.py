"""Read the package's source: its rooms and imports, and how its errors begin."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "adapterx"
_HEAD = re.compile(r"([A-Za-z_][A-Za-z0-9_.]*): ")
# Caught in the same file, by a caller that says whose message it is in the end.
INNER = {"_unique_keys", "_no_constant", "_check_depth", "_check_extent", "_finite", "_embedded"}


class Message(NamedTuple):
    """One error that the source makes: where, and the text before its first colon (None where it has no such head)."""

    place: str
    head: str | None


def python_files(folder: Path = PACKAGE) -> list[Path]:
    """Return the source files below a folder."""
    return sorted(folder.rglob("*.py"))


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package; a package's face bears the name of its folder."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """Return the modules of the package that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"{path}: relative import; write the full name")
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found |= {whole if whole in known else node.module} & known
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known
    return found - {module_name(path)}


def longest_paths(arrows: dict[str, set[str]]) -> dict[str, int]:
    """Return the floor of every room: 0 for those without arrows, else one above the highest that it imports.

    Raises:
        AssertionError: rooms import each other in a circle; the message shows it.
    """
    floors: dict[str, int] = {}

    def climb(room: str, path: tuple[str, ...]) -> int:
        if room in path:
            raise AssertionError("circle: " + " -> ".join((*path[path.index(room) :], room)))
        if room not in floors:
            floors[room] = max((climb(other, (*path, room)) + 1 for other in arrows.get(room, ())), default=0)
        return floors[room]

    for room in arrows:
        climb(room, ())
    return floors


def error_messages(path: Path) -> Iterator[Message]:
    """Yield every error that a file makes with a text of its own."""
    for node in _outside(ast.parse(path.read_text(encoding="utf-8")), INNER):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name.endswith("Error") and name[0].isupper():
                yield Message(f"{path.relative_to(ROOT)}:{node.lineno}", _head(node.args[0]))


def _outside(node: ast.AST, functions: set[str]) -> Iterator[ast.AST]:
    """Yield a node and all below it, but for the functions of these names."""
    if isinstance(node, ast.FunctionDef) and node.name in functions:
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside(child, functions)


def _head(text: ast.expr) -> str | None:
    if isinstance(text, ast.BinOp):
        return _head(text.left)
    if isinstance(text, ast.Constant):
        match = _HEAD.match(str(text.value))
        return match[1] if match else None
    if not isinstance(text, ast.JoinedStr):
        return None
    first, second = (*text.values, None)[:2]
    if isinstance(first, ast.Constant):
        match = _HEAD.match(first.value)
        return match[1] if match else None
    # The name comes from the caller: `{speaker()}: ` or the name of the class that checks its values.
    if isinstance(second, ast.Constant) and second.value.startswith(": "):
        return "{" + ast.unparse(first.value) + "}"
    return None
