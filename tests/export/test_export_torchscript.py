import json
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import tiny_export as tiny
import transformers

import adapterx
from adapterx import AdapterConfig, ExportError, attach, disabled, set_active
from adapterx.checkpoint.document import hashed
from adapterx.export import read_metadata, to_torchscript, torchscript, validate

LOCAL = [
    str(Path(adapterx.__file__).parent.parent),
    str(Path.home()),
    str(Path(torch.__file__).parent),
    "site-packages",
]


def load(path):
    module = torch.jit.load(str(path))
    return lambda named: module(*named.values())


def nodes_of(path):
    graph = torch.jit.load(str(path)).inlined_graph
    return sum(node.kind() == "adapterx::bottleneck_adapter" for node in graph.nodes())


def assert_agrees(path, model, atol=1e-6):
    run = load(path)
    for shape in tiny.SHAPES:
        named = tiny.inputs_at(model, *shape)
        with torch.no_grad():
            found = run(named)
        torch.testing.assert_close(found, tiny.output_of(model, named), atol=atol, rtol=1e-5, msg=str(shape))


@pytest.mark.parametrize("name", tiny.MODELS)
def test_file_agrees_with_the_model_at_other_shapes(name, tmp_path):
    build, adapters = tiny.MODELS[name]
    model = build()
    document = to_torchscript(model, tmp_path / "model.pt", validate=False)
    assert document["adapter_nodes"] == adapters == nodes_of(tmp_path / "model.pt")
    assert document["inputs"] == list(tiny.inputs_at(model, 2, 8))
    assert document["max_sequence"] == 40
    assert document["validation"] is None
    assert_agrees(tmp_path / "model.pt", model)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_the_adapters_matter(name):
    model = tiny.MODELS[name][0]()
    named = tiny.inputs_at(model, 2, 8)
    adapted = tiny.output_of(model, named)
    with disabled(model):
        assert (adapted - tiny.output_of(model, named)).abs().max() > 0.1, "or agreement would prove nothing"


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """One file that was validated in a process in which neither transformers nor adapterx can be imported."""
    folder = tmp_path_factory.mktemp("validated")
    for name in ("transformers", "adapterx"):
        (folder / "poison").mkdir(exist_ok=True)
        (folder / "poison" / f"{name}.py").write_text("raise ImportError('not in a fresh process')\n")
    model = tiny.bert_classifier()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "poison"))
        document = to_torchscript(model, folder / "deep" / "model.pt")
    return model, folder / "deep" / "model.pt", document


def test_validation_runs_in_a_new_process_and_is_stored(validated):
    _, path, document = validated
    validation = document["validation"]
    shapes = [(entry["batch"], entry["sequence"]) for entry in validation["shapes"]]
    assert shapes == [(1, 1), (1, 7), (2, 8), (3, 19), (5, 40)], "the longest is cut to what the model takes"
    assert validation["max_abs_diff"] == max(entry["max_abs_diff"] for entry in validation["shapes"]) <= 1e-6
    assert read_metadata(path) == document
    assert [child.name for child in path.parent.iterdir()] == ["model.pt"], "nothing temporary stays"


def test_metadata(validated):
    _, path, document = validated
    extra = {"adapterx_export.json": ""}
    torch.jit.load(str(path), _extra_files=extra)
    assert json.loads(extra["adapterx_export.json"]) == hashed(document)
    assert document["format_version"] == 2
    assert document["versions"]["torch"] == torch.__version__
    assert document["versions"]["transformers"] == transformers.__version__
    assert document["adapters"][0]["config"] == AdapterConfig(bottleneck_dim=4).to_dict()
    assert (document["kind"], document["dtype"], document["frozen"]) == ("torchscript", "float32", False)
    assert document["outputs"] == ["logits"]


def test_no_path_of_this_machine_is_in_the_file(validated):
    _, path, _ = validated
    with zipfile.ZipFile(path) as archive:  # its members are compressed
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert not [text for text in [*LOCAL, str(path.parent), "libadapterx"] if text.encode() in content]


