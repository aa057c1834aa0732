"""Runs under kills, full disks, contests and damage: nothing is lost, nothing is mixed, nothing is left behind."""

import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest
import run_folders
import tiny_training

pytest.importorskip("transformers")
pytest.importorskip("typer")
if not hasattr(os, "fork"):
    pytest.skip("needs os.fork", allow_module_level=True)

from forked_commands import Command, at_write, count_writes

from adapterx.checkpoint.document import hashed
from adapterx.cli import inspection, records, resuming, runs
from adapterx.cli.reporting import draw_learning_curve
from adapterx.errors import AdapterxError

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SHAPE = ("--epochs", "2", "--bottleneck-dim", "4", "--batch-size", "8", "--dropout", "0.1", "--keep-best")
DIFFERS = ("train_seconds", "document_sha256")  # between two runs that come to the same


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A base model, data, and undisturbed runs of two seeds."""
    folder = tmp_path_factory.mktemp("stage")
    tiny_training.save_tiny_model(folder / "model")
    tiny_training.write_csv(folder / "data.csv", tiny_training.sentences(32))
    for seed in (0, 1):
        command = Command(training(folder, folder / f"straight-{seed}", "--seed", seed), folder / f"log-{seed}")
        assert command.wait().code == 0, command.said
    # What is imported at first use is imported here, for all forks. No backward pass: it would not survive a fork.
    runs.load_run(folder / "straight-0")
    draw_learning_curve([{"epoch": 1.0, "loss": 1.0, "eval_accuracy": 1.0}], folder / "curve.png")
    return folder


def training(stage, output, *more):
    given = ("train", "--model", stage / "model", "--data", stage / "data.csv", "--output", output)
    return (*given, *SHAPE, *more)


def result_of(run):
    """Return all that a run folder holds, as it must come out again whatever happened on the way."""
    found = run_folders.content_of(run)
    metrics = json.loads(found["metrics.json"])
    found["metrics.json"] = json.dumps({name: metrics[name] for name in metrics if name not in DIFFERS}).encode()
    places = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_dir()]
    return found | {"folders": places, "learning_curve.png": found["learning_curve.png"][:4]}


def told_apart(found, expected):
    """Return where two results differ."""
    names = found.keys() | expected.keys() if found else ()
    return {name: (found.get(name), expected.get(name)) for name in names if found.get(name) != expected.get(name)}


def recover(stage, output, log, *more):
    """Run the command that a user would run next; return it."""
    state = runs.state_of(output) if output.exists() else None
    if state == "complete":
        return Command(("info", output), log)
    return Command(training(stage, output, *more, *(("--resume",) if state else ())), log)


def in_turns(tasks, at_once=4):
    """Run generators that yield commands, a few at a time, each until its command has ended."""
    waiting, running = list(tasks), []
    while waiting or running:
        while waiting and len(running) < at_once:
            task = waiting.pop(0)
            running.append((task, next(task)))
        for place, (task, command) in enumerate(running):
            if command.done():
                try:
                    running[place] = (task, next(task))
                except StopIteration:
                    running[place] = None
            elif time.monotonic() - command.started > 120:
                command.wait(0)
        running = [each for each in running if each is not None]
        time.sleep(0.002)


def test_killed_at_every_write_and_at_random_moments(stage, tmp_path, times, figure):
    note, expected = tmp_path / "writes", result_of(stage / "straight-0")
    started = time.monotonic()
    counting = Command(training(stage, tmp_path / "count"), tmp_path / "log", count_writes(tmp_path / "count", note))
    assert counting.wait().code == 0
    seconds, writes = time.monotonic() - started, int(note.read_text())
    draw = random.Random(20190616)
    moments = [("write", n) for n in sorted(draw.sample(range(1, writes + 1), min(writes, times(writes))))]
    moments += [("time", draw.uniform(0.02, 1.1) * seconds) for _ in range(times(120))]
    counts = dict.fromkeys(("killed", "lost", "different", "leftovers", "raw errors", "speechless"), 0)

    def one(index, kind, moment):
        output, log = tmp_path / f"o{index}", tmp_path / f"log{index}"
        number = SIGNALS[index % 3]
        act = (lambda: os.kill(os.getpid(), number)) if kind == "write" else None
        prepare = at_write(output, moment, act) if kind == "write" else None
        command = Command(training(stage, output), log, prepare, None if kind == "write" else (moment, number))
        yield command
        stopped = command.code in (-number, 128 + number)
        counts["killed"] += stopped
        begun = output.exists() and runs.state_of(output) is not None
        if stopped and number != signal.SIGKILL and begun and kind == "write":
            counts["speechless"] += "interrupted" not in command.said
        again = recover(stage, output, log)
        yield again
        counts["raw errors"] += command.traceback or again.traceback
        found = result_of(output) if again.code == 0 and runs.state_of(output) == "complete" else None
        if found is None:
            counts["lost"] += 1
        elif found.keys() != expected.keys() or found["folders"]:
            counts["leftovers"] += 1
        elif found != expected:
            counts["different"] += 1
        if found != expected:
            print(kind, moment, number, command.said, again.said, told_apart(found, expected))
        shutil.rmtree(output)

    in_turns(one(index, *moment) for index, moment in enumerate(moments))
    figure(f"{writes} write points, {len(moments)} signals: {counts}")
    assert counts["killed"] > 0.7 * len(moments)
    assert not sum(counts.values()) - counts["killed"], counts


# -- two at once


def test_two_trainings_into_one_folder(stage, tmp_path, times, figure):
    straight = {seed: result_of(stage / f"straight-{seed}") for seed in (0, 1)}
    draw, counts = random.Random(7), dict.fromkeys(("pairs", "refused", "both", "neither", "mixed", "raw errors"), 0)

    def cut(output, log):
        """Leave an interrupted run."""
        writes = at_write(output, draw.randrange(20, 60), lambda: os.kill(os.getpid(), signal.SIGKILL))
        return Command(training(stage, output), log, writes)

    for index in range(times(50)):
        output, resumed = tmp_path / f"o{index}", index % 2
        log = tmp_path / f"log{index}"
        if resumed:
            cut(output, log).wait()
        more = [("--resume", "--seed", "0")] * 2 if resumed else [("--overwrite", "--seed", seed) for seed in (0, 1)]
        first = Command(training(stage, output, *more[0]), tmp_path / f"first{index}")
        time.sleep(draw.choice((0, 0.05, 0.3)))
        second = Command(training(stage, output, *more[1]), tmp_path / f"second{index}")
        codes = sorted((first.wait().code, second.wait().code))
        refused = [each for each in (first, second) if each.code == 2]
        counts["pairs"] += 1
        counts["raw errors"] += first.traceback or second.traceback
        counts["refused"] += sum("another process is training" in each.said for each in refused)
        counts["both"] += codes == [0, 0]  # one after the other, which --overwrite allows
        counts["neither"] += 0 not in codes
        seed = json.loads((output / "run.json").read_text())["seed"]
        if result_of(output) != straight[seed] or not all(len(each.said.splitlines()) == 1 for each in refused):
            counts["mixed"] += 1
            print(first.said, second.said, sorted(result_of(output)))
        shutil.rmtree(output)
    figure(counts)
    assert not counts["mixed"] + counts["neither"] + counts["raw errors"], counts


def test_readers_while_runs_are_overwritten(stage, tmp_path, times, figure):
    """A reader sees an old run, a new one, or is told that there is none now."""
    output, texts = tmp_path / "o", ("good word1 fine", "awful bad word2", "word3")
    answers = set()
    for seed in (0, 1):
        answer = Command(("predict", stage / f"straight-{seed}", *texts, "--format", "jsonl"), tmp_path / f"a{seed}")
        assert answer.wait().code == 0
        answers.add(answer.said)
    assert len(answers) == 2
    assert Command(training(stage, output), tmp_path / "log").wait().code == 0
    counts, reader = dict.fromkeys(("reads", "whole", "refused", "mixed", "raw errors"), 0), 0
    for index in range(times(12)):
        writer = Command(training(stage, output, "--overwrite", "--seed", 1 - index % 2), tmp_path / f"w{index}")
        while not writer.done():
            reader += 1
            read = Command(("predict", output, *texts, "--format", "jsonl"), tmp_path / f"r{reader}").wait()
            counts["reads"] += 1
            counts["whole"] += read.code == 0
            counts["refused"] += read.code == 2 and len(read.said.splitlines()) == 1
            counts["raw errors"] += read.traceback
            counts["mixed"] += read.code == 0 and read.said not in answers
        assert writer.code == 0, writer.said
    figure(counts)
    assert counts["whole"] + counts["refused"] == counts["reads"], counts
    assert not counts["mixed"] + counts["raw errors"], counts


# -- full disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB; `leave(bytes)` fills all of it but so much, `leave(None)` nothing."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs leave to mount a file system")

    def leave(count):
        filler = place / "filler"
        filler.unlink(missing_ok=True)
        free = os.statvfs(place)
        if count is not None:
            filler.write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - count))

    yield place, leave
    subprocess.run(["umount", "-l", place], check=True)


def test_full_disk_in_training(stage, small_disk, tmp_path, times, figure):
    place, leave = small_disk
    expected = result_of(stage / "straight-0")
    counts = dict.fromkeys(("sizes", "full", "lost", "different", "raw errors", "more than one line"), 0)
    for index in range(times(60)):
        output = place / "o"
        leave(4096 * (index * 120 // times(60)))  # up to 480 KiB: an undisturbed training takes less
        command = Command(training(stage, output), tmp_path / f"log{index}").wait()
        counts["sizes"] += 1
        counts["full"] += command.code == 2
        counts["raw errors"] += command.traceback or command.code not in (0, 2)
        errors = [line for line in command.said.splitlines() if line.startswith("error")]
        counts["more than one line"] += command.code == 2 and (len(errors) != 1 or "Traceback" in command.said)
        leave(None)
        again = recover(stage, output, tmp_path / f"again{index}").wait()
        if again.code or runs.state_of(output) != "complete":
            counts["lost"] += 1
            print(index, command.said, again.said)
        elif result_of(output) != expected:
            counts["different"] += 1
            print(index, command.said, again.said, sorted(result_of(output)))
        shutil.rmtree(output)
    figure(counts)
    assert counts["full"] >= 0.3 * counts["sizes"]
    assert not sum(counts[name] for name in counts if name not in ("sizes", "full")), counts


def test_full_disk_in_predict(stage, small_disk, tmp_path, times, figure):
    place, leave = small_disk
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"good word{i}\n" for i in range(300)))
    run, output = stage / "straight-0", place / "answers.jsonl"
    whole = tmp_path / "whole.jsonl"
    asked = ("predict", run, "--file", texts, "--format", "jsonl", "--output")
    assert Command((*asked, whole), tmp_path / "log").wait().code == 0
    pages = whole.stat().st_size // 4096 + 3
    counts = dict.fromkeys(("sizes", "full", "half files", "raw errors"), 0)
    for index in range(times(2 * pages)):
        old = b"old answers" if index % 2 else None
        output.unlink(missing_ok=True)
        leave(None)
        if old:
            output.write_bytes(old)
        leave(4096 * (index // 2))
        command = Command((*asked, output), tmp_path / f"log{index}").wait()
        counts["sizes"] += 1
        counts["full"] += command.code == 2 and len(command.said.splitlines()) == 1
        counts["raw errors"] += command.traceback or command.code not in (0, 2)
        found = output.read_bytes() if output.exists() else None
        litter = [path.name for path in place.iterdir() if path not in (output, place / "filler")]
        counts["half files"] += bool(litter) or found != (whole.read_bytes() if command.code == 0 else old)
    figure(counts)
    assert counts["full"] >= 0.5 * counts["sizes"]
    assert not counts["half files"] + counts["raw errors"], counts


# -- damage


def test_every_flipped_bit_of_a_record(stage, tmp_path, figure):
    for name, read in (("run.json", records.read_record), ("metrics.json", records.read_metrics)):
        path = tmp_path / name
        content = (stage / "straight-0" / name).read_bytes()
        path.write_bytes(content)
        before, refused, same = read(tmp_path), 0, 0
        bits = range(8 * len(content)) if name == "run.json" else range(0, 8 * len(content), 7)
        for bit in bits:
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                assert read(tmp_path) == before, f"bit {bit} of {name} changes what is read"
                same += 1
            except AdapterxError:
                refused += 1
        figure(f"{len(bits)} flipped bits of {name}: {refused} refused, {same} of the same meaning, 0 believed")


def damage(path, draw):
    """Change a file; return what was done to it."""
    content = path.read_bytes()
    place, other = draw.randrange(len(content)), draw.randbytes(draw.randrange(1, 9))
    how = draw.choice(("flip", "cut", "insert", "delete", "overwrite", "append", "missing", *run_folders.KINDS))
    if how in run_folders.KINDS:
        run_folders.replace_by(path, how)
        return how
    if how == "missing":
        path.unlink()
        return how
    length = draw.randrange(1, 64)
    path.write_bytes(
        {
            "flip": content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :],
            "cut": content[:place],
            "insert": content[:place] + other + content[place:],
            "delete": content[:place] + content[place + length :],
            "overwrite": content[:place] + other + content[place + len(other) :],
            "append": content + other,
        }[how]
    )
    return how


def mutate(value, draw):
    """Change one value somewhere inside a JSON value."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(sorted(value))
        if draw.random() < 0.15:
            return {key: each for key, each in value.items() if key != name}
        return value | {name: mutate(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        return [*value[:place], mutate(value[place], draw), *value[place + 1 :]]
    strange = [None, True, -1, 0, 10**30, 1e308, "", "x" * 9000, "\x1b[2J", [], {}, [[]], {"a": None}, "../../etc", "ü"]
    return draw.choice(strange)


@pytest.fixture
def kept_base(monkeypatch):
    """Load the base model once: what is damaged here is the run."""
    monkeypatch.setattr(runs, "load_text_model", functools.cache(runs.load_text_model))
    monkeypatch.setattr(runs, "load_adapter", lambda base, folder, **options: None)  # has campaigns of its own


def test_damaged_run_folders(stage, tmp_path, times, figure, kept_base):
    cut = tmp_path / "cut"
    strike = at_write(cut, 60, lambda: os.kill(os.getpid(), signal.SIGKILL))
    Command(training(stage, cut), tmp_path / "log", strike).wait()
    assert runs.state_of(cut) == "interrupted"
    draw = random.Random(5)
    counts = dict.fromkeys(("folders", "refused", "harmless", "raw errors", "believed", "slow"), 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = {"complete": runs.load_run(stage / "straight-0").record, "interrupted": resuming.started_with(cut)}
    metrics = records.read_metrics(stage / "straight-0")
    for index in range(times(6000)):
        kind = "interrupted" if index % 5 == 0 else "complete"
        run = shutil.copytree(cut if kind == "interrupted" else stage / "straight-0", tmp_path / "run")
        names = ["checkpoints/options.json"] if kind == "interrupted" else sorted(whole[kind]["files"])
        names += ["run.json", "run.json", "metrics.json"] if kind == "complete" else []
        path, meant = run / draw.choice(names), draw.random() < 0.3 and kind == "complete"
        if meant and path.suffix == ".json":
            document = mutate(json.loads(path.read_bytes()), draw)
            document = document if isinstance(document, dict) else {"value": document}
            path.write_text(json.dumps(hashed(document) if draw.random() < 0.8 else document))
            how = "mutate"
        else:
            how = damage(path, draw)
        counts["folders"] += 1
        started, meaning = time.monotonic(), None
        try:
            if kind == "interrupted":
                meaning = resuming.started_with(run) == whole[kind]
            elif path.name == "metrics.json" or draw.random() < 0.2:
                inspection.describe(str(run))  # as `info` does
                read, known = {"metrics.json": (records.read_metrics, metrics)}.get(
                    path.name, (records.read_record, whole[kind])
                )
                meaning = read(run) == known
            else:
                meaning = runs.load_run(run).record == whole[kind]
            counts["harmless"] += bool(meaning)
            counts["believed"] += not meaning and how != "mutate"
            if not meaning and how != "mutate":
                print("believed:", path.name, how)
        except AdapterxError as error:
            counts["refused"] += 1
            counts["raw errors"] += "\n" in str(error)
        except Exception as error:  # noqa: BLE001 - which is what is looked for
            counts["raw errors"] += 1
            print(path.name, how, repr(error))
        counts["slow"] += time.monotonic() - started > 5
        shutil.rmtree(run)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    figure(f"{counts}, growth {growth:.0f} MiB")
    assert not counts["raw errors"] + counts["believed"] + counts["slow"], counts
    assert growth < 100
