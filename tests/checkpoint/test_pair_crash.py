"""An interrupted save leaves the old pair of files or the new one."""

import contextlib
import errno
import io
import os
import signal
import subprocess
from functools import partial

import pytest
import torch
from crash_points import STEPS, NotReached, run_killed
from forks import Fork, write_points
from saved_adapters import CONFIG, HIDDEN_STATES, WEIGHTS, adapted_plain
from tiny_models import plain_model

from adapterx import AdapterConfig, CheckpointError, attach, load_adapter, save_adapter


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("first_time", [True, False])
def test_killed_at_any_moment(tmp_path, step, first_time, monkeypatch):
    old, new = adapted_plain(seed=1), adapted_plain(seed=2)
    expected = {seed: model(HIDDEN_STATES) for seed, model in ((1, old), (2, new))}
    seen, deaths = set(), 0
    for count in range(1, 20):
        folder = tmp_path / str(count)
        if not first_time:
            save_adapter(old, folder)
        died = run_killed(partial(save_adapter, new, folder), step, count, monkeypatch)
        if not died:
            break
        deaths += 1
        model = plain_model()
        if first_time and not (folder / CONFIG).exists():
            with pytest.raises(CheckpointError, match="does not exist"):
                load_adapter(model, folder)
        else:
            load_adapter(model, folder)
            answer = [seed for seed in (1, 2) if torch.equal(model(HIDDEN_STATES), expected[seed])]
            assert len(answer) == 1
            seen.add(answer[0])
        save_adapter(old, folder)  # and the folder can be written again, which tidies it up
        assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
        model = plain_model()
        load_adapter(model, folder)
        assert torch.equal(model(HIDDEN_STATES), expected[1])
    assert not died
    assert deaths > 0
    if step == "replace":
        assert seen == ({2} if first_time else {1, 2})


def test_ctrl_c_at_any_write_point_leaves_no_litter(tmp_path):
    for count in range(1, 30):
        folder = tmp_path / str(count)
        save_adapter(adapted_plain(seed=1), folder)

        def task(folder=folder, count=count):
            write_points(folder, count, signal.SIGINT)
            save_adapter(adapted_plain(seed=2), folder)

        status, _ = Fork(task).wait()
        if status == 0:
            break
        assert status == 130
        load_adapter(plain_model(), folder)
        assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert status == 0
    assert count > 5


def test_killed_twice_in_a_row(tmp_path, monkeypatch):
    """Between the two renames of one save, then anywhere in the next one: the committed pair stays readable."""
    middle, last = adapted_plain(seed=2), adapted_plain(seed=3)
    expected = {seed: adapted_plain(seed)(HIDDEN_STATES) for seed in (2, 3)}
    for again in (middle, last):
        for count in range(1, 6):  # the first rename finishes what was cut short
            folder = tmp_path / f"{again is last}-{count}"
            save_adapter(adapted_plain(seed=1), folder)
            assert run_killed(partial(save_adapter, middle, folder), "replace", 4, monkeypatch)
            assert run_killed(partial(save_adapter, again, folder), "replace", count, monkeypatch)
            model = plain_model()
            load_adapter(model, folder)
            committed = 3 if again is last and count == 5 else 2
            assert torch.equal(model(HIDDEN_STATES), expected[committed])


def test_an_error_while_repeating_an_interrupted_save(tmp_path, monkeypatch):
    """The same tensors again: the file that waits beside the old one is what the document relies on."""
    save_adapter(adapted_plain(seed=1), tmp_path)
    assert run_killed(partial(save_adapter, adapted_plain(seed=2), tmp_path), "replace", 4, monkeypatch)
    calls = []

    def failing(source, target, function=os.replace):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        function(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(CheckpointError, match="Input/output error"):
            save_adapter(adapted_plain(seed=2), tmp_path)
    model = plain_model()
    load_adapter(model, tmp_path)
    assert torch.equal(model(HIDDEN_STATES), adapted_plain(seed=2)(HIDDEN_STATES))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_errors_of_the_disk_leave_the_old_pair_and_no_litter(saved, number, step, monkeypatch):
    expected = adapted_plain()(HIDDEN_STATES)
    for count in range(1, 8):
        calls = {"left": count}

        def fail(function, calls=calls):
            def failing(*args, **kwargs):
                calls["left"] -= 1
                if calls["left"] == 0:
                    raise OSError(number, os.strerror(number))
                return function(*args, **kwargs)

            return failing

        class FullFile(io.FileIO):
            write = fail(io.FileIO.write)

        before = (saved / CONFIG).read_bytes()
        with monkeypatch.context() as patch:
            if step == "write":
                patch.setattr(os, "fdopen", lambda descriptor, mode, kind=FullFile: kind(descriptor, mode))
            else:
                patch.setattr(os, step, fail(getattr(os, step)))
            message = f"^save_adapter: cannot write to {saved}: {os.strerror(number)}$"
            with contextlib.suppress(NotReached), pytest.raises(CheckpointError, match=message):  # noqa: PT012
                save_adapter(adapted_plain(seed=2), saved)
                raise NotReached
        if calls["left"] > 0:
            break
        model = plain_model()
        load_adapter(model, saved)
        committed = (saved / CONFIG).read_bytes() != before
        if not committed:
            assert torch.equal(model(HIDDEN_STATES), expected)
            assert sorted(path.name for path in saved.iterdir()) == [CONFIG, WEIGHTS]
        save_adapter(adapted_plain(), saved)
    assert calls["left"] > 0  # the last round came through


def test_a_real_full_disk(tmp_path):
    mount = tmp_path / "tiny"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no permission to mount a tmpfs")
    try:
        save_adapter(adapted_plain(), mount)
        big = plain_model(size=256, width=512)
        attach(big, AdapterConfig(bottleneck_dim=64, positions=("feed_forward",)))
        with pytest.raises(CheckpointError, match="No space left on device"):
            save_adapter(big, mount)
        assert sorted(path.name for path in mount.iterdir()) == [CONFIG, WEIGHTS]
        load_adapter(plain_model(), mount)
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_folder_that_cannot_be_written(tmp_path):
    model = adapted_plain()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"save_adapter: cannot write to .*file: (File exists|Not a directory)"):
        save_adapter(model, tmp_path / "file")
    if os.geteuid() == 0:
        return  # root may write everywhere
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="Permission denied"):
        save_adapter(model, tmp_path / "new")
