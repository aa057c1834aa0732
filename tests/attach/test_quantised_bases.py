"""Bases in 8 and 4 bits: adapters begin as the identity, learn, and load onto a base that is quantised anew."""

import warnings

import pytest
import torch

pytest.importorskip("accelerate")

import quantised
from quick_arguments import quick_arguments
from tiny_adapters import randomise

from adapterx import AdapterConfig, adapter_parameters, attach, disabled, load_adapter, mixed, save_adapter
from adapterx.host import base_modules

CONFIG = AdapterConfig(bottleneck_dim=4, modules_to_save=("lm_head",))
IDS = torch.randint(3, 128, (2, 9), generator=torch.Generator().manual_seed(1))

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the libraries, which are others in every version
EVERY_KIND = pytest.mark.parametrize("kind", quantised.KINDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return quantised.save_plain(tmp_path_factory.mktemp("llama"))


@torch.no_grad()
def logits(model):
    """Compute as in use: bitsandbytes repacks its 4 bits for the CPU in the first such pass, for good."""
    return model.eval()(input_ids=IDS).logits


def base_bytes(model):
    """Return the bytes of all base weights, however they are packed."""
    found = {}
    for path, module in base_modules(model).items():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            inner = getattr(tensor, "qdata", tensor).detach()
            found[f"{path}.{name}"] = inner.contiguous().flatten().view(torch.uint8).clone()
    return found


@EVERY_KIND
def test_attach_train_save_and_load(kind, folder, tmp_path):
    model = quantised.load(folder, kind)
    base = logits(model)
    report = attach(model, CONFIG, "a", seed=1)
    assert len(report.targets) == 4
    assert {parameter.dtype for _, parameter in adapter_parameters(model)} == {torch.float32}
    with disabled(model):
        assert torch.equal(logits(model), base)
    torch.testing.assert_close(logits(model), base, atol=0.01, rtol=0.01)  # a head in float32, one in bfloat16

    before, losses = base_bytes(model), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(4):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    after = base_bytes(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with disabled(model):
        assert torch.equal(logits(model), base)

    save_adapter(model, tmp_path)
    other = quantised.load(folder, kind)
    logits(other)
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))
    with mixed(other, ["a", None]):
        torch.testing.assert_close(logits(other)[1], base[1])


@EVERY_KIND
def test_an_adapter_is_the_identity_at_first(kind, folder):
    model = quantised.load(folder, kind)
    base = logits(model)
    attach(model, AdapterConfig(bottleneck_dim=4))
    assert torch.equal(logits(model), base)


@EVERY_KIND
def test_the_trainer_trains_it(kind, folder, tmp_path):
    from adapterx.integrations.transformers import AdapterTrainer

    model = quantised.load(folder, kind)
    attach(model, AdapterConfig(bottleneck_dim=4), seed=1)
    rows = [{"input_ids": row, "labels": row} for row in IDS.repeat(4, 1)]
    arguments = quick_arguments(
        tmp_path, max_steps=4, learning_rate=1e-2, logging_steps=1, save_steps=4, gradient_checkpointing=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = AdapterTrainer(model, arguments, train_dataset=rows)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    other = quantised.load(folder, kind)
    load_adapter(other, tmp_path / "checkpoint-4")
    assert torch.equal(logits(other), logits(model))


def test_torchao_int4_serves_adapters_and_cannot_train_them(folder, tmp_path):
    """PyTorch has no derivative of the product: train on another form of the base, and load onto this one."""
    trained = quantised.load(folder, "torchao int8")
    attach(trained, AdapterConfig(bottleneck_dim=4), "a", seed=1)
    randomise(trained)
    save_adapter(trained, tmp_path)
    model = quantised.load(folder, "torchao int4")
    base = logits(model)
    load_adapter(model, tmp_path)
    with disabled(model):
        assert torch.equal(logits(model), base)
    adapted = logits(model)
    assert not torch.equal(adapted, base)
    with mixed(model, ["a", None]):
        torch.testing.assert_close(logits(model), torch.stack([adapted[0], base[1]]), atol=0.02, rtol=0.02)
    with pytest.raises(RuntimeError, match=r"derivative for .*int4.* is not implemented"):
        model(input_ids=IDS, labels=IDS).loss.backward()
