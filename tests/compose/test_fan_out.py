"""One input under several adapters: equal to as many passes, and what lies below the adapters runs once."""

import copy
import inspect

import pytest
import torch
from test_mixed_generating import LANGUAGE_MODELS, generate, language_model
from tiny_adapters import randomise
from tiny_models import build, inputs_for, plain_model
from torch import nn

from adapterx import (
    AdapterConfig,
    Average,
    BatchSplit,
    ConfigError,
    Fuse,
    Parallel,
    SequenceClassifier,
    Split,
    Stack,
    UnknownAdapterError,
    adapter_parameters,
    attach,
    fan_out,
    ops,
    set_active,
)

NAMES = ["a", None, "b"]
# How many of the blocks run once where the adapters are in the last block of each list.
SHARED = {"albert": 0, "bart": 1, "swin": 1, "t5": 1}
MODELS = ["bert", "gpt2", "llama", "t5", "bart", "vit", "modernbert", "bloom", "deberta-v2", "gemma2", "albert", "opt"]


def adapted(model, **options):
    """Adapters a and b in the last block; b is wider, c hangs everywhere."""
    last = max(target.block or 0 for target in attach(model, AdapterConfig(bottleneck_dim=3), "c").targets)
    attach(model, AdapterConfig(bottleneck_dim=4, layers=(last,), **options), "a")
    attach(model, AdapterConfig(bottleneck_dim=5, layers=(last,), scaling=0.5, **options), "b")
    randomise(model)
    return model


def alone(model, name, inputs):
    set_active(model, name)
    return model(**inputs)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_as_many_passes(name):
    model = adapted(build(name).double())
    inputs = inputs_for(name, model)
    with fan_out(model, NAMES) as run:
        outputs = run(**inputs)
    assert list(outputs) == NAMES
    assert len(run.shared) == SHARED.get(name, 1)
    for adapter in NAMES:
        expected = alone(model, adapter, inputs)
        assert type(outputs[adapter]) is type(expected)
        torch.testing.assert_close(outputs[adapter][0], expected[0], rtol=0, atol=1e-12)
    assert (outputs["a"][0] - outputs["b"][0]).abs().max() > 1e-3


@torch.no_grad()
def test_padding_hidden_states_and_attentions():
    model = adapted(build("bert").double().train(False))
    inputs = inputs_for("bert", model, batch=3)
    inputs["attention_mask"] = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])
    options = {"output_hidden_states": True, "output_attentions": True}
    model.set_attn_implementation("eager")
    with fan_out(model, NAMES) as run:
        outputs = run(**inputs, **options)
    for adapter in NAMES:
        expected = alone(model, adapter, inputs | options)
        for kind in ("hidden_states", "attentions"):
            torch.testing.assert_close(outputs[adapter][kind], expected[kind], rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_beams": 4, "num_return_sequences": 2}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_generating(name, options):
    model = adapted(language_model(name), activation="relu")
    ids = torch.randint(3, 99, (2, 5))
    with fan_out(model, NAMES) as run:
        found = run.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, **options
        )
        assert run.shared
    for adapter in NAMES:
        set_active(model, adapter)
        assert found[adapter].tolist() == generate(model, ids, **options).tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_prompt_may_be_in_a_cache_already(name):
    model = adapted(build(name).double())
    inputs = inputs_for(name, model)
    prompt, rest = inputs["input_ids"][:, :4], inputs["input_ids"][:, 4:]
    set_active(model, None)
    key = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # transformers 5, 4
    cache = model(input_ids=prompt, use_cache=True)[key]
    with fan_out(model, NAMES) as run:
        outputs = run(input_ids=rest, **{key: cache})
    assert cache.get_seq_length() == 4
    for adapter in NAMES:
        expected = alone(model, adapter, {"input_ids": rest, key: copy.deepcopy(cache)})
        torch.testing.assert_close(outputs[adapter][0], expected[0], rtol=0, atol=1e-12)
        kept, own = outputs[adapter][key], expected[key]
        assert kept.get_seq_length() == 7
        for mine, other in zip(kept.layers, own.layers, strict=True):
            torch.testing.assert_close(mine.keys, other.keys, rtol=0, atol=1e-12)


def gradients(model):
    return {name: p.grad.clone() for name, p in adapter_parameters(model) if p.grad is not None}


