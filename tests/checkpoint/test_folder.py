"""The one guarantee of everything that is written: what stood there before, or all of what was to stand there."""

import errno
import hashlib
import json
import os
import shutil
import stat

import pytest
import recorded
import torch
from crash_points import moments
from saved_adapters import adapted_plain, edit

from adapterx import CheckpointError, save_adapter
from adapterx.checkpoint.folder import (
    SEAL,
    discard,
    move_into_place,
    newest_complete,
    seal,
    staging,
    verify_seal,
    write_atomically,
)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_one_file_is_the_old_one_or_the_new_one(place, tmp_path):
    path = place / "file.json"
    for old, new in ((None, b"first"), (b"first", b"second")):
        with moments(place, tmp_path / f"copies of {new}") as seen:
            write_atomically(path, new)
        assert not seen.faults
        found = [(copy / "file.json").read_bytes() if (copy / "file.json").exists() else None for copy in seen.copies]
        assert found[0] == old
        assert found[-1] == new
        assert set(found) == {old, new}
        assert [child.name for child in place.iterdir()] == ["file.json"]


def test_several_files_and_the_one_that_makes_them_count(place, tmp_path):
    for name in ("a", "b", "last"):
        (place / name).write_text("old")
    (place / "last").unlink()  # as `clear_folder` and others do before a new round begins
    with moments(place, tmp_path / "copies") as seen, staging(place, prefix=".stage.") as folder:
        for name in ("last", "b", "a"):
            (folder / name).write_text("new")
        move_into_place([(folder / name, place / name) for name in ("a", "b", "last")])
    assert not seen.faults
    for copy in seen.copies:
        if (copy / "last").exists():
            assert contents(copy) == dict.fromkeys(("a", "b", "last"), b"new")
    assert sorted(child.name for child in place.iterdir()) == ["a", "b", "last"]


def test_adapters_are_written_without_a_fault(place, tmp_path):
    with moments(place, tmp_path / "copies") as seen:
        for seed in (1, 2):
            save_adapter(adapted_plain(seed), place)
    assert not seen.faults
    assert len(seen.copies) > 10


def test_the_watch_sees_what_breaks_the_guarantee(place, tmp_path):
    """Or its silence would prove nothing."""
    with moments(place, tmp_path / "copies") as seen:
        (place / "direct").write_text("x")
        (place / ".hidden").write_text("x")
        os.replace(place / ".hidden", place / "unflushed")
    assert seen.faults == [
        "direct is written in place",
        "unflushed is renamed before it is on the disk",
        "the rename of unflushed is not flushed",
    ]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_an_error_leaves_what_was_there_and_no_litter(place, fails, monkeypatch):
    (place / "file").write_text("old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(place / "file", b"new")
    with pytest.raises(OSError, match="No space left"), staging(place, prefix=".stage.") as folder:  # noqa: PT012
        (folder / "file").write_text("new")
        move_into_place([(folder / "file", place / "file")])
    assert {path.name: path.read_text() for path in place.iterdir()} == {"file": "old"}


def test_permissions_are_those_of_an_ordinary_file(place):
    (place / "plain").write_text("")
    wanted = stat.S_IMODE((place / "plain").stat().st_mode)
    write_atomically(place / "one", b"")
    with staging(place, prefix=".stage.") as folder:
        (folder / "two").write_text("")
        (folder / "two").chmod(0o600)  # as safetensors writes it
        move_into_place([(folder / "two", place / "two")])
    assert [stat.S_IMODE((place / name).stat().st_mode) for name in ("one", "two")] == [wanted, wanted]


def step(run, number):
    folder = run / f"checkpoint-{number}"
    (folder / "second").mkdir(parents=True)
    torch.save(torch.ones(2), folder / "optimizer.pt")
    (folder / "second" / "adapter.bin").write_bytes(b"weights")
    return folder


def test_a_sealed_folder_is_whole_and_an_unsealed_one_is_not(place, tmp_path):
    folder = step(place, 3)
    with pytest.raises(CheckpointError, match=r"^verify_seal: .*checkpoint-3 is incomplete: it has no complete.json"):
        verify_seal(folder)
    with moments(place, tmp_path / "copies") as seen:
        seal(folder)
        verify_seal(folder)
        discard(folder)
    assert not [fault for fault in seen.faults if SEAL in fault]
    whole = 0
    for copy in seen.copies:
        newest, _ = newest_complete(copy)
        if newest is not None:
            whole += 1
            assert sorted(p.name for p in newest.rglob("*") if p.is_file()) == ["adapter.bin", SEAL, "optimizer.pt"]
    assert 0 < whole < len(seen.copies)
    assert not folder.exists()


NOTHING = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}


def replace(path, make):
    path.unlink()
    make(path)


