"""Copies and pickles of adapted models, threads that share one, and what its captures hold."""

import copy
import threading

import pytest
import torch
from attach_cases import PARALLEL, PLACEMENTS
from model_state import pickled
from tiny_adapters import randomise
from tiny_models import build, inputs_for, run

from adapterx import AdapterSet, adapter_parameters, attach, detach, disabled, set_active


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
@PLACEMENTS
@torch.no_grad()  # with gradients, T5's attention takes another path before freezing than after
def test_deepcopy_is_independent(name, config):
    model = build(name)
    inputs = inputs_for(name, model)
    base = run(model, inputs)
    attach(model, config)
    randomise(model)
    adapted = run(model, inputs)
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin, inputs), adapted)
    for _, parameter in adapter_parameters(twin):
        parameter.zero_()
    assert torch.equal(run(model, inputs), adapted)
    assert torch.equal(run(twin, inputs), base)
    detach(twin)
    assert torch.equal(run(twin, inputs), base)
    assert all(parameter.requires_grad for parameter in twin.parameters())
    assert torch.equal(run(model, inputs), adapted)


@PLACEMENTS
def test_pickle_of_the_whole_model(config):
    model = build("bert")
    inputs = inputs_for("bert", model)
    attach(model, config, "my-adapter-2")
    randomise(model)
    twin = pickled(model)
    assert torch.equal(run(twin, inputs), run(model, inputs))
    with disabled(twin):
        assert not torch.equal(run(twin, inputs), run(model, inputs))
    detach(twin)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.modules())


@PLACEMENTS
def test_threads_share_a_model(config):
    model = build("bert")
    attach(model, config)
    randomise(model)
    batches = [inputs_for("bert", model, batch=size, length=3 + size) for size in range(1, 5)]
    with torch.no_grad():
        alone = [run(model, batch) for batch in batches]
    found = {}

    def work(index):
        with torch.no_grad():
            found[index] = [run(model, batches[index]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(alone):
        assert all(torch.equal(result, expected) for result in found[index])


def test_a_capture_holds_nothing_afterwards_and_complains_when_skipped():
    model = build("bert")
    inputs = inputs_for("bert", model)
    attach(model, PARALLEL)
    run(model, inputs)
    captures = [c for m in model.modules() if isinstance(m, AdapterSet) for c in m.captures.values()]
    assert len(captures) == 4
    assert all(capture.captured.hidden_states is None for capture in captures)
    with disabled(model):
        run(model, inputs)
    set_active(model, None)
    run(model, inputs)
    assert all(capture.captured.hidden_states is None for capture in captures)
    set_active(model, "default")
    message = r"reads the input of encoder\.layer\.0\.intermediate\.dense, which did not run before it"
    with pytest.raises(RuntimeError, match=message):
        model.encoder.layer[0].output.dense(torch.randn(1, 48))
