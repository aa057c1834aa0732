"""Exports that are killed, that run out of disk, that two processes write at once, and files that are damaged.

Every task runs in a fork of this process, which has imported everything: a kill costs a tenth of a second. A new model
differs from the old one in graph, data and small weights, so that a mixture is neither.
"""

import contextlib
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

import onnx_ir
import onnxruntime
import recorded
import tiny_export as tiny
import torch
import transformers

from adapterx import BottleneckAdapter, ExportError
from adapterx.cli.exporting import export_run
from adapterx.cli.runs import Run
from adapterx.export import onnx_folder, publishing, read_metadata, to_onnx, to_torchscript, validate
from adapterx.export.metadata import staging, text_of

sys.path.append(str(Path(__file__).parent.parent / "export"))
from test_damaged_exports import EXPORTS, damaged

SHAPE = (2, 8)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LABELS = (["no", "yes", "perhaps"], ["red", "green", "blue"])


def in_fork(task, *, kill=None, after=0.0):
    """Run a task in a fork, and send it a signal after some seconds; return its status as `os.waitpid` gives it.

    Exit code 2 is a refusal in one line, 3 one in several, 9 anything else.
    """
    child = os.fork()
    if child == 0:
        code = 9
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            task()
            code = 0
        except ExportError as error:
            code = 3 if "\n" in str(error) else 2
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    if kill is not None:
        time.sleep(after)
        os.kill(child, kill)
    return os.waitpid(child, 0)[1]


def exited(code):
    return code << 8


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of one architecture, their ONNX graphs, and what they answer."""
    found = []
    for number in range(2):
        model = tiny.bert_classifier()
        if number:
            model.base_model.get_input_embeddings().weight.data.mul_(0.7)
            for module in model.modules():
                if isinstance(module, BottleneckAdapter):
                    module.scaling *= -2.0
                    module.up_proj.weight.data.mul_(-3.0)
        folder = tmp_path_factory.mktemp("export")
        document = to_onnx(model, folder, validate=False)
        named = tiny.inputs_at(model, *SHAPE)
        found.append((model, folder / "model.onnx", document, tiny.output_of(model, named)))
    assert (found[0][3] - found[1][3]).abs().max() > 0.05
    return found


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two tokenizers with other words."""
    made = []
    for words in ("good bad", "bad good"):
        vocabulary = tmp_path_factory.mktemp("words") / "vocab.txt"
        vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words.split()]) + "\n")
        made.append(transformers.BertTokenizerFast(vocab=str(vocabulary), vocab_file=str(vocabulary)))
    return made


def write_onnx(models, number, folder, *, data_from=10**9):
    """Do what `to_onnx` does with a graph."""
    onnx_folder.EXTERNAL_DATA_FROM = data_from
    _, source, document, _ = models[number]
    with staging(folder) as staged:
        onnx_folder.save(onnx_ir.load(source), staged / "model.onnx", document)
        publishing.publish(staged, folder, "model.onnx", document)


WRITERS = {
    "onnx": lambda models, number, folder: write_onnx(models, number, folder),
    "onnx with data": lambda models, number, folder: write_onnx(models, number, folder, data_from=1000),
    "torchscript": lambda models, number, folder: to_torchscript(
        models[number][0], folder / "model.pt", validate=False
    ),
}


def answer_of(path, models):
    """Return which of the models a file is, 0 or 1; an error if it is neither."""
    named = tiny.inputs_at(models[0][0], *SHAPE)
    if path.suffix == ".pt":
        with torch.no_grad():
            found = torch.jit.load(str(path))(*named.values())
    else:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in named.items()})[0])
    return [torch.allclose(found, expected, atol=1e-4) for *_, expected in models].index(True)


def state_of(folder, models):
    """Return which model is in the folder; its index must tell of nothing else."""
    (path,) = [folder / name for name in ("model.onnx", "model.pt") if (folder / name).exists()]
    answer = answer_of(path, models)
    for name, document in read_index(folder).items():
        assert document == read_metadata(folder / name)
    return answer


