import copy
import io
import threading
from typing import NamedTuple

import pytest
import torch
from tiny_models import FAMILIES, build, inputs_for, plain_model, run
from torch import nn
from torch.utils.checkpoint import checkpoint

from adapterx import (
    AdapterConfig,
    AdapterSet,
    ConfigError,
    TargetError,
    UnknownAdapterError,
    adapter_names,
    adapter_parameters,
    attach,
    detach,
    disabled,
    merge_adapter,
    reference,
    set_active,
    summary,
)

SEQUENTIAL = AdapterConfig(bottleneck_dim=4)
PARALLEL = AdapterConfig(bottleneck_dim=4, placement="parallel")
FEED_FORWARD = AdapterConfig(bottleneck_dim=3, positions=("feed_forward",))
PLACEMENTS = pytest.mark.parametrize("config", [SEQUENTIAL, PARALLEL], ids=["sequential", "parallel"])


def randomise(model, scale=0.3):
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for _, parameter in adapter_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def fingerprint(model):
    """Everything of a model that attaching must give back."""
    return (
        {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()},
        {name: (type(module), sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks),
                len(module._forward_hooks_with_kwargs), len(module._forward_pre_hooks_with_kwargs))
         for name, module in model.named_modules()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
    )  # fmt: skip


def assert_same(one, other):
    assert one[1:] == other[1:]
    assert one[0].keys() == other[0].keys()
    for name, (identity, tensor) in one[0].items():
        assert identity == other[0][name][0]
        assert torch.equal(tensor, other[0][name][1])


@pytest.mark.parametrize("name", FAMILIES)
@PLACEMENTS
def test_starts_as_exactly_the_base_model_and_ends_as_it_was(name, config):
    model = build(name)
    inputs = inputs_for(name, model)
    before = fingerprint(model)
    with torch.no_grad():
        base = run(model, inputs)
        report = attach(model, config, seed=1)
        assert torch.equal(run(model.train(), inputs), base)
        assert torch.equal(run(model.eval(), inputs), base)
        randomise(model)
        assert not torch.allclose(run(model, inputs), base, atol=1e-3)
        with disabled(model):
            assert torch.equal(run(model, inputs), base)
        assert len(report.targets) == FAMILIES[name][2]
        assert {k for k in model.state_dict() if ".adapterx." not in k} == before[0].keys()
        detach(model)
        assert torch.equal(run(model, inputs), base)
    assert_same(before, fingerprint(model))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "modernbert", "vit"])
@PLACEMENTS
def test_training_moves_every_adapter_and_nothing_else(name, config):
    model = build(name)
    inputs = inputs_for(name, model)
    attach(model, config, seed=1)
    base = {key: tensor.clone() for key, tensor in model.state_dict().items() if ".adapterx." not in key}
    parameters = dict(adapter_parameters(model))
    start = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        run(model.train(), inputs).square().mean().backward()
        assert {key for key, p in model.named_parameters() if p.grad is not None} == parameters.keys()
        optimizer.step()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in base.items())
    assert [key for key, parameter in parameters.items() if torch.equal(parameter, start[key])] == []


def test_sequential_adapter_stands_between_projection_and_residual():
    model = build("bert")
    attach(model, SEQUENTIAL)
    randomise(model)
    layer = model.encoder.layer[0]
    adapter = layer.output.dense.adapterx["default"]
    hidden_states, skip = torch.randn(2, 5, 48), torch.randn(2, 5, 32)
    with disabled(model):
        projected = layer.output.dense(hidden_states)
    weights = (adapter.down_proj.weight, adapter.down_proj.bias, adapter.up_proj.weight, adapter.up_proj.bias)
    adapted = reference.bottleneck_adapter(projected, projected, *weights, activation="gelu", scaling=1.0)
    expected = layer.output.LayerNorm(adapted + skip)  # y = LN(h + s g(h) + r)
    torch.testing.assert_close(layer.output(hidden_states, skip), expected, atol=1e-5, rtol=1e-5)


