"""LoRA and prompt tuning of PEFT on one model with attached adapters: trained together, saved and loaded apart."""

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("peft", minversion="0.21")

from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft_cases import IDS, PEFTS_OWN, bert, llama, logits, randomise, trained

import adapterx
import adapterx.integrations.peft as plugin
from adapterx.errors import ConfigError, TargetError

pytestmark = PEFTS_OWN
OWN = adapterx.AdapterConfig(bottleneck_dim=4)


def lora(**options):
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False} | options)


def prompts():
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)


def both(config, order):
    """Return a model with attached adapters and one of PEFT's methods, put on in either order."""
    model = llama()
    if order == "attached first":
        adapterx.attach(model, OWN, "own")
        return get_peft_model(model, config())
    model = get_peft_model(model, config())
    adapterx.attach(model, OWN, "own")
    return model


ORDERS = ["attached first", "attached second"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("config", [lora, prompts])
def test_neither_freezes_the_other(config, order):
    model = both(config, order)
    theirs = {name for name, _ in model.named_parameters() if "lora_" in name or "prompt_encoder" in name}
    ours = {name for name, _ in adapterx.adapter_parameters(model)}
    assert theirs
    assert len(ours) == 16
    assert trained(model) == theirs | ours
    loss = model.train()(input_ids=IDS, labels=IDS).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n in theirs)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {name for name in theirs if name in changed} == theirs
    assert changed <= theirs | ours
    assert {name for name in ours if "up_proj" in name} <= changed  # the others wait for these to leave zero


@pytest.mark.parametrize("order", ORDERS)
def test_both_are_saved_and_loaded_apart(order, tmp_path):
    model = randomise(both(lora, order)).eval()
    model.save_pretrained(tmp_path / "lora")
    adapterx.save_adapter(model.get_base_model(), tmp_path / "own", "own")
    files = {name: set(load_file(tmp_path / name / "adapter_model.safetensors")) for name in ("lora", "own")}
    assert all("lora_" in name for name in files["lora"])
    assert all(".adapterx." in name for name in files["own"])
    first = PeftModel.from_pretrained(llama(), tmp_path / "lora")
    adapterx.load_adapter(first, tmp_path / "own")
    assert torch.equal(logits(first.eval()), logits(model))
    second = llama()
    adapterx.load_adapter(second, tmp_path / "own")
    assert torch.equal(logits(PeftModel.from_pretrained(second, tmp_path / "lora").eval()), logits(model))
    with model.disable_adapter(), adapterx.disabled(model):
        assert torch.equal(logits(model), logits(llama()))


def test_both_orders_compute_the_same():
    models = [randomise(both(lora, order)).eval() for order in ORDERS]
    names = [sorted(trained(model)) for model in models]
    assert names[0] == names[1]
    with torch.no_grad():
        for name, parameter in models[0].named_parameters():
            parameter.copy_(models[1].get_parameter(name))
    assert torch.equal(*map(logits, models))


def test_prompts_and_adapters_are_saved_and_loaded_apart(tmp_path):
    model = randomise(both(prompts, "attached first")).eval()
    model.save_pretrained(tmp_path / "prompts")
    adapterx.save_adapter(model.get_base_model(), tmp_path / "own", "own")
    assert set(load_file(tmp_path / "prompts" / "adapter_model.safetensors")) == {"prompt_embeddings"}
    base = llama()
    adapterx.load_adapter(base, tmp_path / "own")
    loaded = PeftModel.from_pretrained(base, tmp_path / "prompts").eval()
    assert torch.equal(logits(loaded), logits(model))


def test_an_adapter_on_a_module_of_lora_is_refused():
    model = get_peft_model(llama(), lora(target_modules=["q_proj", "o_proj"]))
    before = trained(model)
    with pytest.raises(TargetError, match=r"attach: .*layers\.0\.self_attn\.o_proj is adapted by PEFT"):
        adapterx.attach(model, OWN, "own")
    assert trained(model) == before
    for inside in (("default",), r".*\.q_proj\.base_layer"):
        with pytest.raises(TargetError, match="attach: target_modules must match"):
            adapterx.attach(model, adapterx.AdapterConfig(bottleneck_dim=2, target_modules=inside), "own")
    adapterx.attach(model, adapterx.AdapterConfig(bottleneck_dim=4, positions=("feed_forward",)), "own")


