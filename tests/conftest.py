"""Settings that every test shares: no network, no surprises from threads, seeds that do not move."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from emulator_build import build_emulator

try:
    from hypothesis import settings
except ImportError:  # a machine with a GPU may have nothing but PyTorch and pytest
    settings = None

# The machines that run the suite are shared and slow at times: a deadline would measure them, not the code.
if settings is not None:
    settings.register_profile("adapterx", deadline=None, max_examples=25, derandomize=True)
    settings.load_profile("adapterx")

# Where other processes want the cores too, a second OpenMP thread waits longer than it computes. The tests of threading
# ask for more threads themselves.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(20190616)  # the day of the adapter paper at ICML


@pytest.fixture(scope="session")
def built_emulator():
    """The module that runs the CUDA kernels on the host."""
    return build_emulator()


@pytest.fixture
def emulator(built_emulator):
    """Give each test of the emulator the default schedule and counters at zero."""
    built_emulator.configure()
    built_emulator.take_counters()
    return built_emulator
