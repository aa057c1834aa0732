"""Models with many adapters for the tests of `mixed`, and what each sequence gives alone."""

import copy

import torch
from tiny_adapters import randomise
from tiny_models import build, plain_model, run

from adapterx import AdapterConfig, AdapterSet, active_adapters, attach, set_active
from adapterx.compose.program import ApplyGroup

PARALLEL = {"placement": "parallel"}
# Everything that adapters of one batch may differ in. "top" hangs on a part of the modules only.
CONFIGS = {
    "plain": AdapterConfig(bottleneck_dim=4),
    "wide": AdapterConfig(bottleneck_dim=7, scaling=-0.5),
    "bare": AdapterConfig(bottleneck_dim=3, down_bias=False, up_bias=False, scaling="learned"),
    "channels": AdapterConfig(bottleneck_dim=2, up_bias=False, scaling="learned_per_channel"),
    "sigmoid": AdapterConfig(bottleneck_dim=5, activation="sigmoid"),
    "sigmoid-wide": AdapterConfig(bottleneck_dim=6, activation="sigmoid", down_bias=False),
    "parallel": AdapterConfig(bottleneck_dim=4, **PARALLEL),
    "parallel-wide": AdapterConfig(bottleneck_dim=6, scaling=2.0, **PARALLEL),
    "top": AdapterConfig(bottleneck_dim=4, positions=("feed_forward",), layers=(1,)),
}
NAMES = [
    "wide",
    None,
    "plain",
    "bare",
    "channels",
    "sigmoid",
    "parallel",
    "parallel-wide",
    "top",
    "plain",
    "sigmoid-wide",
]
HIDDEN_STATES = torch.linspace(-1, 1, 24, dtype=torch.float64).view(3, 8)


def adapted(name="bert", configs=CONFIGS, dtype=torch.float64):
    """Return a model with all adapters, of which "wide", or else the first, is active."""
    model = (build(name) if isinstance(name, str) else name).to(dtype)
    for adapter, config in configs.items():
        attach(model, config, adapter, active=False)
    randomise(model)
    set_active(model, "wide" if "wide" in configs else next(iter(configs)))
    return model


def small_model(configs=None, **options):
    """Return a plain model of matrices with adapters a, b (wider) and c (parallel) on its feed-forward layers."""
    shared = {"positions": ("feed_forward",), **options}
    chosen = configs or {
        "a": AdapterConfig(bottleneck_dim=3, **shared),
        "b": AdapterConfig(bottleneck_dim=5, **shared),
        "c": AdapterConfig(bottleneck_dim=2, **shared, **PARALLEL),
    }
    return adapted(plain_model(), chosen)


def alone(model, names, inputs, forward=run):
    """Return what each sequence gives with its own adapter, in batches of the same shape."""
    active = active_adapters(model)
    rows = []
    for index, name in enumerate(names):
        set_active(model, name)
        rows.append(forward(model, inputs)[index])
    set_active(model, active)
    return torch.stack(rows)


def alone_outside(model, names, inputs, forward=run):
    """Compute `alone` in a copy, which knows nothing of the block around it."""
    return alone(copy.deepcopy(model), names, inputs, forward)


def groups_of(model):
    """Return the groups that run while a block is open, module by module."""
    return [
        step.group
        for module in model.modules()
        if isinstance(module, AdapterSet)
        for step in module.route.steps
        if isinstance(step, ApplyGroup)
    ]


def call(model, inputs):
    """Run a model whose input is one tensor."""
    return model(inputs)