def read_index(folder):
    return read_metadata(folder)["files"] if (folder / "adapterx_export.json").exists() else {}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def hidden(folder):
    return [name for name in names(folder) if name.startswith(".")]


@pytest.mark.parametrize("kind", WRITERS)
def test_kills_at_random_moments(kind, models, tmp_path, times, figure):
    write, folder, random_ = WRITERS[kind], tmp_path / "export", random.Random(kind)
    write(models, 0, folder)
    whole, begun = len(names(folder)), time.monotonic()
    assert in_fork(lambda: write(models, 0, folder)) == 0
    takes, current, stopped = time.monotonic() - begun, 0, 0
    count = times(120)
    for number in range(count):
        task = functools.partial(write, models, 1 - current, folder)
        status = in_fork(task, kill=SIGNALS[number % 3], after=random_.uniform(0, 1.1 * takes))
        stopped += status != 0
        current = state_of(folder, models)
    assert in_fork(lambda: write(models, 1 - current, folder)) == 0
    assert state_of(folder, models) == 1 - current
    assert not hidden(folder)
    assert len(names(folder)) == whole
    figure(f"{count} signals, {stopped} of them in time: 0 lost, 0 different, 0 leftovers after the next export")


def kill_at_event(folder, count):
    """Die before the n-th operation on a file in the folder."""
    left = [count]

    def watch(event, args):
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"):
            return
        paths = [os.fsdecode(a) for a in args[:2] if isinstance(a, (str, bytes, os.PathLike))]
        reading = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)
        if not reading and any(path.startswith(str(folder)) for path in paths):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


@pytest.mark.parametrize("before", WRITERS)
@pytest.mark.parametrize("kind", WRITERS)
def test_kills_at_every_write_point(before, kind, models, tmp_path, figure):
    if (before == "torchscript") != (kind == "torchscript"):
        pytest.skip("they have other names")
    folder, point, answers = tmp_path / "export", 0, []
    while True:
        point += 1
        shutil.rmtree(folder, ignore_errors=True)
        WRITERS[before](models, 0, folder)

        def killed(point=point):
            kill_at_event(folder, point)
            WRITERS[kind](models, 1, folder)

        status = in_fork(killed)
        answers.append(state_of(folder, models))
        if status == 0:
            break
        assert status == signal.SIGKILL
        WRITERS[kind](models, 1, folder)
        assert state_of(folder, models) == 1
        assert not hidden(folder)
    assert answers == sorted(answers)
    figure(f"{point - 1} write points: 0 lost, 0 different, 0 leftovers after the next export")


def run_of(models, tokenizers, number):
    return Run(Path(), {"labels": LABELS[number]}, models[number][0], tokenizers[number])


def write_run(models, tokenizers, number, folder, **options):
    run = run_of(models, tokenizers, number)
    export_run(run, folder, "torchscript", opset=20, freeze=False, **{"overwrite": False, **options})


def run_in(folder, models):
    """Return whose model, labels and tokenizer are in the folder; None: there is no model."""
    if not (folder / "model.pt").exists():
        return None
    answer = answer_of(folder / "model.pt", models)
    assert json.loads((folder / "labels.json").read_text()) == LABELS[answer]
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert words["good"] == (5, 6)[answer]
    return answer


@pytest.fixture
def unchecked(monkeypatch):
    monkeypatch.setattr(
        "adapterx.cli.exporting.to_torchscript",
        lambda *args, **options: to_torchscript(*args, **options, validate=False),
    )


