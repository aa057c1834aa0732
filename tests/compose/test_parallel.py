"""`Parallel`: a model repeats its inputs, and each copy passes its own part."""

import copy
import pickle

import pytest
import torch
from tiny_adapters import randomise
from tiny_models import build, inputs_for, run

from adapterx import (
    AdapterConfig,
    Average,
    BatchSplit,
    ConfigError,
    ExportError,
    Parallel,
    SequenceClassifier,
    Split,
    Stack,
    active_adapters,
    adapter_parameters,
    add_fusion,
    attach,
    detach,
    disabled,
    fan_out,
    mixed,
    ops,
    set_active,
)
from adapterx.export import to_torchscript

ATOL = {"rtol": 0, "atol": 1e-12}


def adapted(model, **options):
    for name, width in (("a", 3), ("b", 5), ("c", 4)):
        attach(model, AdapterConfig(bottleneck_dim=width, **options), name)
    randomise(model)
    return model


def part_by_part(model, parts, inputs):
    outputs = []
    for part in parts:
        set_active(model, part)
        outputs.append(run(model, inputs))
    return torch.cat(outputs)


@pytest.fixture
def model():
    return adapted(build("bert").double())


@pytest.fixture
def inputs(model):
    inputs = inputs_for("bert", model, batch=3)
    return inputs | {"attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]])}


@torch.no_grad()
@pytest.mark.parametrize(
    ("composition", "parts"),
    [
        (Parallel("a", "b"), ["a", "b"]),
        (Parallel("a", None, "b"), ["a", None, "b"]),
        (Parallel("a"), ["a"]),
        (Parallel("a", Stack("b", "c")), ["a", ["b", "c"]]),
        (Parallel(Average("a", "b", weights=[3, 1]), "c"), [Average("a", "b", weights=[3, 1]), "c"]),
        (Stack("c", Parallel("a", "b")), [["c", "a"], ["c", "b"]]),
        (Stack(Parallel("a", None), Parallel("b", "c")), [["a", "b"], "c"]),
    ],
    ids=str,
)
def test_every_copy_passes_its_own_part(model, inputs, composition, parts):
    expected = part_by_part(model, parts, inputs)
    set_active(model, composition)
    torch.testing.assert_close(run(model, inputs), expected, **ATOL)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(run(twin, inputs), expected, **ATOL)


@torch.no_grad()
def test_fusions_stand_in_it(model, inputs):
    fuse = add_fusion(model, ["a", "b"])
    expected = part_by_part(model, [fuse, "c"], inputs)
    set_active(model, Parallel(fuse, "c"))
    torch.testing.assert_close(run(model, inputs), expected, **ATOL)


def test_it_trains_all_parts(model, inputs):
    set_active(model, Parallel("a", "b"))
    cotangent = torch.randn(6, 7, 32, dtype=torch.float64)
    (run(model, inputs) * cotangent).sum().backward()
    found = {name: p.grad for name, p in adapter_parameters(model) if p.grad is not None}
    for adapter, own in (("a", cotangent[:3]), ("b", cotangent[3:])):
        model.zero_grad()
        set_active(model, adapter)
        (run(model, inputs) * own).sum().backward()
        expected = {name: p.grad for name, p in adapter_parameters(model, adapter)}
        assert expected.keys() <= found.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient)
    assert not [name for name in found if ".c." in name]


def test_activation_checkpointing_recomputes_it(model, inputs):
    model.train()
    set_active(model, Parallel("a", "b"))
    parameter = next(p for _, p in adapter_parameters(model, "a"))
    run(model, inputs).square().sum().backward()
    expected, parameter.grad = parameter.grad, None
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:  # transformers 4
        model.gradient_checkpointing_enable({"use_reentrant": False})
    run(model, inputs).square().sum().backward()
    torch.testing.assert_close(parameter.grad, expected)


@torch.no_grad()
def test_one_call_of_the_operator_serves_all_parts(model, inputs, monkeypatch):
    calls, operator = [], ops.bottleneck_adapter
    monkeypatch.setattr(ops, "bottleneck_adapter", lambda *a, **k: calls.append(a) or operator(*a, **k))
    set_active(model, Parallel("a", "b", "c"))
    run(model, inputs)
    assert len(calls) == 4


