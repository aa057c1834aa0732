"""Folders written by somebody who knows the format and means harm: documents with right hashes and wrong values."""

import contextlib
import copy
import json
import random
import resource
import shutil
import signal
import time
from collections import Counter

import pytest
import recorded
import torch
import transformers
from forks import Fork
from hostile_documents import make_hostile
from saved_adapters import CONFIG, adapted_plain, randomise
from tiny_models import ENCODER_DECODER, build, plain_model

from adapterx import (
    AdapterConfig,
    adapter_names,
    attach,
    detach,
    load_adapter,
    load_head,
    restore_adapter,
    restore_head,
    save_adapter,
    save_head,
)
from adapterx.checkpoint import format_of, settled
from adapterx.errors import AdapterxError
from adapterx.heads import SequenceClassifier

SECONDS, MEBIBYTES = 10, 100  # of computing, and of memory: what a case may take


class TooLong(Exception):
    pass


@contextlib.contextmanager
def time_limit():
    def late(*_):
        raise TooLong

    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGPROF, late)
    signal.alarm(12 * SECONDS)  # others may be computing too
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def bert(**values):
    """A BERT with an adapter, and the same one without."""
    torch.manual_seed(5)
    bare = build("bert")
    model = copy.deepcopy(bare)
    attach(model, AdapterConfig(**values), "mine")
    randomise(model)
    return model, bare


def bart():
    torch.manual_seed(6)
    bare = transformers.BartModel(transformers.BartConfig(**ENCODER_DECODER)).eval()
    model = copy.deepcopy(bare)
    attach(model.decoder, AdapterConfig(bottleneck_dim=2, target_modules=("fc2",)), "mine")
    randomise(model)
    return model, bare


ADAPTERS = {
    "plain, with a trained copy": lambda: (adapted_plain(), plain_model()),
    "parallel": lambda: bert(bottleneck_dim=4, placement="parallel", scaling="learned_per_channel", layers=(1,)),
    "normed sum": lambda: bert(
        reduction_factor=4, placement="normed_sum", added_to="sum_plus_residual", positions=("feed_forward",)
    ),
    "expression": lambda: bert(bottleneck_dim=2, target_modules=r"encoder\.layer\.\d\.output\.dense"),
    "tower": bart,
}


def loaders(name, folder):
    """Save an adapter; return what may be done with its folder, each leaving the models as they were."""
    model, bare = ADAPTERS[name]()
    adapted = model.decoder if name == "tower" else model
    save_adapter(adapted, folder)
    wrapped = SequenceClassifier(bare, 2, hidden_size=8)

    def load_into(target, folder, **options):
        modules = len(list(bare.modules()))
        try:
            report = load_adapter(target, folder, "other", **options)
        finally:
            loaded = adapter_names(target)
            if loaded:
                detach(target)
            assert len(list(bare.modules())) == modules, "something was left on the model"
        document = json.loads((folder / CONFIG).read_text())
        names = {target.module for target in report.targets}
        assert all(any(n.endswith(path) or path.endswith(n) for path in document["modules"]) for n in names)
        assert len(names) == len(document["modules"])

    def restore(folder):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        try:
            restore_adapter(adapted, folder)
        except AdapterxError:
            assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
            raise
        finally:
            model.load_state_dict(before)

    return [
        lambda folder: load_into(bare, folder),
        lambda folder: load_into(bare, folder, check_base=False),
        lambda folder: load_into(wrapped, folder),
        restore,
        format_of,
    ]


def head_loaders(name, folder):
    classifier = SequenceClassifier(torch.nn.Linear(4, 4), 3, hidden_size=4, dropout=0.1)
    save_head(classifier, folder)
    return [load_head, lambda folder: restore_head(classifier, folder)]


def old_loaders(name, folder):
    """An adapter of 0.1.0, whose document has no hash."""
    shutil.copytree(recorded.FIXTURES / "0.1.0" / "adapters" / "with-copy", folder, dirs_exist_ok=True)
    model = recorded.base_model()

    def load(folder):
        try:
            load_adapter(model, folder)
        finally:
            if adapter_names(model):
                detach(model)

    return [load, format_of]


KINDS = {**dict.fromkeys(ADAPTERS, (loaders, CONFIG)), "head": (head_loaders, "head_config.json")}
KINDS["of 0.1.0"] = (old_loaders, CONFIG)


def attempt(action, folder, how):
    """Do it; return whether it was accepted, refused, or what nobody should see."""
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        with time_limit():
            action(folder)
        result = "accepted"
    except AdapterxError as error:
        text = str(error)
        result = "refused" if "\n" not in text and len(text) < 2200 and text.isprintable() else f"BAD WORDS {text!r}"
    except TooLong:
        result = "HANG"
    except Exception as error:  # noqa: BLE001 - the campaign counts them
        result = f"RAW {type(error).__name__}: {error!s:.200}"
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    if growth > MEBIBYTES:
        result = f"GROWTH by {growth:.0f} MiB"
    return result, time.process_time() - start, growth


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_folders(kind, tmp_path, figure, times):
    make, file = KINDS[kind]

    def campaign():
        settled._TICK = 0.0  # nobody else writes to these folders
        good, draw, found, bad = tmp_path / "good", random.Random(kind), Counter(), []
        actions = make(kind, good)
        for action in actions[:1] if kind != "tower" else []:
            action(good)
        slowest = largest = 0.0
        for number in range(times(1600)):
            folder = shutil.copytree(good, tmp_path / str(number))
            how = make_hostile(folder, file, draw)
            for action in actions:
                result, seconds, growth = attempt(action, folder, how)
                slowest, largest = max(slowest, seconds), max(largest, growth)
                found[result if result in ("accepted", "refused") else "bad"] += 1
                if result not in ("accepted", "refused"):
                    bad.append(f"{number}: {how}: {result}")
            found["folders"] += 1
            shutil.rmtree(folder)
        return dict(found), slowest, largest, bad

    status, outcome = Fork(campaign).wait()
    assert status == 0
    found, slowest, largest, bad = outcome
    figure(f"{kind}: {found}, slowest {slowest:.2f} s, largest growth {largest:.0f} MiB, {len(bad)} bad")
    assert not bad, "\n".join(bad[:20])
