"""The tasks of `adapterx train`, by name. A further one is a module here with a subclass of `Task`, named below."""

from collections.abc import Mapping
from typing import Any

from adapterx.cli.tasks.causal_lm import CausalLM
from adapterx.cli.tasks.multi_label import MultiLabelClassification
from adapterx.cli.tasks.regression import Regression
from adapterx.cli.tasks.seq2seq_lm import Seq2SeqLM
from adapterx.cli.tasks.single_label import SequenceClassification
from adapterx.cli.tasks.task import Task
from adapterx.cli.tasks.token_classification import TokenClassification

DEFAULT = SequenceClassification.name
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        SequenceClassification(),
        MultiLabelClassification(),
        Regression(),
        TokenClassification(),
        CausalLM(),
        Seq2SeqLM(),
    )
}
NAMES = {alias: name for name, task in TASKS.items() for alias in (name, *task.aliases)}


def task_of(record: Mapping[str, Any]) -> Task:
    """Return the task of a run; earlier versions knew one only, and wrote none down."""
    return TASKS[record.get("task", DEFAULT)]
