"""Exported files of earlier versions (tests/fixtures) run, and say what they are."""

import pytest
import recorded
import torch
from safetensors.torch import load_file

from adapterx import AdapterConfig, ops
from adapterx.export import read_metadata, validate

FOLDER = recorded.FIXTURES / "0.1.0"
EXPORTS = FOLDER / "export"


def logits():
    return load_file(FOLDER / "outputs.safetensors")["classifier"]


def test_torchscript():
    torch.ops.load_library(ops.LIBRARY)
    module = torch.jit.load(EXPORTS / "model.pt")
    with torch.no_grad():
        torch.testing.assert_close(module(*recorded.INPUTS.values()), logits(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["model.onnx", "model.portable.onnx"])
def test_onnx(name):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(EXPORTS / name), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {key: tensor.numpy() for key, tensor in recorded.INPUTS.items()})
    torch.testing.assert_close(torch.from_numpy(found), logits(), atol=1e-5, rtol=1e-5)


def test_they_say_what_they_are():
    pytest.importorskip("onnx")
    documents = {name: read_metadata(EXPORTS / name) for name in ("model.pt", "model.onnx", "model.portable.onnx")}
    for document in documents.values():
        assert (document["format_version"], document["versions"]["adapterx"]) == (1, "0.1.0")
        assert AdapterConfig.from_dict(document["adapters"][0]["config"]) == recorded.ADAPTERS["learned"]
        assert document["inputs"] == list(recorded.INPUTS)
        assert document["validation"]["max_abs_diff"] < 1e-4
    assert read_metadata(EXPORTS)["files"] == {name: documents[name] for name in documents if name != "model.pt"}


@pytest.mark.parametrize("name", ["model.pt", "model.onnx"])
def test_they_can_be_validated_again(name):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    validate(recorded.adapted_classifier(), EXPORTS / name, shapes=((2, 5),))
