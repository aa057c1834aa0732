"""The documentation follows the code: docstrings, generated pages, links, paths, and blocks of Python that run."""

import ast
import builtins
import importlib.util
import re
from collections.abc import Iterator

import doc_pages
import pytest
from doc_pages import PAGES, ROOT

from adapterx import errors

griffe = pytest.importorskip("griffe", reason="pip install 'adapterx[docs]'")
import api_pages  # noqa: E402
import floors  # noqa: E402

TUTORIALS = [page for page in PAGES if page.startswith("docs/tutorials/")]
PACKAGE = api_pages.load()
PUBLIC = {
    f"{room}.{name}": member
    for room in api_pages.ROOMS
    for name, member in api_pages.public_members(api_pages.room(PACKAGE, room)).items()
}
METHODS = {
    f"{name}.{method}": member
    for name, owner in PUBLIC.items()
    if owner.is_class
    for method, member in api_pages.methods(owner).items()
}


def load_generator():
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate" / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- docstrings


def documented(member):
    """Return the parameters in a docstring; a dataclass may call them attributes."""
    found = api_pages.sections(member)
    items = [item for kind in ("parameters", "attributes") if kind in found for item in found[kind].value]
    return [item.name.lstrip("*") for item in items]


def complaints(member) -> Iterator[str]:
    """Say what the docstring of a public function, class or constant lacks."""
    found = api_pages.sections(member)
    if "text" not in found:
        yield "has no docstring"
        return
    if member.is_attribute:
        return
    parameters = [parameter.name for parameter in api_pages.own_parameters(member)]
    names = documented(member)
    if (names or len(parameters) > 1) and sorted(names) != sorted(parameters):
        yield f"takes {parameters}, but documents {names}"
    told = bool({"returns", "yields"} & set(found)) or found["text"].value.startswith(("Return ", "Yield ", "Tell "))
    if member.is_function and str(member.returns) not in ("None", "NoReturn") and not told:
        yield f"does not say what it returns ({member.returns})"
    listed = {str(item.annotation) for item in found["raises"].value} if "raises" in found else set()
    if silent := raised(member) - listed:
        yield f"raises {sorted(silent)} without saying so"
    if unknown := {name for name in listed if not hasattr(errors, name) and not hasattr(builtins, name)}:
        yield f"documents errors that do not exist: {sorted(unknown)}"


def raised(member):
    """Return the errors that stand after `raise` in the body of a function, or of a constructor."""
    lines = member.filepath.read_text(encoding="utf-8").splitlines()
    tree = ast.parse("\n".join(lines))
    scope = next(node for node in ast.walk(tree) if getattr(node, "lineno", 0) == first_line(node, member))
    if member.is_class:
        scope = next((node for node in scope.body if getattr(node, "name", "") == "__init__"), ast.Pass())
    calls = [node.exc for node in ast.walk(scope) if isinstance(node, ast.Raise)]
    return {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}


def first_line(node, member):
    """Return where the definition of a member begins; a node's own line leaves its decorators out."""
    is_definition = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == member.name
    return node.lineno if is_definition and member.lineno <= node.lineno <= member.endlineno else -1


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    assert not list(complaints(PUBLIC[name])), f"{PUBLIC[name].filepath.name}: {name}"


def test_methods_are_documented_and_their_arguments_exist():
    for name, member in METHODS.items():
        names = documented(member)
        parameters = [] if member.is_attribute else [p.name for p in api_pages.own_parameters(member)]
        assert "text" in api_pages.sections(member), f"{name} has no docstring"
        assert not names or sorted(names) == sorted(parameters), name


def test_complaints_are_made():
    def of(source):
        with griffe.temporary_visited_module(source, docstring_parser="google") as module:
            return list(complaints(module["f"]))

    sections = "Args:\n        a: one.\n        b: two.\n\n    Returns:\n        It.\n"
    good = f'def f(a, b) -> int:\n    """Do.\n\n    {sections}    """\n'
    assert not of(good)
    assert of("def f(a): ...") == ["has no docstring"]
    assert of(good.replace("f(a, b)", "f(a, c)")) == ["takes ['a', 'c'], but documents ['a', 'b']"]
    assert of('def f(a, b):\n    """Do."""') == ["takes ['a', 'b'], but documents []"]
    assert of(good.replace("Returns", "Notes")) == ["does not say what it returns (int)"]
    assert of(good + "    raise ValueError(a)\n") == ["raises ['ValueError'] without saying so"]
    wrong = '\n    Raises:\n        NoSuchError: never.\n    """\n'
    assert of(good.replace('    """\n', wrong)) == ["documents errors that do not exist: ['NoSuchError']"]


