"""Training and generating with `BottleneckConfig`: the Trainer's and TRL's loops, checkpointing, mixed batches."""

import pytest
import tiny_training
import torch
from safetensors.torch import load_file

pytest.importorskip("peft", minversion="0.21")

import transformers
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft_cases import IDS, PEFTS_OWN, bert, llama, logits, randomise, t5, trained

import adapterx
import adapterx.integrations.peft as plugin
from adapterx import ops
from adapterx.integrations.transformers import AdapterTrainer

pytestmark = [*PEFTS_OWN, pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")]
Config = plugin.BottleneckConfig
WEIGHTS = "adapter_model.safetensors"


class Rows(torch.utils.data.Dataset):
    """Sentences of a few words, of which two give the label away."""

    def __init__(self, count, labels="labels"):
        self.rows = [(torch.tensor([1 + i % 2, 5 + i % 7, 9 + i % 5, 20]), i % 2) for i in range(count)]
        self.labels = labels

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        ids, label = self.rows[index]
        return {"input_ids": ids, "labels": ids.clone() if self.labels == "tokens" else label}


def arguments(folder, **options):
    defaults = {
        "per_device_train_batch_size": 4, "max_steps": 4, "save_steps": 2, "learning_rate": 1e-2, "report_to": [],
        "use_cpu": True, "disable_tqdm": True, "logging_steps": 1,
    }  # fmt: skip
    return transformers.TrainingArguments(output_dir=str(folder), **defaults | options)


def classifier():
    return get_peft_model(bert(), Config(bottleneck_dim=4, task_type="SEQ_CLS"))


def test_the_trainer_saves_adapters_alone_and_resumes(tmp_path):
    whole = transformers.Trainer(model=classifier(), args=arguments(tmp_path / "whole"), train_dataset=Rows(32))
    frozen = {name: p.clone() for name, p in whole.model.named_parameters() if not p.requires_grad}
    whole.train()
    assert all(torch.equal(whole.model.get_parameter(name), value) for name, value in frozen.items())
    state = load_file(tmp_path / "whole" / "checkpoint-2" / WEIGHTS)
    assert {".adapterx." in name or ".classifier." in name for name in state} == {True}
    assert not list((tmp_path / "whole").glob("checkpoint-*/model*"))
    resumed = transformers.Trainer(model=classifier(), args=arguments(tmp_path / "resumed"), train_dataset=Rows(32))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    own = dict(resumed.model.named_parameters())
    assert all(torch.equal(p, own[name]) for name, p in whole.model.named_parameters())
    loaded = PeftModel.from_pretrained(bert(), tmp_path / "whole" / "checkpoint-4")
    assert torch.equal(logits(loaded.eval()), logits(whole.model.eval()))


def test_lora_and_adapters_train_together_and_resume(tmp_path):
    def trainer(folder):
        model = get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
        adapterx.attach(model, adapterx.AdapterConfig(bottleneck_dim=4), "own")
        return AdapterTrainer(model=model, args=arguments(tmp_path / folder), train_dataset=Rows(32))

    whole, resumed = trainer("whole"), trainer("resumed")
    before = {name: parameter.clone() for name, parameter in whole.model.named_parameters()}
    whole.train()
    changed = {name for name, p in whole.model.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in trained(whole.model) if "lora_B" in name or "up_proj.weight" in name} <= changed
    assert changed <= trained(whole.model)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    own = dict(resumed.model.named_parameters())
    assert all(torch.equal(p, own[name]) for name, p in whole.model.named_parameters())


@pytest.mark.filterwarnings("ignore")
def test_a_base_in_four_bits_trains(tmp_path):
    pytest.importorskip("bitsandbytes")
    llama().save_pretrained(tmp_path / "base")

    def load():
        settings = transformers.BitsAndBytesConfig(load_in_4bit=True)
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=settings)
        return prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)

    model = randomise(get_peft_model(load(), Config(bottleneck_dim=4, task_type="CAUSAL_LM")))
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load(), tmp_path / "adapter")
    assert torch.equal(logits(loaded.train()), logits(model))  # in eval mode such small weights fail in bitsandbytes


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    gradients = []
    for checkpointing in (False, True):
        base = llama()
        if checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model = randomise(get_peft_model(base, Config(bottleneck_dim=4, task_type="CAUSAL_LM"))).train()
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append({name: model.get_parameter(name).grad for name in trained(model)})
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])
    assert len(gradients[0]) == 16


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_sft_trainer_takes_the_config(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    tiny_training.save_tiny_tokenizer(tmp_path / "tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer", eos_token="[SEP]")
    texts = datasets.Dataset.from_list([{"text": text} for text, _ in tiny_training.sentences(16)])
    trainer = trl.SFTTrainer(
        model=llama(),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "out"), max_steps=4, save_steps=2, per_device_train_batch_size=2, use_cpu=True,
            report_to=[], bf16=False, learning_rate=1e-2, disable_tqdm=True, max_length=16, dataset_num_proc=None,
            gradient_checkpointing=True,
        ),
        train_dataset=texts,
        processing_class=tokenizer,
        peft_config=Config(bottleneck_dim=4, task_type="CAUSAL_LM"),
    )  # fmt: skip
    before = logits(trainer.model.eval())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(loss == loss for loss in losses)
    after = logits(trainer.model.eval())
    assert not torch.equal(before, after)
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "out" / "checkpoint-4").eval()
    assert torch.equal(logits(loaded), after)