def test_parallel_adapter_reads_the_sublayers_input():
    model = build("bert")
    attach(model, AdapterConfig(bottleneck_dim=4, placement="parallel", scaling=4.0))
    randomise(model)
    layer = model.encoder.layer[0]
    hidden_states = torch.randn(2, 5, 32)

    def branch(module, source):
        adapter = module.adapterx["default"]
        weights = (adapter.down_proj.weight, adapter.down_proj.bias, adapter.up_proj.weight, adapter.up_proj.bias)
        return reference.bottleneck_adapter(source, None, *weights, activation="gelu", scaling=4.0)

    with disabled(model):
        context = layer.attention.self(hidden_states)[0]
        projected = layer.attention.output.dense(context)
        after_attention = layer.attention.output.LayerNorm(
            projected + branch(layer.attention.output.dense, hidden_states) + hidden_states
        )
        widened = layer.intermediate(after_attention)
        narrowed = layer.output.dense(widened) + branch(layer.output.dense, after_attention)
        expected = layer.output.LayerNorm(narrowed + after_attention)
    found = layer(hidden_states)
    found = found[0] if isinstance(found, tuple) else found
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@PLACEMENTS
def test_named_modules_overlap_and_return_tuples(config):
    model = build("llama")
    inputs = inputs_for("llama", model)
    base = run(model, inputs)
    targets = ("mlp", "mlp.down_proj", "self_attn")
    report = attach(model, AdapterConfig(bottleneck_dim=4, placement=config.placement, target_modules=targets))
    assert len(report.targets) == 6
    assert torch.equal(run(model, inputs), base)
    randomise(model)
    run(model, inputs).sum().backward()
    assert all(parameter.grad is not None for _, parameter in adapter_parameters(model))


def test_parallel_with_named_module_reads_that_modules_own_input():
    model = plain_model()
    attach(model, AdapterConfig(bottleneck_dim=3, placement="parallel", target_modules=("0.narrow",)))
    randomise(model)
    narrow = model.blocks[0].narrow
    hidden_states = torch.randn(4, 12)
    adapter = narrow.adapterx["default"]
    with disabled(model):
        base = narrow(hidden_states)
    torch.testing.assert_close(narrow(hidden_states), adapter(hidden_states, base))


class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.weight, self.kind = nn.Parameter(torch.eye(4)), kind

    def forward(self, hidden_states):
        return self.kind(hidden_states @ self.weight)


class Output(NamedTuple):
    states: torch.Tensor
    extra: int = 5


def test_kinds_of_output():
    hidden_states = torch.randn(3, 4)
    for kind in (lambda t: t, lambda t: (t,), lambda t: (t, None, "x"), Output):
        model = nn.ModuleDict({"part": Several(kind)})
        before = model["part"](hidden_states)
        attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("part",)))
        after = model["part"](hidden_states)
        assert type(after) is type(before)
        if isinstance(before, tuple):
            assert torch.equal(after[0], before[0])
            assert after[1:] == before[1:]
    model = nn.ModuleDict({"part": Several(lambda t: {"states": t})})
    attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("part",)))
    with pytest.raises(TypeError, match="must return a tensor or a tuple that begins with one, part returns dict"):
        model["part"](hidden_states)


def test_torch_transformer_layers():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    hidden_states = torch.randn(2, 5, 8)
    for config in (SEQUENTIAL, PARALLEL):
        with torch.no_grad():  # also where torch would take its fused path, which calls no submodule
            base = model(hidden_states)
            attach(model, config)
            torch.testing.assert_close(model(hidden_states), base)
            randomise(model)
            assert not torch.allclose(model(hidden_states), base, atol=1e-3)
        model(hidden_states).sum().backward()
        assert all(parameter.grad.any() for _, parameter in adapter_parameters(model))
        detach(model)


def test_report_names_modules_sizes_and_rule():
    model = build("bert")
    text = str(attach(model, AdapterConfig(reduction_factor=8, placement="parallel", modules_to_save=("pooler",))))
    assert text.splitlines()[0] == "adapter 'default' on 4 modules, chosen by table for model type 'bert'"
    assert "  encoder.layer.1.output.dense (feed_forward): 32 -> 4 -> 32, reads the input of" in text
    assert "pooler: trained copy" in text


