"""Compositions of AdapterHub's adapters give here what they gave there; its fusions are read and written."""

import json
import shutil

import pytest
import torch

pytest.importorskip("transformers")
from hub_goldens import TOLERANCE, Golden, cases

import adapterx
from adapterx import CheckpointError, ConfigError, Fuse, UnknownAdapterError
from adapterx.integrations import adapterhub

CONFIG = "adapter_fusion_config.json"
REFUSED = {
    "Fuse residual_before, seq_bn": "residual_before must be False for adapters of placement 'normed_sum'",
    "Fuse query_before_ln, seq_bn": "query_before_ln must be False on encoder.layer.0.output.LayerNorm",
}


@pytest.fixture(scope="module", params=list(cases.COMPOSED))
def golden(request, tmp_path_factory):
    return Golden(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return Golden("bert", tmp_path_factory.mktemp("bert"))


def with_adapters(golden, case):
    """The base model with the adapters of a composition; its kind, their names, its options."""
    kind, names, options = golden.cases[case]["how"]
    model = golden.base()
    for name in names:
        adapterhub.load_adapter(model, golden.path(case) / name, active=False)
    return model, kind, names, dict(options)


def compositions_of(golden, *kinds):
    return [name for name, record in golden.cases.items() if record["kind"] == "composition" and name.startswith(kinds)]


def test_stacks_and_splits(golden):
    for case in compositions_of(golden, "Stack", "Split", "BatchSplit"):
        model, kind, names, options = with_adapters(golden, case)
        if kind == "Split" and golden.model_type == "vit":
            options["splits"] = [2, 3]
        adapterx.set_active(model, getattr(adapterx, kind)(*names, **options))
        assert golden.difference(model, case) < TOLERANCE, case


def test_parallel_is_fan_out(golden):
    for case in compositions_of(golden, "Parallel"):
        model, _, names, _ = with_adapters(golden, case)
        with torch.no_grad(), adapterx.fan_out(model, names) as run:
            outputs = run(**golden.inputs)
        joined = torch.cat([outputs[name][0] for name in names])
        assert (joined - golden.outputs[case]).abs().max() < TOLERANCE, case


def test_averages_of_adapters_are_divided_once_more(golden):
    """`adapters` weighs the results and then takes their mean: two equal ones become half of one."""
    for case in compositions_of(golden, "Average"):
        if golden.cases[case]["preset"] != "double_seq_bn":
            continue  # there the residual stream stands outside of its average, and inside of ours
        model, _, names, options = with_adapters(golden, case)
        weights = [weight / len(names) for weight in options["weights"]]
        adapterx.set_active(model, adapterx.Average(*names, weights=weights, normalize=False))
        assert golden.difference(model, case) < TOLERANCE, case


def test_fusions_are_read_and_written(golden, tmp_path):
    for case in compositions_of(golden, "Fuse"):
        model, _, names, _ = with_adapters(golden, case)
        if case in REFUSED:
            with pytest.raises(CheckpointError, match=rf"^load_fusion: .*{REFUSED[case]}"):
                adapterhub.load_fusion(model, golden.path(case) / "fusion")
            continue
        fuse = adapterhub.load_fusion(model, golden.path(case) / "fusion")
        assert fuse == Fuse(*names)
        assert golden.difference(model, case) < TOLERANCE, case
        folder = tmp_path / golden.cases[case]["folder"]
        adapterhub.save_fusion(model, folder)
        again, *_ = with_adapters(golden, case)
        adapterhub.load_fusion(again, folder)
        assert golden.difference(again, case) < TOLERANCE, case


def test_fusions_under_other_names(bert):
    case, model = "Fuse dynamic, double_seq_bn", bert.base()
    for name in "abc":
        adapterhub.load_adapter(model, bert.path(case) / name, f"task-{name}", active=False)
    folder = bert.path(case) / "fusion"
    with pytest.raises(UnknownAdapterError, match=r"^load_fusion: name must be an attached adapter"):
        adapterhub.load_fusion(model, folder)
    with pytest.raises(ConfigError, match=r"^load_fusion: names must be 3, as many as .* fuses, got \['task-a'\]"):
        adapterhub.load_fusion(model, folder, ["task-a"])
    names = ["task-a", "task-b", "task-c"]
    assert adapterhub.load_fusion(model, folder, names) == Fuse(*names)
    assert bert.difference(model, case) < TOLERANCE
    with pytest.raises(ConfigError, match=r"^load_fusion: the fusion must be new, 'task-a,task-b,task-c' is there"):
        adapterhub.load_fusion(model, folder, names)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d, t: d["config"].update(other=1), "has unknown options: .*other"),
        (lambda d, t: d["config"].update(value=False), "regularization must be False where value is False"),
        (lambda d, t: d["config"].update(regularization=False, value=False), "must hold .* it does not"),
        (lambda d, t: d.update(adapter_names=[1]), "must name the adapters of its fusion"),
        (lambda d, t: d.update(config=[]), "config of .* must be an object"),
        (lambda d, t: t.clear(), "must fuse where the adapters hang, it does not at attention of block 0"),
        (lambda d, t: t.update(other=torch.ones(1)), "must hold the tensors of a fusion 'a,b,c' only, other is none"),
    ],
)
def test_what_is_wrong_is_said(bert, tmp_path, change, words):
    case = "Fuse dynamic, double_seq_bn"
    folder = shutil.copytree(bert.path(case) / "fusion", tmp_path / "fusion")
    document, tensors = json.loads((folder / CONFIG).read_text()), torch.load(next(folder.glob("*.bin")))
    change(document, tensors)
    (folder / CONFIG).write_text(json.dumps(document))
    torch.save(tensors, next(folder.glob("*.bin")))
    model, *_ = with_adapters(bert, case)
    with pytest.raises(CheckpointError, match=rf"^load_fusion: .*{words}"):
        adapterhub.load_fusion(model, folder)
    assert not adapterx.fusions(model)


def test_what_adapters_fuses_otherwise_is_refused(bert):
    model, case = bert.base(), "Fuse static, double_seq_bn"
    for name in "ab":
        adapterx.attach(model, adapterx.AdapterConfig(bottleneck_dim=4, gating=True), name)
    with pytest.raises(
        CheckpointError, match=r"^load_fusion: the fused adapters must not be parallel, nor have gating"
    ):
        adapterhub.load_fusion(model, bert.path(case) / "fusion")
    adapterx.add_fusion(model, ["a", "b"])
    with pytest.raises(CheckpointError, match=r"^save_fusion: the fused adapters must not be parallel"):
        adapterhub.save_fusion(model, bert.folder / "x")
