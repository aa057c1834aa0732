"""Every error says which public function refuses: `<function>: <argument> must <rule>, got <value>`."""

import ast
from pathlib import Path

import pytest

import adapterx
import adapterx.checkpoint
import adapterx.export

PACKAGE = Path(adapterx.__file__).parent
FILES = [PACKAGE / "heads.py"]
FILES += sorted(p for room in ("checkpoint", "export", "integrations") for p in (PACKAGE / room).rglob("*.py"))
PUBLIC = {*adapterx.__all__, *adapterx.checkpoint.__all__, *adapterx.export.__all__}
PUBLIC |= {"AdapterTrainer", "adapterx.integrations.transformers"}
# Caught by their caller, which says whose message it is in the end.
INNER = {"ValueError", "FileNotFoundError"}


def beginning(node):
    """Return the literal with which a message begins, `{speaker()}: ` where a helper asks who speaks."""
    if isinstance(node, ast.BinOp):
        return beginning(node.left)
    if isinstance(node, ast.JoinedStr):
        first, *rest = node.values
        if isinstance(first, ast.FormattedValue):
            after = rest[0].value if rest and isinstance(rest[0], ast.Constant) else ""
            return "{" + ast.unparse(first.value) + "}" + after
        return first.value
    return node.value if isinstance(node, ast.Constant) else ""


def names_its_function(call):
    text = beginning(call.args[0]) if call.args else ""
    return text.startswith("{speaker()}: ") or text.partition(": ")[0] in PUBLIC


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_messages_name_the_function(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    errors = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id.endswith("Error")]
    silent = [call.lineno for call in errors if call.func.id not in INNER and not names_its_function(call)]
    assert not silent, f"{path.name}: messages that name no public function, at lines {silent}"
