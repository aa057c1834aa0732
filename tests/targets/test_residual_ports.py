"""Ports that read the residual stream in models that norm before each sublayer, and the tables that name it."""

import pytest
import torch
from special_configs import OLD
from tiny_adapters import randomise
from tiny_models import build, inputs_for, run
from torch.nn import functional

from adapterx import AdapterConfig, TargetError, attach, disabled, mixed, set_active
from adapterx.export import to_onnx, to_torchscript
from adapterx.host import base_modules
from adapterx.targets import Input, NormedOutput, ResidualSum
from adapterx.targets.find import _find_by_position
from adapterx.targets.layouts import LAYOUTS, model_type_of
from adapterx.targets.ports import first_input

ALL_POSITIONS = ("attention", "cross_attention", "feed_forward")
CROSS = ("t5", "mt5", "umt5", "bart", "mbart")
POST_NORMED = ("gemma2", "gemma3_text")  # the output is normed before it is added to the stream
PARALLEL_BLOCKS = ("gptj", "cohere")  # both sublayers read the stream at one place


def positions_of(name):
    return ALL_POSITIONS if name in CROSS else ("attention", "feed_forward")


def watch(model, names, seen, *, inputs):
    """Note what modules receive (or return) the first time that the model runs."""
    modules = dict(model.named_modules())

    def hook(name):
        def store(_module, args, kwargs, output):
            returned = output[0] if isinstance(output, tuple) else output
            seen.setdefault(name, first_input(args, kwargs) if inputs else returned)

        return store

    return [modules[name].register_forward_hook(hook(name), with_kwargs=True) for name in names]


def sites_by_block(model, name):
    sites, rule, _ = _find_by_position(base_modules(model), positions_of(name))
    assert rule.startswith("table")
    blocks = {}
    for site in sites:
        layouts = LAYOUTS[model_type_of(base_modules(model))]
        block = next(match[1] for layout in layouts if (match := layout.block_pattern().match(site.module)) is not None)
        blocks.setdefault(block, {})[site.position] = site
    return blocks


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_the_stream_is_what_the_output_is_added_to(name):
    if OLD and name.startswith("clip"):
        pytest.skip("the masks of CLIP in transformers 4 do not suit float64")
    model = build(name).double()
    inputs = inputs_for(name, model)
    blocks = sites_by_block(model, name)
    assert blocks
    for block, sites in blocks.items():
        assert set(sites) >= {"attention", "feed_forward"}
        streams, outputs, norms, ends = {}, {}, {}, {}
        handles = watch(model, [site.residual for site in sites.values()], streams, inputs=True)
        handles += watch(model, [site.module for site in sites.values()], outputs, inputs=False)
        handles += watch(model, [site.norm for site in sites.values() if site.norm], norms, inputs=True)
        handles += watch(model, [block], ends, inputs=False)
        run(model, inputs)
        for handle in handles:
            handle.remove()
        order = [sites[p] for p in ALL_POSITIONS if p in sites]
        if name in PARALLEL_BLOCKS:
            total = streams[order[0].residual] + outputs[order[0].module] + outputs[order[1].module]
            torch.testing.assert_close(total, ends[block], rtol=0, atol=1e-12)
            continue
        for site, following in zip(order, [*order[1:], None], strict=True):
            after = ends[block] if following is None else streams[following.residual]
            total = streams[site.residual] + outputs[site.module].view_as(streams[site.residual])
            if site.norm is not None:
                torch.testing.assert_close(total, norms[site.norm], rtol=0, atol=1e-12)
            elif name in POST_NORMED or name == "olmo2":
                added = after - streams[site.residual]  # an RMSNorm of the output, whose weights are 1
                assert (functional.cosine_similarity(added, outputs[site.module], dim=-1) > 1 - 1e-12).all()
            else:
                torch.testing.assert_close(total, after, rtol=0, atol=1e-12)


def branch_of(adapter, hidden_states):
    down = functional.gelu(functional.linear(hidden_states, adapter.down_proj.weight, adapter.down_proj.bias))
    return 0.7 * functional.linear(down, adapter.up_proj.weight, adapter.up_proj.bias)


CASES = [("residual_sum", "sum"), ("residual_sum", "sum_plus_residual"), ("parallel_residual", "sum")]


