"""The operator's ONNX body against torch, without a model around it: every activation, every combination of inputs."""

import itertools

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx
import onnx_ir as ir
import onnxruntime
import torch

from adapterx import reference
from adapterx.export.onnx_node import DOMAIN, INPUTS, NAME, OPTIONAL, attach_functions

SIZES = {"hidden_states": (3, 5, 6), "residual": (3, 5, 7), "down_weight": (4, 6), "down_bias": (4,)}
SIZES |= {"up_weight": (7, 4), "up_bias": (7,)}
ELEMENTS = {torch.float32: onnx.TensorProto.FLOAT, torch.float16: onnx.TensorProto.FLOAT16}


def tensors(dtype=torch.float32):
    return {name: (0.7 * torch.randn(shape)).to(dtype) for name, shape in SIZES.items()}


def model_of(calls, dtype, opset):
    """Return an `onnx_ir.Model` with one adapter node per (activation, scaling, absent inputs)."""
    nodes = [
        onnx.helper.make_node(
            NAME,
            ["" if name in absent else name for name in INPUTS],
            [f"output_{number}"],
            domain=DOMAIN,
            activation=activation,
            scaling=scaling,
        )
        for number, (activation, scaling, absent) in enumerate(calls)
    ]
    inputs = [onnx.helper.make_tensor_value_info(name, ELEMENTS[dtype], shape) for name, shape in SIZES.items()]
    outputs = [onnx.helper.make_tensor_value_info(node.output[0], ELEMENTS[dtype], SIZES["residual"]) for node in nodes]
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, 1)]
    graph = onnx.helper.make_graph(nodes, "adapters", inputs, outputs)
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10))


def run(model, values):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {entry.name: values[entry.name].numpy() for entry in session.get_inputs()}
    return [torch.from_numpy(array) for array in session.run(None, feeds)]


def expected(values, activation, scaling, absent):
    arguments = [None if name in absent else values[name] for name in INPUTS]
    return reference.bottleneck_adapter(*arguments, activation=activation, scaling=scaling)


@pytest.mark.parametrize("portable", [False, True])
def test_every_activation_in_one_model(portable):
    calls = [(activation, scaling, ()) for activation in reference.ACTIVATIONS for scaling in (1.0, -0.37)]
    model, values = model_of(calls, torch.float32, 20), tensors()
    variants = attach_functions(model)
    assert variants == sorted(reference.ACTIVATIONS)
    if portable:
        from onnx_ir.passes.common import InlinePass

        InlinePass()(model)
        assert not [node for node in model.graph if node.domain]
    for call, found in zip(calls, run(model, values), strict=True):
        torch.testing.assert_close(found, expected(values, *call), atol=2e-6, rtol=1e-5, msg=str(call))


def test_every_combination_of_absent_inputs():
    subsets = [s for size in range(len(OPTIONAL) + 1) for s in itertools.combinations(OPTIONAL, size)]
    calls = [("silu", 2.5, absent) for absent in subsets]
    model, values = model_of(calls, torch.float32, 20), tensors()
    assert len(attach_functions(model)) == 8
    for call, found in zip(calls, run(model, values), strict=True):
        torch.testing.assert_close(found, expected(values, *call), atol=2e-6, rtol=1e-5, msg=str(call))


@pytest.mark.parametrize("absent", [(), ("down_bias", "up_bias")])
def test_one_variant_needs_no_overload(absent):
    model, values = model_of([("gelu", 0.5, absent)], torch.float32, 20), tensors()
    attach_functions(model)
    assert [(key, function.name) for key, function in model.functions.items()] == [((DOMAIN, NAME, ""), NAME)]
    torch.testing.assert_close(run(model, values)[0], expected(values, "gelu", 0.5, absent), atol=2e-6, rtol=1e-5)


def test_erf_and_tanh_gelu_are_told_apart():
    calls = [("gelu", 1.0, ()), ("gelu_tanh", 1.0, ())]
    model, values = model_of(calls, torch.float32, 20), {k: 3 * v for k, v in tensors().items()}
    attach_functions(model)
    exact, approximate = run(model, values)
    assert (exact - approximate).abs().max() > 1e-4


@pytest.mark.parametrize("opset", [20, 21, 22, 23])
def test_every_opset(opset):
    model, values = model_of([("gelu", 1.5, ())], torch.float32, opset), tensors()
    attach_functions(model)
    torch.testing.assert_close(run(model, values)[0], expected(values, "gelu", 1.5, ()), atol=2e-6, rtol=1e-5)


def test_float16():
    model, values = model_of([("gelu", 1.5, ())], torch.float16, 20), tensors(torch.float16)
    attach_functions(model)
    exact = expected({k: v.double() for k, v in values.items()}, "gelu", 1.5, ())
    own_error = (expected(values, "gelu", 1.5, ()).double() - exact).abs().max()
    assert (run(model, values)[0].double() - exact).abs().max() <= 2 * own_error