def generating(build, task):
    try:
        get_peft_model(build(), LoraConfig(target_modules="all-linear", task_type=task))
    except AttributeError as error:
        pytest.skip(f"this PEFT cannot wrap such a model of these transformers, whatever the method: {error}")
    model = randomise(get_peft_model(build(), Config(bottleneck_dim=4, task_type=task), "one"))
    model.add_adapter("two", Config(bottleneck_dim=8, activation="relu", task_type=task))
    model.set_adapter("two")
    return randomise(model, 2).eval()


@pytest.mark.parametrize(("build", "task"), [(llama, "CAUSAL_LM"), (t5, "SEQ_2_SEQ_LM")])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_each_sequence_is_generated_with_its_own_adapter(build, task, options):
    model = generating(build, task)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, **options}
    mask = torch.ones_like(IDS)

    def alone(name, row):
        given = {"input_ids": IDS[row : row + 1], "attention_mask": mask[row : row + 1]}
        if name == "__base__":
            with model.disable_adapter():
                return model.generate(**given, **settings)
        model.set_adapter(name)
        return model.generate(**given, **settings)

    names = ["one", "__base__", "two"]
    mixed = model.generate(input_ids=IDS, attention_mask=mask, adapter_names=names, **settings)
    rows = settings.get("num_return_sequences", 1)
    for row, name in enumerate(names):
        assert torch.equal(mixed[row * rows : (row + 1) * rows], alone(name, row)), name
    assert len({str(alone(name, 0)) for name in names}) > 1


def test_a_mixed_batch_is_one_call_of_the_operator(monkeypatch):
    model = get_peft_model(llama(), Config(bottleneck_dim=4), "one")
    model.add_adapter("two", Config(bottleneck_dim=8))
    calls = []
    operator = ops.bottleneck_adapter
    monkeypatch.setattr(ops, "bottleneck_adapter", lambda *args, **kwargs: calls.append(1) or operator(*args, **kwargs))
    logits(model.eval(), adapter_names=["one", "two", "__base__"])
    assert len(calls) == 4, "one for each adapted module"


def test_functions_of_adapterx_work_on_the_model(tmp_path):
    model = randomise(get_peft_model(llama(), Config(bottleneck_dim=4))).eval()
    base = model.get_base_model()
    adapterx.save_adapter(base, tmp_path)
    own = llama()
    adapterx.load_adapter(own, tmp_path)
    assert torch.equal(logits(own), logits(model))
    assert adapterx.summary(model).trainable_adapters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with adapterx.disabled(model):
        assert torch.equal(logits(model), logits(llama()))
