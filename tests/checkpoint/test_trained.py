"""What a training run changes is saved and restored as a whole."""

import json

import pytest
import torch
from saved_adapters import HIDDEN_STATES, PLAIN, randomise, state_of
from tiny_models import plain_model

from adapterx import AdapterConfig, CheckpointError, attach, set_active
from adapterx.checkpoint import restore_trained, save_trained, trainable_state

SECOND = AdapterConfig(bottleneck_dim=3, positions=("feed_forward",))


def two_adapters(seed, second=SECOND):
    model = plain_model()
    attach(model, PLAIN, "first")
    attach(model, second, "second")
    set_active(model, ["first", "second"])
    randomise(model, seed)
    return model


def test_several_adapters_get_folders_of_their_own(tmp_path):
    model, twin = two_adapters(1), two_adapters(2)
    save_trained(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["first", "second"]
    assert json.loads((tmp_path / "trainable_config.json").read_text())["tensors"] == {}
    restore_trained(twin, tmp_path)
    assert torch.equal(twin(HIDDEN_STATES), model(HIDDEN_STATES))
    assert trainable_state(twin).keys() == trainable_state(model).keys()


def test_one_that_does_not_fit_leaves_the_others_untouched(tmp_path):
    save_trained(two_adapters(1), tmp_path)
    other = two_adapters(2, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",)))
    before = state_of(other)
    with pytest.raises(CheckpointError, match=r"^restore_trained: .*second holds an adapter of another configuration"):
        restore_trained(other, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(other).items())


def test_no_folder_to_write_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"^save_trained: cannot write to"):
        save_trained(two_adapters(1), tmp_path / "file")


def test_a_long_list_is_cut(tmp_path):
    model = plain_model(depth=6)
    save_trained(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"^restore_trained: .*missing tensors \[.*\] and \d+ more$"):
        restore_trained(plain_model(depth=9), tmp_path)
