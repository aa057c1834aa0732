"""What a file is told by its content, whatever its name says."""

import zipfile

import pytest
import recorded
import torch
from torch import nn

from adapterx import ExportError
from adapterx.export import read_metadata, validate
from adapterx.export.kinds import kind_of

EXPORTS = recorded.FIXTURES / "0.1.0" / "export"


def write_pt2(path):
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), path)


def write_torch_save(path):
    torch.save(nn.Linear(2, 2).state_dict(), path)


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes/readme.txt", "code/ and constants.pkl are only mentioned here")


def write_empty_zip(path):
    zipfile.ZipFile(path, "w").close()


def write_text(path):
    path.write_text("{}")


def write_start_of_protobuf(path):
    path.write_bytes(b"\x08\x0a\x12\x07pytorch")  # a version and a producer, but no graph


def write_endless_field(path):
    path.write_bytes(b"\x08\x0a\x3a" + b"\xff" * 9 + b"\x01")


OTHERS = {
    "pt2": (write_pt2, r"is a torch\.export archive \(\.pt2\), which validate cannot run yet"),
    "torch.save": (write_torch_save, r"is a file of torch\.save"),
    "zip": (write_zip, "is a zip archive of another kind"),
    "empty zip": (write_empty_zip, "is a zip archive of another kind"),
    "text": (write_text, "is neither a TorchScript nor an ONNX file"),
    "protobuf": (write_start_of_protobuf, "is neither a TorchScript nor an ONNX file"),
    "endless": (write_endless_field, "is neither a TorchScript nor an ONNX file"),
}


@pytest.mark.parametrize("name", ["model.pt", "model.onnx", "model.portable.onnx"])
def test_own_files_under_any_name(name, tmp_path):
    path = tmp_path / "model"
    path.write_bytes((EXPORTS / name).read_bytes())
    assert kind_of(path) == ("torchscript" if name == "model.pt" else "onnx")


def test_a_scripted_module(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "scripted")
    assert kind_of(tmp_path / "scripted") == "torchscript"


def test_onnx_as_other_programs_write_it(tmp_path):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:]))
    onnx.save(model, tmp_path / "relu")
    assert kind_of(tmp_path / "relu") == "onnx"


@pytest.mark.parametrize("ending", [".pt", ".onnx"])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_cannot_be_validated_is_refused_in_words(kind, ending, tmp_path):
    write, message = OTHERS[kind]
    path = tmp_path / f"model{ending}"
    write(path)
    assert kind_of(path) not in ("torchscript", "onnx")
    with pytest.raises(ExportError, match=f"^validate: .*model.*{message}"):
        validate(nn.Linear(2, 2), path)


def test_pt2_has_no_metadata(tmp_path):
    write_pt2(tmp_path / "model.pt2")
    with pytest.raises(ExportError, match=r"^read_metadata: .* has no metadata of adapterx"):
        read_metadata(tmp_path / "model.pt2")


def test_mistaken_order_of_model_and_file():
    for model, file in ((EXPORTS / "model.pt", nn.Linear(2, 2)), (str(EXPORTS / "model.pt"), nn.Linear(2, 2))):
        with pytest.raises(ExportError, match=r"^validate: model must come first and file second, got \(\w+, Linear\)"):
            validate(model, file)
    with pytest.raises(ExportError, match=r"^validate: model must be a torch.nn.Module, got int"):
        validate(5, EXPORTS / "model.pt")
    with pytest.raises(ExportError, match=r"^validate: file must be a path, got Linear"):
        validate(nn.Linear(2, 2), nn.Linear(2, 2))
