"""Invertible adapters: the couplings by formula, both ends of a model, and who runs them."""

import copy
import pickle

import pytest
import torch
import transformers
from mixed_cases import alone
from model_state import assert_same, fingerprint
from tiny_adapters import randomise
from tiny_models import SIZES, SPECIAL, build, inputs_for, run
from torch import nn

from adapterx import (
    AdapterConfig,
    Average,
    ConfigError,
    Parallel,
    Stack,
    TargetError,
    adapter_parameters,
    adapters,
    attach,
    combine_adapters,
    detach,
    disabled,
    fan_out,
    load_adapter,
    mixed,
    rename_adapter,
    save_adapter,
    set_active,
    summary,
    unused_adapters,
)
from adapterx.invertible import InvertibleAdapter

DOUBLE = torch.float64
KINDS = pytest.mark.parametrize("kind", ["nice", "glow"])


def coupling(kind, size=7, activation="relu", dtype=DOUBLE, **options):
    module = InvertibleAdapter(kind, size, reduction_factor=2.0, activation=activation, dtype=dtype, **options)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def subnet(module, x):
    activation = {"relu": torch.relu, "gelu": nn.GELU()}[module.activation]
    bottleneck = activation(x @ module.down_proj.weight.T + module.down_proj.bias)
    return bottleneck @ module.up_proj.weight.T + module.up_proj.bias


def clamped(s):
    return torch.exp(3.18 * torch.atan(s / 5))


def expected(module, x):
    """The papers' formulas."""
    half = module.hidden_size // 2
    x1, x2 = x[..., :half], x[..., half:]
    if module.kind == "nice":
        y1 = x1 + subnet(module.f, x2)
        return torch.cat((y1, x2 + subnet(module.g, y1)), -1)
    s, t = subnet(module.f, x2)[..., :half], subnet(module.f, x2)[..., half:]
    y1 = clamped(s) * x1 + t
    other = x.shape[-1] - half
    s, t = subnet(module.g, y1)[..., :other], subnet(module.g, y1)[..., other:]
    return torch.cat((y1, clamped(s) * x2 + t), -1)


