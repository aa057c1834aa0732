"""Compositions are values: validated, comparable, and the same after JSON."""

import json

import pytest

from adapterx import Average, ConfigError, Stack
from adapterx.compose import (
    BatchSplit,
    Fuse,
    Parallel,
    Split,
    adapter_names_in,
    composition_from_dict,
    composition_to_dict,
    parse_composition,
)
from adapterx.compose.naming import keep_names

VALUES = [
    Stack(),
    Stack("a", "b"),
    Stack("a", Average("b", Stack("c", "d"), weights=[3, 1])),
    Average("a", "b", weights=(0.5, -2.0), normalize=False),
    Parallel("a", Stack("b", "c")),
    Split("a", "b", splits=[4, 3]),
    BatchSplit("a", "b", batch_sizes=(1, 2)),
    BatchSplit("a", None, "b", "a"),
    Split(Stack("a", "b"), None, splits=3),
    Fuse("a", "b"),
    Fuse("a", Stack("b", "c"), name="both"),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_json_gives_the_same_value_back(value):
    assert composition_from_dict(json.loads(json.dumps(composition_to_dict(value)))) == value


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, Stack()),
        ((), Stack()),
        ("a", Stack("a")),
        (["a", "b"], Stack("a", "b")),
        (Average("a", "b"), Average("a", "b")),
        (["a", Average("b", "c")], Stack("a", Average("b", "c"))),
    ],
)
def test_what_users_say(given, expected):
    assert parse_composition(given) == expected


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_print_as_they_are_written(value):
    names = {kind.__name__: kind for kind in (Average, BatchSplit, Fuse, Parallel, Split, Stack)}
    assert eval(repr(value), names) == value
    assert repr(Stack("a", Average("b", "c"))) == "Stack('a', Average('b', 'c'))"


def test_names_in_order_of_application():
    assert adapter_names_in(Stack("c", Average("a", Stack("b")))) == ("c", "a", "b")
    assert adapter_names_in(BatchSplit("b", None, "a", "b")) == ("b", "a")


def test_weights_are_shares_unless_they_are_told_apart():
    assert Average("a", "b", "c", weights=[2, 1, 1]).factors() == (0.5, 0.25, 0.25)
    assert Average("a", "b").factors() == (0.5, 0.5)
    assert Average("a", "b", weights=[2, 1], normalize=False).factors() == (2.0, 1.0)


@pytest.mark.parametrize(
    ("value", "known", "kept"),
    [
        (Stack("a", "b"), ["b"], Stack("b")),
        (Stack("a"), [], Stack()),
        (Average("a", "b", "c", weights=[1, 2, 3]), ["a", "c"], Average("a", "c", weights=[1, 3])),
        (Average("a", "b", "c", weights=[1, -1, 4]), ["a", "b"], Stack()),
        (Stack("a", Average("b", "c")), ["a"], Stack("a")),
        (Stack("a", Average("b", Stack("c", "d"))), ["a", "b", "d"], Stack("a", Average("b", Stack("d")))),
        (Split("a", "b", splits=[4, 3]), ["b"], Split(None, "b", splits=[4, 3])),
        (BatchSplit("a", Stack("b", "a"), "a"), ["b"], BatchSplit(None, Stack("b"), None)),
        (Stack("a", Fuse("b", "c")), ["a", "b"], Stack("a")),
    ],
)
def test_what_is_left_when_adapters_go(value, known, kept):
    assert keep_names(value, known) == kept


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Stack("a", ""), ConfigError, "Stack: parts must be names of adapters or compositions, got ''"),
        (lambda: Stack(None), ConfigError, "names of adapters or compositions, got None"),
        (lambda: BatchSplit(3), ConfigError, "names of adapters or compositions, or None, got 3"),
        (lambda: Stack(1), ConfigError, "got 1"),
        (lambda: Average(), ConfigError, "Average: parts must be at least 1, got 0"),
        (
            lambda: Average("a", "b", weights=[1]),
            ConfigError,
            "weights must be finite numbers, one for each of 2 parts",
        ),
        (lambda: Average("a", weights=[float("nan")]), ConfigError, "weights must be finite"),
        (lambda: Average("a", "b", weights=[1, -1]), ConfigError, "must not sum to 0"),
        (lambda: Average("a", "b", normalize=1), ConfigError, "normalize must be True or False"),
        (lambda: Split("a", "b", splits=[1.5, 2]), ConfigError, "Split: splits must be integers from 1 up"),
        (lambda: BatchSplit("a", batch_sizes=[0]), ConfigError, "batch_sizes must be integers from 1 up"),
        (lambda: Fuse("a"), ConfigError, "Fuse: parts must be at least 2"),
        (lambda: Fuse("a", Stack()), ConfigError, "Fuse: parts must be names"),
        (
            lambda: Fuse("a", Stack(Average("b"))),
            ConfigError,
            "Fuse: parts must be names of adapters or stacks of them",
        ),
        (lambda: Fuse("a", "b", name="a.b"), ConfigError, "Fuse: name must consist of letters"),
        (lambda: parse_composition(Stack("a", BatchSplit("b", "a"))), ConfigError, "names must not repeat"),
        (lambda: parse_composition(BatchSplit("a", Stack("b", "b"))), ConfigError, "names must not repeat"),
        (lambda: parse_composition(["a", "a"]), ConfigError, "names must not repeat"),
        (lambda: parse_composition(Average("a", Stack("b", "a"))), ConfigError, "names must not repeat"),
        (lambda: parse_composition(3), ConfigError, "names must be names, a composition or None, got 3"),
        (lambda: composition_from_dict({"kind": "heap"}), ConfigError, "kind must be one of stack, average"),
        (lambda: composition_from_dict({"kind": "stack"}), ConfigError, "keys of Stack must be its fields"),
        (lambda: composition_from_dict([]), ConfigError, "kind must be one of"),
    ],
)
def test_refused_in_words(make, error, words):
    with pytest.raises(error, match=words):
        make()
