"""What a model holds: everything that attaching must give back, the flags, and a copy through a file."""

import io

import torch


def fingerprint(model):
    """Return everything of a model that attaching must give back."""
    return (
        {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()},
        [(name, type(module), sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks),
          len(module._forward_hooks_with_kwargs), len(module._forward_pre_hooks_with_kwargs))
         for name, module in model.named_modules()],
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
    )  # fmt: skip


def assert_same(one, other):
    """Two fingerprints are of the same objects, values, hooks and flags."""
    assert one[1:] == other[1:]
    assert one[0].keys() == other[0].keys()
    for name, (identity, tensor) in one[0].items():
        assert identity == other[0][name][0]
        assert torch.equal(tensor, other[0][name][1])


def flags(model):
    """Return which parameters train."""
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def pickled(model):
    """Return the model, saved whole and loaded again."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)