@KINDS
@pytest.mark.parametrize("size", [7, 8])
def test_is_the_formula_and_can_be_undone(kind, size):
    module = coupling(kind, size)
    assert module.f.down_proj.weight.shape == ((size - size // 2) // 2, size - size // 2)
    x = torch.randn(2, 3, size, dtype=DOUBLE, requires_grad=True)
    found, wanted = module(x), expected(module, x)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    inputs = [x, *module.parameters()]
    cotangent = torch.randn_like(x)
    gradients = (torch.autograd.grad(output, inputs, cotangent) for output in (found, wanted))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-11)
    torch.testing.assert_close(module(module(x), inverse=True), x, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(module(module(x, inverse=True)), x, atol=1e-10, rtol=1e-10)
    assert not torch.allclose(module(x, inverse=True), x)


@KINDS
@pytest.mark.parametrize("activation", ["gelu", "mish", "prelu"])
def test_starts_as_the_identity(kind, activation):
    module = InvertibleAdapter(kind, 32, reduction_factor=2.0, activation=activation)
    x = torch.randn(2, 3, 32)
    assert torch.equal(module(x), x)
    assert torch.equal(module(x, inverse=True), x)
    assert 0.01 < module.f.down_proj.weight.std() < 0.03
    with pytest.raises(ValueError, match=r"hidden_states must be \(\.\.\., 32\) for an invertible adapter, got shape"):
        module(torch.randn(2, 31))


@KINDS
def test_half_precision_and_autocast(kind):
    module = coupling(kind, dtype=torch.float32)
    x = torch.randn(2, 3, 7).bfloat16()
    assert module(x).dtype == torch.bfloat16
    torch.testing.assert_close(module(x), module(x.float()).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(x.float())
        assert found.dtype == torch.float32
        torch.testing.assert_close(module(found, inverse=True), x.float(), atol=1e-2, rtol=1e-2)


CONFIG = AdapterConfig(bottleneck_dim=3, invertible="nice")
GLOW = AdapterConfig(bottleneck_dim=4, invertible="glow")


def masked_lm():
    torch.manual_seed(0)
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).eval().double()


def causal_lm():
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=40, **SPECIAL)
    return transformers.GPT2LMHeadModel(config).eval().double()


LANGUAGE_MODELS = {
    "bert": (masked_lm, "bert.embeddings", "cls.predictions.decoder"),
    "gpt2": (causal_lm, "transformer.h.0", "lm_head"),
}
BOTH = pytest.mark.parametrize(("make", "entry", "head"), LANGUAGE_MODELS.values(), ids=LANGUAGE_MODELS)


def logits(model, inputs):
    return model(**inputs).logits


def inputs_of(batch=2):
    return {"input_ids": torch.randint(3, 99, (batch, 6), generator=torch.Generator().manual_seed(batch))}


@KINDS
@BOTH
def test_acts_at_both_ends(make, entry, head, kind, tmp_path):
    model = make()
    before, inputs = fingerprint(model), inputs_of()
    base = logits(model, inputs)
    config = CONFIG if kind == "nice" else GLOW
    report = attach(model, config, "a")
    assert report.invertible == (entry, head)
    assert adapters(model)["a"].invertible == (entry, head)
    assert adapters(model)["a"].modules_to_save == ()
    assert f"{head}: invertible adapter ({kind}), its inverse before the head" in str(report)
    torch.testing.assert_close(logits(model, inputs), base, atol=1e-12, rtol=1e-12)
    randomise(model)
    wanted = logits(model, inputs)

    module = model.get_submodule(entry).adapterx_invertible["a"]
    assert model.get_submodule(head).adapterx_invertible["a"] is module
    by_hand = copy.deepcopy(model)
    for path in (entry, head):  # the same, by hand
        by_hand.get_submodule(path)._forward_hooks.clear()
        by_hand.get_submodule(path)._forward_pre_hooks.clear()
    if entry.endswith("embeddings"):
        by_hand.get_submodule(entry).register_forward_hook(lambda _, __, output: expected(module, output))
    else:
        by_hand.get_submodule(entry).register_forward_pre_hook(lambda _, args: (expected(module, args[0]), *args[1:]))
    by_hand.get_submodule(head).register_forward_pre_hook(lambda _, args: (module(args[0], inverse=True),))
    torch.testing.assert_close(logits(by_hand, inputs), wanted, atol=1e-12, rtol=1e-12)

    with disabled(model):
        assert torch.equal(logits(model, inputs), base)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin, inputs), wanted)
        ends = [twin.get_submodule(path).adapterx_invertible["a"] for path in (entry, head)]
        assert ends[0] is ends[1]
    names = [name for name, _ in adapter_parameters(model)]
    assert len(names) == len(set(names)) == len([p for p in model.parameters() if p.requires_grad])
    assert summary(model).trainable == sum(p.numel() for _, p in adapter_parameters(model))
    logits(model, inputs).pow(3).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for _, parameter in adapter_parameters(model))
    assert unused_adapters(model) == {}

    save_adapter(model, tmp_path)
    bare = model.base_model
    hidden = bare(**inputs)[0]
    detach(model)
    assert_same(before, fingerprint(model))
    assert torch.equal(logits(model, inputs), base)
    load_adapter(bare, tmp_path)  # without the head
    assert torch.equal(bare(**inputs)[0], hidden)
    detach(bare)
    assert load_adapter(model, tmp_path).invertible == (entry, head)
    assert torch.equal(logits(model, inputs), wanted)


def test_the_first_adapter_alone_runs_its_own():
    model = masked_lm()
    attach(model, AdapterConfig(bottleneck_dim=2), "task")
    attach(model, CONFIG, "a")
    attach(model, GLOW, "b")
    randomise(model)
    inputs = inputs_of()
    embedded = {}
    for name in (None, "a", "b"):
        set_active(model, name)
        embedded[name] = model.bert.embeddings(**inputs)
    for names, first in (
        (Stack("a", "task"), "a"),
        (Stack("b", "a"), "b"),
        (Average("a", "b"), "a"),
        (Stack("task", "a"), None),
        (Average(Stack("b", "task"), "a"), "b"),
    ):
        set_active(model, names)
        assert torch.equal(model.bert.embeddings(**inputs), embedded[first])
    assert not torch.allclose(embedded["a"], embedded["b"])


@BOTH
def test_each_sequence_has_that_of_its_adapter(make, entry, head):
    model = make()
    for name, config in {"plain": AdapterConfig(bottleneck_dim=2), "a": CONFIG, "b": GLOW}.items():
        attach(model, config, name)
    randomise(model)
    names = ["b", None, "a", "plain", "b"]
    inputs = inputs_of(5)
    wanted = alone(model, names, inputs, logits)
    with mixed(model, names):
        found = logits(model, inputs)
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
        found.square().sum().backward()
    assert all(p.grad is not None for name in "ab" for _, p in adapter_parameters(model, name))
    set_active(model, "plain")
    with mixed(model, names):
        late = model.get_submodule(entry.removesuffix(".h.0"))(**inputs)[0].sum()
    with pytest.raises(RuntimeError, match="mixed: backward"):
        late.backward()
    with torch.no_grad(), fan_out(model, ["a", None, "b"]) as fan:
        outputs = fan(**inputs)
    for name, output in outputs.items():
        set_active(model, name)
        torch.testing.assert_close(output.logits, logits(model, inputs), atol=1e-12, rtol=1e-12)


