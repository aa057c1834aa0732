"""Adapters of AdapterHub give here what they gave there: golden files of `adapters` 1.3.0, a sample of each kind.

`make adapterhub` compares all of them.
"""

import pytest

pytest.importorskip("transformers")
from hub_goldens import TOLERANCE, Golden, cases

import adapterx
from adapterx import CheckpointError
from adapterx.integrations import adapterhub

# Of each model the presets; of BERT, whose norms stand behind its sublayers, and Llama, whose do not, every option.
SAMPLE = ("double_seq_bn", "double_seq_bn_inv", "seq_bn", "par_bn", "adapter_plus", "leave_out", "cross_adapter")
WHOLE = ("bert", "llama")
# What `adapters` computes there is none of our placements; the message names the option.
REFUSED = {
    ("*", "original_ln_after=False"): "original_ln_after",
    ("albert", "double_seq_bn"): "mh_adapter",
    ("albert", "leave_out"): "mh_adapter",
    ("albert", "double_seq_bn_inv"): "mh_adapter",
    ("modernbert", "seq_bn"): "original_ln_before",
    ("gemma2", "seq_bn"): "original_ln_before",
    ("gemma2", "double_seq_bn_inv"): "inv_adapter",
}


def refused_option(model_type, case):
    """The option that a refusal of this case names; None: it is not refused."""
    return REFUSED.get((model_type, case), REFUSED.get(("*", case)))


@pytest.fixture(scope="module", params=list(cases.MODELS))
def golden(request, tmp_path_factory):
    return Golden(request.param, tmp_path_factory.mktemp(request.param))


def sampled(golden, whole=WHOLE):
    for name, record in golden.cases.items():
        wanted = record["kind"] == "adapter" and (golden.model_type in whole or name in SAMPLE)
        if wanted and "error" not in record:
            yield name, record


def test_outputs_are_those_of_adapters(golden):
    model, compared = golden.base(), 0
    assert golden.difference(model, "base") < TOLERANCE
    for name, _ in sampled(golden):
        if (option := refused_option(golden.model_type, name)) is not None:
            with pytest.raises(CheckpointError, match=rf"^load_adapter: {option} of .*adapter_config\.json must "):
                golden.load(model, name)
            continue
        report = golden.load(model, name)
        assert golden.difference(model, name) < TOLERANCE, (name, report)
        adapterx.detach(model)
        compared += 1
    assert compared >= 2


def test_models_with_heads(golden):
    """Before the head of a language model an invertible adapter is undone, as before the heads of `adapters`."""
    for name, record in golden.cases.items():
        if record["kind"] in ("with_head", "language_model"):
            model = golden.base(record["class"])
            golden.load(model, name)
            assert golden.difference(model, name) < TOLERANCE, name


def test_what_was_read_is_written_and_read_again(golden, tmp_path):
    model = golden.base()
    for name, record in sampled(golden, whole=()):
        if refused_option(golden.model_type, name) is not None:
            continue
        report = golden.load(model, name)
        folder = tmp_path / record["folder"]
        adapterhub.save_adapter(model, folder)
        adapterx.detach(model)
        again = adapterhub.load_adapter(model, folder)
        assert again == report, name
        assert golden.difference(model, name) < TOLERANCE, name
        adapterx.detach(model)
