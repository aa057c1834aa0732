"""What an exported file says at padding counts for nothing, what it says at tokens counts, at whichever side."""

import pytest

pytest.importorskip("transformers")

import tiny_export as tiny
import torch

from adapterx import ExportError
from adapterx.export import to_onnx, to_torchscript, validate
from adapterx.export.positional import prepared
from adapterx.export.validation import SHAPES, _compare

WRITERS = {"torchscript": to_torchscript, "onnx": to_onnx}


def write(kind, model, folder, **options):
    if kind == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    path = folder / {"torchscript": "model.pt", "onnx": "model.onnx"}[kind]
    return path, WRITERS[kind](model, path if kind == "torchscript" else folder, **options)


@pytest.mark.parametrize(("name", "kind"), [("modernbert", "onnx"), ("gemma3", "onnx"), ("mistral", "torchscript")])
def test_models_whose_window_leaves_padding_without_a_token_to_look_at(name, kind, tmp_path):
    """The attention of such positions is a matter of taste; PyTorch and ONNX Runtime differ there by up to 3."""
    _, document = write(kind, tiny.WINDOWED[name](), tmp_path)
    assert document["validation"]["max_abs_diff"] < 1e-4


class Unmasked(torch.nn.Module):
    """A model that takes a mask and looks at padding all the same."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids, attention_mask):
        result = dict(self.model(input_ids=input_ids, attention_mask=torch.ones_like(attention_mask)))
        return {name: tensor + 0.0 * attention_mask.sum() for name, tensor in result.items() if tensor is not None}


# In a decoder, only padding at the left is ever seen.
@pytest.mark.parametrize(("name", "kind"), [("modernbert", "torchscript"), ("mistral", "onnx")])
def test_a_file_that_ignores_the_mask_is_refused(name, kind, tmp_path):
    model = tiny.WINDOWED[name]()
    path, _ = write(kind, Unmasked(model).eval(), tmp_path, validate=False)
    with pytest.raises(ExportError, match=r"^validate: the file must agree with the model .* at batch 3, sequence 19"):
        validate(model, path)


def test_inputs_are_padded_at_either_side():
    with prepared(tiny.gpt2_lm()) as ready:
        ids, mask = ready.inputs_at(5, 20)
        assert mask[0].all()
        assert (mask[1, 0], mask[1, -1], mask[2, 0], mask[2, -1]) == (1, 0, 0, 1)
        assert all(2 <= row.sum() < 20 for row in mask[1:])
        assert len({tuple(row.tolist()) for row in ids}) == 5
        for batch, sequence in SHAPES:
            assert ready.inputs_at(batch, sequence)[1].sum(dim=1).min() >= 1


def compared(model, change, shape=(3, 8)):
    """Compare the model with what `change(outputs, mask)` makes of its outputs."""
    with prepared(model) as ready:
        inputs = ready.inputs_at(*shape)
        found = ready.module(*inputs)
        found = [tensor.clone() for tensor in (found if isinstance(found, tuple) else (found,))]
        change(found, inputs[1])
        return _compare(ready, [shape], [inputs], [found], runtime="here", atol=None)


def at_padding(value):
    def change(outputs, mask):
        for tensor in outputs:
            tensor[mask == 0] = value

    return change


@pytest.mark.parametrize("value", [99.0, float("nan"), float("inf")])
def test_padding_does_not_count(value):
    assert compared(tiny.distilbert_encoder(), at_padding(value))["max_abs_diff"] == 0.0
    assert compared(tiny.span_model(), at_padding(value))["max_abs_diff"] == 0.0


@pytest.mark.parametrize("value", [99.0, float("nan")])
@pytest.mark.parametrize("build", [tiny.distilbert_encoder, tiny.span_model])
def test_every_token_counts(build, value):
    def change(outputs, mask):
        outputs[-1][tuple(mask.nonzero()[-1])] = value

    with pytest.raises(ExportError, match="must agree with the model"):
        compared(build(), change)


def test_what_stands_at_padding_does_not_widen_what_is_allowed(monkeypatch):
    model = tiny.distilbert_encoder()
    forward = model.forward

    def loud(attention_mask, **inputs):
        result = forward(attention_mask=attention_mask, **inputs)
        result.last_hidden_state = result.last_hidden_state + 1e4 * (1 - attention_mask[..., None])
        return result

    with prepared(model) as ready:
        monkeypatch.setattr(model, "forward", loud)
        inputs = ready.inputs_at(3, 8)
        found = ready.module(*inputs).clone()
        found[0, 0, 0] += 0.01  # little beside 10,000, too much beside the others
        with pytest.raises(ExportError, match=r"it differs by 1\.00e-02"):
            _compare(ready, [(3, 8)], [inputs], [[found]], runtime="here", atol=None)


def test_logits_of_a_whole_sequence_are_compared_whole():
    """Also where there are as many classes as tokens: two, of which one is padding in the second row."""

    def change(outputs, mask):
        assert mask[1].tolist() == [1, 0]
        outputs[0][1, 1] += 1.0

    with pytest.raises(ExportError, match=r"it differs by 1\.00"):
        compared(tiny.roberta_classifier(), change, shape=(2, 2))


def test_an_answer_read_off_a_first_token_that_is_padding_does_not_count():
    def change(outputs, mask):
        assert mask[2, 0] == 0
        outputs[0][2] += 1.0

    assert compared(tiny.roberta_classifier(), change)["max_abs_diff"] == 0.0
    with pytest.raises(ExportError, match=r"it differs by 1\.00"):  # ours looks for the first token behind the padding
        compared(tiny.bert_classifier(), change)
