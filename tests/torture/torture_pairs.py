"""Folders with adapters, heads and trained states: killed, filled up, fought over, damaged."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import recorded
import torch
from damage import damage
from forks import Fork, meanwhile, until, write_points
from saved_adapters import PLAIN, adapted_plain, randomise
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
from adapterx.checkpoint import format_of, restore_trained, save_trained, settled
from adapterx.checkpoint.folder import SEAL, newest_complete, seal
from adapterx.checkpoint.pair import read_document, read_pair
from adapterx.heads import SequenceClassifier

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SECOND = AdapterConfig(bottleneck_dim=3, positions=("feed_forward",))


class Adapters:
    """An adapter with a trained copy. Each kind saves one value everywhere, and tells the values that it finds."""

    stems = ("adapter",)

    @staticmethod
    def save(value, folder, metadata=None):
        model = plain_model()
        attach(model, PLAIN)
        save_adapter(filled(model, value), folder, metadata=metadata)

    @staticmethod
    def load(folder):
        model = plain_model()
        load_adapter(model, folder)
        return values_of(model)


class Heads:
    stems = ("head",)

    @staticmethod
    def save(value, folder, metadata=None):
        base = torch.nn.Linear(2, 2).requires_grad_(False)
        save_head(filled(SequenceClassifier(base, 2, hidden_size=4), value), folder, metadata=metadata)

    @staticmethod
    def load(folder):
        return values_of(load_head(folder))


class Trained:
    stems = ("adapter", "trainable")

    @staticmethod
    def model():
        model = plain_model()
        attach(model, SECOND, "first")
        attach(model, PLAIN, "second")
        set_active(model, ["first", "second"])
        model.blocks[0].requires_grad_(True)
        return model

    @classmethod
    def save(cls, value, folder, metadata=None):
        save_trained(filled(cls.model(), value), folder)

    @classmethod
    def load(cls, folder):
        model = filled(cls.model(), 0.0)
        restore_trained(model, folder)
        return values_of(model)


KINDS = [Adapters, Heads, Trained]


@torch.no_grad()
def filled(model, value):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.fill_(value)
    return model


def values_of(model):
    return sorted({value for p in model.parameters() if p.requires_grad for value in p.flatten().tolist()})


def outcome(action):
    """Return what an action returns, its refusal in words, or its raw error, which nobody should see."""
    try:
        return action()
    except CheckpointError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - the campaign counts them
        return f"RAW {type(error).__name__}: {error}"


def litter(folder):
    return sorted(path.name for path in folder.rglob(".*"))


# --- kills ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first_time", [True, False])
def test_killed_at_every_write_point(kind, number, first_time, tmp_path, figure):
    found = Counter()
    for count in range(1, 200):
        folder = tmp_path / str(count)
        if not first_time:
            kind.save(1.0, folder)

        def task(folder=folder, count=count):
            write_points(folder, count, number)
            kind.save(2.0, folder)

        status, _ = Fork(task).wait()
        if status == 0:
            break
        assert status in (-number, 130)
        found["kills"] += 1
        values = outcome(lambda folder=folder: kind.load(folder))
        whole = values in ([1.0], [2.0]) or (first_time and "does not exist" in values)
        found["lost or different"] += not whole
        found["leftovers at once"] += bool(folder.exists() and litter(folder))
        kind.save(3.0, folder)
        found["not saved again"] += kind.load(folder) != [3.0]
        found["leftovers after the next save"] += bool(litter(folder))
    assert status == 0
    figure(f"{kind.__name__} {number.name} {'new' if first_time else 'over an old one'}: {dict(found)}")
    assert not found["lost or different"] + found["not saved again"] + found["leftovers after the next save"]
    if number == signal.SIGINT:
        assert found["leftovers at once"] <= 1  # interrupted while it tidied up


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("kind", [Adapters, Heads])
def test_killed_at_random_moments(kind, number, tmp_path, figure, times):
    draw, found = random.Random(f"{kind.__name__} {number}"), Counter()
    folder = tmp_path / "saved"

    def task():
        for value in (2.0, 1.0) * 10_000:
            kind.save(value, folder)

    for _ in range(times(40)):
        kind.save(1.0, folder)
        fork = Fork(task)
        time.sleep(draw.uniform(0.005, 0.08))
        fork.kill(number)
        status, _ = fork.wait()
        assert status in (-number, 130)
        found["kills"] += 1
        found["lost or different"] += outcome(lambda: kind.load(folder)) not in ([1.0], [2.0])
        found["leftovers at once"] += bool(litter(folder))
        kind.save(3.0, folder)
        found["not saved again"] += kind.load(folder) != [3.0]
        found["leftovers after the next save"] += bool(litter(folder))
    figure(f"{kind.__name__} {number.name}: {dict(found)}")
    assert not found["lost or different"] + found["not saved again"] + found["leftovers after the next save"]


# --- full disks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_full_disks(kind, tmp_path, figure, times):
    found = Counter()
    large = {"x": "x" * 60_000}  # so that the disk may be full in the middle of a file too
    for pages in range(times(23)):
        place = tmp_path / f"{pages} pages"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("no permission to mount a tmpfs")
        try:
            folder = place / "saved"
            kind.save(1.0, folder)
            room = os.statvfs(place)
            (place / "filler").write_bytes(bytes((room.f_bavail - pages) * room.f_bsize))
            words = outcome(lambda folder=folder: kind.save(2.0, folder, large))
            found["sizes"] += 1
            if words is not None:
                assert_one_line(words)
                found["refused in one line"] += 1
            values = outcome(lambda folder=folder: kind.load(folder))
            assert values == ([1.0] if words else [2.0])
            assert not litter(folder)
        finally:
            subprocess.run(["umount", place], check=True)
    figure(f"{kind.__name__}: {dict(found)}, 0 half files, one line each")


def assert_one_line(words):
    assert "RAW" not in words
    assert "\n" not in words
    assert "No space left on device" in words


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_at_once(kind, tmp_path, figure, times):
    found = Counter()
    for turn in range(times(50)):
        place = tmp_path / str(turn)
        folder = place / "saved"
        kind.save(1.0, folder)
        saves = [
            until(place, lambda value=value, folder=folder: outcome(lambda: kind.save(value, folder)))
            for value in (1.0, 2.0 if turn % 2 else 1.0)  # every second time equal values, as when every rank saves
        ]
        loads = until(place, lambda folder=folder: outcome(lambda: kind.load(folder)))
        *written, read = meanwhile([*saves, loads], place, 0.5)
        errors = [result for results in written for result in results if result is not None]
        wrong = [values for values in read if values not in ([1.0], [2.0])]
        found.update(turns=1, saves=sum(map(len, written)), loads=len(read), errors=len(errors), wrong=len(wrong))
        found["mixed at the end"] += kind.load(folder) not in ([1.0], [2.0])
        found["leftovers"] += bool(litter(folder))
        assert not errors + wrong, (errors + wrong)[:3]
        shutil.rmtree(place)
    figure(f"{kind.__name__}: {dict(found)}")
    assert not found["mixed at the end"] + found["leftovers"]


# --- damage -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def time_limit(seconds):
    def late(*_):
        raise TimeoutError(f"longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(settled, "_TICK", 0.0)


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step_of(times):
    """Every one of the whole campaign; of a shorter one every so many."""
    return max(1, round(1000 / times(1000)))


def documents_of(folder, stems):
    """Return the meaning of the documents and the bytes of the tensors, under every name that they have."""
    return {
        path.name: json.loads(path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
        for stem in stems
        for path in (folder / f"{stem}_config.json", folder / f"{stem}_model.safetensors")
    }


class OneAdapter(Trained):
    """What an `AdapterTrainer` saves: everything in one folder."""

    @staticmethod
    def model():
        model = plain_model()
        attach(model, PLAIN)
        return model


@pytest.mark.parametrize("kind", [Adapters, Heads, OneAdapter])
def test_damaged_folders(kind, tmp_path, figure, times, no_waiting):
    good, others = tmp_path / "good", [tmp_path / str(value) for value in (2, 3)]
    kind.save(1.0, good)
    for value, folder in enumerate(others, start=2):
        kind.save(float(value), folder)
    meaning, expected, draw = documents_of(good, kind.stems), kind.load(good), random.Random(kind.__name__)
    of_others = [documents_of(folder, kind.stems) for folder in others]
    before, found, slowest = memory(), Counter(), 0.0
    for _ in range(times(3000)):
        folder = shutil.copytree(good, tmp_path / "damaged")
        how = damage(folder, others, draw)
        started = time.monotonic()
        with time_limit(20):
            values = outcome(lambda folder=folder: kind.load(folder))
            words = [outcome(lambda folder=folder: format_of(folder))]
            words += [outcome(lambda folder=folder, stem=stem: read_document(folder, stem)) for stem in kind.stems]
        slowest = max(slowest, time.monotonic() - started)
        for text in [values, *words]:
            assert not str(text).startswith("RAW"), (how, text)
            assert not isinstance(text, str) or ("\n" not in text and len(text) < 2200), (how, text)
        found["folders"] += 1
        if isinstance(values, str):
            found["refused"] += 1
        elif values == expected:
            assert documents_of(folder, kind.stems) == meaning, how
            found["accepted, unchanged in meaning"] += 1
        else:  # the whole pair of another
            assert documents_of(folder, kind.stems) in of_others, how
            found["accepted, whole of another"] += 1
        shutil.rmtree(folder)
    growth = memory() - before
    figure(
        f"{kind.__name__}: {dict(found)}, slowest {slowest:.2f} s, growth {growth:.0f} MiB, 0 raw, 0 changed accepted"
    )
    assert growth < 100


def test_damaged_folders_of_0_1_0(tmp_path, figure, times, no_waiting):
    """Their documents have no hash, so that a changed value may pass; but none crashes or hangs."""
    source, found = recorded.FIXTURES / "0.1.0" / "adapters", Counter()
    others, draw = [source / "suffixes", source / "with-copy"], random.Random(0)
    for _ in range(times(1000)):
        folder = shutil.copytree(source / "learned", tmp_path / "damaged")
        how = damage(folder, others, draw)
        with time_limit(20):
            words = outcome(lambda folder=folder: read_pair(folder, "adapter") and None)
        assert not str(words).startswith("RAW"), (how, words)
        found["refused" if words else "accepted"] += 1
        shutil.rmtree(folder)
    figure(f"{dict(found)}, 0 raw")


def test_damaged_checkpoints(tmp_path, figure, times, no_waiting):
    """A seal, what it vouches for, and strangers beside it."""
    run, other = tmp_path / "run", tmp_path / "other" / "checkpoint-1"
    for value, folder in ((1.0, run / "checkpoint-1"), (2.0, other)):
        OneAdapter.save(value, folder)
        torch.save({"state": torch.full((4,), value)}, folder / "optimizer.pt")
        seal(folder)
        (folder / "notes.txt").write_text("of a stranger")
    kept, draw, found = tmp_path / "kept", random.Random(7), Counter()
    shutil.copytree(run, kept)
    sealed = json.loads((kept / "checkpoint-1" / SEAL).read_bytes())
    for _ in range(times(2000)):
        folder = run / "checkpoint-1"
        how = damage(folder, [other], draw)
        with time_limit(20):
            newest = outcome(lambda: newest_complete(run))
        assert not isinstance(newest, str), (how, newest)
        found["skipped" if newest[0] is None else "taken"] += 1
        if newest[0] is not None:
            for name in ("adapter_model.safetensors", "optimizer.pt", "trainable_config.json"):
                contents = {(place / name).read_bytes() for place in (kept / "checkpoint-1", other)}
                assert (folder / name).read_bytes() in contents, how
            assert json.loads((folder / SEAL).read_bytes()) in (sealed, json.loads((other / SEAL).read_bytes())), how
        shutil.rmtree(run)
        shutil.copytree(kept, run)
    figure(f"{dict(found)}, 0 raw, 0 changed accepted")


@pytest.mark.parametrize("kind", [Adapters, Heads, OneAdapter])
def test_every_bit(kind, tmp_path, figure, times, no_waiting):
    kind.save(1.0, tmp_path)
    found = Counter()
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        meaning = path.suffix == ".json" and json.loads(whole)
        stem = path.name.rpartition("_")[0]
        for place in range(0, len(whole) * 8, step_of(times)):
            changed = bytearray(whole)
            changed[place // 8] ^= 1 << place % 8
            path.write_bytes(changed)
            words = outcome(lambda stem=stem: read_pair(tmp_path, stem) and None)
            assert not str(words).startswith("RAW"), (path.name, place, words)
            found["flips"] += 1
            found["refused"] += words is not None
            assert words is not None or (meaning and json.loads(changed) == meaning), (path.name, place)
        path.write_bytes(whole)
    figure(f"{kind.__name__}: {dict(found)}, the others change the layout only")


def test_every_bit_of_a_seal(tmp_path, figure, times, no_waiting):
    folder = Path(tmp_path, "checkpoint-1")
    OneAdapter.save(1.0, folder)
    seal(folder)
    whole, found = (folder / SEAL).read_bytes(), Counter()
    for place in range(0, len(whole) * 8, step_of(times)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        (folder / SEAL).write_bytes(changed)
        taken = newest_complete(tmp_path)[0] is not None
        found["taken" if taken else "refused"] += 1
        assert not taken or json.loads(changed) == json.loads(whole), place
    figure(f"{dict(found)}, taken ones differ in layout only")


def test_equal_weights_saved_by_every_rank(tmp_path, figure, times):
    """Eight processes, one folder, one set of weights, all at once: all succeed."""
    model, found = adapted_plain(), Counter()
    randomise(model)
    for turn in range(times(20)):
        folder = tmp_path / str(turn)
        forks = [Fork(lambda folder=folder: outcome(lambda: save_adapter(model, folder))) for _ in range(8)]
        results = [fork.wait() for fork in forks]
        found["saves"] += len(results)
        found["failed"] += sum(result != (0, None) for result in results)
        load_adapter(plain_model(), folder)
        assert not litter(folder)
    figure(str(dict(found)))
    assert not found["failed"]
