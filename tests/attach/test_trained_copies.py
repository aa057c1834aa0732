"""`modules_to_save`: each adapter trains a copy of its own, the module itself stays."""

import pytest
import torch
from model_state import assert_same, fingerprint
from tiny_adapters import randomise
from tiny_models import plain_model

from adapterx import AdapterConfig, TargetError, adapter_parameters, attach, detach, disabled, set_active

CLASSIFIER = AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), modules_to_save=("classifier",))


def test_modules_to_save_train_a_copy():
    model = plain_model()
    before = fingerprint(model)
    hidden_states = torch.randn(4, 8)
    base = model(hidden_states)
    attach(model, CLASSIFIER)
    assert torch.equal(model(hidden_states), base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(hidden_states).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(model(hidden_states), base)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "adapterx." not in name} == {
        "classifier.adapterx_copies.default.weight",
        "classifier.adapterx_copies.default.bias",
    }
    with disabled(model):
        assert torch.equal(model(hidden_states), base)
    detach(model)
    assert torch.equal(model(hidden_states), base)
    assert_same(before, fingerprint(model))


def test_each_adapter_has_its_own_copy_and_the_last_active_one_answers():
    model = plain_model()
    hidden_states = torch.randn(4, 8)
    attach(model, CLASSIFIER, "a")
    randomise(model)
    answer_of_a = model(hidden_states)
    attach(model, CLASSIFIER, "b")
    assert not torch.allclose(model(hidden_states), answer_of_a)
    names = [name for name, _ in model.classifier.named_parameters()]
    assert sorted(names) == sorted(
        ["weight", "bias", *(f"adapterx_copies.{n}.{k}" for n in "ab" for k in ("weight", "bias"))]
    )
    set_active(model, ["b", "a"])
    assert torch.equal(model.classifier(hidden_states), model.classifier.adapterx_copies["a"](hidden_states))
    assert all(parameter.requires_grad for _, parameter in adapter_parameters(model))
    set_active(model, "a")
    assert torch.equal(model(hidden_states), answer_of_a)
    assert not any(parameter.requires_grad for _, parameter in adapter_parameters(model, "b"))


def test_adapters_act_on_what_a_copy_answers_in_any_order_of_attachment():
    outputs = []
    adapter = AdapterConfig(bottleneck_dim=2, target_modules=("classifier",))
    for order in (("copy", "adapter"), ("adapter", "copy")):
        model = plain_model()
        for name in order:
            attach(model, CLASSIFIER if name == "copy" else adapter, name, seed=3)
        with torch.no_grad():
            for key, parameter in adapter_parameters(model):
                parameter.fill_(0.01 * len(key))
        set_active(model, ["copy", "adapter"])
        copied = model.classifier.adapterx_copies["copy"]
        assert not hasattr(copied, "adapterx")
        outputs.append(model(torch.ones(2, 8)))
    assert torch.equal(*outputs)


def test_modules_to_save_must_be_named_exactly():
    with pytest.raises(TargetError, match=r"got 'clasifier'; the top modules are blocks, classifier"):
        attach(
            plain_model(), AdapterConfig(bottleneck_dim=2, target_modules=("widen",), modules_to_save=("clasifier",))
        )
