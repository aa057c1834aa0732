"""`BottleneckConfig` in PEFT: what PEFT's own tests ask of a method, and that it runs what `attach` would hang."""

import copy
import importlib
import json

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("peft", minversion="0.21")

import peft
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import hotswap
from peft_cases import IDS, PEFTS_OWN, bert, llama, logits, randomise, trained

import adapterx
import adapterx.integrations.peft as plugin
from adapterx.errors import CheckpointError, ConfigError, ExtensionError, TargetError, UnknownAdapterError
from adapterx.integrations.peft.keys import tensor_names

pytestmark = PEFTS_OWN
Config = plugin.BottleneckConfig


def wrapped(model=None, name="default", **options):
    options = {"bottleneck_dim": 4} | options
    return get_peft_model(bert() if model is None else model, Config(**options), name).eval()


def two_adapters(**options):
    model = randomise(wrapped(name="one", **options))
    model.add_adapter("two", Config(bottleneck_dim=8, activation="relu", **options))
    model.set_adapter("two")
    randomise(model, 2)
    return model.eval()


# --- the configuration ------------------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"reduction_factor": 4, "placement": "parallel", "scaling": "learned", "positions": ["feed_forward"]},
    {"bottleneck_dim": {0: 2, "default": 4}, "layers": [0], "norm_before": True, "gating": True},
    {"bottleneck_dim": 4, "phm": {"dim": 2}, "train_norms": True},
    {"bottleneck_dim": 4, "target_modules": ["output.dense"], "exclude_modules": ["attention.output.dense"]},
    {"bottleneck_dim": 4, "target_modules": r".*\.layer\.1\.output\.dense", "modules_to_save": ["classifier"]},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_config_goes_to_a_file_and_back(options, tmp_path):
    config = Config(task_type="SEQ_CLS", **options)
    config.save_pretrained(tmp_path)
    for read in (Config.from_pretrained(tmp_path), PeftConfig.from_pretrained(tmp_path)):
        assert type(read) is Config
        assert read.to_dict() == config.to_dict()
    assert copy.deepcopy(config) == config
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "ADAPTERX_BOTTLENECK"


def test_a_config_without_a_width_has_that_of_houlsby_and_pfeiffer():
    assert Config().reduction_factor == 16
    assert Config(bottleneck_dim=3).reduction_factor is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.5}, "BottleneckConfig: dropout must"),
        ({"bottleneck_dim": 4, "reduction_factor": 2}, "BottleneckConfig: exactly one of"),
        ({"exclude_modules": ["dense"]}, "exclude_modules must be given with target_modules"),
    ],
)
def test_a_config_that_breaks_a_rule_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Config(**options)


# --- one adapter ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS[:4])
def test_it_hangs_what_attach_hangs(options, tmp_path):
    options = {"bottleneck_dim": 4} | options if "reduction_factor" not in options else options
    base = bert()
    base_logits = logits(base)
    model = wrapped(base, **options) if "reduction_factor" not in options else get_peft_model(base, Config(**options))
    model.eval()
    assert torch.equal(logits(model), base_logits), "a new adapter is the identity"
    own = bert()
    adapterx.attach(own, adapterx.AdapterConfig(**options), "default")
    assert adapterx.adapters(base)["default"].targets == adapterx.adapters(own)["default"].targets
    randomise(model)
    values = {name.removeprefix("base_model.model."): p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(values.pop(name))
    assert not values, "nothing else trains"
    assert torch.equal(logits(model), logits(own))
    assert not torch.equal(logits(model), base_logits)


def test_the_base_keeps_its_classes_and_keys():
    keys = set(bert().state_dict())
    model = wrapped()
    assert keys <= set(model.get_base_model().state_dict())
    assert type(model.get_base_model().bert.encoder.layer[0].output.dense) is torch.nn.Linear
    assert {".adapterx." in name for name in trained(model)} == {True}


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({"target_modules": ["output.dense"], "layers": [1]}, {"attention.output.dense", "output.dense"}),
        ({"target_modules": r".*1\.output\.dense"}, {"output.dense"}),
        ({"target_modules": ["query"], "layers": [1]}, {"attention.self.query"}),
        (
            {"target_modules": ["output.dense"], "exclude_modules": r".*attention.*|.*layer\.0\..*"},
            {"output.dense"},
        ),
    ],
)
def test_target_modules_mean_what_peft_means(options, chosen):
    model = wrapped(**options)
    prefix = "bert.encoder.layer.1."
    assert set(model.peft_config["default"].adapted_modules) == {prefix + name for name in chosen}
    assert set(model.base_model.targeted_module_names) == {prefix + name for name in chosen}


