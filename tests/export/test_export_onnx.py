import builtins
import hashlib
import json
import logging
import warnings
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
import tiny_export as tiny
import torch
import transformers

import adapterx
from adapterx import AdapterConfig, ExportError, attach, set_active
from adapterx.export import onnx_file, onnx_folder, read_metadata, to_onnx, validate
from adapterx.host import AdapterSet

LOCAL = [
    str(Path(adapterx.__file__).parent.parent),
    str(Path.home()),
    str(Path(torch.__file__).parent),
    "site-packages",
]


def adapter_nodes(path):
    return [node for node in onnx.load(path).graph.node if node.domain == "adapterx"]


def assert_agrees(path, model, atol=2e-5):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in tiny.SHAPES:
        named = tiny.inputs_at(model, *shape)
        found = session.run(None, {name: tensor.numpy() for name, tensor in named.items()})
        torch.testing.assert_close(
            torch.from_numpy(found[0]), tiny.output_of(model, named), atol=atol, rtol=1e-5, msg=str(shape)
        )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Each tiny model in one of the two modes, and the first one in both: model, folder, metadata per mode."""
    cache = {}

    def get(name, *modes):
        if name not in cache:
            model = tiny.MODELS[name][0]()
            folder = tmp_path_factory.mktemp(name)
            cache[name] = (model, folder, {mode: to_onnx(model, folder, mode=mode) for mode in modes})
        return cache[name]

    return get


MODES = {"bert": ("function", "portable"), "roberta": ("function",), "distilbert": ("portable",)}
MODES |= {"gpt2": ("function",), "llama": ("portable",)}


@pytest.mark.parametrize("name", tiny.MODELS)
def test_files_agree_with_the_model_at_other_shapes(name, exported):
    model, folder, documents = exported(name, *MODES[name])
    adapters = tiny.MODELS[name][1]
    for mode, document in documents.items():
        path = folder / onnx_file.FILES[mode]
        assert_agrees(path, model)
        assert len(adapter_nodes(path)) == (adapters if mode == "function" else 0)
        assert document["adapter_nodes"] == adapters
        assert document["inputs"] == [entry.name for entry in onnx.load(path).graph.input]
        assert document["validation"]["max_abs_diff"] <= 1e-4
        assert read_metadata(path) == document


def test_function_file(exported):
    _, folder, documents = exported("bert", *MODES["bert"])
    model = onnx.load(folder / "model.onnx")
    assert [(f.domain, f.name, f.overload) for f in model.functions] == [("adapterx", "BottleneckAdapter", "")]
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 20), ("adapterx", 1)}
    for node in adapter_nodes(folder / "model.onnx"):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {"activation": b"gelu", "scaling": 1.0}
        assert node.input[0] == node.input[1], "sequential: the residual is the input"
    assert documents["function"]["variants"] == ["gelu"]
    dimensions = [[d.dim_param for d in entry.type.tensor_type.shape.dim] for entry in model.graph.input]
    assert dimensions == [["batch", "sequence"]] * 3


def test_portable_file_has_standard_operators_only(exported):
    _, folder, _ = exported("bert", *MODES["bert"])
    model = onnx.load(folder / "model.portable.onnx")
    assert not model.functions
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert not [node for node in model.graph.node if node.domain]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])  # no, one and one per channel learned scaling
def test_weights_keep_their_names_and_learned_scalings_are_folded_in(name, exported):
    model, folder, documents = exported(name, *MODES[name])
    stored = onnx.load(folder / onnx_file.FILES[next(iter(documents))])
    weights = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in stored.graph.initializer}
    seen = 0
    for path, module in model.named_modules():
        if isinstance(module, AdapterSet):
            adapter, stem = module["default"], f"{path}.default"
            scaling = adapter.scaling if isinstance(adapter.scaling, torch.Tensor) else torch.ones(1)
            with torch.no_grad():
                expected = {
                    f"{stem}.down_proj.weight": adapter.down_proj.weight,
                    f"{stem}.down_proj.bias": adapter.down_proj.bias,
                    f"{stem}.up_proj.weight": adapter.up_proj.weight * scaling[:, None],
                    f"{stem}.up_proj.bias": adapter.up_proj.bias * scaling,
                }
            for key, tensor in expected.items():
                torch.testing.assert_close(weights[key], tensor.detach(), msg=key)
                seen += 1
    assert seen == 4 * tiny.MODELS[name][1]


def test_both_modes_share_one_index(exported):
    _, folder, documents = exported("bert", *MODES["bert"])
    assert sorted(p.name for p in folder.iterdir()) == ["adapterx_export.json", "model.onnx", "model.portable.onnx"]
    files = read_metadata(folder)["files"]
    assert files == {onnx_file.FILES[mode]: document for mode, document in documents.items()}
    document = documents["function"]
    assert (document["kind"], document["mode"], document["opset"]) == ("onnx", "function", 20)
    assert document["adapters"][0]["config"] == AdapterConfig(bottleneck_dim=4).to_dict()
    assert [(s["batch"], s["sequence"]) for s in document["validation"]["shapes"]][-1] == (5, 40)


def test_no_path_of_this_machine_is_in_the_files(exported):
    _, folder, _ = exported("bert", *MODES["bert"])
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not [text for text in [*LOCAL, str(folder), "/tmp"] if text.encode() in content], path.name


def perturbed(source, target):
    model = onnx.load(source)
    weight = next(t for t in model.graph.initializer if t.name.endswith("adapterx.default.up_proj.weight"))
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0, 0] += 0.05
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, target)


@pytest.mark.parametrize("mode", ["function", "portable"])
def test_a_perturbed_file_is_refused(mode, exported, tmp_path):
    model, folder, _ = exported("bert", *MODES["bert"])
    path = folder / onnx_file.FILES[mode]
    assert validate(model, path)["max_abs_diff"] <= 1e-4
    perturbed(path, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"must agree with the model within 0\.0001, it differs by .*onnxruntime"):
        validate(model, tmp_path / "model.onnx")
    assert validate(model, tmp_path / "model.onnx", atol=10.0)["max_abs_diff"] > 1e-4


def test_a_damaged_file_is_refused(exported, tmp_path):
    model, folder, _ = exported("bert", *MODES["bert"])
    (tmp_path / "cut.onnx").write_bytes((folder / "model.onnx").read_bytes()[:5000])
    with pytest.raises(ExportError, match="neither a TorchScript nor an ONNX file"):
        validate(model, tmp_path / "cut.onnx")
    graph = onnx.load(folder / "model.onnx")
    del graph.functions[:]
    onnx.save(graph, tmp_path / "bare.onnx")
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot run bare\.onnx"):
        validate(model, tmp_path / "bare.onnx")


def test_a_refused_file_replaces_nothing(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(onnx_file, "check_onnx", lambda *a, **k: (_ for _ in ()).throw(ExportError("no")))
    with pytest.raises(ExportError, match="no"):
        to_onnx(tiny.distilbert_encoder(), tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"model.onnx": "old", "notes.txt": "mine"}


def test_stacked_adapters_of_two_activations_with_external_data(tmp_path, monkeypatch):
    model = tiny.distilbert_encoder().train()
    attach(model, AdapterConfig(bottleneck_dim=3, activation="relu", scaling=-2.0), name="second")
    tiny.randomise(model)
    set_active(model, ["second", "default"])
    before = [module.training for module in model.modules()], {n: p.requires_grad for n, p in model.named_parameters()}
    (tmp_path / "adapterx_export.json").write_text("not ours")
    monkeypatch.setattr(onnx_folder, "EXTERNAL_DATA_FROM", 1000)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        document = to_onnx(model, tmp_path)
    assert not [str(w.message) for w in said if "transformers" not in str(w.filename)]
    assert ([m.training for m in model.modules()], {n: p.requires_grad for n, p in model.named_parameters()}) == before
    assert document["variants"] == ["relu", "silu_no_down_bias_no_up_bias"]
    assert [node.overload for node in adapter_nodes(tmp_path / "model.onnx")] == document["variants"] * 2
    assert [entry["name"] for entry in document["adapters"]] == ["second", "default"]
    index, file, data = sorted(p.name for p in tmp_path.iterdir())
    assert (index, file) == ("adapterx_export.json", "model.onnx")
    assert data == f"model.onnx.{hashlib.sha256((tmp_path / data).read_bytes()).hexdigest()[:16]}.data"
    assert (tmp_path / data).stat().st_size > 1000
    assert_agrees(tmp_path / "model.onnx", model.eval())


def test_float16_and_stale_data_file(tmp_path):
    (tmp_path / "model.portable.onnx.data").write_text("of an earlier, larger export")
    model = tiny.distilbert_encoder().half()
    document = to_onnx(model, tmp_path, mode="portable", opset=21)
    assert (document["dtype"], document["opset"], document["validation"]["atol"]) == ("float16", 21, 0.02)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapterx_export.json", "model.portable.onnx"]
    assert_agrees(tmp_path / "model.portable.onnx", model, atol=2e-2)


def test_failures_restore_the_model(tmp_path, monkeypatch):
    model = tiny.gpt2_lm().train()
    model.config.use_cache = True
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: 1 / 0)
    level = logging.getLogger("torch.onnx").level
    with pytest.raises(ExportError, match="cannot be exported: ZeroDivisionError"):
        to_onnx(model, tmp_path / "new")
    assert model.training
    assert model.config.use_cache
    assert logging.getLogger("torch.onnx").level == level


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (tiny.distilbert_encoder, {"mode": "hotswap"}, "mode must be one of function, portable, got 'hotswap'"),
        (tiny.distilbert_encoder, {"opset": 19}, "opset must be from 20 to 23, got 19"),
        (tiny.distilbert_encoder, {"opset": "20"}, "opset must be from 20 to 23, got '20'"),
        (lambda: tiny.distilbert_encoder().bfloat16(), {}, "ONNX Runtime has no bfloat16 kernels"),
        (lambda: tiny.distilbert_encoder().to("meta"), {}, "must be on one real device, got meta"),
        (
            lambda: transformers.BartModel(
                transformers.BartConfig(
                    vocab_size=99, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                    decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
                )
            ),
            {},
            "encoder-decoder models such as BartModel cannot be exported",
        ),
    ],
)  # fmt: skip
def test_refusals_are_in_words(build, arguments, message, tmp_path):
    with pytest.raises(ExportError, match=f"^to_onnx: .*{message}"):
        to_onnx(build(), tmp_path / "new", **arguments)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path, monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(
        "importlib.import_module", lambda name: real("no_such_module") if name == "onnxscript" else None
    )
    with pytest.raises(ExportError, match=r"to_onnx: needs onnxscript: pip install 'adapterx\[onnx\]'"):
        to_onnx(tiny.distilbert_encoder(), tmp_path)


def test_unusable_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="to_onnx: cannot write to"):
        to_onnx(tiny.distilbert_encoder(), tmp_path / "file", validate=False)


def test_damaged_metadata(tmp_path):
    (tmp_path / "adapterx_export.json").write_text("{")
    with pytest.raises(ExportError, match="is not valid JSON"):
        read_metadata(tmp_path)
    (tmp_path / "adapterx_export.json").write_text(json.dumps([1]))
    with pytest.raises(ExportError, match="must hold a JSON object, got list"):
        read_metadata(tmp_path)
