"""Write `adapterx/_operators.pyi`, the types of `torch.ops.adapterx`, from the schemas that the library registers."""

from collections.abc import Iterator
from pathlib import Path

import torch

import adapterx.ops  # noqa: F401  (loads the library)

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "adapterx" / "_operators.pyi"
PYTHON = {"int": "int", "float": "float", "bool": "bool", "str": "str", "Tensor": "Tensor"}
HEAD = '''\
"""Types of `torch.ops.adapterx`. Written by `make docs` from the registered schemas; do not edit.

For type checkers only: at run time there is no such module. `adapterx.ops.operators` has these types.
"""

from typing import Protocol

from torch import Tensor
'''


def schemas() -> list[torch.FunctionSchema]:
    """Return the registered schemas, by name."""
    found = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("adapterx::")]
    return sorted(found, key=lambda schema: (schema.name, schema.overload_name))


def stub() -> str:
    """Return the text of the stub.

    Raises:
        ValueError: an operator has overloads, which the stub has no words for yet.
    """
    if overloads := [str(schema) for schema in schemas() if schema.overload_name]:
        raise ValueError(f"operator_stub: operators must have one schema each, got {overloads}")
    return HEAD + "".join(f"\n{line}" if line else "\n" for line in _lines()) + "\n"


def _lines() -> Iterator[str]:
    for schema in schemas():
        yield from (f"class {_class_name(schema)}(Protocol):", "    @property")
        yield f"    def default(self) -> {_class_name(schema)}: ..."
        yield from (*_call(schema), "")
    yield "class Operators(Protocol):"
    for schema in schemas():
        yield from ("    @property", f"    def {_name(schema)}(self) -> {_class_name(schema)}: ...")


def _call(schema: torch.FunctionSchema) -> Iterator[str]:
    returns = [python_type(value.type) for value in schema.returns]
    result = returns[0] if len(returns) == 1 else f"tuple[{', '.join(returns)}]"
    if not schema.arguments:
        yield f"    def __call__(self) -> {result}: ..."
        return
    yield from ("    def __call__(", "        self,")
    keyword_only = False
    for argument in schema.arguments:
        if argument.kwarg_only and not keyword_only:
            keyword_only = True
            yield "        *,"
        default = f" = {argument.default_value!r}" if argument.has_default_value() else ""
        yield f"        {argument.name}: {python_type(argument.type)}{default},"
    yield f"    ) -> {result}: ..."


def python_type(kind: torch._C.Type) -> str:
    """Return how Python writes a type of a schema."""
    if kind.kind() == "OptionalType":
        return f"{python_type(kind.getElementType())} | None"
    if kind.kind() == "ListType":
        return f"list[{python_type(kind.getElementType())}]"
    return PYTHON[str(kind)]


def _name(schema: torch.FunctionSchema) -> str:
    return schema.name.removeprefix("adapterx::")


def _class_name(schema: torch.FunctionSchema) -> str:
    return "".join(part.capitalize() for part in _name(schema).split("_")) + "Operator"
