"""Write one page per public room from the docstrings, read with griffe: nothing of the package is imported.

What a room publishes is its `__all__`; a room without one publishes what it defines under a plain name and documents.
"""

from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {  # in the order of the index; what an earlier room documents, a later one only points to
    "adapterx": "attach, train, combine, save",
    "adapterx.compose": "compositions as values",
    "adapterx.targets": "where adapters go, and what they read there",
    "adapterx.checkpoint": "files of adapters and heads",
    "adapterx.export": "TorchScript and ONNX",
    "adapterx.heads": "classification heads",
    "adapterx.chat": "conversations, and which of their tokens are answers",
    "adapterx.tagging": "tags of words and the entities that they mark",
    "adapterx.scores": "scores of several labels and of numbers",
    "adapterx.training": "what a training loop needs around the model",
    "adapterx.integrations.transformers": "the Hugging Face Trainer",
    "adapterx.integrations.adapterhub": "checkpoints of AdapterHub, read and written",
    "adapterx.integrations.hub": "adapters on the Hugging Face hub",
    "adapterx.integrations.peft": "the method in PEFT, and its files",
    "adapterx.ops": "the compiled operator",
    "adapterx.reference": "the same formula in plain PyTorch",
}
NOTE = "<!-- Written by `make docs` from the docstrings; do not edit. -->"
MARKS = {
    griffe.ParameterKind.var_positional: "*",
    griffe.ParameterKind.var_keyword: "**",
}


def load() -> griffe.Module:
    """Read the sources of the package."""
    return griffe.load("adapterx", search_paths=[ROOT], docstring_parser="google", allow_inspection=False)


def room(package: griffe.Module, name: str) -> griffe.Module:
    """Return a module by its dotted name."""
    return package[name.partition(".")[2]] if "." in name else package


def public_members(module: griffe.Module) -> dict[str, griffe.Object]:
    """Return what a room publishes, by the name it has there."""
    if module.exports is not None:
        names = [str(name) for name in module.exports if not str(name).startswith("__")]
    else:
        names = sorted(name for name, member in module.members.items() if _is_own(name, member))
    return {name: _resolve(module, name) for name in names}


def _resolve(module: griffe.Module, name: str) -> griffe.Object:
    member = module.members[name]
    if member.is_module:  # a function that bears the name of the file it comes from
        member = module.modules_collection[module.imports[name]]
    return member.final_target if member.is_alias else member


def _is_own(name: str, member: griffe.Object | griffe.Alias) -> bool:
    if name.startswith("_") or member.is_alias or member.is_module:
        return False
    return not member.is_attribute or member.has_docstring


def methods(cls: griffe.Class) -> dict[str, griffe.Object]:
    """Return the public methods and properties that a class defines."""
    return {
        name: member
        for name, member in cls.members.items()
        if not name.startswith("_") and (member.is_function or "property" in member.labels)
    }


def pages() -> dict[Path, str]:
    """Return the text of every page by its path."""
    package = load()
    home: dict[str, str] = {}  # canonical path to the page that documents it
    texts = {}
    for name in ROOMS:
        module = room(package, name)
        texts[ROOT / "docs" / "api" / f"{name}.md"] = "\n".join(_page(name, module, home)).rstrip() + "\n"
    return texts


def index() -> str:
    """Return the list of the pages, as it stands in docs/README.md."""
    return "\n".join(f"- [`{name}`](api/{name}.md): {what}" for name, what in ROOMS.items())


def _page(name: str, module: griffe.Module, home: dict[str, str]) -> Iterator[str]:
    yield from (NOTE, "", f"# `{name}`", "", _paragraphs(module.docstring), "")
    elsewhere = []
    for public, member in public_members(module).items():
        if home.setdefault(member.canonical_path, name) != name:
            elsewhere.append(f"[`{public}`]({home[member.canonical_path]}.md#{public.lower()})")
        else:
            yield from _entry(public, member)
    if elsewhere:
        yield from ("## Documented elsewhere", "", " · ".join(elsewhere), "")


