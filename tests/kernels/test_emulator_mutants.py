"""The list of planted bugs follows the kernels; with ADAPTERX_MUTANTS=1 each is compiled, run and caught."""

import os
import sys
from pathlib import Path

import pytest

EMULATOR = Path(__file__).resolve().parents[1] / "emulator"
sys.path.insert(0, str(EMULATOR))
import mutants  # noqa: E402


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The kernels as the mutants see them."""
    folder = tmp_path_factory.mktemp("kernels")
    mutants.copy_kernels(folder)
    return folder / "cuda"


def test_every_patch_applies(kernels):
    """A patch that changes nothing would count a bug that was never planted."""
    for mutant in mutants.MUTANTS:
        text = (kernels / mutant.file).read_text()
        assert mutants.replace_nth(text, mutant.old, mutant.new, mutant.nth) != text, mutant.name


def test_patches_are_many_and_distinct():
    """At least twenty, and no bug planted twice."""
    assert len(mutants.MUTANTS) >= 20
    assert len({mutant[1:] for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)


@pytest.mark.skipif(os.environ.get("ADAPTERX_MUTANTS") != "1", reason="takes minutes: set ADAPTERX_MUTANTS=1")
def test_every_mutant_is_caught(tmp_path):
    """The suite passes on the kernels and fails on each mutant."""
    missed, caught = mutants.run(mutants.MUTANTS, tmp_path, jobs=2)
    assert not missed, "\n".join(missed)
    assert caught == len(mutants.MUTANTS)
