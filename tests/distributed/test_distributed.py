"""Two processes are one: losses, gradients, files and resumed runs, under DistributedDataParallel and FSDP2.

What two processes add up in another order differs in the last digits: a mean over half a batch, and the mean of two of
these. Float32 has 24 bits, 6e-8 of a value; over a few steps of Adam, whose first step divides a gradient by its own
size, values of about 0.1 that learn at 0.01 come to differ by less than 1e-5, and losses of about 1 by less than 1e-6.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import many_processes
import together

LOSS, GRADIENT, VALUE = 1e-6, 1e-6, 1e-5
LOGGED = 1.1e-4 if together.TRANSFORMERS_4 else LOSS  # transformers 4 rounds what it logs

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of torch has no gloo")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process alone, then two that share its batches."""
    folder = tmp_path_factory.mktemp("runs")
    one = together.train(folder / "one")
    return folder, one, many_processes.in_processes(together.everything, 2, folder)


def test_sharded_and_replicated_training_is_that_of_one_process(runs):
    _, _, (found, _) = runs
    for losses in (found["sharded"]["train"], found["sharded"]["switched"], found["replicated"]["train"]):
        loss, gradient, value = losses
        assert loss < LOSS
        assert gradient < GRADIENT
        assert value < VALUE


@pytest.mark.parametrize("way", ["sharded", "replicated"])
def test_mixed_batches_are_those_of_one_process(runs, way):
    loss, gradient = runs[2][0][way]["mixed"]
    assert loss < LOSS
    assert gradient < GRADIENT


def test_a_saved_adapter_is_whole(runs):
    """What the first process alone holds is half of it, which others have saved for the whole (accelerate #4206)."""
    folder, _, (found, _) = runs
    assert found["sharded"]["naive"] < 0.7 * found["sharded"]["whole"]
    sharded, alone = (folder / "sharded" / name for name in ("sharded", "alone"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (sharded / name).read_bytes() == (alone / name).read_bytes()


def test_a_sharded_adapter_and_head_are_restored(runs):
    _, _, (found, _) = runs
    assert found["sharded"]["restored"]
    assert found["sharded"]["output"] < LOSS
    assert found["heads"]


def test_new_adapters_are_refused_on_a_sharded_model(runs):
    *on_sharded, mixed = runs[2][0]["sharded"]["refusals"]
    for said, function in zip(on_sharded, ["attach", "load_adapter", "add_fusion", "attach"], strict=True):
        assert said.startswith(f"{function}: model must not be sharded yet")
    assert mixed.startswith("mixed: names must hold the same adapters in every process")


def test_all_processes_learn_that_nothing_was_saved(runs):
    first, second = (found["sharded"]["failed"] for found in runs[2])
    assert first.startswith("save_adapter: ")
    assert "the first process must be able to write for all" in second


@pytest.mark.parametrize("way", ["fsdp", "ddp", "fsdp resumed"])
def test_the_trainer_in_two_processes(runs, way):
    folder, one, (found, _) = runs
    assert found[way]["sharded"] == way.startswith("fsdp")
    losses = [abs(a - b) for a, b in zip(found[way]["losses"], one["losses"], strict=True)]
    assert max(losses) < LOGGED
    assert abs(found[way]["evaluated"] - one["evaluated"]) < LOSS
    assert largest_difference(folder / way / "checkpoint-6", folder / "one" / "checkpoint-6") < VALUE
    assert largest_difference(folder / way / "final", folder / "one" / "final") < VALUE


def test_one_process_continues_what_two_began(runs, tmp_path):
    folder, one, _ = runs
    resumed = together.train(tmp_path / "resumed", resume=folder / "fsdp" / "checkpoint-3")
    assert max(abs(a - b) for a, b in zip(resumed["losses"], one["losses"], strict=True)) < LOGGED
    assert largest_difference(tmp_path / "resumed" / "checkpoint-6", folder / "one" / "checkpoint-6") < VALUE


def largest_difference(folder, other):
    """Compare the tensors and documents of two checkpoints."""
    found = []
    for stem in ("adapter", "trainable"):
        one, two = (load_file(each / f"{stem}_model.safetensors") for each in (folder, other))
        assert one.keys() == two.keys()
        found += [(one[name] - two[name]).abs().max().item() for name in one]
        first, second = (json.loads((each / f"{stem}_config.json").read_text()) for each in (folder, other))
        differing = {name for name in first if first[name] != second[name]}
        assert differing <= {"sha256", "document_sha256", "adapters"}
    if (folder / "optimizer.pt").exists():
        one, two = (torch.load(each / "optimizer.pt")["state"] for each in (folder, other))
        assert one.keys() == two.keys()
        found += [(one[key][name] - two[key][name]).abs().max().item() for key in one for name in one[key]]
    return max(found)