# --- generated files


def test_generated_files_are_fresh():
    stale = [path.relative_to(ROOT).as_posix() for path in load_generator().stale()]
    assert not stale, "run `make docs`"


def test_public_names_are_on_a_page():
    for room in api_pages.ROOMS:
        text = doc_pages.read(f"docs/api/{room}.md")
        for name in api_pages.public_members(api_pages.room(PACKAGE, room)):
            assert f"## `{name}`" in text or f"[`{name}`](" in text, f"{room}.{name}"


def test_the_reader_of_the_sources_sees_the_names_that_python_sees():
    for room in ("adapterx", "adapterx.compose", "adapterx.targets", "adapterx.export"):
        module = importlib.import_module(room)
        names = {name for name in module.__all__ if not name.startswith("__")}
        assert names == set(api_pages.public_members(api_pages.room(PACKAGE, room)))


def test_floors_find_circles(monkeypatch):
    monkeypatch.setattr(floors, "imports", lambda: {"a": {"b"}, "b": {"a"}, "c": set()})
    with pytest.raises(ValueError, match=r"circle, got \['a', 'b'\]"):
        floors.floors()
    monkeypatch.setattr(floors, "imports", lambda: {"a": {"b", "c"}, "b": {"c"}, "c": set()})
    assert floors.floors() == [["c"], ["b"], ["a"]]


# --- links, paths, recipes


def prose(page):
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", doc_pages.read(page), flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """Return the anchors of the headings of a page, as a forge makes them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.resolve().exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(place.read_text(encoding="utf-8")), f"{page} links to {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_paths_that_are_named_exist(page):
    rooms = "csrc|adapterx|tests|docs|export|benchmarks|examples|cmake"
    for path in re.findall(rf"`((?:{rooms})/[\w./-]*[\w/])`", prose(page)):
        exists = (ROOT / path).exists() or (ROOT / f"{path}.py").exists()
        assert exists or path.endswith(".so"), f"{page} names {path}"


def test_the_index_lists_every_page():
    listed = set(re.findall(r"\]\(([^)]+\.md)\)", doc_pages.read("docs/README.md")))
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} - {"README.md"}
    assert pages <= listed


def test_recipes_take_at_most_six_steps():
    for section in doc_pages.read("docs/recipes.md").split("\n## ")[1:]:
        steps = re.findall(r"^(\d+)\. ", section, flags=re.MULTILINE)
        title = section.splitlines()[0]
        assert 1 <= len(steps) <= 6, title
        assert steps == [str(number + 1) for number in range(len(steps))], title
        assert "tests/" in section, f"{title}: which test proves it?"


# --- blocks of Python


@pytest.mark.parametrize("page", [page for page in PAGES if doc_pages.blocks(page)])
def test_blocks_compile(page):
    for block in doc_pages.blocks(page):
        compile(block.code, f"{page}:{block.line}", "exec")


@pytest.mark.filterwarnings("ignore")  # what libraries say to a reader, not what the code does
@pytest.mark.parametrize("page", [page for page in PAGES if page not in TUTORIALS and doc_pages.runs(page)])
def test_blocks_run(page, monkeypatch, tmp_path, capsys):
    """All blocks of a page run as written, in order and in one namespace; `<!-- not run: why -->` leaves one out."""
    pytest.importorskip("transformers")
    if "onnx" in doc_pages.read(page):
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    names = doc_pages.prepare(page, monkeypatch)
    for block in doc_pages.blocks(page):
        if not block.reason:
            exec(compile("\n" * (block.line - 1) + block.code, str(ROOT / page), "exec"), names)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", TUTORIALS)
def test_tutorials_run(page, monkeypatch, tmp_path):
    """A tutorial does what it says from its first block to its last, with tiny models in place of those it names."""
    pytest.importorskip("typer")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    doc_pages.run_tutorial(page)


# --- commands


@pytest.mark.parametrize("page", [page for page in PAGES if doc_pages.commands(page) and page != "CHANGELOG.md"])
def test_commands_are_as_the_command_line_takes_them(page):
    """Every `adapterx ...` in a block names a command and options that exist, with values they can take."""
    typer = pytest.importorskip("typer")
    from adapterx.cli.app import app

    program = typer.main.get_command(app)
    for line, words in doc_pages.commands(page):
        try:
            with program.make_context("adapterx", list(words[:1]) or ["--help"], resilient_parsing=True) as context:
                name, command, _ = program.resolve_command(context, list(words))
                command.make_context(name, list(words[1:]), parent=context)
        except Exception as error:
            raise AssertionError(f"{page}:{line}: adapterx {' '.join(words)}") from error
