"""A process killed while it exports leaves the old model whole or the new one whole, and no word that is untrue."""

import json

import pytest

pytest.importorskip("transformers")

import tiny_export as tiny
import torch
from crash_points import moments

from adapterx import BottleneckAdapter, ExportError
from adapterx.checkpoint.document import hashed
from adapterx.export import onnx_folder, publishing, read_metadata, to_onnx, to_torchscript
from adapterx.export.metadata import staging

SHAPE = (2, 8)


def changed(model):
    """Change graph, data and small weights: outputs tell the new model, the old one and a mixture of both apart."""
    model.get_input_embeddings().weight.data.mul_(0.7)  # large enough to go into the data file
    for module in model.modules():
        if isinstance(module, BottleneckAdapter):
            module.scaling *= -2.0  # an attribute of the node
            module.up_proj.weight.data.mul_(-3.0)
    return model


def output(path, model):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    named = tiny.inputs_at(model, *SHAPE)
    return torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in named.items()})[0])


def assert_true_words(folder):
    """The index tells of nothing that the files beside it do not say themselves."""
    onnx = pytest.importorskip("onnx")
    for name, document in read_metadata(folder)["files"].items():
        properties = {p.key: p.value for p in onnx.load(folder / name, load_external_data=False).metadata_props}
        assert json.loads(properties["adapterx_export"]) == hashed(document)


@pytest.fixture(scope="module")
def two_exports(tmp_path_factory):
    """Two models of one architecture: folder of the export, metadata, output; and the model for its inputs."""
    pytest.importorskip("onnxscript")
    model, exports = tiny.distilbert_encoder(), []
    for number in range(2):
        folder = tmp_path_factory.mktemp("export")
        document = to_onnx(model, folder, validate=False, opset=20 + number)
        exports.append((folder, document, tiny.output_of(model, tiny.inputs_at(model, *SHAPE))))
        changed(model)
    assert (exports[0][2] - exports[1][2]).abs().max() > 0.05, "or nobody could tell them apart"
    return exports, model


def write(export, folder, *, name="model.onnx", data_from=10**9):
    """Do what `to_onnx` does with a graph, with data in a file of their own if they exceed `data_from` bytes."""
    ir = pytest.importorskip("onnx_ir")
    source, document, _ = export
    with pytest.MonkeyPatch.context() as patch, staging(folder) as staged:
        patch.setattr(onnx_folder, "EXTERNAL_DATA_FROM", data_from)
        onnx_folder.save(ir.load(source / "model.onnx"), staged / name, document)
        publishing.publish(staged, folder, name, document)


@pytest.mark.parametrize("large", [(False, False), (True, True), (True, False), (False, True)])
def test_onnx(large, two_exports, tmp_path):
    exports, model = two_exports
    folder = tmp_path / "export"
    folder.mkdir()
    write(exports[0], folder, data_from=1000 if large[0] else 10**9)
    assert len(list(folder.iterdir())) == (3 if large[0] else 2)
    with moments(folder, tmp_path / "copies") as seen:
        write(exports[1], folder, data_from=1000 if large[1] else 10**9)
    assert not seen.faults
    answers = []
    for copy in seen.copies:
        found = output(copy / "model.onnx", model)
        answers.append([torch.allclose(found, expected, atol=1e-4) for _, _, expected in exports].index(True))
        assert_true_words(copy)
    assert answers == sorted(answers), "from the old model to the new one, once"
    assert set(answers) == {0, 1}
    assert read_metadata(folder)["files"] == {"model.onnx": exports[1][1]}
    assert len(list(folder.iterdir())) == (3 if large[1] else 2), "the old data are gone"


def test_an_export_with_data_as_0_1_0_named_them(two_exports, tmp_path):
    exports, model = two_exports
    ir = pytest.importorskip("onnx_ir")
    folder = tmp_path / "export"
    folder.mkdir()
    ir.save(ir.load(exports[0][0] / "model.onnx"), folder / "model.onnx", external_data="model.onnx.data")
    with moments(folder, tmp_path / "copies") as seen:
        write(exports[1], folder, data_from=1000)
    assert not seen.faults
    found = [output(copy / "model.onnx", model) for copy in seen.copies]
    answers = [[torch.allclose(each, export[2], atol=1e-4) for export in exports].index(True) for each in found]
    assert answers == sorted(answers)
    assert set(answers) == {0, 1}
    assert not (folder / "model.onnx.data").exists()