@pytest.mark.parametrize(("placement", "added_to"), CASES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "cohere", "t5", "mbart", "vit", "modernbert", "bert"])
def test_the_formulas(name, placement, added_to):
    model = build(name).double()
    inputs = inputs_for(name, model)
    sites = {site.module: site for site in _find_by_position(base_modules(model), positions_of(name))[0]}
    options = {"placement": placement, "added_to": added_to, "positions": positions_of(name), "layers": (0,)}
    report = attach(model, AdapterConfig(bottleneck_dim=4, scaling=0.7, **options))
    with disabled(model):
        base = run(model, inputs)
    assert torch.equal(run(model, inputs), base) == (added_to == "sum")
    randomise(model)
    assert {target.position for target in report.targets} == set(options["positions"])
    for target in report.targets:
        residuals, outputs, adapted = {}, {}, {}
        module = model.get_submodule(target.module)
        first = module.register_forward_hook(lambda *call, seen=outputs: seen.update(h=call[-1]), prepend=True)
        handles = watch(model, [sites[target.module].residual], residuals, inputs=True)
        handles += watch(model, [target.module], adapted, inputs=False)
        run(model, inputs)
        for handle in [first, *handles]:
            handle.remove()
        h, r = outputs["h"], residuals[sites[target.module].residual]
        read = r if placement == "parallel_residual" else h + r
        expected = h + branch_of(module.adapterx["default"], read) + (r if added_to == "sum_plus_residual" else 0)
        torch.testing.assert_close(adapted[target.module], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("placement", "added_to"), [*CASES, ("normed_sum", "normed")])
def test_mixed_batches_and_stacks(placement, added_to):
    name = "bert" if placement == "normed_sum" else "gpt2"
    model = build(name).double()
    inputs = inputs_for(name, model, batch=4)
    for adapter, width in (("a", 4), ("b", 3)):
        attach(model, AdapterConfig(bottleneck_dim=width, placement=placement, added_to=added_to), adapter)
    attach(model, AdapterConfig(bottleneck_dim=3), "c")
    randomise(model)
    names = ["b", None, "a", "c"]
    with mixed(model, names):
        together = run(model, inputs)
    for row, name in enumerate(names):
        set_active(model, name)
        torch.testing.assert_close(run(model, inputs)[row], together[row], rtol=0, atol=1e-12)
    set_active(model, ["a", "b"])
    stacked = run(model, inputs)
    set_active(model, ["b", "a"])
    moved = (run(model, inputs) - stacked).abs().max()
    assert moved < 1e-12 if placement == "parallel_residual" else moved > 1e-6  # parallel ones read one tensor


@pytest.mark.skipif(OLD, reason="the decoders of transformers 4 cannot be traced, with or without adapters")
def test_exported(tmp_path):
    model = build("gpt2")
    attach(model, AdapterConfig(bottleneck_dim=4, placement="residual_sum", positions=("attention",)), "a")
    attach(model, AdapterConfig(bottleneck_dim=4, placement="parallel_residual", positions=("feed_forward",)), "b")
    set_active(model, ["a", "b"])
    randomise(model)
    for document in (to_torchscript(model, tmp_path / "model.pt"), to_onnx(model, tmp_path)):
        assert document["adapter_nodes"] == 4
        assert document["validation"]["max_abs_diff"] < 1e-4


def test_ports_of_the_tables():
    ports = [
        ("gpt2", {"placement": "residual_sum"}, ResidualSum("sum", "h.0.ln_1")),
        ("gpt2", {"placement": "parallel_residual"}, Input("h.0.ln_1")),
        ("bert", {"placement": "residual_sum"}, ResidualSum("sum", "encoder.layer.0.attention.self")),
        ("bert", {"placement": "normed_sum", "added_to": "normed"}, NormedOutput()),
    ]
    for name, options, port in ports:
        assert attach(build(name), AdapterConfig(bottleneck_dim=4, **options)).targets[0].port == port


@pytest.mark.parametrize("placement", ["residual_sum", "parallel_residual"])
def test_where_the_stream_is_not_known(placement):
    for name, options, words in [
        ("opt", {}, f"placement '{placement}' needs the residual stream of each sublayer that a table names"),
        ("gpt2", {"target_modules": ("c_proj",)}, f"target_modules must not be given with placement='{placement}'"),
    ]:
        model = build(name)
        with pytest.raises(TargetError, match=f"^attach: {words}"):
            attach(model, AdapterConfig(bottleneck_dim=4, placement=placement, **options))
        assert not [child for child in model.modules() if hasattr(child, "adapterx")]
