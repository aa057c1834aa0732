"""What a hostile folder asks for is refused in words, soon, and before memory is taken for it."""

import json
import resource
import time
from contextlib import contextmanager

import pytest
import torch
from saved_adapters import CONFIG, adapted_plain, assert_refused, edit, to_version_1
from tiny_models import build, plain_model
from torch import nn

from adapterx import (
    AdapterConfig,
    CheckpointError,
    attach,
    load_adapter,
    load_head,
    restore_head,
    save_adapter,
    save_head,
)
from adapterx.heads import SequenceClassifier


@contextmanager
def bounded(seconds=3.0, mebibytes=100):
    """The block takes no longer, and the process grows by no more."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.perf_counter() - start < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < mebibytes * 1024


def config_of(folder):
    return json.loads((folder / CONFIG).read_text())["config"]


DEEP = ".".join("a" * 50_000)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(({key: 10**400}, f"{key} must be a finite number") for key in ("scaling", "dropout")),
        ({"bottleneck_dim": None, "reduction_factor": 10**400}, "reduction_factor must be a finite number"),
        ({"bottleneck_dim": 10**400}, "bottleneck_dim must be at most"),
        ({"bottleneck_dim": 2**62}, "bottleneck_dim must be at most the hidden size 8"),
        ({"bottleneck_dim": True}, "bottleneck_dim must be an integer, got True"),
        ({"bottleneck_dim": None, "reduction_factor": 1e308}, "wrong shapes"),
        ({"layers": [10**400]}, "layers must be different block indices"),
        ({"layers": list(range(300_000))}, "layers must hold at most 10000 entries"),
        ({"layers": list(range(9_999))}, "layers must be block indices of the model"),
        ({"target_modules": "(" * 5000 + ")" * 5000}, "target_modules must be at most 2000 characters"),
        ({"target_modules": "(" * 990 + ")" * 990}, "target_modules must be suffixes or a valid regular expression"),
        ({"target_modules": "a|" * 2**19}, "target_modules must be at most 2000 characters"),
        (
            {"target_modules": ["a" * 2**20]},
            "must describe the modules of the model",
        ),
        ({"modules_to_save": ["x" * 2**23]}, "modules_to_save must be qualified names"),
        ({"modules_to_save": [DEEP]}, "modules_to_save must be qualified names"),
        ({"modules_to_save": list(map(str, range(10**5)))}, "modules_to_save must hold at most 10000 entries"),
        ({"modules_to_save": ["", "classifier"]}, "must hold strings that are not empty"),
        ({"modules_to_save": ["blocks"]}, "modules_to_save must not hold modules to be adapted"),
        ({"modules_to_save": ["../classifier"]}, "modules_to_save must be qualified names"),
        ({"\x1b[31m": 1}, r"unknown keys: '\\x1b\[31m'; a newer adapterx may know them"),
    ],
)
def test_configurations(saved, values, message):
    edit(saved, config=config_of(saved) | values)
    with bounded():
        assert_refused(saved, message)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (lambda entry: {DEEP: entry}, "model lacks"),
        (lambda entry: {f"blocks.0.{'narrow.' * 50_000}narrow": entry}, "model lacks"),
        (lambda entry: {"x" * 10**7: entry}, "model lacks"),
        (lambda entry: {f"blocks.{i}.narrow": entry for i in range(30_000)}, "model lacks"),
        (lambda entry: {f"{DEEP[:999]}.{i}": entry for i in range(8_000)}, "model lacks"),
        (lambda entry: {"blocks.0.narrow.": entry, "blocks.1.narrow": entry}, "model lacks"),
        (lambda entry: {"blocks.0..narrow": entry}, "model lacks"),
        (lambda entry: {"": entry}, "chooses other modules"),
        (lambda entry: {"blocks.0.narrow": entry}, "chooses other modules"),
        (lambda entry: {"blocks.0.narrow": entry, "blocks.1.widen": entry}, "chooses other modules"),
        *(
            (
                lambda entry, other=other: {"blocks.0.narrow": other(entry), "blocks.1.narrow": entry},
                "must describe the",
            )
            for other in (
                lambda entry: None,
                lambda entry: "\x1b[2J",
                lambda entry: [],
                lambda entry: {},
                lambda entry: entry | {"position": "attention"},
                lambda entry: entry | {"position": "feed\x1b[2J"},
                lambda entry: entry | {"position": ["feed_forward"]},
                lambda entry: entry | {"input_size": 8.0},
                lambda entry: entry | {"input_size": 2**63},
                lambda entry: entry | {"hidden_size": True},
                lambda entry: entry | {"hidden_size": "8"},
                lambda entry: entry | {"evil": 1},
            )
        ),
    ],
)
def test_modules(saved, modules, message):
    entry = json.loads((saved / CONFIG).read_text())["modules"]["blocks.0.narrow"]
    edit(saved, modules=modules(entry), base_check=None)
    with bounded():
        assert_refused(saved, message)


@pytest.mark.parametrize("name", [None, [], "", "../evil", "a/b", "a\x1b[31m", "a.b", "forward", "\ud800"])
def test_names(saved, name):
    edit(saved, name=name)
    assert_refused(saved, "name must|must hold 'name'", error=(CheckpointError, ValueError))


def test_documents_of_version_1_are_held_to_the_same_rules(saved):
    to_version_1(saved)
    entry = json.loads((saved / CONFIG).read_text())["modules"]["blocks.0.narrow"]
    edit(saved, modules={"blocks.0.narrow": entry | {"position": "attentiom"}, "blocks.1.narrow": entry})
    assert_refused(saved, "must describe the modules of the model")


@pytest.mark.parametrize(
    "unit", ["[],", "{},", '"aa",', "0.1,", "[" * 90 + "]" * 90 + ",", '{"":' * 90 + "0" + "}" * 90 + ","]
)
def test_documents_of_many_values(saved, unit):
    """Sixteen mebibytes of brackets would take five hundred, and ten seconds."""
    text = (saved / CONFIG).read_text().replace('"metadata": {}', f'"metadata": [{unit * (15 * 2**20 // len(unit))}0]')
    (saved / CONFIG).write_text(text)
    with bounded():
        assert_refused(saved, "it holds more than 400000 values")


def test_documents_of_wide_characters(saved):
    text = (saved / CONFIG).read_text().replace('"metadata": {}', f'"metadata": "{"x" * 15 * 2**20}\U0001f600"')
    (saved / CONFIG).write_text(text, encoding="utf-8")
    with bounded():
        assert_refused(saved, "it holds more than 4194304 characters, and not ASCII alone")


def test_nothing_is_saved_that_would_not_load(saved):
    with pytest.raises(CheckpointError, match=r"^save_adapter: metadata must be .*it holds more than 400000 values"):
        save_adapter(adapted_plain(seed=2), saved, metadata={"losses": list(range(400_001))})
    load_adapter(model := plain_model(), saved)
    save_adapter(model, saved, metadata={"losses": list(range(300_000)), "note": "ü" * 1000})
    load_adapter(plain_model(), saved)


def test_what_was_recorded_wins_over_an_expression_without_end(tmp_path):
    """The recorded modules are taken as they are; `(a+)+$` would be matched against them for centuries."""
    name = "a" * 40
    model = nn.ModuleDict({name: nn.ModuleDict({f"{name}!": nn.Linear(4, 4)})})
    attach(model, AdapterConfig(bottleneck_dim=2, target_modules=(f"{name}!",)))
    save_adapter(model, tmp_path)
    edit(tmp_path, config=config_of(tmp_path) | {"target_modules": r"(a+)+\.(a+)+$"})
    with bounded():
        report = load_adapter(
            nn.ModuleDict({name: nn.ModuleDict({f"{name}!": model[name][f"{name}!"]})}), tmp_path, "b"
        )
    assert [target.module for target in report.targets] == [f"{name}.{name}!"]


def test_memory_is_taken_only_for_what_the_files_hold(tmp_path):
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8)))
    attach(model, AdapterConfig(bottleneck_dim=2, target_modules=tuple("01234567")))
    save_adapter(model, tmp_path)
    bare = nn.Sequential(*(module for module in model), nn.Linear(8192, 8192))
    config = config_of(tmp_path)
    for values, message in (
        ({"bottleneck_dim": 2048}, r"wrong shapes \['0.adapterx.down_proj.bias \[2\] instead of \[2048\]'"),
        ({"bottleneck_dim": None, "reduction_factor": 1.0}, "wrong shapes"),
        ({"modules_to_save": ["8"]}, r"missing tensors \['8.bias', '8.weight'\]"),
    ):
        edit(tmp_path, config=config | values)
        with bounded(), pytest.raises(CheckpointError, match=message):
            load_adapter(bare, tmp_path, "new")
    edit(tmp_path, config=config)
    load_adapter(bare, tmp_path, "new")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 50_000, "num_labels": 50_000}, "wrong shapes"),
        ({"hidden_size": 2**62, "num_labels": 2**62}, "does not describe a head"),
        ({"hidden_size": 2**31, "num_labels": 2**31}, "does not describe a head: Storage size"),
        ({"num_labels": 10**400}, "does not describe a head: ClassificationHead: num_labels must be at most"),
        ({"num_labels": True}, "does not describe a head: ClassificationHead: num_labels must be an integer, got True"),
        ({"num_labels": 3.0}, "num_labels must be an integer, got 3.0"),
        ({"hidden_size": "32"}, "hidden_size must be an integer, got '32'"),
        ({"hidden_size": None}, "does not describe a head"),
        ({"dropout": 10**400}, "dropout must be a finite number"),
        ({"dropout": False}, "dropout must be a finite number, got False"),
        ({"dropout": "0"}, "dropout must be a finite number, got '0'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"pooling": ["mean"]}, "pooling must be one of mean, cls, last"),
        ({"pooling": "meam"}, "pooling must be one of mean, cls, last"),
        ({"pooling": "x" * 10**7}, "pooling must be one of mean, cls, last"),
    ],
)
def test_heads(tmp_path, values, message):
    classifier = SequenceClassifier(build("bert"), 3)
    save_head(classifier, tmp_path)
    edit(tmp_path, "head_config.json", **values)
    with bounded(), pytest.raises(CheckpointError, match=f"^load_head: .*{message}") as error:
        load_head(tmp_path)
    assert len(str(error.value)) < 2100
    with bounded(), pytest.raises(CheckpointError, match=r"^restore_head: .*(does not describe a head|does not fit)"):
        restore_head(classifier, tmp_path)


def test_loading_a_head_moves_no_random_numbers(tmp_path):
    save_head(SequenceClassifier(build("bert"), 3), tmp_path)
    before = torch.get_rng_state()
    load_head(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