def _entry(name: str, member: griffe.Object, *, owner: str = "") -> Iterator[str]:
    level = "###" if owner else "##"
    yield from (f"{level} `{owner}{name}`", "")
    if member.is_attribute and "property" not in member.labels:
        yield from ("```text", f"{name} = {_quoted(member.value)}", "```", "")
    else:
        yield from ("```py", *_signature(name, member), "```", "")
    yield from _docstring(member)
    if not owner:
        path = member.filepath.relative_to(ROOT).as_posix()
        yield from (f"Defined in [{path}](../../{path}).", "")
    if member.is_class:
        for each, method in methods(member).items():
            yield from _entry(each, method, owner=f"{name}.")


def _signature(name: str, member: griffe.Object) -> Iterator[str]:
    """Yield the lines of a signature: one, or one for each parameter where it would be longer than a page is wide."""
    if "property" in member.labels:
        yield f"{name}: {member.annotation}"
        return
    for decorator in getattr(member, "decorators", []):
        if str(decorator.value) in ("contextmanager", "classmethod", "staticmethod"):
            yield f"@{decorator.value}"
    if member.is_class and not own_parameters(member):
        yield f"class {name}({', '.join(map(str, member.bases))})"
        return
    returns = "" if member.is_class or member.returns is None else f" -> {member.returns}"
    parameters = list(_parameters(member))
    line = f"{name}({', '.join(parameters)}){returns}"
    if len(line) <= 100:
        yield line
        return
    yield from (f"{name}(", *(f"    {parameter}," for parameter in parameters), f"){returns}")


def _parameters(member: griffe.Object) -> Iterator[str]:
    keyword_only = False
    for parameter in own_parameters(member):
        if parameter.kind is griffe.ParameterKind.keyword_only and not keyword_only:
            yield "*"
        keyword_only = keyword_only or parameter.kind in (
            griffe.ParameterKind.keyword_only,
            griffe.ParameterKind.var_positional,
        )
        text = f"{MARKS.get(parameter.kind, '')}{parameter.name}"
        text += f": {parameter.annotation}" if parameter.annotation is not None else ""
        if parameter.default is not None and parameter.kind not in MARKS:
            text += f" = {_quoted(parameter.default)}"
        yield text


def own_parameters(member: griffe.Object) -> list[griffe.Parameter]:
    """Return the parameters of a function or of a class's constructor, without `self`."""
    return [parameter for parameter in member.parameters if parameter.name not in ("self", "cls")]


def sections(member: griffe.Object) -> dict[str, griffe.DocstringSection]:
    """Return the sections of a docstring by kind; an admonition, such as `Source`, by its title."""
    found = {}
    for section in member.docstring.parsed if member.docstring else []:
        kind = section.kind.value
        found[section.title if kind == "admonition" else kind] = section
    return found


def _docstring(member: griffe.Object) -> Iterator[str]:
    for kind, section in sections(member).items():
        if kind == "text":
            yield from (section.value.strip(), "")
        elif kind in ("parameters", "attributes"):
            yield from (f"**{'Args' if kind == 'parameters' else 'Attributes'}**", "")
            yield from (*(f"- `{item.name}`: {_joined(item.description)}" for item in section.value), "")
        elif kind in ("returns", "yields"):
            words = " ".join(f"{item.name}: {item.description}".lstrip(": ") for item in section.value)
            yield from (f"**{kind.capitalize()}** {_joined(words)}", "")
        elif kind == "raises":
            yield from ("**Raises**", "")
            yield from (*(f"- `{item.annotation}`: {_joined(item.description)}" for item in section.value), "")
        else:
            yield from (f"**{kind}** {_joined(section.value.contents)}", "")


def _quoted(value: object) -> str:
    """Write an expression with the quotes of the sources."""
    text = str(value)
    return text if '"' in text else text.replace("'", '"')


def _joined(text: str) -> str:
    return " ".join(text.split())


def _paragraphs(docstring: griffe.Docstring | None) -> str:
    return docstring.value.strip() if docstring else ""