def test_all_linear_leaves_the_head_out():
    model = wrapped(target_modules="all-linear", task_type="SEQ_CLS")
    found = set(model.peft_config["default"].adapted_modules)
    linear = {name for name, module in bert().named_modules() if type(module) is torch.nn.Linear}
    assert found == linear - {"classifier"}


def test_targets_that_match_nothing_are_refused_and_leave_the_model():
    base = bert()
    with pytest.raises(TargetError, match="get_peft_model: target_modules must match"):
        wrapped(base, target_modules=["nowhere"])
    assert trained(base) == {name for name, _ in base.named_parameters()}
    assert not adapterx.adapters(base)


def test_the_layers_tell_peft_how_they_are():
    model = two_adapters()
    status = model.get_model_status()
    assert (status.enabled, status.active_adapters, status.available_adapters) == (True, ["two"], ["one", "two"])
    assert status.peft_types == {"one": "ADAPTERX_BOTTLENECK", "two": "ADAPTERX_BOTTLENECK"}
    assert status.requires_grad == {"one": False, "two": True}
    assert len(model.get_layer_status()) == 4
    with model.disable_adapter():
        assert model.get_model_status().enabled is False
        assert model.get_model_status().active_adapters == ["two"]
    adapterx.set_active(model, "one")  # past PEFT, which tells the truth all the same
    assert model.get_model_status().active_adapters == ["one"]


def test_disable_adapter_gives_the_base_model_and_nests():
    model = randomise(wrapped(modules_to_save=["classifier"]))
    before, flags, base_logits = logits(model), trained(model), logits(bert())
    assert not torch.equal(before, base_logits)
    with model.disable_adapter():
        with model.disable_adapter():
            assert torch.equal(logits(model), base_logits)
        assert torch.equal(logits(model), base_logits)
        twin = copy.deepcopy(model)
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(twin), base_logits)
    assert trained(model) == flags


def test_a_frozen_adapter_stays_frozen_when_it_was_disabled():
    model = wrapped()
    model.set_adapter("default", inference_mode=True)
    assert not trained(model)
    with model.disable_adapter():
        pass
    assert not trained(model)
    model.set_requires_grad("default")
    assert len(trained(model)) == 16


# --- several ----------------------------------------------------------------------------------------------------------


def test_several_adapters_are_switched_stacked_and_deleted():
    model = two_adapters()
    two = logits(model)
    assert trained(model) == {name for name, _ in model.named_parameters() if ".two." in name}
    model.set_adapter("one")
    one = logits(model)
    assert not torch.equal(one, two)
    model.base_model.set_adapter(["one", "two"])
    assert adapterx.active_adapters(model) == ("one", "two")
    assert len({str(logits(model)), str(one), str(two)}) == 3
    model.set_adapter("two")
    with pytest.warns(UserWarning, match="'two' was active, now 'one' is"):
        model.delete_adapter("two")
    assert torch.equal(logits(model), one)
    assert model.active_adapters == ["one"]
    assert "two" not in model.peft_config
    model.delete_adapter("one")
    assert torch.equal(logits(model.base_model.model), logits(bert()))  # PEFT itself asks for the active adapter
    assert not [name for name in model.state_dict() if "adapterx" in name]
    model.add_adapter("three", Config(bottleneck_dim=2))
    model.set_adapter("three")
    assert len(trained(model)) == 16
    with pytest.raises(ValueError, match="Adapter one"):
        model.delete_adapter("one")
    with pytest.raises(UnknownAdapterError, match="set_adapter: name must be an attached adapter"):
        model.base_model.set_adapter("one")


def test_adding_an_adapter_changes_nothing_of_the_others():
    model = randomise(wrapped(name="one", modules_to_save=["classifier"]))
    before, flags = logits(model), trained(model)
    model.add_adapter("two", Config(bottleneck_dim=8, modules_to_save=["classifier"]))
    assert torch.equal(logits(model), before)
    assert trained(model) == flags
    model.set_adapter("two")
    assert {name.split(".two.")[0].rpartition(".")[2] for name in trained(model)} == {"adapterx", "modules_to_save"}


