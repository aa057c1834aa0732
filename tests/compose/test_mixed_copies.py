"""`mixed` and trained copies of modules: each sequence passes through the copy of its own adapter."""

import pytest
import torch
import transformers
from mixed_cases import HIDDEN_STATES, adapted, alone, call
from tiny_adapters import randomise
from tiny_models import FAMILIES, inputs_for, plain_model, run
from torch import nn

from adapterx import AdapterConfig, adapter_parameters, attach, mixed, set_active


def with_copies(model, module, configs=("a", "b", "bare")):
    for name in configs:
        saved = () if name == "bare" else (module,)
        attach(model, AdapterConfig(bottleneck_dim=2, target_modules=("narrow",), modules_to_save=saved), name)
    randomise(model)
    return model.double()


@pytest.mark.parametrize(
    "names", [["b", None, "a"], ["a", "b", "a"], ["b", "b", "b"], ["bare", "b", None], ["bare"] * 3]
)
def test_each_sequence_has_its_own_trained_copy(names):
    model = with_copies(plain_model(), "classifier")
    set_active(model, "a")
    for hidden_states in (HIDDEN_STATES, torch.randn(3, 4, 8, dtype=torch.float64)):
        expected = alone(model, names, hidden_states, call)
        with mixed(model, names):
            torch.testing.assert_close(model(hidden_states), expected)
            if hidden_states.dim() == 3:
                found = model(hidden_states.view(12, 8))
                torch.testing.assert_close(found, expected.view(12, 3))


def test_copies_run_on_their_own_sequences_and_train():
    model = with_copies(plain_model(), "classifier")
    seen = []
    for copied in model.classifier.adapterx_copies.values():
        copied.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[0]))
    names = ["b", None, "b"]
    with mixed(model, names):
        model(HIDDEN_STATES).square().sum().backward()
    assert seen == [2]
    found = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert found == {key for key, _ in adapter_parameters(model, "b")}
    wanted = {key: parameter.grad.clone() for key, parameter in adapter_parameters(model, "b")}
    model.zero_grad()
    set_active(model, "b")
    model(HIDDEN_STATES)[[0, 2]].square().sum().backward()
    for key, parameter in adapter_parameters(model, "b"):
        torch.testing.assert_close(parameter.grad, wanted[key])
    set_active(model, None)
    with mixed(model.classifier, ["b", "b", "b"]):
        loss = model(HIDDEN_STATES).sum()
    with pytest.raises(RuntimeError, match=r"mixed: backward\(\) must run inside"):
        loss.backward()


class Head(nn.Module):
    """A head that receives two tensors and returns a dictionary and a tuple."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, hidden_states, mask, *, kind="x"):
        logits = self.linear(hidden_states * mask.unsqueeze(-1))
        return transformers.modeling_outputs.ModelOutput(logits=logits, rest=(logits.sum(-1), [kind, None]))


class WithHead(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.blocks, self.head = plain_model().blocks, head

    def forward(self, hidden_states):
        return self.head(self.blocks(hidden_states), torch.ones(hidden_states.shape[:-1]), kind="y")


def test_copies_of_modules_with_several_tensors_and_containers():
    model = with_copies(WithHead(Head()), "head")
    names = ["b", None, "a"]
    hidden_states = torch.randn(3, 4, 8, dtype=torch.float64)
    expected = [alone(model, names, hidden_states, forward) for forward in (
        lambda model, inputs: model(inputs).logits, lambda model, inputs: model(inputs).rest[0])]  # fmt: skip
    with mixed(model, names):
        found = model(hidden_states)
    assert type(found) is transformers.modeling_outputs.ModelOutput
    torch.testing.assert_close(found["logits"], expected[0])
    torch.testing.assert_close(found["rest"][0], expected[1])
    assert found["rest"][1] == ["y", None]


def test_copies_must_agree():
    model = with_copies(plain_model(), "classifier")
    model.classifier.adapterx_copies["a"] = nn.Linear(8, 4).double()
    with (
        mixed(model, ["a", "b", "b"]),
        pytest.raises(
            ValueError, match=r"trained copies of classifier .* same shape for a sequence, got \(4,\) and \(3,\)"
        ),
    ):
        model(HIDDEN_STATES)
    model.classifier.adapterx_copies["a"] = nn.Sequential(nn.Linear(8, 3).double(), nn.Flatten(0))
    with mixed(model, ["a", "a", "b"]), pytest.raises(ValueError, match=r"output of classifier .* got shape \(6,\)"):
        model(HIDDEN_STATES)

    class Pair(nn.Linear):
        def forward(self, hidden_states):
            return super().forward(hidden_states), 1

    model.classifier.adapterx_copies["a"] = Pair(8, 3).double()
    with mixed(model, ["a", "b", "b"]), pytest.raises(TypeError, match="same containers, got Tensor, tuple"):
        model(HIDDEN_STATES)


def test_classifiers_and_embeddings_of_a_real_model():
    config = transformers.BertConfig(**FAMILIES["bert"][1], num_labels=3)
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    saved = ("classifier", "bert.embeddings.word_embeddings")
    model = adapted(
        model,
        {
            "a": AdapterConfig(bottleneck_dim=3, modules_to_save=saved),
            "b": AdapterConfig(bottleneck_dim=4, modules_to_save=saved[:1]),
        },
    )
    names = ["b", "a", None, "a"]
    inputs = inputs_for("bert", model, batch=4)
    with torch.no_grad():
        expected = alone(model, names, inputs)
        with mixed(model, names):
            torch.testing.assert_close(run(model, inputs), expected)
