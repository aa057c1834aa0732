"""`python setup.py ...` hands each word to the one build."""

import os
import subprocess
import sys

import pytest
from doc_pages import ROOT


@pytest.fixture
def setup_py(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import setup

    yield setup
    del sys.modules["setup"]


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (["build_ext", "--inplace"], ["distribution/build_library.py"]),
        (["develop"], ["install", "--no-build-isolation", "-e"]),
        (["install"], ["install", "--no-build-isolation"]),
        (["bdist_wheel"], ["wheel", "--no-build-isolation", "--no-deps"]),
        (["sdist"], ["build", "--sdist"]),
    ],
)
def test_words_are_handed_on(setup_py, words, called, monkeypatch):
    seen = []
    done = subprocess.CompletedProcess([], 7)
    monkeypatch.setattr(subprocess, "run", lambda command, check: seen.append(command) or done)
    assert setup_py.main(words) == 7
    (command,) = seen
    assert command[0] == sys.executable
    assert all(any(part.endswith(word) for part in command) for word in called), command
    assert not command[1].endswith(".py") or os.path.exists(command[1])


def test_other_words_are_refused(setup_py, capsys):
    for words in ([], ["upload"], ["install", "--user"]):
        assert setup_py.main(words) == 2
        assert "a command must be one of build_ext, develop" in capsys.readouterr().err


def test_the_version(setup_py, capsys):
    assert setup_py.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == (ROOT / "version.txt").read_text().strip()