@pytest.mark.parametrize("overwrite", [False, True])
def test_kills_of_the_command_at_every_write_point(overwrite, models, tokenizers, tmp_path, figure, unchecked):
    """Model, tokenizer and labels are those of one run; with `--overwrite` there may be no model for a moment."""
    point, answers, options = 0, [], {"overwrite": overwrite}
    while True:
        point += 1
        folder = tmp_path / f"{point}"
        if overwrite:
            write_run(models, tokenizers, 0, folder)

        def killed(point=point, folder=folder):
            kill_at_event(folder, point)
            write_run(models, tokenizers, 1, folder, **options)

        status = in_fork(killed)
        answers.append(run_in(folder, models) if folder.exists() else None)
        if status == 0:
            break
        write_run(models, tokenizers, 1, folder, **options)
        assert run_in(folder, models) == 1
        assert not hidden(folder)
        shutil.rmtree(folder)
    wanted = [0, None, 1] if overwrite else [None, 1]
    assert [answer for i, answer in enumerate(answers) if answers.index(answer) == i] == wanted
    figure(f"{point - 1} write points: 0 mixed, 0 leftovers after the next export")


def test_kills_of_the_command_at_random_moments(models, tokenizers, tmp_path, times, figure, unchecked):
    random_, folder, count = random.Random(1), tmp_path / "export", times(90)
    write_run(models, tokenizers, 0, folder)
    begun = time.monotonic()
    assert in_fork(lambda: write_run(models, tokenizers, 0, folder)) == 0
    takes = time.monotonic() - begun
    for number in range(count):
        task = functools.partial(write_run, models, tokenizers, number % 2, folder, overwrite=True)
        in_fork(task, kill=SIGNALS[number % 3], after=random_.uniform(0, 1.1 * takes))
        run_in(folder, models)
    write_run(models, tokenizers, 0, folder, overwrite=True)
    assert run_in(folder, models) == 0
    assert not hidden(folder)
    figure(f"{count} signals: 0 mixed, 0 leftovers after the next export")


@pytest.fixture
def disk(tmp_path):
    """A small disk, and a function that fills it but for so many bytes."""
    place, size = tmp_path / "disk", 4 * 2**20
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")

    def leave(free):
        (place / "ballast").unlink(missing_ok=True)
        now = shutil.disk_usage(place).free
        with open(place / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, now - free))

    yield place, leave
    subprocess.run(["umount", str(place)], check=True)


FULL_WRITERS = WRITERS | {"command": None}


@pytest.mark.parametrize("kind", FULL_WRITERS)
def test_full_disks(kind, disk, models, tokenizers, times, figure, unchecked):
    place, leave = disk
    folder, count = place / "export", times(40)

    def write(number):
        if kind == "command":
            write_run(models, tokenizers, 0, folder)  # the same labels: the model alone is new
        else:
            WRITERS[kind](models, number, folder)

    write(0)
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    size = sum(map(len, before.values()))
    refused = 0
    sizes = [4096 * number for number in range(8)]  # a page more each time, for the small files that come first
    sizes += [int(3.5 * size * number / count) for number in range(count)]
    for free in sizes:
        leave(free)
        status = in_fork(lambda: write(1))
        assert status in (0, exited(2)), f"status {status} with {free} bytes"
        refused += status != 0
        assert not hidden(folder)
        if status:
            assert {name: (folder / name).read_bytes() for name in names(folder)} == before
        leave(3 * 2**20)
        write(0)
        assert len(names(folder)) == len(before)
        before = {name: (folder / name).read_bytes() for name in names(folder)}
    assert refused
    figure(f"{len(sizes)} sizes, {refused} refused in one line: 0 aborts, 0 half files")


