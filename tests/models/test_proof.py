"""The census calls a model proven only where it is: each planted fault is seen, and by its name."""

import dataclasses

import pytest

pytest.importorskip("transformers")
import census
import verdict
from tiny_types import all_types

from adapterx import attach


def row(monkeypatch, planted):
    monkeypatch.setattr(verdict, "attach", planted)
    return census.measure("bert", all_types()["bert"])["houlsby"]


def test_a_model_without_fault_works(monkeypatch):
    assert row(monkeypatch, attach)["verdict"] == "works"


@pytest.mark.parametrize(
    ("modules", "kind", "words"),
    [
        (("attention.self.value",), "wrong", "attention.self.value (named) adds to no residual stream"),
        (("attention.output.dense", "0.output.dense"), "wrong", "the oracle says feed_forward"),
    ],
)
def test_other_modules_are_wrong(monkeypatch, modules, kind, words):
    def planted(model, config, *args, **options):
        return attach(model, dataclasses.replace(config, target_modules=modules), *args, **options)

    found = row(monkeypatch, planted)
    assert found["verdict"] == kind
    assert words in found["words"]


def test_a_sublayer_without_adapter_or_word_is_in_part(monkeypatch):
    def planted(model, config, *args, **options):
        report = attach(model, config, *args, **options)
        kept = tuple(target for target in report.targets if target.block == 0)
        return dataclasses.replace(report, targets=kept)

    found = row(monkeypatch, planted)
    assert found["verdict"] == "in part"
    assert "encoder.layer.1" in found["words"]


def freeze(model, report):
    model.get_submodule(f"{report.targets[0].module}.adapterx.proof").requires_grad_(False)


def shift(model, report):
    for parameter in model.get_submodule(f"{report.targets[0].module}.adapterx.proof").parameters():
        parameter.data += 0.01


def train_base(model, report):
    model.get_submodule(report.targets[0].module).weight.requires_grad_(True)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (freeze, "attention.output.dense learns nothing"),
        (shift, "new adapters change the output"),
        (train_base, "attention.output.dense.weight got gradients"),
    ],
)
def test_adapters_that_do_not_work_fail(monkeypatch, fault, words):
    def planted(model, *args, **options):
        report = attach(model, *args, **options)
        fault(model, report)
        return report

    found = row(monkeypatch, planted)
    assert found["verdict"] == "failed"
    assert words in found["words"]
