"""What a user names with --output is written as a shell would: devices and pipes into, links followed, modes kept."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from adapterx.checkpoint.output import place_output, write_output


def placed(path, content):
    """`place_output` of a file that was finished nearby, as `write_output`."""
    source = path.parent / "finished"
    source.write_bytes(content)
    try:
        place_output(source, path)
    finally:
        source.unlink(missing_ok=True)


both = pytest.mark.parametrize("write", [write_output, placed])


@both
def test_a_new_file_has_the_mode_of_ordinary_files(write, tmp_path):
    write(tmp_path / "new", b"text")
    (tmp_path / "ordinary").write_bytes(b"")
    assert (tmp_path / "new").read_bytes() == b"text"
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@both
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_the_mode_of_an_old_file_stays(write, mode, tmp_path):
    path = tmp_path / "old"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path, b"new")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", mode)
    assert sorted(os.listdir(tmp_path)) == ["old"]


@both
def test_a_link_is_followed(write, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link, second = tmp_path / "elsewhere" / "target", tmp_path / "link", tmp_path / "second"
    target.write_bytes(b"old")
    link.symlink_to("elsewhere/target")
    second.symlink_to("link")
    write(second, b"new")
    assert target.read_bytes() == b"new"
    assert link.is_symlink()
    assert second.is_symlink()


@both
def test_a_dangling_link_gets_its_target(write, tmp_path):
    (tmp_path / "link").symlink_to("target")
    write(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"new"


@both
def test_a_device_stays_a_device(write, tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    write(device, b"text")
    assert stat.S_ISCHR(device.stat().st_mode)


@both
def test_a_full_device_is_an_error(write, tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "full", b"text")


@both
def test_a_named_pipe_is_written_into(write, tmp_path):
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    write(pipe, b"text" * 50_000)
    reader.join(timeout=10)
    assert received == [b"text" * 50_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("mode", ["ab", "wb"])
def test_an_open_file_goes_on_where_it_is(path, mode, tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    code = f"from adapterx.checkpoint.output import *; write_output(Path({path!r}), b'text\\n')"
    with log.open(mode) as file:
        file.write(b"now\n")
        file.flush()
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert log.read_bytes() == (b"before\n" if mode == "ab" else b"") + b"now\ntext\n"


@both
def test_what_cannot_be_written_is_an_error_and_leaves_nothing(write, tmp_path):
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "folder").mkdir()
    for path, error in ((tmp_path / "folder", IsADirectoryError), (tmp_path / "absent" / "x", FileNotFoundError)):
        with pytest.raises(error):
            write_output(path, b"text")
    with pytest.raises(NotADirectoryError):
        write_output(tmp_path / "file" / "x", b"text")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_a_read_only_file_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "read-only"
    path.write_bytes(b"kept")

    def refuse(path, flags, *mode, **keywords):  # root may write everything
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError):
        write_output(path, b"text")
    monkeypatch.undo()
    assert path.read_bytes() == b"kept"
