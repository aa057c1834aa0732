"""Several processes in one folder: every save succeeds, every load finds one whole pair, and nothing is left over."""

import errno
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from crash_points import run_killed
from forks import Fork, meanwhile, until
from saved_adapters import CONFIG, HIDDEN_STATES, WEIGHTS, adapted_plain, edit, randomise
from tiny_models import plain_model

from adapterx import (
    AdapterConfig,
    CheckpointError,
    attach,
    load_adapter,
    load_head,
    save_adapter,
    save_head,
    set_active,
)
from adapterx.checkpoint import restore_trained, save_trained, waiting
from adapterx.checkpoint import trained as trained_module
from adapterx.checkpoint.lock import locked
from adapterx.heads import SequenceClassifier

SEEDS = (1, 2)


def attempt(action):
    """Return what an action returns, or its error in words."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001 - raw ones too: the test is to show them
        return f"{type(error).__name__}: {error}"


def saving(model, folder):
    return lambda: attempt(lambda: save_adapter(model, folder))


def loading(folder):
    expected = [adapted_plain(seed)(HIDDEN_STATES) for seed in SEEDS]

    def load():
        model = plain_model()
        load_adapter(model, folder)
        answer = model(HIDDEN_STATES)
        return [torch.equal(answer, each) for each in expected].index(True)

    return lambda: attempt(load)


@pytest.mark.parametrize("seeds", [(1,), (1, 1), (1, 2)], ids=["one writer", "equal weights", "different weights"])
def test_writers_and_readers_of_one_folder(saved, tmp_path, seeds):
    writers = [until(tmp_path, saving(adapted_plain(seed), saved)) for seed in seeds]
    done = meanwhile([*writers, until(tmp_path, loading(saved))], tmp_path, 0.8)
    *written, read = done
    assert {result for results in written for result in results} == {None}
    assert set(read) <= {0, 1}
    assert len(read) > 5
    assert sum(map(len, written)) > 5
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG, WEIGHTS]


def test_heads_are_read_while_they_are_written(tmp_path):
    folder = tmp_path / "saved"

    def classifier(value):
        model = SequenceClassifier(torch.nn.Linear(2, 2), 2, hidden_size=4)
        with torch.no_grad():
            model.head.linear.weight.fill_(value)
            model.head.linear.bias.fill_(value)
        return model

    heads = [classifier(value) for value in (1.0, 2.0)]
    save_head(heads[0], folder)

    def load():
        return sorted(set(torch.cat([p.flatten() for p in load_head(folder).parameters()]).tolist()))

    tasks = [lambda head=head: attempt(lambda: save_head(head, folder)) for head in heads]
    done = meanwhile([until(tmp_path, task) for task in [*tasks, lambda: attempt(load)]], tmp_path, 0.5)
    assert {result for results in done[:2] for result in results} == {None}
    assert all(found in ([1.0], [2.0]) for found in done[2])


def trained(value):
    """Two adapters and a trained base, all of whose values are the same number."""
    model = plain_model()
    for name, size in (("first", 2), ("second", 3)):
        attach(model, AdapterConfig(bottleneck_dim=size, positions=("feed_forward",)), name)
    set_active(model, ["first", "second"])
    model.classifier.requires_grad_(True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(value)
    return model


def test_what_is_trained_is_read_as_one(tmp_path):
    folder = tmp_path / "saved"
    models = [trained(value) for value in (1.0, 2.0)]
    save_trained(models[0], folder)

    def restore():
        model = trained(0.0)
        restore_trained(model, folder)
        return sorted({value for p in model.parameters() if p.requires_grad for value in p.flatten().tolist()})

    tasks = [lambda model=model: attempt(lambda: save_trained(model, folder)) for model in models]
    done = meanwhile([until(tmp_path, task) for task in [*tasks, lambda: attempt(restore)]], tmp_path, 1.0)
    assert {result for results in done[:2] for result in results} == {None}
    assert all(found in ([1.0], [2.0]) for found in done[2]), done[2]
    assert restore() in ([1.0], [2.0])


def test_several_pairs_change_in_one_moment(tmp_path, monkeypatch):
    """A killed process leaves the old state or the new one, and the next save tidies up."""
    restored = []
    for count in range(1, 100):
        folder = tmp_path / str(count)
        save_trained(trained(1.0), folder)
        killed = run_killed(lambda folder=folder: save_trained(trained(2.0), folder), "replace", count, monkeypatch)
        restored += values_in(folder)
        save_trained(trained(3.0), folder)
        assert values_in(folder) == [3.0]
        assert not [path for path in folder.rglob(".*")]
        if not killed:
            break
    assert restored == sorted(restored)
    assert set(restored) == {1.0, 2.0}
    assert restored.count(2.0) > 4  # also where the adapters still wait for their places


def test_a_slow_writer_in_the_middle_of_several_pairs_is_not_waited_for(tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    save_trained(trained(1.0), folder)
    written = trained_module.write_pair

    def slow(*args):
        (tmp_path / "middle").touch()
        time.sleep(0.3)
        written(*args)

    def task():
        monkeypatch.setattr(trained_module, "write_pair", slow)
        return attempt(lambda: save_trained(trained(2.0), folder))

    fork = Fork(task)
    while not (tmp_path / "middle").exists():
        time.sleep(0.01)
    assert values_in(folder) == [1.0]
    assert fork.wait() == (0, None)
    assert values_in(folder) == [2.0]


def values_in(folder):
    model = trained(0.0)
    restore_trained(model, folder)
    return sorted({value for p in model.parameters() if p.requires_grad for value in p.flatten().tolist()})


@pytest.mark.parametrize("part", ["first", "second", "."])
def test_what_was_trained_apart_is_refused_together(tmp_path, part):
    for value in (1.0, 2.0):
        save_trained(trained(value), tmp_path / str(value))
    source, target = tmp_path / "1.0" / part, tmp_path / "2.0" / part
    for path in source.glob("*_*"):
        shutil.copy(path, target)
    model = trained(0.0)
    with pytest.raises(CheckpointError, match=r"^restore_trained: .*(first|second).* belongs to another checkpoint"):
        restore_trained(model, tmp_path / "2.0")
    assert all(not p.any() for p in model.parameters() if p.requires_grad)


def test_threads_may_save_at_once(saved):
    models = [adapted_plain(seed) for seed in (1, 2, 2, 1)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda model: save_adapter(model, saved), models * 5))
    load_adapter(plain_model(), saved)
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG, WEIGHTS]


def test_who_waits_too_long_is_told_so(saved, monkeypatch):
    monkeypatch.setattr(waiting, "WAIT", 0.05)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with locked(saved):
        holder = Fork(lambda: attempt(lambda: save_adapter(adapted_plain(2), saved)))
        _, words = holder.wait()
    assert words.startswith("CheckpointError: save_adapter: ")
    assert "must not be in use" in words
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_real_damage_is_found_at_once(saved):
    edit(saved, sha256="0" * 64)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="damaged or belongs to another"):
        load_adapter(plain_model(), saved)
    assert time.monotonic() - started < 1


def test_a_reader_needs_no_right_to_write(saved):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    saved.chmod(0o500)
    load_adapter(plain_model(), saved)


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.write_bytes(b"half"), os.mkfifo])
@pytest.mark.parametrize("litter", [".adapter_model.0123456789abcdef.pending", ".adapter_write.abc.tmp"])
def test_litter_of_the_dead_goes_with_the_next_save_even_one_that_fails(saved, litter, make, monkeypatch):
    make(saved / litter)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(waiting, "write_temporary", full)
        with pytest.raises(CheckpointError, match="cannot write"):
            save_adapter(adapted_plain(2), saved)
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG, WEIGHTS]
    model = plain_model()
    load_adapter(model, saved)
    assert torch.equal(model(HIDDEN_STATES), adapted_plain()(HIDDEN_STATES))


def test_the_weights_of_a_stranger_are_not_waited_for(saved):
    (saved / WEIGHTS).unlink()
    os.mkfifo(saved / WEIGHTS)
    with pytest.raises(CheckpointError, match="must be a regular file"):
        load_adapter(plain_model(), saved)
    (saved / WEIGHTS).unlink()
    with (saved / WEIGHTS).open("wb") as file:
        file.truncate(2**40)  # holds nothing, and would fill the memory
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors must not exceed \d+ bytes"):
        load_adapter(plain_model(), saved)


def test_an_interrupted_save_is_finished_by_one_of_other_tensors(saved, tmp_path):
    """`.pending` holds what the document relies on: it is kept until the next document is there."""
    save_adapter(adapted_plain(2), tmp_path / "new")
    shutil.copy(tmp_path / "new" / CONFIG, saved)
    digest = json.loads((saved / CONFIG).read_text())["sha256"]
    shutil.copy(tmp_path / "new" / WEIGHTS, saved / f".adapter_model.{digest[:16]}.pending")
    model = adapted_plain(3)
    randomise(model, 3)
    save_adapter(model, saved)
    loaded = plain_model()
    load_adapter(loaded, saved)
    assert torch.equal(loaded(HIDDEN_STATES), model(HIDDEN_STATES))
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG, WEIGHTS]