def test_a_perturbed_file_is_refused(validated, tmp_path):
    model, path, _ = validated
    extra = {"adapterx_export.json": ""}
    module = torch.jit.load(str(path), _extra_files=extra)
    weights = {name: p for name, p in module.named_parameters() if "adapterx.default.up_proj.weight" in name}
    assert len(weights) == 2, "the parameters keep their names"
    with torch.no_grad():
        next(iter(weights.values()))[0, 0] += 0.05
    module.save(str(tmp_path / "model.pt"), _extra_files=extra)
    with pytest.raises(ExportError, match=r"must agree with the model within 0\.0001, it differs by .*at batch 1"):
        validate(model, tmp_path / "model.pt", shapes=((1, 7),))


def test_a_refused_file_replaces_nothing(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_text("old")

    def refuse(*args, **kwargs):
        raise ExportError("no")

    monkeypatch.setattr(torchscript, "check_torchscript", refuse)
    with pytest.raises(ExportError, match="no"):
        to_torchscript(tiny.distilbert_encoder(), path)
    assert [child.read_text() for child in tmp_path.iterdir()] == ["old"]


def test_a_file_that_does_not_run_is_reported_with_its_error(validated, tmp_path):
    model, path, _ = validated
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "cut.pt", "w") as new:
        for name in old.namelist():
            if not name.endswith("data.pkl"):
                new.writestr(name, old.read(name))
    with pytest.raises(ExportError, match=r"cut\.pt does not run in a new process: RuntimeError: .*data\.pkl"):
        validate(model, tmp_path / "cut.pt")


def test_freeze_folds_the_parameters(tmp_path):
    model = tiny.bert_classifier()
    document = to_torchscript(model, tmp_path / "model.pt", freeze=True, validate=False)
    assert document["frozen"] is True
    assert not list(torch.jit.load(str(tmp_path / "model.pt")).parameters())
    assert nodes_of(tmp_path / "model.pt") == 2
    assert_agrees(tmp_path / "model.pt", model)


def flags_of(model):
    grads = {name: p.requires_grad for name, p in model.named_parameters()}
    configs = [m.config for m in model.modules() if hasattr(m, "config")]
    return [m.training for m in model.modules()], grads, [(c.use_cache, c.return_dict) for c in configs]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails, tmp_path, monkeypatch):
    model = tiny.gpt2_lm().train()
    model.transformer.h[0].mlp.eval()
    model.config.use_cache = True
    before, weights = flags_of(model), {k: v.clone() for k, v in model.state_dict().items()}
    if fails:
        monkeypatch.setattr(torch.jit, "trace", lambda *a, **k: 1 / 0)
        with pytest.raises(ExportError, match="cannot be traced: ZeroDivisionError"):
            to_torchscript(model, tmp_path / "model.pt")
    else:
        to_torchscript(model, tmp_path / "model.pt", validate=False)
    assert flags_of(model) == before
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_model_in_training_is_exported_as_in_use(tmp_path):
    model = tiny.adapt(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=101, n_embd=16, n_layer=1, n_head=2, n_positions=40)
        ),
        dropout=0.5,
    )
    to_torchscript(model.train(), tmp_path / "model.pt", validate=False)
    assert_agrees(tmp_path / "model.pt", model.eval())


def test_disabled_stacked_and_no_adapters(tmp_path):
    model, path = tiny.distilbert_encoder(), tmp_path / "model.pt"
    with disabled(model):
        document = to_torchscript(model, path, validate=False)
        assert_agrees(path, model)
    assert (document["adapter_nodes"], document["adapters"]) == (0, [])
    attach(model, AdapterConfig(bottleneck_dim=3, activation="relu"), name="second")
    tiny.randomise(model)
    set_active(model, ["second", "default"])
    document = to_torchscript(model, path, validate=False)
    assert (document["adapter_nodes"], [entry["name"] for entry in document["adapters"]]) == (4, ["second", "default"])
    assert_agrees(path, model)
    adapterx.detach(model)
    assert to_torchscript(model, path, validate=False)["adapters"] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, tmp_path):
    model = tiny.bert_classifier().to(dtype)
    document = to_torchscript(model, tmp_path / "model.pt", validate=False)
    assert document["dtype"] == str(dtype).removeprefix("torch.")
    assert_agrees(tmp_path / "model.pt", model, atol=1e-2)


