import pytest
from saved_adapters import adapted_plain

from adapterx import save_adapter


@pytest.fixture
def saved(tmp_path):
    """A folder with an adapter for `plain_model()`."""
    save_adapter(adapted_plain(), tmp_path / "saved")
    return tmp_path / "saved"
