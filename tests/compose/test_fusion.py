"""Fusions on a model: what trains, what is looked at, pruned, removed, copied, compiled and exported."""

import copy

import pytest
import torch
import transformers
from model_state import pickled
from tiny_adapters import randomise
from tiny_export import SIZES
from tiny_models import build, inputs_for, plain_model, run

from adapterx import (
    AdapterConfig,
    AdapterFusion,
    BatchSplit,
    ConfigError,
    Fuse,
    FusionConfig,
    Split,
    Stack,
    UnknownAdapterError,
    active_adapters,
    add_fusion,
    attach,
    detach,
    disabled,
    fusion_attention,
    fusion_regularization,
    fusions,
    mixed,
    prune_fusion,
    remove_fusion,
    set_active,
    summary,
)
from adapterx.compose import composition_from_dict
from adapterx.errors import ExportError
from adapterx.export import to_onnx, to_torchscript

CONFIG = AdapterConfig(bottleneck_dim=3, positions=("feed_forward",))
HIDDEN_STATES = torch.linspace(-1, 1, 48, dtype=torch.float64).view(2, 3, 8)


@pytest.fixture
def model():
    """A plain model with adapters a, b, c, fused."""
    model = plain_model().double()
    for name in "abc":
        attach(model, CONFIG, name)
    randomise(model)
    add_fusion(model, ["a", "b", "c"], seed=0)
    return model