def test_the_first_export_into_a_folder(two_exports, tmp_path):
    exports, model = two_exports
    folder = tmp_path / "export"
    folder.mkdir()
    with moments(folder, tmp_path / "copies") as seen:
        write(exports[0], folder, data_from=1000)
    assert not seen.faults
    for copy in seen.copies:
        if (copy / "model.onnx").exists():
            torch.testing.assert_close(output(copy / "model.onnx", model), exports[0][2], atol=1e-4, rtol=1e-4)
        if (copy / "adapterx_export.json").exists():
            assert_true_words(copy)


def test_the_other_model_in_the_folder_keeps_its_line(two_exports, tmp_path):
    exports, _ = two_exports
    folder = tmp_path / "export"
    folder.mkdir()
    write(exports[0], folder, name="model.portable.onnx", data_from=1000)
    write(exports[0], folder)
    with moments(folder, tmp_path / "copies") as seen:
        write(exports[1], folder, data_from=1000)
    assert not seen.faults
    for copy in seen.copies:
        assert_true_words(copy)
        assert "model.portable.onnx" in read_metadata(copy)["files"]
        assert output(copy / "model.portable.onnx", two_exports[1]).allclose(exports[0][2], atol=1e-4)


def test_data_under_the_name_that_0_1_0_gave_them_are_tidied_up(two_exports, tmp_path):
    (tmp_path / "model.onnx.data").write_text("old")
    (tmp_path / "model.portable.onnx.data").write_text("of another model")
    write(two_exports[0][0], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapterx_export.json",
        "model.onnx",
        "model.portable.onnx.data",
    ]


def test_the_whole_way_through_to_onnx(tmp_path, monkeypatch, two_exports):
    exports, model = two_exports
    monkeypatch.setattr(onnx_folder, "EXTERNAL_DATA_FROM", 1000)
    write(exports[0], tmp_path / "export", data_from=1000)
    with moments(tmp_path / "export", tmp_path / "copies") as seen:
        to_onnx(model, tmp_path / "export")
    assert not seen.faults
    for copy in seen.copies:
        output(copy / "model.onnx", model)  # the data that it names are there
        assert_true_words(copy)


def test_torchscript(tmp_path):
    model = tiny.distilbert_encoder()
    path = tmp_path / "export" / "raw.pt"  # the name that is used inside, too
    to_torchscript(model, path, validate=False)
    old = path.read_bytes()
    with moments(path.parent, tmp_path / "copies") as seen:
        to_torchscript(changed(model), path, validate=False)
    assert not seen.faults
    found = [(copy / "raw.pt").read_bytes() for copy in seen.copies]
    assert found[0] == old
    assert found[-1] == path.read_bytes() != old
    assert set(found) == {old, path.read_bytes()}
    assert [child.name for child in path.parent.iterdir()] == ["raw.pt"]


def test_a_full_disk_at_the_last_moment(two_exports, tmp_path, monkeypatch):
    exports, model = two_exports
    write(exports[0], tmp_path)
    before = (tmp_path / "model.onnx").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, "move_into_place", full)
    with pytest.raises(ExportError, match=r"^to_onnx: cannot write to .*: No space left on device"):
        to_onnx(model, tmp_path, validate=False)
    assert (tmp_path / "model.onnx").read_bytes() == before
    assert_true_words(tmp_path)


def test_what_the_models_own_code_says_is_not_put_into_the_mouth_of_the_export(tmp_path):
    import adapterx

    class Careless(torch.nn.Module):
        config = tiny.distilbert_encoder().config

        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(1, 1)

        def forward(self, input_ids):
            adapterx.restore_adapter(self, tmp_path)

    message = r"^to_torchscript: the model cannot run the example: UnknownAdapterError: restore_adapter: name must be"
    with pytest.raises(ExportError, match=message):
        to_torchscript(Careless(), tmp_path / "model.pt")
