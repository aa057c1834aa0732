"""`adapters(model)`: an attached adapter tells what it is, seen from the model, from what encloses it, from a part."""

import torch
from tiny_models import build, plain_model
from torch import nn

from adapterx import AdapterConfig, Attachment, Average, adapters, attach, detach, disabled, mixed, set_active

CONFIG = AdapterConfig(bottleneck_dim=4, placement="parallel", modules_to_save=("pooler.dense",))


def test_what_attach_reported():
    model = build("bert")
    assert adapters(model) == {}
    one = attach(model, CONFIG, "one")
    two = attach(model, AdapterConfig(bottleneck_dim=2, layers=(1,)), "two", active=False)
    found = adapters(model)
    assert list(found) == ["one", "two"]
    assert isinstance(found["one"], Attachment)
    for report in (one, two):
        entry = found[report.name]
        assert (entry.config, entry.rule, entry.targets) == (report.config, report.rule, report.targets)
        assert entry.modules_to_save == report.modules_to_save
        assert str(entry) == str(report)
    assert found["one"].blocks == (0, 1)
    assert found["two"].blocks == (1,)
    detach(model, "one")
    assert list(adapters(model)) == ["two"]


def test_the_composition_that_it_takes_part_in():
    model = plain_model()
    config = AdapterConfig(bottleneck_dim=2, positions=("feed_forward",))
    for name in "abc":
        attach(model, config, name)
    composition = Average("a", "b")
    set_active(model, composition)
    expected = {"a": composition, "b": composition, "c": None}
    assert {name: entry.composition for name, entry in adapters(model).items()} == expected
    with disabled(model), mixed(model, ["c"]):
        assert {name: entry.composition for name, entry in adapters(model).items()} == expected


def test_names_are_relative_to_what_is_asked():
    inner = build("bert")
    report = attach(inner, CONFIG)
    outer = nn.ModuleDict({"inner": inner, "head": nn.Linear(2, 2)})
    entry = adapters(outer)["default"]
    assert [target.module for target in entry.targets] == [f"inner.{target.module}" for target in report.targets]
    assert entry.targets[0].input_module == f"inner.{report.targets[0].input_module}"
    assert entry.modules_to_save == ("inner.pooler.dense",)
    assert all(outer.get_submodule(target.module).adapterx["default"] for target in entry.targets)
    part = adapters(inner.encoder.layer[1])["default"]
    assert [target.module for target in part.targets] == ["attention.output.dense", "output.dense"]
    assert part.targets[0].input_module == "attention.self"
    assert part.modules_to_save == ()


def test_dtype_of_the_adapters():
    model = build("bert").bfloat16()
    attach(model, AdapterConfig(bottleneck_dim=4), "exact")
    attach(model, AdapterConfig(bottleneck_dim=4), "own", dtype=torch.bfloat16)
    dense = model.encoder.layer[0].output.dense
    assert dense.adapterx["own"].down_proj.weight.dtype == torch.bfloat16
    assert dense.adapterx["exact"].down_proj.weight.dtype == torch.float32
    assert dense(torch.randn(2, 48, dtype=torch.bfloat16)).dtype == torch.bfloat16