def test_adding_an_adapter_leaves_frozen_ones_frozen():
    model = wrapped(inference_mode=True, modules_to_save=["classifier"])
    assert not trained(model)
    model.add_adapter("two", Config(bottleneck_dim=8, modules_to_save=["classifier"]))
    assert not trained(model)


@pytest.mark.parametrize("name", ["output", "down_proj", "classifier", "weight", "merged", "a.b"])
def test_names_that_peft_would_take_for_others_are_refused(name):
    model = wrapped()
    with pytest.raises(ConfigError, match=r"add_adapter: (adapter_)?name must"):
        model.add_adapter(name, Config(bottleneck_dim=2))
    assert list(model.peft_config) == ["default"]
    with pytest.raises(ConfigError, match=r"get_peft_model: (adapter_)?name must"):
        wrapped(name=name)


def test_weighted_adapters_are_weighted_sums_of_parameters():
    model = randomise(wrapped(name="one"))
    model.add_adapter("two", Config(bottleneck_dim=4))
    model.set_adapter("two")
    randomise(model, 2)
    model.add_weighted_adapter(["one", "two"], [0.7, -0.2], "sum")
    assert model.active_adapters == ["two"]
    adapters = model.get_base_model().bert.encoder.layer[0].output.dense.adapterx
    expected = 0.7 * adapters["one"].up_proj.weight - 0.2 * adapters["two"].up_proj.weight
    assert torch.allclose(adapters["sum"].up_proj.weight, expected)
    model.set_adapter("sum")
    with pytest.raises(ConfigError, match="combination_type must be 'linear'"):
        model.add_weighted_adapter(["one", "two"], [1, 1], "other", "svd")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
