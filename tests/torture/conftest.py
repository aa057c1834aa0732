"""The long campaigns, `make torture`: files `torture_*.py`, whose figures are printed at the end and written to a file.

`ADAPTERX_TORTURE=0.1` makes them a tenth as long, for trying them out.
"""

import os
from pathlib import Path

import pytest

FIGURES = pytest.StashKey[list[str]]()
SCALE = float(os.environ.get("ADAPTERX_TORTURE", "1"))


def pytest_configure(config):
    config.stash[FIGURES] = []


@pytest.fixture
def times():
    """Return how often to do what the whole campaign does `count` times."""
    return lambda count: max(1, round(count * SCALE))


@pytest.fixture
def figure(request):
    """Note a line for the report: `figure("kills: 300, lost 0")`."""
    return lambda line: request.config.stash[FIGURES].append(f"{request.node.name}: {line}")


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash[FIGURES]
    terminalreporter.section("figures")
    for line in lines:
        terminalreporter.write_line(line)
    report = Path(config.rootpath, "runs", "torture.txt")
    report.parent.mkdir(exist_ok=True)
    report.write_text("".join(f"{line}\n" for line in lines))
