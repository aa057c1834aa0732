"""The text of a label: the same for one value in every kind of file, of which CSV knows only text, Parquet types."""

import datetime
import decimal
import functools
import math
import re

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity)", re.ASCII | re.IGNORECASE)
PLAIN = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)  # as programs write numbers: `007` is none
DECIMAL_COMMA = re.compile(r"-?\d+,\d+", re.ASCII)
TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?|\d\d:\d\d:\d\d(\.\d+)?", re.ASCII)
_ITEM = r"""(?:[+-]?[\d.]+|"[^"]*"|'[^']*'|True|False|true|false)"""
LIST = re.compile(rf"\[\s*(?:{_ITEM}(?:\s*,\s*|\s+))*{_ITEM}?\s*\]")


class NoClass(Exception):
    """A value cannot be a label: it is of another kind, which the text names."""


def label_text(value: object) -> str | None:
    """Return the text of a label; None if there is no value.

    Text is taken without the space around it. Truth values are `true` and `false`, also where a program wrote
    `True` or `TRUE`; whole numbers have no fraction, so that `1.0` is `1`.

    Raises:
        NoClass: it is a value of another kind; the text says of which.
    """
    if value is None:
        return None
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta)):
        raise NoClass("a time")
    if not isinstance(value, (str, bool, int, float, decimal.Decimal)):
        raise NoClass(f"a {type(value).__name__}")
    return _text(str(value))


@functools.lru_cache(maxsize=1000)  # a table has many rows and few classes
def _text(written: str) -> str | None:
    text = written.strip()
    if text.lower() in ("", "nan"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower()
    if NUMBER.fullmatch(text):
        return _number_text(text)
    if DECIMAL_COMMA.fullmatch(text):
        raise NoClass("a fraction; for numbers take --task regression")
    if TIME.fullmatch(text):
        raise NoClass("a time")
    if LIST.fullmatch(text):
        raise NoClass("a list; for several labels take --task multi-label-classification")
    return text


def _number_text(text: str) -> str:
    if text.lstrip("+-").isdigit():
        return text  # of any size, and with its zeros: they are names
    number = float(text)
    if not number.is_integer():  # neither is infinity
        raise NoClass("a fraction; for numbers take --task regression" if math.isfinite(number) else "no finite number")
    return str(int(number)) if PLAIN.fullmatch(text) else text
