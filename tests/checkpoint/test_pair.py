"""The pair of files that adapters, heads and trained states share."""

import pytest
import torch
from saved_adapters import CONFIG, HIDDEN_STATES, adapted_plain
from tiny_models import plain_model

from adapterx import CheckpointError, load_adapter, save_adapter
from adapterx.checkpoint.pair import write_pair


def test_metadata_must_be_json(saved):
    with pytest.raises(CheckpointError, match="metadata must be values that JSON can hold"):
        save_adapter(adapted_plain(seed=2), saved, metadata={"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match="metadata must be values that JSON can hold"):
        save_adapter(adapted_plain(seed=2), saved, metadata={"x": float("nan")})
    model = plain_model()
    load_adapter(model, saved)
    assert torch.equal(model(HIDDEN_STATES), adapted_plain()(HIDDEN_STATES))


def test_other_files_stay_and_permissions_are_ordinary(saved):
    (saved / "notes.txt").write_text("mine")
    save_adapter(adapted_plain(seed=2), saved)
    assert (saved / "notes.txt").read_text() == "mine"
    (saved / "plain.txt").write_text("")
    assert (saved / CONFIG).stat().st_mode == (saved / "plain.txt").stat().st_mode


def test_tensors_that_the_format_cannot_hold(tmp_path):
    with pytest.raises(CheckpointError, match=r"tensors must have dtypes that safetensors can hold: .*complex128"):
        write_pair(tmp_path, "adapter", {"x": torch.ones(1, dtype=torch.complex128)}, {})
    assert not list(tmp_path.iterdir())
