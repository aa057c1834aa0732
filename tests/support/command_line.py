"""The command `adapterx` inside this process, as the tests of the command line call it."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("typer")

import tiny_training
from typer.testing import CliRunner

from adapterx.cli.app import app

ROWS = tiny_training.sentences(60)
QUICK = ("--epochs", "2", "--bottleneck-dim", "4", "--batch-size", "8")


def invoke(*arguments, code=0, stdin=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exit_code != code:
        raise AssertionError(f"exit code {result.exit_code}: {result.output}") from result.exception
    return result


def refused(*arguments, code=2):
    """Run what must fail; return the one line that says why."""
    result = invoke(*arguments, code=code)
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def train(model, data, output, *more, **settings):
    return invoke("train", "--model", model, "--data", data, "--output", output, *QUICK, *more, **settings)


def tensors(run):
    return {path.name: path.read_bytes() for path in sorted(run.glob("*.safetensors"))}