@torch.no_grad()
def test_heads_answer_for_their_copies():
    base = build("bert")
    model = adapted(SequenceClassifier(base, 3).double(), modules_to_save=("head",))
    inputs = inputs_for("bert", base) | {"attention_mask": torch.ones(2, 7, dtype=torch.long)}
    expected = []
    for name in ("a", "b"):
        set_active(model, name)
        expected.append(model(**inputs)["logits"])
    set_active(model, Parallel("a", "b"))
    torch.testing.assert_close(model(**inputs)["logits"], torch.cat(expected), **ATOL)
    labels = torch.tensor([0, 2])
    losses = torch.stack([torch.nn.functional.cross_entropy(logits, labels) for logits in expected])
    torch.testing.assert_close(model(**inputs, labels=labels)["loss"].double(), losses.mean(), rtol=1e-6, atol=0)


@torch.no_grad()
def test_blocks_around_it(model, inputs):
    base = part_by_part(model, [None], inputs)
    alone = part_by_part(model, ["c"], inputs)
    set_active(model, Parallel("a", "b"))
    with disabled(model):
        torch.testing.assert_close(run(model, inputs), base, **ATOL)
    with mixed(model, ["c", None, "c"]):
        torch.testing.assert_close(run(model, inputs)[::2], alone[::2], **ATOL)
    with fan_out(model, ["c", None]) as fan:
        torch.testing.assert_close(fan(**inputs)["c"][0], alone, **ATOL)
    assert len(run(model, inputs)) == 6


@torch.no_grad()
def test_the_whole_model_must_be_called(model, inputs):
    set_active(model, Parallel("a", "b"))
    states = torch.randn(4, 7, 32, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"^set_active: a model with Parallel must be called as a whole"):
        model.encoder(states)
    with pytest.raises(ValueError, match=r"^set_active: inputs must hold a tensor"):
        model()
    run(model, inputs)
    with pytest.raises(RuntimeError, match=r"^set_active: a model with Parallel must be called as a whole"):
        model.encoder(states)
    set_active(model.encoder, Parallel("a", "b"))  # the encoder's own, and not the model's
    assert len(model.encoder(states)[0]) == 8


@torch.no_grad()
def test_a_part_that_goes_leaves_its_copy(model, inputs):
    expected = part_by_part(model, [None, "b"], inputs)
    set_active(model, Parallel("a", "b"))
    detach(model, "a")
    assert active_adapters(model) == ("b",)
    torch.testing.assert_close(run(model, inputs), expected, **ATOL)
    detach(model)
    assert len(run(model, inputs)) == 3
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


@torch.no_grad()
def test_compiled_in_one_graph(model, inputs):
    set_active(model, Parallel("a", "b"))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(run(compiled, inputs), run(model, inputs))


@pytest.mark.parametrize(
    "composition",
    [
        Parallel("a", BatchSplit("b", "c")),
        Parallel("a", Split("b", "c", splits=[3, 4])),
        Stack(BatchSplit("a", None), Parallel("b", "c")),
        BatchSplit("a", Parallel("b", "c")),
        Average("a", Stack(Parallel("b", "c"))),
        Parallel("a", Stack("b", Parallel("c", None))),
        Stack(Parallel("a", None), Parallel("b", "c", None)),
        Parallel("a", Parallel("b", "c")),
    ],
    ids=str,
)
def test_where_it_cannot_stand(model, composition):
    set_active(model, "a")
    with pytest.raises(ConfigError, match=r"^set_active: (Parallel must be|parts of|every BatchSplit or Parallel)"):
        set_active(model, composition)
    assert active_adapters(model) == ("a",)


def test_export_is_refused(model, tmp_path):
    set_active(model, Parallel("a", "b"))
    with pytest.raises(ExportError, match=r"to_torchscript: .*Parallel"):
        to_torchscript(model, tmp_path / "model.pt")
