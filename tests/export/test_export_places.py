"""Where an export may go: over links, into pipes and devices, onto full disks."""

import io
import os
import resource
import stat
import tempfile
import threading
from contextlib import contextmanager

import pytest

pytest.importorskip("transformers")

import tiny_export as tiny
import torch

from adapterx import ExportError
from adapterx.export import read_metadata, to_onnx, to_torchscript, torchscript, validate


@pytest.fixture(scope="module")
def model():
    return tiny.distilbert_encoder()


def is_whole(content):
    return isinstance(torch.jit.load(io.BytesIO(content)), torch.jit.ScriptModule)


def test_a_link_is_followed_and_the_mode_kept(model, tmp_path):
    (tmp_path / "deep").mkdir()
    target, link = tmp_path / "deep" / "model.pt", tmp_path / "latest.pt"
    link.symlink_to(target)
    to_torchscript(model, link, validate=False)  # the file is not there yet
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask()
    target.chmod(0o600)
    target.write_bytes(b"old")
    to_torchscript(model, link, validate=False)
    assert link.is_symlink()
    assert is_whole(target.read_bytes())
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in target.parent.iterdir()] == ["model.pt"]
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "latest.pt"}


def mask():
    found = os.umask(0)
    os.umask(found)
    return found


def test_a_pipe_is_written_into(model, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    to_torchscript(model, tmp_path / "pipe", validate=False)
    reader.join()
    assert is_whole(got[0])
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_device_stays_one(model):
    to_torchscript(model, "/dev/null", validate=False)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(ExportError, match=r"^to_torchscript: cannot write to .*: No space left on device"):
        to_torchscript(model, "/dev/full", validate=False)
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.parametrize("function", [to_torchscript, to_onnx])
@pytest.mark.parametrize("place", [None, 3, "a\0b"])
def test_what_is_no_path(function, place, model):
    with pytest.raises(ExportError, match=rf"^{function.__name__}: (path|out_dir) must be a path, got "):
        function(model, place)
    for other in (read_metadata, lambda place: validate(model, place)):
        with pytest.raises(ExportError, match="must be a path, got "):
            other(place)


@contextmanager
def largest(size):
    """Limit how large a file may become: one size of a full disk. Not for longer: pytest may be writing to a file."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("size", [0, 1000, 30_000])
def test_torchscript_on_a_full_disk(size, in_memory, model, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_text("old")
    monkeypatch.setattr(torchscript, "_IN_MEMORY_UP_TO", 2**30 if in_memory else 0)
    limit = size if in_memory else size // 3  # below what is reserved for the weights
    words = r"^to_torchscript: cannot write to .*: File too large"
    with largest(limit), pytest.raises(ExportError, match=words):
        to_torchscript(model, path, validate=False)
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_large_model_is_written_past_the_memory(model, tmp_path, monkeypatch):
    monkeypatch.setattr(torchscript, "_IN_MEMORY_UP_TO", 0)
    to_torchscript(model, tmp_path / "model.pt", validate=False)
    assert is_whole((tmp_path / "model.pt").read_bytes())


def test_a_full_disk_for_temporary_files(model, tmp_path, monkeypatch):
    to_torchscript(model, tmp_path / "model.pt", validate=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    words = r"^validate: cannot write to .*temporary: File too large"
    with largest(1000), pytest.raises(ExportError, match=words):
        validate(model, tmp_path / "model.pt")
    assert not list((tmp_path / "temporary").iterdir())
