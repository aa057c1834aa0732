"""Counting parameters, and their qualified names."""

import pytest
from attach_cases import FEED_FORWARD, SEQUENTIAL
from tiny_models import build
from torch import nn

from adapterx import UnknownAdapterError, adapter_parameters, attach, summary


def test_summary_counts_each_parameter_once():
    model = build("bert")
    base = sum(parameter.numel() for parameter in model.parameters())
    attach(model, SEQUENTIAL, "a")
    one = 4 * (32 * 4 + 4 + 4 * 32 + 32)
    numbers = summary(model)
    assert (numbers.trainable, numbers.trainable_adapters, numbers.trainable_other) == (one, one, 0)
    assert numbers.total == base + one
    assert numbers.percent == pytest.approx(100 * one / (base + one))
    assert numbers.adapter_mebibytes == pytest.approx(4 * one / 2**20)
    assert str(numbers).startswith(f"{one:,} of {base + one:,} parameters are trainable (")
    attach(model, SEQUENTIAL, "b")
    assert summary(model).trainable == one  # the active one
    assert summary(model).adapter_mebibytes == pytest.approx(8 * one / 2**20)
    tied = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)})
    tied["two"].weight = tied["one"].weight
    assert summary(tied).total == 15
    assert summary(nn.Module()).percent == 0.0


def test_adapter_parameters_have_qualified_names():
    model = build("bert")
    attach(model, SEQUENTIAL, "a")
    attach(model, FEED_FORWARD, "b")
    every = dict(model.named_parameters())
    found = dict(adapter_parameters(model))
    assert found.keys() == {name for name in every if ".adapterx." in name}
    assert all(every[name] is parameter for name, parameter in found.items())
    assert {name for name, _ in adapter_parameters(model, "b")} == {name for name in found if ".adapterx.b." in name}
    with pytest.raises(UnknownAdapterError, match="got 'c'; attached are 'a', 'b'"):
        next(adapter_parameters(model, "c"))
