"""The folder that files are written into before they get their names: gone with its process, safe while that lives."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from adapterx.checkpoint import folder as files
from adapterx.checkpoint.folder import staging, tidy
from adapterx.checkpoint.lock import is_locked

PREFIX = ".partial-"
LEAVE = """
import sys, time
from pathlib import Path
from adapterx.checkpoint.folder import staging
with staging(Path(sys.argv[1]), prefix=".partial-") as folder:
    (folder / "half").write_text("half")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that is in the middle of writing, and its folder."""
    process = subprocess.Popen([sys.executable, "-c", LEAVE, tmp_path], stdout=subprocess.PIPE, text=True)
    folder = process.stdout.readline().strip()
    yield process, folder
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_left_goes_when_the_next_one_writes(number, tmp_path, other):
    process, folder = other
    with staging(tmp_path, prefix=PREFIX):
        assert os.path.exists(folder), "of a living process"
    process.send_signal(number)
    process.wait()
    assert os.listdir(tmp_path) == [os.path.basename(folder)]
    with staging(tmp_path, prefix=PREFIX) as own:
        assert list(tmp_path.iterdir()) == [own]
    assert not list(tmp_path.iterdir())


def test_only_folders_of_that_name_that_nobody_holds_are_tidied(tmp_path):
    (tmp_path / f"{PREFIX}file").write_text("")
    (tmp_path / "kept" / "inside").mkdir(parents=True)
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "kept")
    (tmp_path / ".other-1").mkdir()
    (tmp_path / f"{PREFIX}dead" / "deep").mkdir(parents=True)
    with staging(tmp_path, prefix=PREFIX) as own:
        assert is_locked(own)
        with staging(tmp_path, prefix=PREFIX):  # by the same thread, which may ask for its locks again
            assert own.exists()
        other = threading.Thread(target=tidy, args=(tmp_path,), kwargs={"prefix": PREFIX})
        other.start()
        other.join()
        assert own.exists()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{PREFIX}file", "kept", f"{PREFIX}link", ".other-1"}
    assert (tmp_path / "kept" / "inside").is_dir()
    tidy(tmp_path / "absent", prefix=PREFIX)


def test_a_folder_that_was_tidied_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    made, mkdtemp = [], files.tempfile.mkdtemp

    def meddled(**where):
        made.append(mkdtemp(**where))
        if len(made) == 1:
            tidy(tmp_path, prefix=PREFIX)
        return made[-1]

    monkeypatch.setattr(files.tempfile, "mkdtemp", meddled)
    with staging(tmp_path, prefix=PREFIX) as folder:
        assert [str(folder)] == made[1:]
        (folder / "file").write_text("")