def test_own_example(tmp_path):
    model, path = tiny.distilbert_encoder(), tmp_path / "model.pt"
    ids = torch.randint(5, 101, (3, 6))
    for example in ({"input_ids": ids}, (ids,), ids):
        document = to_torchscript(model, path, example=example, validate=False)
        assert (document["inputs"], document["example_shape"]) == (["input_ids"], [3, 6])
    named = {"input_ids": torch.randint(5, 101, (2, 9))}
    with torch.no_grad():
        torch.testing.assert_close(load(path)(named), tiny.output_of(model, named))


def test_the_base_model_is_named_without_its_folder(tmp_path):
    model = tiny.distilbert_encoder()
    for name, shown in ((str(tmp_path), tmp_path.name), ("organisation/model", "organisation/model")):
        model.config._name_or_path = name
        document = to_torchscript(model, tmp_path / "model.pt", validate=False)
        assert document["base_model"]["name"] == shown


def test_nothing_is_said_to_the_user(tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        to_torchscript(tiny.llama_lm(), tmp_path / "model.pt", validate=False)
    assert not [str(w.message) for w in said if "transformers" not in str(w.filename)]


T5 = {"vocab_size": 99, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2}
IDS = torch.ones(2, 8, dtype=torch.long)
REFUSALS = [
    (lambda: "model", {}, "model must be a torch.nn.Module, got str"),
    (lambda: nn.Linear(2, 2), {}, "model must have a config .* Linear has none"),
    (
        lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)),
        {},
        "encoder-decoder models such as T5ForConditionalGeneration cannot be exported",
    ),
    (
        lambda: transformers.ViTModel(
            transformers.ViTConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=24,
                image_size=8,
                patch_size=4,
            )
        ),
        {},
        "forward must take input_ids, ViTModel takes .*pixel_values",
    ),
    (lambda: tiny.distilbert_encoder().to("meta"), {}, "must be on one real device, got meta"),
    (tiny.distilbert_encoder, {"example": {"input_ids": IDS[:1]}}, r"both at least 2 .*got {'input_ids': \(1, 8\)}"),
    (tiny.distilbert_encoder, {"example": (IDS, IDS[:, :7])}, r"tensors of one shape .*\(2, 7\)"),
    (tiny.distilbert_encoder, {"example": {"input_ids": [1, 2]}}, "got {'input_ids': 'list'}"),
    (tiny.distilbert_encoder, {"example": (IDS, IDS, IDS)}, r"at most 2 tensors \(input_ids, attention_mask\)"),
    (
        tiny.distilbert_encoder,
        {"example": {"input_ids": IDS, "labels": IDS}},
        "among input_ids, .* got input_ids, labels",
    ),
    (tiny.distilbert_encoder, {"example": {"attention_mask": IDS}}, "must name input_ids"),
    (tiny.distilbert_encoder, {"example": {"input_ids": IDS + 200}}, "cannot run the example: IndexError"),
]


@pytest.mark.parametrize(("build", "arguments", "message"), REFUSALS)
def test_refusals_are_in_words(build, arguments, message, tmp_path):
    with pytest.raises(ExportError, match=f"^to_torchscript: .*{message}"):
        to_torchscript(build(), tmp_path / "model.pt", **arguments)
    assert not list(tmp_path.iterdir())


def test_unusable_paths(tmp_path):
    model = tiny.distilbert_encoder()
    with pytest.raises(ExportError, match=r"path must be a file, .* is a folder"):
        to_torchscript(model, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot write to"):
        to_torchscript(model, tmp_path / "file" / "model.pt", validate=False)
    with pytest.raises(ExportError, match=r"^validate: file must be a file that exists, got"):
        validate(model, tmp_path / "absent.pt")


def test_read_metadata_refuses_in_words(tmp_path):
    with pytest.raises(ExportError, match="there is no such file"):
        read_metadata(tmp_path / "absent.pt")
    with pytest.raises(ExportError, match="cannot read"):
        read_metadata(tmp_path)
    with zipfile.ZipFile(tmp_path / "plain.pt", "w") as archive:
        archive.writestr("plain/data.pkl", b"")
    with pytest.raises(ExportError, match="has no metadata of adapterx"):
        read_metadata(tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "later.pt", "w") as archive:
        archive.writestr("later/extra/adapterx_export.json", '{"format_version": 3}')
    with pytest.raises(ExportError, match=r"must be 1 or 2, got 3; a newer adapterx"):
        read_metadata(tmp_path / "later.pt")