@pytest.mark.parametrize("kind", WRITERS)
def test_files_that_may_not_become_large(kind, models, tmp_path, times, figure):
    folder, count, refused = tmp_path / "export", times(30), 0
    WRITERS[kind](models, 0, folder)
    largest = max((folder / name).stat().st_size for name in names(folder))

    def limited(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        WRITERS[kind](models, 1, folder)

    for number in range(count):
        status = in_fork(lambda size=int(1.2 * largest * number / count): limited(size))
        assert status in (0, exited(2)), f"status {status} at {number} of {count}"
        assert state_of(folder, models) == (status == 0)
        assert not hidden(folder)
        refused += status != 0
        WRITERS[kind](models, 0, folder)
    figure(f"{count} sizes, {refused} refused in one line: 0 aborts, 0 half files")


@pytest.mark.parametrize("kind", ["onnx with data", "torchscript"])
def test_two_processes_at_once(kind, models, tmp_path, times, figure):
    folder, count = tmp_path / "export", times(50)
    WRITERS[kind](models, 0, folder)
    whole = len(names(folder))
    for _ in range(count):
        children = []
        for number in range(2):
            child = os.fork()
            if child == 0:
                try:
                    WRITERS[kind](models, number, folder)
                    os._exit(0)
                finally:
                    os._exit(9)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        state_of(folder, models)
        assert len(names(folder)) == whole
    figure(f"{count} pairs: 0 mixed, 0 failed")


def test_two_commands_at_once(models, tokenizers, tmp_path, times, figure, unchecked):
    count = times(50)
    for number in range(count):
        folder = tmp_path / f"{number}"
        children = []
        for which in range(2):
            child = os.fork()
            if child == 0:
                code = 9
                try:
                    write_run(models, tokenizers, which, folder)
                    code = 0
                except ExportError:
                    code = 2
                finally:
                    os._exit(code)
            children.append(child)
        ends = sorted(os.waitpid(child, 0)[1] for child in children)
        assert ends == [0, exited(2)]
        assert run_in(folder, models) in (0, 1)
        assert not hidden(folder)
    figure(f"{count} pairs of different runs in a new folder: one is written, the other refused; 0 mixed")


@pytest.mark.parametrize("name", ["model.pt", "model.onnx", "adapterx_export.json"])
def test_metadata_of_damaged_files(name, tmp_path, times, figure):
    documents = EXPORTS / name
    whole, random_, count = documents.read_bytes(), random.Random(name), times(1500)
    path, read, slowest = tmp_path / name, 0, 0.0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        path.write_bytes(damaged(whole, random_))
        begun = time.monotonic()
        with contextlib.suppress(ExportError):
            read_metadata(path)
            read += 1
        slowest = max(slowest, time.monotonic() - begun)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    assert slowest < 5
    assert grown < 100
    figure(f"{count} files, {count - read} refused: 0 raw errors, slowest {slowest:.2f} s, grown by {grown:.0f} MiB")


def test_flipped_bits_of_the_metadata_of_new_files(models, tmp_path, figure):
    source, document = models[0][1], models[0][2]
    whole = source.read_bytes()
    text, path, believed = text_of(document).encode(), tmp_path / "model.onnx", 0
    start, end = whole.index(text), whole.index(text) + len(text)
    for place in range(8 * start, 8 * end):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        with contextlib.suppress(ExportError):
            believed += read_metadata(path) != document
    assert believed == 0
    figure(f"{8 * (end - start)} flipped bits: 0 believed")


@pytest.mark.parametrize(("name", "most"), [("model.onnx", 400), ("model.pt", 20)])
def test_validation_of_damaged_files(name, most, tmp_path, times, figure):
    whole, random_, count = (EXPORTS / name).read_bytes(), random.Random(name), times(most)
    model, path, ends = recorded.adapted_classifier(), tmp_path / name, []
    kept = whole.rfind(b"adapterx_export") - 40 if name == "model.onnx" else int(0.8 * len(whole))

    def check():
        signal.alarm(120)
        validate(model, path, shapes=((2, 5),))

    for _ in range(count):
        path.write_bytes(damaged(whole[:kept], random_) + whole[kept:])
        ends.append(in_fork(check))
    assert set(ends) <= {0, exited(2)}
    figure(f"{count} files, {sum(end != 0 for end in ends)} refused in one line: 0 crashes, 0 hangs")
