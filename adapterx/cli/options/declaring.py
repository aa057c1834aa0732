"""How an option of `adapterx train` is declared, once: the command, its help, the checks and the record follow."""

import math
from collections.abc import Callable
from dataclasses import MISSING, field
from typing import Any

DATA, OUTPUT, TRAINING, ADAPTER = "Data", "Output", "Training", "Adapter"  # the panels of --help
REQUIRED = MISSING

Rule = tuple[str, Callable[[Any], bool]]  # what a value must do, in words and as a test
ANYTHING: Rule = ("not be empty", lambda value: value != "")
SOURCES: Rule = ("not be empty", lambda value: bool(value) and "" not in value)
COUNT: Rule = ("be at least 1 and below 2^31", lambda value: 1 <= value < 2**31)
SHARE: Rule = ("be in [0, 1)", lambda value: 0.0 <= value < 1.0)
BETWEEN: Rule = ("lie strictly between 0 and 1", lambda value: 0.0 < value < 1.0)
RATE: Rule = ("be a number above 0", lambda value: 0.0 < value < math.inf)
DECAY: Rule = ("be a number from 0 up", lambda value: 0.0 <= value < math.inf)
THREADS: Rule = ("lie between 1 and 1024", lambda value: 1 <= value <= 1024)
SEED: Rule = ("lie between 0 and 2^32 - 1", lambda value: 0 <= value < 2**32)


def one_of(*allowed: str) -> Rule:
    """Return the rule that a value is one of these."""
    return f"be one of {', '.join(allowed)}", allowed.__contains__


def option(
    panel: str,
    text: str,
    default: Any = None,
    *,
    must: Rule = ANYTHING,
    free: bool = False,
    typed: Any = None,
    metavar: str | None = None,
) -> Any:
    """Declare an option: panel and text of `--help`, default (None lets the method, model or data decide) and rule.

    A resumed run may differ from the first in a `free` one, which changes where and how fast, not what comes out.
    `typed` is its type on the command line where that is another, `metavar` what stands for its value in the help.
    """
    metadata = {"panel": panel, "text": text, "must": must, "free": free, "typed": typed, "metavar": metavar}
    return field(default=default, metadata=metadata)
