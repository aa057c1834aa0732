"""The numbers that a GPU is held to are those of the emulator as it is."""

import sys
from pathlib import Path

CUDA = Path(__file__).resolve().parents[1] / "cuda"
sys.path.insert(0, str(CUDA))
import ptx_expected  # noqa: E402


def test_the_header_holds_what_the_twins_give(tmp_path):
    """Whoever changes a twin or a kernel of the self-test runs tests/cuda/ptx_expected.py."""
    assert ptx_expected.HEADER.read_text() == ptx_expected.expected(tmp_path)
