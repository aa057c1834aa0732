"""The options of `adapterx train`: declared once, checked at once, and recorded as 0.1.0 recorded them."""

import ast
import inspect
import re
import sys
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from command_line import invoke, refused, train

from adapterx.cli import app, options, recipes
from adapterx.config import AdapterConfig
from adapterx.errors import ConfigError

BAD_OPTIONS = {
    "bottleneck 0": (("--bottleneck-dim", "0"), "bottleneck_dim must be at least 1, got 0"),
    "bottleneck above hidden size": (("--bottleneck-dim", "33"), "at most the hidden size 32"),
    "two sizes": (("--bottleneck-dim", "4", "--reduction-factor", "4"), "exactly one of bottleneck_dim"),
    "adapter options without adapters": (("--method", "head", "--activation", "relu"), "--activation can only"),
    "method": (("--method", "lora"), "method must be one of adapters, head, full"),
    "layers": (("--layers", "x"), "layers must be block numbers"),
    "layer that is not there": (("--layers", "9"), "9"),
    "targets": (("--target-modules", "no_such_module"), "no_such_module"),
    "rate": (("--learning-rate", "-1"), "learning_rate must be a number above 0"),
    "epochs": (("--epochs", "0"), "epochs must be at least 1"),
    "fraction": (("--eval-fraction", "1.5"), "eval_fraction must be in [0, 1)"),
    "max length": (("--max-length", "1000"), "between 3 and 24"),
    "few-shot": (("--examples-per-class", "500"), "at least 500 examples"),
    "half precision on a CPU": (("--precision", "fp16", "--device", "cpu"), "needs a GPU"),
    "best of nothing": (("--keep-best", "--eval-fraction", "0"), "keep_best needs"),
    "resume nothing": (("--resume",), "nothing to resume"),
    "resume and overwrite": (("--resume", "--overwrite"), "exclude each other"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_option(model, data, tmp_path, name):
    options, expected = BAD_OPTIONS[name]
    line = refused("train", "--model", model, "--data", data, "--output", tmp_path / "o", *options)
    assert expected in line
    assert not (tmp_path / "o").exists() or not list((tmp_path / "o").iterdir())


def test_recipes_are_complete():
    assert set(recipes.CLASSIFICATION) == {"adapters", "head", "full"}


# -- one declaration


def flag(name):
    return f"--{name.replace('_', '-')}"


def test_help_shows_every_option_exactly_once(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = Counter(re.findall(r"^│ +(?:\* +)?(--[a-z-]+)", invoke("train", "--help").stdout, re.MULTILINE))
    declared = {field.name for field in fields(options.TrainOptions)} - {"adapter", "words"}
    adapter = {field.name for field in fields(AdapterConfig)} | {"target_regex"}
    assert not declared & adapter
    assert shown == {flag(name): 1 for name in declared | adapter | {"help", "quiet"}}


def test_the_command_has_no_list_of_its_options():
    tree = ast.parse(Path(app.__file__).read_text(encoding="utf-8"))
    [written] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train"]
    assert [argument.arg for argument in written.args.args] == ["options"]
    assert not written.args.kwonlyargs
    assert len(inspect.signature(app.train).parameters) == len(options.parameters()) + 1 > 40


def test_every_field_of_the_configuration_has_its_help():
    assert options.ADAPTER_OPTIONS.keys() == {field.name for field in fields(AdapterConfig)} | {"target_regex"}


def test_a_new_field_of_the_configuration_is_an_option(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Later(AdapterConfig):
        gate: bool = False
        norms: tuple[str, ...] = ()
        offset: float | None = None

    monkeypatch.setattr(options.command, "AdapterConfig", Later)
    kinds = {parameter.name: parameter.annotation.__origin__ for parameter in options.parameters()}
    assert kinds["gate"] == bool | None
    assert kinds["norms"] == list[str] | None
    assert kinds["offset"] == float | None


def test_configuration_is_built_once(model, data, tmp_path, monkeypatch):
    built, check = [], AdapterConfig.__post_init__
    monkeypatch.setattr(AdapterConfig, "__post_init__", lambda config: built.append(config) or check(config))
    train(model, data, tmp_path / "run")
    assert len(built) == 1
    head = ("--method", "head", "--epochs", "1")
    invoke("train", "--model", model, "--data", data, "--output", tmp_path / "head", *head)
    assert len(built) == 1


# -- checks and record


def test_options_are_checked_before_anything_slow_is_imported(model, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    line = refused("train", "--model", model, "--data", tmp_path / "none", "--output", tmp_path / "o", "--epochs", "0")
    assert line == "error: train: epochs must be at least 1 and below 2^31, got 0"


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", float("nan")), ("head_dropout", 1.0), ("weight_decay", -0.1), ("seed", -1), ("threads", 0),
     ("device", "tpu"), ("pooling", "max"), ("warmup_ratio", float("nan")), ("weight_decay", float("inf"))],
)  # fmt: skip
def test_value_that_breaks_its_rule(name, value):
    with pytest.raises(ConfigError, match=f"^train: {name} must .*, got "):
        settled(**{name: value})


def test_adapter_options_are_read_as_they_are_typed():
    typed = dict.fromkeys(options.ADAPTER_OPTIONS) | {"positions": [], "scaling": "0.5", "layers": "0,2-4"}
    assert options.adapter_values(typed) == {"scaling": 0.5, "layers": (0, 2, 3, 4)}
    assert options.adapter_values({"scaling": "learned", "up_bias": False}) == {"scaling": "learned", "up_bias": False}
    sized = options.adapter_values({"bottleneck_dim": "64", "reduction_factor": "default=16, 0=2.5,11=x"})
    assert sized == {"bottleneck_dim": 64, "reduction_factor": {"default": 16, "0": 2.5, "11": "x"}}
    assert options.adapter_values({"target_regex": ".*"}) == {"target_modules": ".*"}
    with pytest.raises(ConfigError, match="exclude each other"):
        options.adapter_values({"target_regex": ".*", "target_modules": ["a"]})


RECORD_OF_0_1_0 = {
    "model": "m", "eval_fraction": 0.1, "text_column": None, "label_column": None, "method": "adapters",
    "adapter": {
        "bottleneck_dim": 64, "reduction_factor": None, "placement": "sequential",
        "positions": ["attention", "feed_forward"], "activation": "gelu", "scaling": 1.0, "dropout": 0.0,
        "down_bias": True, "up_bias": True, "init": "he", "init_up": "zero", "layers": None, "target_modules": None,
        "modules_to_save": [],
    },
    "pooling": "mean", "epochs": 6, "learning_rate": 0.001, "head_learning_rate": 0.005, "batch_size": 16,
    "warmup_ratio": 0.1, "weight_decay": 0.01, "head_dropout": 0.1, "max_length": None, "precision": "fp32",
    "examples_per_class": None, "keep_best": False, "seed": 0,
}  # fmt: skip
OTHER_METHODS = {
    "adapters": {},
    "head": {"adapter": None, "epochs": 10, "learning_rate": 0.01, "head_learning_rate": None},
    "full": {"adapter": None, "epochs": 4, "learning_rate": 0.0001, "head_learning_rate": None},
}


FREE = {"output", "resume", "overwrite", "threads", "device", "keep_checkpoints", "data", "eval_data", "save_steps"}


def settled(**given):
    return options.TrainOptions(model="m", data="d", output=Path("o"), **given)


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_record_has_the_keys_and_the_defaults_of_0_1_0(method):
    record = settled(method=method).record()
    expected = RECORD_OF_0_1_0 | {"method": method} | OTHER_METHODS[method]
    if method == "adapters":  # a later version may know more about an adapter
        expected["adapter"] = record["adapter"] | expected["adapter"]
    assert record == record | expected
    assert not record.keys() & FREE


def test_record_follows_what_is_given():
    assert settled(eval_data="e").record()["eval_fraction"] == 0.0
    adapter = settled(adapter_values={"reduction_factor": 4, "init": "xavier"}).record()["adapter"]
    assert (adapter["bottleneck_dim"], adapter["reduction_factor"], adapter["init"]) == (None, 4.0, "xavier")
