"""`--help`, and how every message begins."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import invoke, refused


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "export", "convert", "info"])
def test_help_teaches_by_example(command):
    shown = invoke(command, "--help").stdout
    assert "Examples" in shown
    assert f"\n   adapterx {command}" in shown  # indented, to be copied


def test_help_imports_nothing_that_a_command_needs():
    code = "import sys, adapterx.cli.app; print({'transformers', 'datasets', 'matplotlib', 'pyarrow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_missing_extra_is_named(monkeypatch, capsys):
    from adapterx import cli

    monkeypatch.setitem(sys.modules, "typer", None)
    for name in [name for name in sys.modules if name.startswith("adapterx.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "pip install 'adapterx[train]'" in capsys.readouterr().err


def test_missing_library_of_a_command_is_named(model, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("adapterx.cli.trainer", "adapterx.cli.progress", "adapterx.integrations.transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert "pip install 'adapterx[train]'" in refused(
        "train", "--model", model, "--data", data, "--output", tmp_path / "o"
    )


SOURCES = sorted(Path(sys.modules["adapterx.cli"].__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_error_begins_with_who_speaks(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call)
            and ast.unparse(node.exc.func).endswith("Error")
        ):
            message = ast.unparse(node.exc.args[0]).removeprefix("f")[1:]
            assert message.startswith(("{speaker()}: ", "train: ")), f"{path.name}, line {node.lineno}: {message}"
