"""Adapters and trained copies that no gradient reaches are named: by the function, the trainer, and at attach."""

import warnings

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import tiny_training
import transformers
from quick_arguments import quick_arguments
from tiny_models import SIZES, build, inputs_for, run
from torch import nn
from transformers import BertModel

from adapterx import (
    AdapterConfig,
    AdapterSet,
    TargetError,
    TrainingError,
    adapters,
    attach,
    disabled,
    set_active,
    unused_adapters,
)
from adapterx.heads import SequenceClassifier
from adapterx.integrations.transformers import AdapterTrainer

CONFIG = AdapterConfig(bottleneck_dim=4)


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {"input_ids": torch.arange(5) + i, "labels": i % 2}


def train(model, folder, **settings):
    settings = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
    } | settings
    arguments = quick_arguments(folder, **settings)
    trainer = AdapterTrainer(model=model, args=arguments, train_dataset=Rows())
    trainer.train()
    return trainer


class Branches(nn.Module):
    """Two experts of which a token takes one, a norm that is read and not called, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.experts = nn.ModuleDict({"left": nn.Linear(8, 8), "right": nn.Linear(8, 8)})
        self.read = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)
        self.takes = ["left"]

    def forward(self, input_ids, labels=None):
        states = self.experts[self.takes.pop() if len(self.takes) > 1 else self.takes[0]](self.embed(input_ids))
        states = nn.functional.linear(states, self.read.weight)
        logits = self.head(states.mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


BRANCHES = AdapterConfig(
    bottleneck_dim=2, init_up="near_zero", target_modules=("left", "right", "read"), modules_to_save=("head",)
)


def test_the_function_names_what_no_gradient_reached():
    model = Branches()
    attach(model, BRANCHES, "a")
    attach(model, BRANCHES, "idle", active=False)
    model(torch.arange(10).view(2, 5), labels=torch.tensor([0, 1]))["loss"].backward()
    assert unused_adapters(model) == {"a": ("experts.right", "read")}
    assert unused_adapters(model.experts) == {"a": ("right",)}
    set_active(model, None)
    assert unused_adapters(model) == {}


def test_the_trainer_names_them_after_the_first_step_and_at_the_end(tmp_path):
    model = Branches()
    model.takes = ["left", "right", "left"]
    attach(model, BRANCHES)
    with pytest.warns(UserWarning, match="no gradient reached") as caught:
        train(model, tmp_path)
    texts = [str(warning.message) for warning in caught if "gradient" in str(warning.message)]
    first = "AdapterTrainer: no gradient reached 'default' on experts.right, 'default' on read in the first step"
    assert texts[0].startswith(first)
    assert "'default' on read in any step: it has learned nothing" in texts[1]
    assert "experts" not in texts[1]


def test_accumulated_steps_count_as_one(tmp_path):
    model = Branches()
    model.takes = ["left", "right", "left"]
    attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("left", "right")))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="AdapterTrainer")
        train(model, tmp_path, max_steps=1, gradient_accumulation_steps=2)


def test_a_training_that_reaches_no_adapter_is_refused(tmp_path):
    model = SequenceClassifier(BertModel(tiny_training.tiny_config(), add_pooling_layer=False), 2)
    attach(model.base_model, CONFIG)
    forward = model.base_model.forward
    model.base_model.forward = lambda **inputs: tuple(state.detach() for state in forward(**inputs).to_tuple())
    with pytest.raises(TrainingError, match=r"AdapterTrainer: model must let gradients reach its adapters, none reach"):
        train(model, tmp_path)


def test_a_training_of_adapters_that_were_lost_is_refused(tmp_path):
    model = Branches()
    attach(model, BRANCHES)
    model.head = nn.Linear(8, 2)
    with pytest.raises(TargetError, match=r"AdapterTrainer: model must keep the modules .* head was replaced"):
        train(model, tmp_path)


def test_the_usual_trainings_say_nothing(tmp_path):
    for attached in (True, False):
        model = SequenceClassifier(BertModel(tiny_training.tiny_config(), add_pooling_layer=False), 2)
        if attached:
            attach(model.base_model, CONFIG)
        else:
            model.base_model.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="AdapterTrainer")
            train(model, tmp_path)


def test_info_names_them(tmp_path, monkeypatch):
    pytest.importorskip("typer")
    from adapterx.cli import inspection

    folder = tiny_training.save_tiny_model(tmp_path / "base")
    assert "gradient" not in inspection.describe(str(folder))
    assert "tried" not in inspection.describe(str(folder))
    base = BertModel.from_pretrained(folder, add_pooling_layer=False)
    monkeypatch.setattr(inspection, "load_base", lambda _: base)
    base.encoder.layer[1].output.forward = lambda states, residual: residual
    told = inspection.describe(str(folder)).splitlines()[-1]
    assert told == "no gradient reaches those on encoder.layer.1.output.dense: they would learn nothing"
    monkeypatch.setattr(inspection, "load_base", lambda _: wavlm())
    assert "run could not be tried: " in inspection.describe(str(folder)).splitlines()[-1]


def wavlm():
    config = transformers.WavLMConfig(
        **{key: value for key, value in SIZES.items() if key != "vocab_size"},
        conv_dim=(8, 8), conv_stride=(4, 4), conv_kernel=(4, 4), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, feat_extract_norm="layer", num_buckets=8, layerdrop=0.0,
        hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0,
        apply_spec_augment=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.WavLMModel(config).eval()


@pytest.mark.parametrize("placement", ["sequential", "parallel"])
def test_an_attention_that_reads_its_projections_is_adapted_as_a_whole(placement):
    model = wavlm()
    inputs = {"input_values": torch.randn(1, 320)}
    with torch.no_grad():  # with gradients its convolutions take another path
        base = run(model, inputs)
    attach(model, AdapterConfig(bottleneck_dim=4, placement=placement, init_up="near_zero"))
    names = {target.module for target in adapters(model)["default"].targets}
    assert {name for name in names if name.endswith("attention")} == {f"encoder.layers.{i}.attention" for i in (0, 1)}
    assert not torch.equal(run(model, inputs), base)
    run(model, inputs).sum().backward()
    assert unused_adapters(model) == {}
    with disabled(model), torch.no_grad():
        assert torch.equal(run(model, inputs), base)


@pytest.mark.parametrize("name", ["q_proj", "out_proj"])
def test_what_is_read_and_not_called_is_refused(name):
    with pytest.raises(TargetError, match=rf"{name} cannot be adapted, because WavLMAttention reads its weights"):
        attach(wavlm(), AdapterConfig(bottleneck_dim=4, target_modules=(name,)))


def kept(model):
    captures = [c for m in model.modules() if isinstance(m, AdapterSet) for c in m.captures.values()]
    assert captures
    return [capture.source for capture in captures if capture.captured.hidden_states is not None]


def test_captures_keep_nothing_where_their_reader_does_not_run():
    model = build("bert")
    inputs = inputs_for("bert", model)
    attach(model, AdapterConfig(bottleneck_dim=4, placement="parallel"))
    dense = model.encoder.layer[1].output.dense
    dense.forward, forward = None, dense.forward
    with pytest.raises(TypeError):
        run(model, inputs)
    assert kept(model) == []
    dense.forward = forward
    model.encoder.layer[0].output.forward = lambda states, residual: residual  # read, not called
    run(model, inputs)
    assert kept(model) == []


@pytest.mark.parametrize("reentrant", [True, False])
def test_captures_keep_nothing_after_checkpointing(reentrant):
    model = build("llama")
    inputs = inputs_for("llama", model)
    attach(model, AdapterConfig(bottleneck_dim=4, placement="parallel"))
    model.train()
    model.enable_input_require_grads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    run(model, inputs).sum().backward()
    assert unused_adapters(model) == {}
    assert kept(model) == []