def test_what_is_saved_is_loaded_bit_for_bit(options, tmp_path):
    model = randomise(get_peft_model(bert(), Config(**options))).eval()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.") and "default" not in name for name in state)
    loaded = PeftModel.from_pretrained(bert(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert not trained(loaded)
    loaded.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    going_on = PeftModel.from_pretrained(bert(), tmp_path, is_trainable=True, low_cpu_mem_usage=True)
    assert trained(going_on) == trained(model)
    assert torch.equal(logits(going_on.eval()), logits(model))


def test_each_adapter_has_its_own_folder(tmp_path):
    model = two_adapters(modules_to_save=["classifier"])
    model.save_pretrained(tmp_path)
    two = logits(model)
    model.set_adapter("one")
    loaded = PeftModel.from_pretrained(bert(), tmp_path / "one", "first")
    loaded.load_adapter(tmp_path / "two", "second")
    assert torch.equal(logits(loaded), logits(model))
    loaded.set_adapter("second")
    assert torch.equal(logits(loaded), two)


def test_the_base_model_is_found_by_its_name(tmp_path):
    bert().save_pretrained(tmp_path / "base")
    base = type(bert()).from_pretrained(tmp_path / "base")
    model = randomise(wrapped(base, task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded.eval()), logits(model))


def test_files_of_another_model_are_refused(tmp_path):
    wrapped().save_pretrained(tmp_path)
    with pytest.raises(TargetError, match="must have the modules that adapter 'default' was made for"):
        PeftModel.from_pretrained(llama(), tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    lacking = dict(list(state.items())[1:])
    model = wrapped()
    with pytest.raises(CheckpointError, match="1 are missing"):
        peft.set_peft_model_state_dict(model, lacking)
    strange = {**state, "base_model.model.bert.pooler.adapterx.up_proj.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match="1 belong to modules without it"):
        peft.set_peft_model_state_dict(model, strange)


def test_weights_are_exchanged_in_place_where_hot_swapping_is_refused(tmp_path):
    first, second = randomise(wrapped()), randomise(wrapped(), 2)
    second.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ADAPTERX_BOTTLENECK"):
        hotswap.hotswap_adapter(first, str(tmp_path), "default")
    peft.set_peft_model_state_dict(first, peft.load_peft_weights(str(tmp_path)))
    assert torch.equal(logits(first), logits(second))


def test_dtypes_follow_autocast_adapter_dtype(tmp_path):
    model = wrapped(bert().to(torch.bfloat16))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    low = get_peft_model(bert().to(torch.bfloat16), Config(bottleneck_dim=4), autocast_adapter_dtype=False)
    assert {p.dtype for p in low.parameters() if p.requires_grad} == {torch.bfloat16}
    assert logits(low).dtype == torch.bfloat16


def test_the_wrappers_of_fsdp_are_in_no_name():
    model = wrapped()
    before = tensor_names(model, "default")
    blocks = model.get_base_model().bert.encoder.layer
    blocks[0] = torch.nn.ModuleDict({"_fsdp_wrapped_module": blocks[0]})
    assert any("_fsdp_wrapped_module" in name for name, _ in model.named_modules())
    assert tensor_names(model, "default") == before


def test_what_is_gone_is_not_saved_as_nothing(tmp_path):
    model = wrapped()
    dense = model.get_base_model().bert.encoder.layer[0].output
    dense.dense = torch.nn.Linear(48, 32)  # as a quantiser does
    with pytest.raises(TargetError, match="save_pretrained: model must keep the modules"):
        model.save_pretrained(tmp_path)
    model = wrapped()
    adapterx.detach(model)  # past PEFT
    with pytest.raises(UnknownAdapterError, match="save_pretrained: name must be an attached adapter"):
        model.save_pretrained(tmp_path)


# --- what cannot be done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["merge_and_unload", "merge_adapter", "unmerge_adapter"])
def test_merging_is_refused(function):
    model = randomise(wrapped())
    before = logits(model)
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        getattr(model, function)()
    assert torch.equal(logits(model), before)


def test_unload_gives_the_model_back():
    base = bert()
    before = trained(base)
    model = randomise(wrapped(base))
    assert model.unload() is base
    assert torch.equal(logits(base), logits(bert()))
    assert set(base.state_dict()) == set(bert().state_dict())
    assert trained(base) == before
    assert wrapped(base).active_adapters == ["default"]


def test_what_is_not_get_peft_model_is_refused_in_words():
    with pytest.raises(TypeError, match=r"must be given to peft\.get_peft_model"):
        peft.inject_adapter_in_model(Config(bottleneck_dim=4), bert())
    model = bert()
    with pytest.raises(TypeError, match=r"peft.get_peft_model\(model, config\)"):
        model.add_adapter(Config(bottleneck_dim=4))
    assert not adapterx.adapters(model)
    with pytest.raises(ValueError, match="ADAPTERX_BOTTLENECK"):
        get_peft_model(bert(), Config(bottleneck_dim=4), mixed=True)
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        wrapped().add_adapter("other", LoraConfig(target_modules=["query"]))
    layer = wrapped().get_base_model().bert.encoder.layer[0].output.dense.adapterx
    with pytest.raises(NotImplementedError, match="call delete_adapter of the PeftModel"):
        layer.delete_adapter("default")


@pytest.mark.parametrize("version", ["0.19.1", "0.20.0"])
def test_an_old_peft_is_refused(version, monkeypatch):
    from adapterx.integrations.peft import requirements

    monkeypatch.setattr(peft, "__version__", version)
    with pytest.raises(ExtensionError, match=rf"peft must be at least 0.21, got {version}"):
        importlib.reload(requirements)


# --- one batch, several adapters --------------------------------------------------------------------------------------


def test_adapter_names_run_each_sequence_with_its_own():
    model = two_adapters(modules_to_save=["classifier"])
    two = logits(model)
    model.set_adapter("one")
    one, base_logits = logits(model), logits(bert())
    mixed = logits(model, adapter_names=["two", "__base__", "one"])
    assert torch.allclose(mixed, torch.stack([two[0], base_logits[1], one[2]]), atol=1e-6)
    assert torch.equal(logits(model), one)
    for names, message in (
        (["two", "three", "one"], "must be an adapter of the model"),
        (["one"], r"must be \(1, ..., hidden_size\), one entry of names per sequence"),
    ):
        with pytest.raises(ValueError, match=message):
            logits(model, adapter_names=names)
    with pytest.raises(ValueError, match="must be in eval mode"):
        model.train()(input_ids=IDS, adapter_names=["one"] * 3)


def test_adapters_of_different_modules_to_save_are_not_mixed():
    model = randomise(wrapped(name="one", modules_to_save=["classifier"]))
    model.add_adapter("two", Config(bottleneck_dim=8))
    with pytest.raises(ValueError, match="must all have the same modules_to_save"):
        logits(model.eval(), adapter_names=["one", "two", "one"])
    assert logits(model, adapter_names=["one", "__base__", "one"]).shape == (3, 2)