def test_generates_with_a_cache():
    model = causal_lm()
    attach(model, CONFIG)
    randomise(model)
    ids = inputs_of()["input_ids"]
    options = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


def test_a_residual_stream_that_is_captured_is_the_changed_one():
    model = causal_lm()
    attach(model, AdapterConfig(bottleneck_dim=3, invertible="nice", placement="parallel_residual"))
    randomise(model)
    inputs = inputs_of()
    read = []
    adapter = model.transformer.h[0].attn.c_proj.adapterx["default"]
    adapter.register_forward_hook(lambda _, args, __: read.append(args[0]))
    logits(model, inputs)
    module = model.transformer.h[0].adapterx_invertible["default"]
    embedded = model.transformer.wte(inputs["input_ids"]) + model.transformer.wpe.weight[:6]
    torch.testing.assert_close(read[0], expected(module, embedded), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("t5", "encoder.block.0"), ("bart", "encoder.layers.0"), ("albert", "embeddings"), ("vit", "embeddings"),
        ("modernbert", "embeddings"), ("llama", "layers.0"),
    ],
)  # fmt: skip
def test_families(name, entry):
    model = build(name)
    model.requires_grad_(False)  # which alone may change the last digits
    inputs = inputs_for(name, model)
    base = run(model, inputs)
    assert attach(model, GLOW).invertible == (entry,)
    assert torch.equal(run(model, inputs), base)
    randomise(model)
    assert not torch.allclose(run(model, inputs), base, atol=1e-2)


def test_what_cannot_be_done_is_refused():
    for values, message in (
        ({"invertible": "real-nvp"}, "AdapterConfig: invertible must be one of None, nice, glow, got 'real-nvp'"),
        ({"invertible_reduction_factor": 0}, "AdapterConfig: invertible_reduction_factor must be at least 1/1024"),
    ):
        with pytest.raises(ConfigError, match=f"^{message}"):
            AdapterConfig(bottleneck_dim=2, **values)
    plain = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(TargetError, match="attach: invertible must be None where no adapted module is in a block"):
        attach(plain, AdapterConfig(bottleneck_dim=2, invertible="nice", target_modules=("0",)))
    config = transformers.OPTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, ffn_dim=48, vocab_size=99, word_embed_proj_dim=16
    )
    with pytest.raises(TargetError, match="head and the embeddings differ in size, got 16 of lm_head and 32 of model"):
        attach(transformers.OPTForCausalLM(config), CONFIG)
    model = masked_lm()
    attach(model, CONFIG)
    model.cls.predictions.decoder = nn.Linear(32, 99).double()
    with pytest.raises(TargetError, match="resize, prune and quantise before attaching"):
        summary(model)


def test_renamed_combined_and_run_in_parallel():
    model = masked_lm()
    config = AdapterConfig(bottleneck_dim=4, invertible="glow", phm={"dim": 4}, train_norms=True)
    for name in ("a", "b"):
        attach(model, config, name)
        randomise(model, name, seed=ord(name))
    inputs = inputs_of(3)
    alone_in = {}
    for name in ("a", "b"):
        set_active(model, name)
        alone_in[name] = logits(model, inputs)
    set_active(model, Parallel("a", "b"))
    torch.testing.assert_close(logits(model, inputs), torch.cat(list(alone_in.values())), atol=1e-12, rtol=1e-12)

    set_active(model, "b")
    rename_adapter(model, "b", "c")
    assert torch.equal(logits(model, inputs), alone_in["b"])
    attach(model, AdapterConfig(bottleneck_dim=2), "b")
    set_active(model, "c")
    assert torch.equal(logits(model, inputs), alone_in["b"])

    combine_adapters(model, "sum", {"a": 0.5, "c": -0.25})
    parts = {name: dict(adapter_parameters(model, name)) for name in ("a", "c", "sum")}
    for key, parameter in parts["sum"].items():
        one, other = (parts[name][key.replace(".sum.", f".{name}.")] for name in ("a", "c"))
        torch.testing.assert_close(parameter, 0.5 * one - 0.25 * other)