def test_training_gives_the_gradients_of_as_many_passes():
    model = adapted(build("bert").double())
    inputs = inputs_for("bert", model)
    with fan_out(model, NAMES) as run:
        outputs = run(**inputs)
        assert run.shared == ["encoder.layer.0"]
        sum(output[0].square().sum() for output in outputs.values()).backward()
    found = {
        name: parameter.grad.clone() for name, parameter in adapter_parameters(model) if parameter.grad is not None
    }
    model.zero_grad()
    for adapter in ("a", "b"):
        alone(model, adapter, inputs)[0].square().sum().backward()
    expected = {name: parameter.grad for name, parameter in adapter_parameters(model) if parameter.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_names_share_the_dropout_of_what_they_share():
    model = adapted(build("bert", dropout=True).train())
    seen = []
    model.encoder.layer[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with fan_out(model, NAMES) as run:
        run(**inputs_for("bert", model))[None][0].sum()
    assert run.shared == ["encoder.layer.0"]
    assert torch.equal(*seen[0].unflatten(0, (3, 2))[:2])


@torch.no_grad()
def test_blocks_that_receive_different_things_run_for_all_names():
    model = build("bert").double()
    attach(model, AdapterConfig(bottleneck_dim=4, target_modules=("word_embeddings",)), "a")
    attach(model, AdapterConfig(bottleneck_dim=4, layers=(1,)), "b")
    randomise(model)
    inputs = inputs_for("bert", model)
    with fan_out(model, NAMES) as run:
        outputs = run(**inputs)
    assert run.shared == []
    for adapter in NAMES:
        torch.testing.assert_close(outputs[adapter][0], alone(model, adapter, inputs)[0], rtol=0, atol=1e-12)


@torch.no_grad()
def test_what_runs_how_often(monkeypatch):
    model = adapted(build("bert"))
    rows, calls = [], []
    for block in model.encoder.layer:
        block.attention.self.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    operator = ops.bottleneck_adapter
    monkeypatch.setattr(ops, "bottleneck_adapter", lambda *a, **k: calls.append(a) or operator(*a, **k))
    with fan_out(model, NAMES) as run:
        run(**inputs_for("bert", model, batch=5))
    assert rows == [5, 15]
    assert len(calls) == 2, "one call of the operator for each of the two adapted modules"
    hooked = model.encoder.layer[0]
    assert not hooked._forward_pre_hooks
    assert not hooked._forward_hooks


@torch.no_grad()
def test_heads_answer_for_their_names():
    torch.manual_seed(3)
    base = build("bert")
    model = SequenceClassifier(base, 3).double()
    for adapter in ("a", "b"):
        config = AdapterConfig(bottleneck_dim=4, layers=(1,), modules_to_save=("head",))
        attach(model, config, adapter)
    randomise(model)
    inputs = inputs_for("bert", base)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with fan_out(model, NAMES) as run:
        outputs = run(**inputs)
    for adapter in NAMES:
        set_active(model, adapter)
        torch.testing.assert_close(outputs[adapter]["logits"], model(**inputs)["logits"], rtol=0, atol=1e-12)


@torch.no_grad()
def test_compositions_have_outputs_of_their_own():
    model = adapted(build("bert").double())
    inputs = inputs_for("bert", model)
    chosen = [Stack("a", "b"), "b", Average("a", "b", weights=[1, 3]), None]
    with fan_out(model, chosen) as run:
        outputs = run(**inputs)
    assert run.shared == ["encoder.layer.0"]
    for part in chosen:
        torch.testing.assert_close(outputs[part][0], alone(model, part, inputs)[0], rtol=0, atol=1e-12)
    for part in (BatchSplit("a", "b"), Split("a", "b", splits=[3, 4]), Parallel("a", "b")):
        with pytest.raises(ConfigError, match=r"^fan_out: (Parallel must be|parts of)"), fan_out(model, [part]):
            pass
    with pytest.raises(ConfigError, match=r"^fan_out: names must not hold Fuse"), fan_out(model, [Fuse("a", "b")]):
        pass


@torch.no_grad()
def test_models_without_blocks_run_for_all_names():
    model = plain_model().double()
    for adapter, width in (("a", 3), ("b", 4)):
        attach(model, AdapterConfig(bottleneck_dim=width, positions=("feed_forward",)), adapter)
    randomise(model)
    tokens = torch.randn(2, 8, dtype=torch.float64)
    with fan_out(model, NAMES) as run:
        outputs = run(tokens)
    for adapter in NAMES:
        set_active(model, adapter)
        torch.testing.assert_close(outputs[adapter], model(tokens), rtol=0, atol=1e-12)


class Shapes(nn.Module):
    """A model that returns what it is told to."""

    def __init__(self, returned):
        super().__init__()
        self.blocks, self.returned = plain_model().blocks, returned

    def forward(self, tokens):
        return self.returned


def test_refusals():
    model = adapted(build("bert"))
    inputs = inputs_for("bert", model)
    for names, error, words in [
        ("a", TypeError, "names must be a sequence of adapter names and None, got 'a'"),
        ([1], TypeError, "names must be a sequence"),
        ([], ValueError, "names must be one or more, and different"),
        (["a", "a"], ValueError, r"names must be one or more, and different, got \['a', 'a'\]"),
        (["a", "x"], UnknownAdapterError, "name must be an attached adapter, got 'x'"),
    ]:
        with pytest.raises(error, match=f"^fan_out: {words}"), fan_out(model, names):
            pass
    with fan_out(model, NAMES) as run:
        for arguments, words in [
            (inputs | {"labels": torch.zeros(2)}, "labels must not be given"),
            ({"return_dict": True}, "inputs must hold a tensor whose first dimension is the batch"),
        ]:
            with pytest.raises(ValueError, match=f"^fan_out: {words}"):
                run(**arguments)
        with pytest.raises(ValueError, match=r"^fan_out: output_attentions must not be given to generate"):
            run.generate(**inputs, output_attentions=True)
    for returned, words in [
        (torch.zeros(()), r"got shape \(\)"),
        (torch.zeros(4, 3), r"outputs must have rows for each of 2 sequences and 3 names, got shape \(4, 3\)"),
        ({"logits_per_image": torch.zeros(6, 6)}, "must not compare the sequences .* as logits_per_image does"),
    ]:
        odd = Shapes(returned)
        for adapter in ("a", "b"):
            attach(odd, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",)), adapter)
        with fan_out(odd, NAMES) as run, pytest.raises(ValueError, match=f"^fan_out: .*{words}"):
            run(torch.zeros(2, 8))
