"""List, rename, average, push, pull: what is done to folders of adapters and runs, and what is refused."""

import json
import os
import shutil
import subprocess
import sys

import fake_hub
import pytest
import tiny_training
import torch
from command_line import invoke, refused, train
from run_folders import content_of
from safetensors.torch import load_file

import adapterx
from adapterx.checkpoint import average_saved_adapters, rename_saved_adapter
from adapterx.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """Two runs of one task with two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    data = tiny_training.write_csv(folder / "train.csv", tiny_training.sentences(60))
    for seed in ("1", "2"):
        train(model, data, folder / f"seed-{seed}", "--seed", seed, "--eval-fraction", "0")
    return folder


@pytest.fixture
def adapters(tmp_path):
    from saved_adapters import adapted_plain

    for seed in (1, 2):
        adapterx.save_adapter(adapted_plain(seed), tmp_path / f"a{seed}")
    return tmp_path


def test_list(runs, adapters):
    shutil.copytree(adapters / "a1", adapters / "deep" / "er" / "a3")
    (adapters / "a2" / "adapter_config.json").write_text("{")
    (adapters / "lora").mkdir()
    (adapters / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    found = {entry["folder"]: entry for entry in json.loads(invoke("list", runs, adapters, "--json").stdout)}
    assert set(found) == {str(path) for path in (runs / "seed-1", runs / "seed-2", adapters / "a1", adapters / "a2",
                                                 adapters / "deep" / "er" / "a3", adapters / "lora")}  # fmt: skip
    run, good = found[str(runs / "seed-1")], found[str(adapters / "a1")]
    assert (run["kind"], run["method"], run["config"]) == ("run", "adapters", "4 sequential attention+feed_forward")
    assert (good["kind"], good["name"], good["config"]) == ("adapter", "default", "2 sequential feed_forward")
    assert good["bytes"] == (adapters / "a1" / "adapter_model.safetensors").stat().st_size
    assert "is not valid JSON" in found[str(adapters / "a2")]["problem"]
    assert found[str(adapters / "lora")]["kind"] == "adapter of peft"
    assert "a1" in invoke("list", adapters).stdout
    (adapters / "empty").mkdir()
    assert "no adapters" in invoke("list", adapters / "empty").stdout
    assert "list: folder must be a folder" in refused("list", adapters / "absent")


def test_rename(adapters):
    before = load_file(adapters / "a1" / "adapter_model.safetensors")
    invoke("rename", adapters / "a1", "sentiment")
    invoke("rename", adapters / "a1", "topic", "--output", adapters / "b")
    for folder, name in (("a1", "sentiment"), ("b", "topic")):
        from tiny_models import plain_model

        model = plain_model()
        assert adapterx.load_adapter(model, adapters / folder).name == name
        after = load_file(adapters / folder / "adapter_model.safetensors")
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    for name in ("", "a b", "forward", "a.b"):
        assert "name must" in refused("rename", adapters / "a1", name)


def test_what_others_know_by_its_name_is_not_renamed(runs, adapters):
    before = content_of(runs)
    assert "output must be given" in refused("rename", runs / "seed-1", "x")
    assert content_of(runs) == before
    invoke("rename", runs / "seed-1", "x", "--output", adapters / "of-run")
    assert adapterx.load_head(adapters / "of-run").num_labels == 2
    (adapters / "fusion_config.json").write_text('{"composition": {"parts": ["default", "other"]}}')
    with pytest.raises(CheckpointError, match=r"the fusion in .* knows 'default' by this name"):
        rename_saved_adapter(adapters / "a1", "y")


def test_average_is_the_mean_of_the_weights(adapters):
    one, two = (load_file(adapters / f"a{n}" / "adapter_model.safetensors") for n in (1, 2))
    invoke("average", adapters / "a1", adapters / "a2", "--output", adapters / "mean", "--name", "both")
    mean = load_file(adapters / "mean" / "adapter_model.safetensors")
    for key, tensor in mean.items():
        torch.testing.assert_close(tensor, (one[key] + two[key]) / 2, rtol=1e-6, atol=1e-7)
    weights = ("--weight", "3", "--weight", "-1")
    invoke("average", adapters / "a1", adapters / "a2", *weights, "--output", adapters / "far")
    for key, tensor in load_file(adapters / "far" / "adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, 1.5 * one[key] - 0.5 * two[key], rtol=1e-5, atol=1e-6)
    document = json.loads((adapters / "mean" / "adapter_config.json").read_text())
    assert (document["name"], document["metadata"]["weights"]) == ("both", [0.5, 0.5])


def test_an_average_equals_combine_adapters(adapters):
    from tiny_models import plain_model

    model = plain_model()
    adapterx.combine_adapters(model, "both", {adapters / "a1": 0.25, adapters / "a2": 0.75})
    average_saved_adapters([adapters / "a1", adapters / "a2"], adapters / "mean", weights=[1, 3])
    other = plain_model()
    adapterx.load_adapter(other, adapters / "mean", "both")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=1e-7)


def test_what_cannot_be_averaged(adapters):
    from tiny_models import plain_model

    a1, a2, out = (adapters / name for name in ("a1", "a2", "out"))
    for weights in ([1.0], [1.0, -1.0], [float("nan"), 1.0]):
        with pytest.raises(ConfigError, match="average_saved_adapters: weights must"):
            average_saved_adapters([a1, a2], out, weights=weights)
    assert "folders must be two or more" in refused("average", a1, "--output", out)
    model = plain_model()
    adapterx.attach(model, adapterx.AdapterConfig(bottleneck_dim=3))
    adapterx.save_adapter(model, adapters / "wide")
    assert "adapters must agree in their configuration" in refused("average", a1, adapters / "wide", "--output", out)
    model = plain_model()
    with torch.no_grad():
        next(module for module in model.modules() if isinstance(module, torch.nn.Linear)).weight.add_(1)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(1.5)
    adapterx.load_adapter(model, a1, check_base=False)
    adapterx.save_adapter(model, adapters / "moved")
    assert "adapters must be of one base model" in refused("average", a1, adapters / "moved", "--output", out)
    invoke("average", a1, adapters / "moved", "--output", out, "--other-base")
    assert "output must be empty" in refused("average", a1, a2, "--output", out)


def test_an_average_of_runs_is_a_run(runs, tmp_path):
    invoke("average", runs / "seed-1", runs / "seed-2", "--output", tmp_path / "mean")
    answers = invoke("predict", tmp_path / "mean", "good fine", "--format", "jsonl").stdout
    assert json.loads(answers)["label"] in ("positive", "negative")
    heads = [
        load_file(folder / "head_model.safetensors") for folder in (runs / "seed-1", runs / "seed-2", tmp_path / "mean")
    ]
    for key, tensor in heads[2].items():
        torch.testing.assert_close(tensor, (heads[0][key] + heads[1][key]) / 2)
    assert json.loads((tmp_path / "mean" / "run.json").read_text())["averaged"] == ["seed-1", "seed-2"]


def test_runs_with_other_labels_are_not_averaged(runs, model, tmp_path):
    rows = [(text, "yes" if label == "positive" else "no") for text, label in tiny_training.sentences(60)]
    train(model, tiny_training.write_csv(tmp_path / "t.csv", rows), tmp_path / "other", "--eval-fraction", "0")
    said = refused("average", runs / "seed-1", tmp_path / "other", "--output", tmp_path / "mean")
    assert "runs must agree in all but seed and options" in said
    assert "labels" in said


# --- the hub, in a process of its own: its library reads the environment once

SCRIPT = """
import json, sys
from typer.testing import CliRunner
from adapterx.cli.app import app
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    print(done.stdout)
print(open(sys.argv[2]).read().split("```python\\n")[1].split("```")[0], file=sys.stderr)
exec(open(sys.argv[2]).read().split("```python\\n")[1].split("```")[0])
print(sorted(adapterx.adapters(model)))
"""


def test_push_and_pull(runs, model, tmp_path):
    """A run goes with its base's name, comes back whole, answers alike, and its card's lines run as written."""
    pytest.importorskip("huggingface_hub")
    assert "base_model must be given, as a name on the hub" in refused("push", runs / "seed-1", "me/sentiment")
    here, question = tmp_path / "here", ("good fine", "--format", "jsonl")
    with fake_hub.running() as server:
        server.repositories["me/tiny"] = base = fake_hub.Repository(private=False)
        base.branches["main"] = base.commit(content_of(model))
        names = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_writer"}
        names |= {"HF_HUB_DISABLE_XET": "1", "no_proxy": "127.0.0.1"}
        names |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "0")
        push = ["push", str(runs / "seed-1"), "me/sentiment", "--base-model", "me/tiny", "--license", "mit"]
        commands = [push, ["pull", "me/sentiment", str(here)], ["predict", str(here), *question]]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(commands), str(here / "README.md")],
            env=os.environ | names, capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        pushed = server.repositories["me/sentiment"].files("main")[1]
    assert done.returncode == 0, done.stderr
    address, written, answer, adapters = (line for line in done.stdout.splitlines() if line)
    assert address.startswith(server.address)
    assert "run.json" in written
    assert json.loads(answer) == json.loads(invoke("predict", runs / "seed-1", *question).stdout)
    assert adapters == "['default']"
    assert content_of(here) == pushed
    private = (str(tmp_path).encode(), str(model).encode(), str(runs).encode())
    assert not any(place in content for content in pushed.values() for place in private)
    assert "pull: output must be empty" in refused("pull", "me/sentiment", here)