def trainable(model):
    """Return the names of the adapters and fusions on the first module that train."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {name.split(".")[4] for name in names if name.startswith("blocks.0.narrow.adapterx")}


def test_the_fusion_trains_and_its_adapters_do_not_unless_they_shall(model):
    fuse = Fuse("a", "b", "c")
    assert trainable(model) == {"a,b,c"}
    assert summary(model).trainable_adapters == 2 * (2 * 72 + 64)
    model(HIDDEN_STATES).sum().backward()
    # A key's bias adds the same to all scores: its gradient is zero but for rounding.
    silent = [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 1e-12]
    assert all(name.endswith("key.bias") for name in silent)
    set_active(model, fuse, train_fused=True)
    assert trainable(model) == {"a", "b", "c", "a,b,c"}
    set_active(model, "a")
    assert trainable(model) == {"a"}
    set_active(model, fuse)
    assert trainable(model) == {"a,b,c"}


def test_fused_adapters_that_change_nothing_change_nothing():
    model = build("bert")
    inputs = inputs_for("bert", model)
    base = run(model, inputs)
    for name in "ab":
        attach(model, AdapterConfig(bottleneck_dim=4), name)
    add_fusion(model, ["a", "b"])
    assert torch.equal(run(model, inputs), base)


def test_pfeiffers_adapters_are_fused_behind_the_norm():
    model = build("bert").double()
    config = AdapterConfig(bottleneck_dim=4, placement="normed_sum", positions=("feed_forward",))
    for name in "ab":
        attach(model, config, name)
    randomise(model)
    add_fusion(model, ["a", "b"], seed=0)
    norm, hidden_states = model.encoder.layer[0].output.LayerNorm, torch.randn(2, 5, 32, dtype=torch.float64)
    normed = norm.forward(hidden_states)
    a, b = (norm.adapterx[name](normed, torch.zeros_like(normed)) for name in "ab")
    fusion = norm.adapterx_fusions["a,b"]
    expected = norm.forward(fusion(normed, torch.stack([a, b]), hidden_states))
    torch.testing.assert_close(norm(hidden_states), expected, rtol=0, atol=1e-12)
    set_active(model, None)
    with pytest.raises(ConfigError, match=r"query_before_ln must be False on encoder\.layer\.0\.output\.LayerNorm"):
        add_fusion(model, Fuse("a", "b", name="early"), FusionConfig(query_before_ln=True))


def test_query_of_the_output_before_the_residual_stream():
    model = build("bert").double()
    values = {"placement": "normed_sum", "added_to": "sum_plus_residual", "positions": ("feed_forward",)}
    for name in "ab":
        attach(model, AdapterConfig(bottleneck_dim=4, **values), name)
    randomise(model)
    fuse = add_fusion(model, ["a", "b"], FusionConfig(query_before_ln=True), seed=0)
    output = model.encoder.layer[0].output
    seen = {}
    output.dense.register_forward_hook(lambda _m, _a, dense: seen.update(dense=dense))
    fusion = output.LayerNorm.adapterx_fusions[fuse.key]
    fusion.register_forward_pre_hook(lambda _m, args: seen.update(query=args[0]))
    run(model, inputs_for("bert", model))
    torch.testing.assert_close(seen["query"], seen["dense"], rtol=0, atol=1e-12)


def test_attention_is_read_run_by_run(model):
    with torch.no_grad(), fusion_attention(model) as attention:
        model(HIDDEN_STATES)
        model(HIDDEN_STATES[:1])
    noted = attention["a,b,c"]["blocks.0.narrow"]
    assert [tuple(each.shape) for each in noted] == [(2, 3, 3), (1, 3, 3)]
    torch.testing.assert_close(noted[0].sum(-1), torch.ones(2, 3, dtype=torch.float64))
    model(HIDDEN_STATES)
    assert len(noted) == 2


def test_regularization_is_the_distance_from_the_identity(model):
    assert fusion_regularization(model).item() < 1e-9
    values = [m.value.weight for m in model.modules() if isinstance(m, AdapterFusion)]
    with torch.no_grad():
        values[0].mul_(3.0)
    expected = 0.01 * sum((value - torch.eye(8, dtype=torch.float64)).square().sum() for value in values)
    torch.testing.assert_close(fusion_regularization(model), expected)
    set_active(model, "a")
    assert fusion_regularization(model).item() == 0.0


def test_pruning_keeps_weights_and_the_most_used(model):
    with torch.no_grad(), fusion_attention(model) as attention:
        model(HIDDEN_STATES)
    use = torch.stack([noted[0].flatten(0, 1).mean(0) for noted in attention["a,b,c"].values()]).mean(0)
    best = [name for name, _ in sorted(zip("abc", use.tolist(), strict=True), key=lambda item: -item[1])[:2]]
    smaller = prune_fusion(model, "a,b,c", 2, attention=attention)
    assert set(smaller.parts) == set(best)
    assert prune_fusion(model, Fuse("a", "b", "c"), ["a", "c"], name="ac") == Fuse("a", "c", name="ac")
    hung = model.blocks[0].narrow.adapterx_fusions
    for key, tensor in hung["a,b,c"].state_dict().items():
        assert torch.equal(hung[smaller.key].state_dict()[key], tensor)
    set_active(model, smaller)
    assert active_adapters(model) == smaller.parts
    for keep, message in ((1, "two adapters or more"), (["a", "z"], r"got \['z'\]")):
        with pytest.raises(ConfigError, match=message):
            prune_fusion(model, "a,b,c", keep, attention=attention)
    with pytest.raises(ConfigError, match="attention must hold"):
        prune_fusion(model, "a,b,c", 2)


def test_fusions_go_with_their_adapters_and_by_themselves(model):
    set_active(model, "c")
    ab = add_fusion(model, ["a", "b"], active=False)
    assert fusions(model) == {"a,b,c": Fuse("a", "b", "c"), "a,b": ab}
    set_active(model, Stack("c", ab))
    with pytest.raises(ConfigError, match="must not be active, got 'a,b'"):
        remove_fusion(model, ab)
    remove_fusion(model, "a,b,c")
    with pytest.raises(UnknownAdapterError, match="got 'a,b,c'; there are 'a,b'"):
        remove_fusion(model, "a,b,c")
    detach(model, "a")
    assert active_adapters(model) == ("c",)
    assert not fusions(model)
    assert not any(hasattr(module, "adapterx_fusions") for module in model.modules())
    attach(model, CONFIG, "a", active=False)
    with pytest.raises(ConfigError, match=r"fusion 'a,b' must have been added to blocks\.0\.narrow"):
        set_active(model, ab)


def test_what_cannot_be_fused():
    model = plain_model()
    attach(model, CONFIG, "a")
    attach(model, AdapterConfig(bottleneck_dim=3, target_modules=("narrow",), placement="parallel"), "p")
    for names, error, message in (
        (["a", "p"], ConfigError, "adapters of Fuse must read and add to the same on blocks.0.narrow"),
        (["a", "z"], UnknownAdapterError, "add_fusion: name must be an attached adapter, got 'z'"),
    ):
        with pytest.raises(error, match=message):
            add_fusion(model, names)
    with pytest.raises(TypeError, match="config must be a FusionConfig, got dict"):
        add_fusion(model, ["a", "p"], {})
    attach(model, CONFIG, "b")
    add_fusion(model, ["a", "b"])
    with pytest.raises(ConfigError, match="must make a new fusion, 'a,b' is there"):
        add_fusion(model, ["a", "b"])
    with pytest.raises(ConfigError, match="names must not hold Fuse"), mixed(model, [Fuse("a", "b")]):
        pass


def test_copies_pickles_and_blocks(model):
    expected = model(HIDDEN_STATES)
    for twin in (copy.deepcopy(model), pickled(model)):
        assert torch.equal(twin(HIDDEN_STATES), expected)
        assert trainable(twin) == {"a,b,c"}
        detach(twin)
        assert not any(hasattr(module, "adapterx_fusions") for module in twin.modules())
    with disabled(model):
        assert not torch.equal(model(HIDDEN_STATES), expected)


def adapted_bert():
    """Return an encoder of one block with one adapted module, on which a stack and an adapter are fused."""
    model = transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False).eval()
    for name in "abc":
        attach(model, AdapterConfig(bottleneck_dim=4, positions=("feed_forward",)), name)
    add_fusion(model, [Stack("c", "a"), "b"], seed=0)
    randomise(model)
    return model


def test_compiles_in_one_graph():
    model = adapted_bert()
    inputs = inputs_for("bert", model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(run(compiled, inputs), run(model, inputs), atol=1e-5, rtol=1e-5)


def test_exported_models_fuse(tmp_path):
    model = adapted_bert()
    for document in (  # each is compared with the model at five shapes, or raises
        to_torchscript(model, tmp_path / "model.pt"),
        to_onnx(model, tmp_path, mode="function"),
    ):
        assert document["validation"]["max_abs_diff"] < 1e-5
        assert composition_from_dict(document["composition"]) == Fuse(Stack("c", "a"), "b")
    for composition in (BatchSplit("a", "b"), Stack(Split("a", None, splits=4))):
        set_active(model, composition)
        with pytest.raises(ExportError, match="model must serve every batch, got the active composition"):
            to_onnx(model, tmp_path)
