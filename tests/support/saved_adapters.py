"""A tiny model with an adapter to save, and the tools to damage what was saved and to see that it is refused."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save
from tiny_models import plain_model

from adapterx import AdapterConfig, CheckpointError, adapter_parameters, attach, load_adapter
from adapterx.checkpoint.document import HASH, hashed

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLAIN = AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), modules_to_save=("classifier",), scaling="learned")


def randomise(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in adapter_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def adapted_plain(seed=1):
    model = plain_model()
    attach(model, PLAIN)
    randomise(model, seed)
    return model


HIDDEN_STATES = torch.linspace(-1, 1, 24).view(3, 8)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_refused(folder, message, *, model=None, error=CheckpointError):
    """Loading raises, and the model is as it was."""
    model = plain_model() if model is None else model
    before, hooks = state_of(model), [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(error, match=message) as raised:
        load_adapter(model, folder)
    assert str(raised.value).isprintable()  # one line, without escape sequences of a stranger's
    assert state_of(model).keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(parameter.requires_grad for parameter in model.parameters())


def edit(folder, file=CONFIG, /, **changes):
    """Change values of a JSON file as a forger would, who makes its hash anew; None removes one."""
    path = folder / file
    document = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(hashed(document) if HASH in document and HASH not in changes else document))


def to_version_1(folder, file=CONFIG):
    """Turn a JSON file into what adapterx 0.1.0 would have written."""
    edit(folder, file, format=None, format_version=1, document_sha256=None)


def rewrite(folder, change):
    """Change the tensors, hash and listing as a forger would."""
    tensors = load_file(folder / WEIGHTS)
    tensors = change(tensors) or tensors
    content = save(tensors)
    (folder / WEIGHTS).write_bytes(content)
    listed = {k: {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)} for k, t in tensors.items()}
    edit(folder, sha256=hashlib.sha256(content).hexdigest(), tensors=listed)