# --- what is refused, and leaves the model as it was ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "name", "error", "message"),
    [
        (AdapterConfig(bottleneck_dim=33), "a", ConfigError, "at most the hidden size 32 of encoder.*dense, got 33"),
        (AdapterConfig(bottleneck_dim=4, target_modules=("x",)), "a", TargetError, "nothing matches 'x'"),
        (AdapterConfig(bottleneck_dim=4, layers=(9,)), "a", TargetError, r"got \[9\]"),
        (AdapterConfig(bottleneck_dim=4, modules_to_save=("classifier",)), "a", TargetError, "got 'classifier'"),
        (
            AdapterConfig(bottleneck_dim=4, modules_to_save=("encoder",)),
            "a",
            TargetError,
            "'encoder' holds 'encoder.lay",
        ),
        (SEQUENTIAL, "a.b", ConfigError, r"name must consist of letters, digits, '_' and '-', got 'a.b'"),
        (SEQUENTIAL, "", ConfigError, "got ''"),
        (SEQUENTIAL, "ä b", ConfigError, "got 'ä b'"),
        (SEQUENTIAL, "a\n", ConfigError, "got 'a"),
        (SEQUENTIAL, 3, ConfigError, "got 3"),
        (SEQUENTIAL, "keys", ConfigError, "must not be an attribute of torch.nn.ModuleDict, got 'keys'"),
        (SEQUENTIAL, "train", ConfigError, "got 'train'"),
    ],
)
def test_a_failing_attach_leaves_the_model_untouched(config, name, error, message):
    model = build("bert")
    before = fingerprint(model)
    with pytest.raises(error, match=message):
        attach(model, config, name)
    assert_same(before, fingerprint(model))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"bottleneck_dim": 4}, "got dict; AdapterConfig.from_dict makes one of a mapping"),
        ("houlsby", "got str"),
        (None, "got NoneType"),
        (AdapterConfig, "got type"),
    ],
    ids=str,
)
def test_what_is_no_config_is_refused_in_words(config, words):
    model = build("bert")
    before = fingerprint(model)
    with pytest.raises(TypeError, match=f"^attach: config must be an AdapterConfig, {words}"):
        attach(model, config)
    assert_same(fingerprint(model), before)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e4m3fn, "float32"], ids=str)
def test_dtypes_that_no_adapter_has(dtype):
    model = build("bert")
    before = fingerprint(model)
    with pytest.raises(ConfigError, match=r"^attach: dtype must be one of float32, bfloat16, float16, float64, got"):
        attach(model, SEQUENTIAL, dtype=dtype)
    assert_same(fingerprint(model), before)


def test_names_that_are_taken():
    model = build("bert")
    attach(model, SEQUENTIAL)
    before = fingerprint(model)
    with pytest.raises(ConfigError, match="name must be new, got 'default'"):
        attach(model, FEED_FORWARD)
    assert_same(before, fingerprint(model))
    own = plain_model()
    own.classifier.adapterx = nn.Linear(1, 1)
    with pytest.raises(TargetError, match="classifier has an attribute 'adapterx' of its own"):
        attach(own, AdapterConfig(bottleneck_dim=2, target_modules=("classifier",)))


def test_merge_is_refused_with_the_reason():
    model = build("bert")
    attach(model, SEQUENTIAL)
    with pytest.raises(NotImplementedError, match="non-linear activation"):
        merge_adapter(model)


# --- freezing, detaching ----------------------------------------------------------------------------------------------


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


# --- initial weights --------------------------------------------------------------------------------------------------