def test_lora_on_an_adapted_module_is_refused_and_the_model_stays():
    model = llama()
    adapterx.attach(model, OWN, "own")
    randomise(model)
    before, keys, flags = logits(model), set(model.state_dict()), trained(model)
    with pytest.raises(TargetError, match=r"must not take .* got model\.layers\.0\.self_attn\.o_proj, model"):
        get_peft_model(model, lora(target_modules=["o_proj"]))
    assert torch.equal(logits(model), before)
    assert set(model.state_dict()) == keys
    assert trained(model) == flags


def test_one_more_lora_on_an_adapted_module_is_refused_and_the_first_stays():
    model = both(lora, "attached second")
    randomise(model)
    before, keys, flags = logits(model.eval()), set(model.state_dict()), trained(model)
    with pytest.raises(TargetError, match=r"add_adapter: target_modules .* got model\.layers\.0\.self_attn\.o_proj"):
        model.add_adapter("two", lora(target_modules=["q_proj", "o_proj"]))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), before)
    assert set(model.state_dict()) == keys
    assert trained(model) == flags


def test_a_trained_copy_of_what_holds_adapters_is_refused():
    model = bert()
    adapterx.attach(model, OWN, "own")
    with pytest.raises(TargetError, match="modules_to_save must not take"):
        get_peft_model(model, lora(target_modules=["layer.0.attention.self.query"], modules_to_save=["layer.1"]))
    model = get_peft_model(bert(), lora(target_modules=["query"], modules_to_save=["classifier"]))
    with pytest.raises(TargetError, match="modules_to_save must not name what PEFT trains a copy of"):
        adapterx.attach(
            model, adapterx.AdapterConfig(bottleneck_dim=4, modules_to_save=("base_model.model.classifier",)), "own"
        )


def test_detaching_leaves_lora_training():
    model = both(lora, "attached second")
    adapterx.detach(model)
    assert trained(model) == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_the_tuner_wants_a_model_without_attached_adapters():
    model = llama()
    adapterx.attach(model, OWN, "own")
    with pytest.raises(ConfigError, match=r"get_peft_model: model must have no adapters that adapterx\.attach"):
        get_peft_model(model, plugin.BottleneckConfig(bottleneck_dim=4))
    adapterx.detach(model)
    wrapped = get_peft_model(model, plugin.BottleneckConfig(bottleneck_dim=4))
    adapterx.attach(wrapped, OWN, "own", active=False)
    assert adapterx.active_adapters(wrapped) == ("default",)
    with adapterx.mixed(wrapped, ["own", "default", None]):
        wrapped(input_ids=IDS)


def test_adapters_that_others_have_frozen_are_named():
    model = llama()
    adapterx.attach(model, OWN, "own")
    model.requires_grad_(False)  # as PEFT does where the plugin is not imported
    model.get_input_embeddings().requires_grad_(True)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert set(adapterx.unused_adapters(model)) == {"own"}
    adapterx.set_active(model, "own")
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert not adapterx.unused_adapters(model)


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time:UserWarning")
def test_one_peft_model_inside_another_is_refused():
    own = get_peft_model(llama(), plugin.BottleneckConfig(bottleneck_dim=4))
    for config in (lora(), prompts(), plugin.BottleneckConfig(bottleneck_dim=2)):
        for model in (own, own.get_base_model()):
            with pytest.raises(ConfigError, match="get_peft_model: model must not have a BottleneckConfig already"):
                get_peft_model(model, config)
    for config in (lora(), prompts()):
        theirs = get_peft_model(llama(), config)
        with pytest.raises(ConfigError, match="must not be adapted by another method of PEFT"):
            get_peft_model(theirs, plugin.BottleneckConfig(bottleneck_dim=2))


def test_structure_does_not_take_what_lora_has_added():
    import transformers

    config = transformers.GPTNeoXConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    config.model_type = "unheard_of"  # no table
    plain = transformers.GPTNeoXModel(config)
    expected = {target.module for target in adapterx.attach(plain, OWN).targets}
    model = get_peft_model(transformers.GPTNeoXModel(config), lora(target_modules=["query_key_value"]))
    assert {target.module for target in adapterx.attach(model.get_base_model(), OWN).targets} == expected
