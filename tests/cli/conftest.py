"""A tiny model, data for it, and a run that was trained on them."""

import pytest
import tiny_training


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_training.save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path):
    return tiny_training.write_csv(tmp_path / "train.csv", tiny_training.sentences(60))


@pytest.fixture(scope="session")
def trained(model, tmp_path_factory):
    """A complete run that tests read and never change."""
    from command_line import invoke

    folder = tmp_path_factory.mktemp("trained")
    data = tiny_training.write_csv(folder / "train.csv", tiny_training.sentences(200))
    steps = ("--epochs", "8", "--batch-size", "4", "--learning-rate", "0.005", "--seed", "3")
    adapter = ("--bottleneck-dim", "32", "--init", "xavier")
    invoke("train", "--model", model, "--data", data, "--output", folder / "run", *steps, *adapter)
    return folder / "run"