def test_seed_is_reproducible_and_leaves_the_global_random_numbers():
    first, second = build("bert"), build("bert")
    before = torch.get_rng_state()
    attach(first, SEQUENTIAL, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    attach(second, SEQUENTIAL, seed=0)
    weights = [dict(adapter_parameters(model)) for model in (first, second)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    downs = [tensor for name, tensor in weights[0].items() if name.endswith("down_proj.weight")]
    assert not torch.equal(downs[0], downs[1])  # one seed for the model, not the same weights everywhere
    other = build("bert")
    attach(other, SEQUENTIAL, seed=1)
    assert not torch.equal(next(adapter_parameters(other))[1], next(adapter_parameters(first))[1])


# --- devices, dtypes, modes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@PLACEMENTS
def test_adapters_take_the_dtype_of_their_module(config, dtype):
    model = build("bert").to(dtype)
    inputs = inputs_for("bert", model)
    base = run(model, inputs)
    attach(model, config)
    assert {parameter.dtype for _, parameter in adapter_parameters(model)} == {dtype}
    assert torch.equal(run(model, inputs), base)
    randomise(model)
    run(model, inputs).sum().backward()
    assert all(parameter.grad is not None for _, parameter in adapter_parameters(model))


class IntegerLinear(nn.Module):
    """A quantised layer in small: integer weights, bfloat16 results."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().max() / 127
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, hidden_states):
        return (hidden_states.float() @ (self.weight.float() * self.scale).T).bfloat16()


@PLACEMENTS
def test_quantised_modules_get_float32_adapters(config):
    model = plain_model().bfloat16()
    for block in model.blocks:
        block.narrow = IntegerLinear(block.narrow.float().requires_grad_(False))
    hidden_states = torch.randn(5, 8).bfloat16()
    base = model(hidden_states)
    options = {"positions": ("feed_forward",), "placement": config.placement}
    attach(model, AdapterConfig(bottleneck_dim=4, **options))
    assert {parameter.dtype for _, parameter in adapter_parameters(model)} == {torch.float32}
    assert torch.equal(model(hidden_states), base)
    model(hidden_states).sum().backward()
    assert all(parameter.grad is not None for _, parameter in adapter_parameters(model))
    detach(model)
    with pytest.raises(TargetError, match=r"floating-point parameters, got 'blocks\.0\.narrow'"):
        attach(model, AdapterConfig(bottleneck_dim=4, target_modules=("widen",), modules_to_save=("blocks.0.narrow",)))


def test_meta_models_and_meta_contexts():
    with torch.device("meta"):
        model = plain_model()
    attach(model, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",)))
    assert all(parameter.is_meta for _, parameter in adapter_parameters(model))
    assert model(torch.randn(3, 8, device="meta")).shape == (3, 3)
    model.to_empty(device="cpu")
    assert not any(parameter.requires_grad for parameter in model.classifier.parameters())
    detach(model)
    assert all(parameter.requires_grad for parameter in model.parameters())  # new objects, old flags
    model = plain_model()
    with torch.device("meta"):
        attach(model, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",)), seed=0)
    assert model(torch.randn(3, 8)).isfinite().all()


def test_training_mode_follows_the_module():
    model = plain_model().train()
    config = AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), dropout=0.5)
    attach(model, config, "a")
    model.eval()
    attach(model, config, "b")
    sets = [module for module in model.modules() if isinstance(module, AdapterSet)]
    assert not any(module.training for module in model.modules())
    model.train()
    assert all(adapter.training for adapters in sets for adapter in adapters.values())


# --- copies of the model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
@PLACEMENTS
@torch.no_grad()  # with gradients, T5's attention takes another path before freezing than after
def test_deepcopy_is_independent(name, config):
    model = build(name)
    inputs = inputs_for(name, model)
    base = run(model, inputs)
    attach(model, config)
    randomise(model)
    adapted = run(model, inputs)
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin, inputs), adapted)
    for _, parameter in adapter_parameters(twin):
        parameter.zero_()
    assert torch.equal(run(model, inputs), adapted)
    assert torch.equal(run(twin, inputs), base)
    detach(twin)
    assert torch.equal(run(twin, inputs), base)
    assert all(parameter.requires_grad for parameter in twin.parameters())
    assert torch.equal(run(model, inputs), adapted)


@PLACEMENTS
def test_pickle_of_the_whole_model(config):
    model = build("bert")
    inputs = inputs_for("bert", model)
    attach(model, config, "my-adapter-2")
    randomise(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    assert torch.equal(run(twin, inputs), run(model, inputs))
    with disabled(twin):
        assert not torch.equal(run(twin, inputs), run(model, inputs))
    detach(twin)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.modules())


@PLACEMENTS
def test_threads_share_a_model(config):
    model = build("bert")
    attach(model, config)
    randomise(model)
    batches = [inputs_for("bert", model, batch=size, length=3 + size) for size in range(1, 5)]
    with torch.no_grad():
        alone = [run(model, batch) for batch in batches]
    found = {}

    def work(index):
        with torch.no_grad():
            found[index] = [run(model, batches[index]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(alone):
        assert all(torch.equal(result, expected) for result in found[index])


def test_a_capture_holds_nothing_afterwards_and_complains_when_skipped():
    model = build("bert")
    inputs = inputs_for("bert", model)
    attach(model, PARALLEL)
    run(model, inputs)
    captures = [c for m in model.modules() if isinstance(m, AdapterSet) for c in m.captures.values()]
    assert len(captures) == 4
    assert all(capture.captured.hidden_states is None for capture in captures)
    with disabled(model):
        run(model, inputs)
    set_active(model, None)
    run(model, inputs)
    assert all(capture.captured.hidden_states is None for capture in captures)
    set_active(model, "default")
    message = r"reads the input of encoder\.layer\.0\.intermediate\.dense, which did not run before it"
    with pytest.raises(RuntimeError, match=message):
        model.encoder.layer[0].output.dense(torch.randn(1, 48))


# --- gradient checkpointing, compiling, exporting ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("reentrant", [True, False])
@PLACEMENTS
def test_gradient_checkpointing(name, reentrant, config):
    model = build(name).train()
    model.config.use_cache = False
    inputs = inputs_for(name, model)
    attach(model, config)
    randomise(model)

    def gradients():
        model.zero_grad()
        run(model, inputs).square().mean().backward()
        return [parameter.grad.clone() for _, parameter in adapter_parameters(model)]

    plain = gradients()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # new name in 5.x
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for one, other in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
@PLACEMENTS
def test_checkpointed_blocks_of_a_plain_model(reentrant, config):
    model = plain_model()
    attach(model, AdapterConfig(bottleneck_dim=2, positions=("feed_forward",), placement=config.placement, dropout=0.3))
    randomise(model)

    def gradients(wrapped):
        model.zero_grad()
        torch.manual_seed(5)
        hidden_states = torch.ones(4, 8, requires_grad=True)
        for block in model.blocks:
            hidden_states = (
                checkpoint(block, hidden_states, use_reentrant=reentrant) if wrapped else block(hidden_states)
            )
        hidden_states.square().sum().backward()
        return [parameter.grad.clone() for _, parameter in adapter_parameters(model)]

    for one, other in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["bert"])
@PLACEMENTS
def test_compile_in_one_graph(name, config):
    model = build(name)
    model.config.use_cache = False
    inputs = inputs_for(name, model)
    attach(model, config, "first-one")
    attach(model, FEED_FORWARD, "second")
    randomise(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for active in ("first-one", "second"):
        set_active(model, active)
        expected = run(model, inputs)
        found = run(compiled, inputs)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        found.sum().backward()
        assert all(parameter.grad is not None for _, parameter in adapter_parameters(model, active))


@pytest.mark.parametrize("name", ["bert", "llama"])
@PLACEMENTS
def test_export(name, config):
    model = build(name)
    model.config.use_cache = False
    inputs = inputs_for(name, model)
    report = attach(model, config, "my-adapter-2")
    randomise(model)
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, strict=False)
        torch.testing.assert_close(program.module()(**inputs)[0], run(model, inputs))
    nodes = [node for node in program.graph.nodes if node.target is torch.ops.adapterx.bottleneck_adapter.default]
    assert len(nodes) == len(report.targets)


# --- copies of modules ------------------------------------------------------------------------------------------------

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


# --- counting ---------------------------------------------------------------------------------------------------------


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
