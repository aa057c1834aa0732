"""The same commands on one process and on two: `adapterx train` and a script of `AdapterTrainer`."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import tiny_training
import torch
from safetensors.torch import load_file
from test_distributed import LOGGED, VALUE, largest_difference

SCRIPT = """
import json, sys
from pathlib import Path

import many_processes
import together

many_processes.let_accelerate_shard_on_cpus()
folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
with many_processes.group():
    found = together.train(folder, **settings)
    if many_processes.dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
"""


def run(*command, processes=0):
    """Run a command; with `processes` by torchrun."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [*(start if processes else ()), *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base without dropout, whose masks would be others in every process, and data."""
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("files")
    config = tiny_training.tiny_config()
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(7)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "base")
    tiny_training.save_tiny_tokenizer(folder / "base")
    tiny_training.write_csv(folder / "train.csv", tiny_training.sentences(48))  # whole batches: none is filled up
    tiny_training.write_csv(folder / "dev.csv", tiny_training.sentences(16, seed=1))
    return folder


def test_the_command_on_one_process_and_on_two(files, tmp_path):
    train = ["-m", "adapterx.cli", "train", "--model", files / "base", "--data", files / "train.csv", "--epochs", "2"]
    train += [
        "--eval-data",
        files / "dev.csv",
        "--bottleneck-dim",
        "8",
        "--dropout",
        "0",
        "--head-dropout",
        "0",
        "--precision",
        "fp32",
    ]
    run(*train, "--batch-size", "8", "--output", tmp_path / "one", processes=1)
    run(*train, "--batch-size", "4", "--output", tmp_path / "two", processes=2)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--module"]
    run(*launch, *train[1:], "--batch-size", "4", "--output", tmp_path / "launched")
    for other in ("two", "launched"):
        for name in ("adapter_model.safetensors", "head_model.safetensors"):
            mine, theirs = load_file(tmp_path / "one" / name), load_file(tmp_path / other / name)
            assert max((mine[key] - theirs[key]).abs().max().item() for key in mine) < VALUE
        steps = [json.loads((tmp_path / name / "metrics.json").read_text())["steps"] for name in ("one", other)]
        assert steps == [12, 12]


def test_a_run_of_two_processes_goes_on_in_one(files, tmp_path):
    options = ["--epochs", "2", "--precision", "fp32", "--bottleneck-dim", "8", "--dropout", "0", "--head-dropout", "0"]
    options += ["--eval-data", files / "dev.csv", "--keep-checkpoints"]
    train = ["-m", "adapterx.cli", "train", "--model", files / "base", "--data", files / "train.csv", *options]
    run(*train, "--batch-size", "4", "--output", tmp_path / "two", processes=2)
    whole = load_file(tmp_path / "two" / "adapter_model.safetensors")
    for path in (tmp_path / "two").iterdir():  # as a process leaves it that was killed in the second epoch
        if path.is_file():
            path.unlink()
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "checkpoint-12")
    said = run(*train, "--batch-size", "8", "--output", tmp_path / "two", "--resume", processes=1)
    assert "resuming from checkpoint-6" in said.stdout + said.stderr
    resumed = load_file(tmp_path / "two" / "adapter_model.safetensors")
    assert max((whole[name] - resumed[name]).abs().max().item() for name in whole) < VALUE


@pytest.mark.parametrize("fsdp", [False, True], ids=["DistributedDataParallel", "FSDP2"])
def test_a_script_on_one_process_and_on_two(fsdp, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        settings = json.dumps({"fsdp": fsdp and processes > 1})
        run(tmp_path / "script.py", folder, settings, processes=processes)
        found[processes] = json.loads((folder / "found.json").read_text())
    assert found[2]["sharded"] == fsdp
    assert max(abs(a - b) for a, b in zip(found[1]["losses"], found[2]["losses"], strict=True)) < LOGGED
    assert largest_difference(tmp_path / "2" / "checkpoint-6", tmp_path / "1" / "checkpoint-6") < VALUE
