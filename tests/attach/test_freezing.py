"""What is frozen while adapters hang on a model, and what detaching gives back."""

import pytest
import torch
from attach_cases import FEED_FORWARD, PARALLEL, SEQUENTIAL
from model_state import assert_same, fingerprint
from tiny_adapters import randomise
from tiny_models import build, inputs_for, run
from torch import nn

from adapterx import UnknownAdapterError, adapter_names, attach, detach, set_active, summary


def test_flags_come_back_exactly():
    model = build("bert")
    model.embeddings.requires_grad_(False)
    model.pooler.dense.bias.requires_grad_(False)
    before = fingerprint(model)
    attach(model, SEQUENTIAL, "a")
    attach(model, FEED_FORWARD, "b", active=False)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert {name for name in frozen if ".adapterx." not in name} == before[0].keys()
    detach(model, "a")
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".adapterx." not in n)
    detach(model, "b")
    assert_same(before, fingerprint(model))


def test_adapters_of_a_part_leave_the_rest_trainable():
    outer = nn.ModuleDict({"inner": build("bert"), "head": nn.Linear(32, 2)})
    attach(outer["inner"], SEQUENTIAL)
    assert outer["head"].weight.requires_grad
    assert adapter_names(outer) == ("default",)
    numbers = summary(outer)
    assert numbers.trainable_other == 66
    assert numbers.trainable == numbers.trainable_adapters + 66
    detach(outer)
    assert all(parameter.requires_grad for parameter in outer.parameters())


def test_detach_of_what_is_not_there():
    model = build("bert")
    with pytest.raises(UnknownAdapterError, match="none is attached"):
        detach(model)
    attach(model, SEQUENTIAL)
    with pytest.raises(UnknownAdapterError, match="got 'b'; attached are 'default'"):
        detach(model, "b")


def test_detaching_one_of_two_keeps_the_other():
    model = build("llama")
    inputs = inputs_for("llama", model)
    attach(model, PARALLEL, "a", seed=1)
    attach(model, SEQUENTIAL, "b", seed=2)
    randomise(model)
    alone = run(model, inputs)
    set_active(model, ["a", "b"])
    detach(model, "a")
    assert torch.equal(run(model, inputs), alone)
    assert not any(module._forward_pre_hooks for module in model.modules())
