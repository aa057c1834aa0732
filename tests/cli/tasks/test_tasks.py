"""The tasks as a table: names and other words for them, options that only some take, and no task named elsewhere."""

import ast
import re
from pathlib import Path

import pytest
from command_line import invoke, refused, train

from adapterx.cli import tasks
from adapterx.cli.options import TrainOptions
from adapterx.cli.recipes import METHODS
from adapterx.errors import ConfigError

NEEDED = {"model": "m", "data": "d", "output": Path("o")}


def test_names_are_told_apart():
    words = [word for task in tasks.TASKS.values() for word in (task.name, *task.aliases)]
    assert len(words) == len(set(words))
    for word in words:
        assert TrainOptions(**NEEDED, task=word).task == tasks.NAMES[word]
    with pytest.raises(ConfigError, match=r"task must be one of sequence-classification, .* got 'parsing'"):
        TrainOptions(**NEEDED, task="parsing")


@pytest.mark.parametrize("task", tasks.TASKS.values(), ids=list(tasks.TASKS))
def test_what_a_task_tells_of_itself_is_whole(task):
    fields = TrainOptions.__dataclass_fields__
    assert task.options <= fields.keys()
    assert set(task.recipes) <= set(METHODS)
    assert all(recipe.keys() <= fields.keys() for recipe in task.recipes.values())
    assert task.nested <= set(task.answer)
    for method in set(METHODS) - set(task.recipes):
        with pytest.raises(ConfigError, match=f"method must be one of .* for --task {task.name}, got '{method}'"):
            TrainOptions(**NEEDED, task=task.name, method=method)


def test_no_task_is_named_outside_of_the_package():
    """A chain of questions for the task would grow with each one; what differs belongs into its module."""
    package = Path(tasks.__file__).parent
    for path in package.parent.rglob("*.py"):
        if package in path.parents:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        compared = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Compare, ast.Match))]
        named = [text for text in compared for name in tasks.NAMES if re.search(rf"['\"]{name}['\"]", text)]
        assert not named, path


def test_the_task_stands_in_the_record_and_an_older_one_has_none(model, data, tmp_path):
    from adapterx.cli.records import read_record

    train(model, data, tmp_path / "o", "--task", "text-classification")
    assert read_record(tmp_path / "o")["task"] == "sequence-classification"
    assert "sequence-classification" in invoke("info", tmp_path / "o").stdout
    assert tasks.task_of({"labels": ["a", "b"]}).name == "sequence-classification"
    line = refused("train", "--model", model, "--data", data, "--output", tmp_path / "p", "--task", "parsing")
    assert "task must be one of" in line
