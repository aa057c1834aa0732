"""Weights for adapters that matter; those of new adapters change nothing."""

import torch

from adapterx import adapter_parameters


def randomise(model, name=None, *, seed=11, scale=0.3):
    """Draw the parameters of the adapter `name`, or else of all, from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in adapter_parameters(model, name):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
