"""Blocks of `mixed`: what they restore, how they nest, what cannot change inside, what they refuse."""

import copy
import threading

import pytest
import torch
from mixed_cases import CONFIGS, HIDDEN_STATES, NAMES, adapted, alone, call, small_model
from model_state import flags
from tiny_models import inputs_for, run

from adapterx import UnknownAdapterError, active_adapters, adapter_names, attach, detach, disabled, mixed, set_active
from adapterx.export import to_onnx


def test_blocks_restore_what_was_before():
    model = small_model()
    set_active(model, ["c", "a"])
    adapter = model.blocks[0].narrow.adapterx["c"]
    adapter.down_proj.bias.requires_grad_(False)  # a flag of the user's own
    before, output = flags(model), model(HIDDEN_STATES)
    with mixed(model, ["b", None, "b"]):
        assert {key.split(".")[-3] for key, flag in flags(model).items() if flag} == {"b"}
        assert active_adapters(model) == ("c", "a")
        assert adapter_names(model) == ("a", "b", "c")
        assert not torch.equal(model(HIDDEN_STATES), output)
    assert flags(model) == before
    assert torch.equal(model(HIDDEN_STATES), output)
    with pytest.raises(ZeroDivisionError), mixed(model, ["b", "b", "a"]):
        _ = 1 / 0
    assert flags(model) == before
    assert torch.equal(model(HIDDEN_STATES), output)
    assert active_adapters(model) == ("c", "a")


def test_blocks_nest():
    model = small_model()
    outer, inner = ["a", "b", None], ["c", None]
    with torch.no_grad():
        expected = alone(model, outer, HIDDEN_STATES, call)
        other = alone(model, inner, HIDDEN_STATES[:2], call)
        with mixed(model, outer):
            torch.testing.assert_close(model(HIDDEN_STATES), expected)
            during = flags(model)
            with mixed(model, inner):
                torch.testing.assert_close(model(HIDDEN_STATES[:2]), other)
            assert flags(model) == during
            torch.testing.assert_close(model(HIDDEN_STATES), expected)


def test_disabled_inside_and_around():
    model = small_model()
    with disabled(model):
        base = model(HIDDEN_STATES)
        with mixed(model, ["a", "b", "c"]):
            assert torch.equal(model(HIDDEN_STATES), base)
    with mixed(model, ["a", "b", "c"]):
        found = model(HIDDEN_STATES)
        with disabled(model):
            assert torch.equal(model(HIDDEN_STATES), base)
        assert torch.equal(model(HIDDEN_STATES), found)
    assert not torch.allclose(found, base)


def test_a_block_on_a_part_of_the_model():
    model = small_model()
    with torch.no_grad():
        with mixed(model.blocks[0], ["b", "b", "b"]):
            found = model(HIDDEN_STATES)
        set_active(model.blocks[0], "b")
        assert torch.equal(model(HIDDEN_STATES), found)


def test_who_takes_part_cannot_change_inside():
    model = small_model()
    before = model(HIDDEN_STATES)
    with mixed(model, ["b", "b", "b"]):
        for function, act in (
            ("set_active", lambda: set_active(model, "c")),
            ("detach", lambda: detach(model, "a")),
            ("attach", lambda: attach(model, CONFIGS["plain"], "late", active=False)),
            ("to_onnx", lambda: to_onnx(model, "nowhere", example=(HIDDEN_STATES,))),
        ):
            with pytest.raises(RuntimeError, match=f"{function}: model must not be inside a `mixed` block"):
                act()
    assert adapter_names(model) == ("a", "b", "c")
    assert torch.equal(model(HIDDEN_STATES), before)


def test_copies_and_pickles_know_nothing_of_the_block():
    model = small_model()
    before = model(HIDDEN_STATES)
    with mixed(model, ["b", "b", None]):
        twin = copy.deepcopy(model)
    assert torch.equal(twin(HIDDEN_STATES), before)
    set_active(twin, "c")


def test_threads_share_a_block():
    model = adapted()
    inputs = inputs_for("bert", model, batch=len(NAMES))
    found = []

    def work():
        with torch.no_grad():
            found.extend(run(model, inputs) for _ in range(5))

    with mixed(model, NAMES):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with torch.no_grad():
            expected = run(model, inputs)
    assert len(found) == 20
    assert all(torch.equal(result, expected) for result in found)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("a", TypeError, "names must be a sequence of adapter names and None, got 'a'"),
        (None, TypeError, "names must be a sequence of adapter names and None, got None"),
        ({"a": 1}, TypeError, "names must be a sequence"),
        (["a", 3], TypeError, "names must hold strings, compositions and None, got 3 among them"),
        ([], ValueError, "names must have one entry for each sequence of the batch, got none"),
        (["a", "z", "y"], UnknownAdapterError, "mixed: name must be an attached adapter, got 'y', 'z'; attached are"),
    ],
)
def test_names_that_are_none(names, error, message):
    model = small_model()
    before = flags(model)
    with pytest.raises(error, match=message), mixed(model, names):
        pass
    assert flags(model) == before


@pytest.mark.parametrize("shape", [(4, 8), (2, 5, 8), (6, 2, 8), (8,)])
def test_batches_of_another_size(shape):
    model = small_model()
    message = r"mixed: the hidden states of blocks\.0\.narrow must be \(3, \.\.\., hidden_size\).*got shape \("
    with mixed(model, ["a", None, "b"]), pytest.raises(ValueError, match=message):
        model(torch.zeros(shape, dtype=torch.float64))


def test_one_token_is_not_a_batch():
    model = small_model()
    with mixed(model, ["a"] * 8), pytest.raises(ValueError, match=r"blocks\.0\.narrow must be .*got shape \(8,\)"):
        model(torch.zeros(8, dtype=torch.float64))
