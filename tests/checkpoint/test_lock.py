"""The lock of a folder: one holder at a time, over threads and processes, and none after its process died."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from adapterx.checkpoint import lock
from adapterx.checkpoint.lock import is_locked, locked
from adapterx.errors import CheckpointError

HOLD = """
import sys, time
from pathlib import Path
from adapterx.checkpoint.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_another_process_keeps_us_out_and_its_death_lets_us_in(tmp_path, holder):
    assert is_locked(tmp_path)
    with pytest.raises(CheckpointError, match="in use"), locked(tmp_path, wait=0.05):
        pass
    holder.send_signal(signal.SIGKILL)
    with locked(tmp_path, wait=10):
        pass
    assert not is_locked(tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_same_thread_may_ask_again_and_another_waits(tmp_path):
    with ThreadPoolExecutor(1) as other, locked(tmp_path):
        with locked(tmp_path):
            assert other.submit(is_locked, tmp_path).result()
        assert other.submit(is_locked, tmp_path).result()
        with pytest.raises(CheckpointError, match="in use"):
            other.submit(lambda: locked(tmp_path, wait=0.05).__enter__()).result()
    assert not is_locked(tmp_path)


def test_threads_take_turns(tmp_path):
    inside, most = [], []

    def work(_):
        with locked(tmp_path):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.001)
            inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(100)))
    assert max(most) == 1


def test_a_folder_that_is_made_anew_while_we_wait_is_the_one_that_we_lock(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    release, entered = threading.Event(), threading.Event()

    def hold():
        with locked(folder):
            entered.set()
            release.wait(10)

    holding = threading.Thread(target=hold)
    holding.start()
    entered.wait(10)
    folder.rename(tmp_path / "old")
    folder.mkdir()
    with locked(folder, wait=0.05):
        assert is_locked(folder)
    release.set()
    holding.join()


def test_a_folder_that_is_deleted_while_we_wait_leaves_nothing_open(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    take = lock._flocked

    def late(path, deadline):
        descriptor = take(path, deadline)
        path.rmdir()
        return descriptor

    monkeypatch.setattr(lock, "_flocked", late)
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(FileNotFoundError), locked(folder):
        pass
    assert len(os.listdir("/dev/fd")) == before


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    with locked(tmp_path):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        deadline = time.monotonic() + 10
        while is_locked(tmp_path) and time.monotonic() < deadline:  # the child closes what it got as soon as it runs
            time.sleep(0.01)
        assert not is_locked(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_where_folders_cannot_be_locked_a_file_is(tmp_path, monkeypatch):
    flock = lock.fcntl.flock

    def no_folders(descriptor, operation):
        if os.path.isdir(f"/dev/fd/{descriptor}"):
            raise OSError(9, "Bad file descriptor")
        return flock(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "flock", no_folders)
    with ThreadPoolExecutor(1) as other, locked(tmp_path):
        assert other.submit(is_locked, tmp_path).result()
    assert not is_locked(tmp_path)
    assert os.listdir(tmp_path) == [lock.LOCK_FILE]