def forge(folder, **changes):
    edit(folder, SEAL, **changes)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / SEAL).write_text("{"), "complete.json is not valid JSON"),
        (lambda folder: (folder / SEAL).write_text("[]"), "complete.json must hold a JSON object"),
        (lambda folder: forge(folder, files=["optimizer.pt"]), "complete.json must list files"),
        (lambda folder: (folder / "second/adapter.bin").write_bytes(b"Weights"), "adapter.bin is damaged"),
        (lambda folder: (folder / "second/adapter.bin").unlink(), r"cannot read .*adapter\.bin: No such file"),
        (lambda folder: (folder / "second/adapter.bin").write_bytes(b"weights and more"), "adapter.bin is damaged"),
        (lambda folder: replace(folder / "optimizer.pt", os.mkfifo), r"optimizer\.pt must be a regular file"),
        (lambda folder: replace(folder / "optimizer.pt", os.mkdir), r"optimizer\.pt: Is a directory"),
        (lambda folder: replace(folder / SEAL, os.mkfifo), r"complete\.json must be a regular file"),
        (lambda folder: (folder / SEAL).write_bytes(b"[" * 10**6), "complete.json is not valid JSON"),
        (lambda folder: (folder / SEAL).write_bytes(b'{"files": "\xe9"}'), "complete.json is not valid JSON"),
        (lambda folder: forge(folder, format_version=3), "format_version of .* must be 1 or 2, got 3"),
        (lambda folder: forge(folder, format_version=1), "version 1 must have no document_sha256"),
        (lambda folder: forge(folder, document_sha256="0" * 64), "is damaged or was changed"),
        (lambda folder: forge(folder, files={}), "complete.json must list files"),
        (lambda folder: forge(folder, files={"optimizer.pt": 5}), "complete.json must list files"),
        (lambda folder: forge(folder, files={"optimizer.pt": {"bytes": 1}}), "complete.json must list files"),
        *(
            (lambda folder, name=name: forge(folder, files={name: NOTHING}), "complete.json must list files")
            for name in ("../../etc/passwd", "/etc/passwd", "second/../optimizer.pt", "..", "", "second/", "a\0b")
        ),
    ],
)
def test_damage_is_found_and_an_older_checkpoint_is_taken(spoil, reason, place):
    for number in (3, 12):
        seal(step(place, number))
    assert newest_complete(place) == (place / "checkpoint-12", [])
    spoil(place / "checkpoint-12")
    with pytest.raises(CheckpointError, match=rf"^verify_seal: .*{reason}"):
        verify_seal(place / "checkpoint-12")
    newest, skipped = newest_complete(place)
    assert newest == place / "checkpoint-3"
    assert len(skipped) == 1
    assert "verify_seal" not in skipped[0]


@pytest.mark.parametrize("name", ["notes.txt", ".DS_Store", "Thumbs.db", "second/more.bin", "third/new/file"])
def test_strangers_may_come_and_change_and_go(name, place):
    """A callback that writes in `on_save`, a file manager that was here: the seal vouches for what was sealed."""
    folder = step(place, 3)
    seal(folder)
    (place / "checkpoint-9").write_text("a file of a stranger, not a folder")
    stranger = folder / name
    stranger.parent.mkdir(parents=True, exist_ok=True)
    for content in ("one", "another", None):
        stranger.write_text(content) if content else stranger.unlink()
        assert newest_complete(place) == (folder, [])
    os.mkfifo(stranger)
    verify_seal(folder)


@pytest.mark.parametrize("name", [".DS_Store", "second/.nfs0001", "Thumbs.db", "desktop.ini"])
def test_what_a_file_manager_keeps_is_not_sealed(name, place):
    folder = step(place, 3)
    (folder / name).write_text("before")
    seal(folder)
    (folder / name).write_text("after")
    verify_seal(folder)


def test_a_seal_of_0_1_0(place):
    folder = shutil.copytree(recorded.FIXTURES / "0.1.0" / "checkpoint-7", place / "checkpoint-7")
    (folder / "notes.txt").write_text("of a callback")
    assert newest_complete(place) == (folder, [])
    (folder / "trainable_model.safetensors").unlink()
    assert newest_complete(place)[0] is None


def test_every_flipped_bit_of_a_seal_is_noticed(place):
    seal(step(place, 3))
    path = place / "checkpoint-3" / SEAL
    whole = path.read_bytes()
    meaning = json.loads(whole)
    for position in range(len(whole)):  # all eight bits of each: tests/torture
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        if newest_complete(place)[0] is not None:
            assert json.loads(changed) == meaning


def test_what_the_seal_says(place):
    seal(step(place, 3))
    files = json.loads((place / "checkpoint-3" / SEAL).read_text())["files"]
    assert files["second/adapter.bin"]["bytes"] == 7
    assert set(files) == {"optimizer.pt", "second/adapter.bin"}
