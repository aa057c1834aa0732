"""The operator in ONNX: one node `adapterx::BottleneckAdapter`, and a function of standard operators as its body.

A runtime that has a kernel of that name uses the kernel; any other one that knows model-local functions takes the body.
A body cannot branch on an attribute or on an input that is left out, so a model carries one function per variant in
use. A model with one variant, the usual case, names it `BottleneckAdapter`; several variants are told apart by their
`overload`, and the name stays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from adapterx.export.metadata import require

DOMAIN, NAME, DOMAIN_VERSION = "adapterx", "BottleneckAdapter", 1
INPUTS = ("hidden_states", "residual", "down_weight", "down_bias", "up_weight", "up_bias")
OPTIONAL = ("residual", "down_bias", "up_bias")
ATTRIBUTES = ("activation", "scaling")
_DTYPES = ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"]

# activation: the standard nodes from "pre_activation" to "bottleneck", as (operator, inputs, output, attributes).
_Node = tuple[str, list[str], str, dict[str, Any]]


def _one_node(operator: str, **attributes: Any) -> list[_Node]:
    return [(operator, ["pre_activation"], "bottleneck", attributes)]


_ACTIVATIONS: dict[str, list[_Node]] = {
    "relu": _one_node("Relu"),
    "gelu": _one_node("Gelu", approximate="none"),
    "gelu_tanh": _one_node("Gelu", approximate="tanh"),
    "silu": [
        ("Sigmoid", ["pre_activation"], "gate", {}),
        ("Mul", ["pre_activation", "gate"], "bottleneck", {}),
    ],
    "tanh": _one_node("Tanh"),
    "sigmoid": _one_node("Sigmoid"),
    "leaky_relu": _one_node("LeakyRelu", alpha=0.01),
    "identity": _one_node("Identity"),
}


class Variant(NamedTuple):
    """What a body depends on."""

    activation: str
    residual: bool
    down_bias: bool
    up_bias: bool

    @property
    def overload(self) -> str:
        """Return a name such as `gelu` or `relu_no_down_bias`."""
        absent = [f"_no_{name}" for name in OPTIONAL if not getattr(self, name)]
        return self.activation + "".join(absent)


def translation() -> Callable[..., Any]:
    """Return the entry for `torch.onnx.export(custom_translation_table=...)`: one node, whose body comes afterwards.

    The exporter builds at its own opset and inlines functions; a node of a custom domain passes through.
    """
    onnx = require("onnx")
    values = require("onnxscript.values")
    schema = onnx.defs.OpSchema
    parameter, optional = schema.FormalParameter, schema.FormalParameterOption.Optional
    operator = values.Op(
        values.Opset(DOMAIN, DOMAIN_VERSION),
        NAME,
        schema(
            NAME,
            DOMAIN,
            DOMAIN_VERSION,
            inputs=[parameter(n, "T", **({"param_option": optional} if n in OPTIONAL else {})) for n in INPUTS],
            outputs=[parameter("output", "T")],
            type_constraints=[("T", _DTYPES, "")],
            attributes=[
                schema.Attribute("activation", schema.AttrType.STRING, "", required=True),
                schema.Attribute("scaling", schema.AttrType.FLOAT, "", required=True),
            ],
        ),
    )

    def bottleneck_adapter(  # noqa: ANN202 (the exporter reads these names and types)
        hidden_states,  # noqa: ANN001
        residual,  # noqa: ANN001
        down_weight,  # noqa: ANN001
        down_bias,  # noqa: ANN001
        up_weight,  # noqa: ANN001
        up_bias,  # noqa: ANN001
        activation: str,
        scaling: float,
        adapter_indices=None,  # noqa: ANN001
    ):
        if adapter_indices is not None:
            raise ValueError(
                "to_onnx: the model must have one active adapter, got adapter_indices, which the node does not have"
            )
        tensors = (hidden_states, residual, down_weight, down_bias, up_weight, up_bias)
        return operator(*tensors, activation=activation, scaling=scaling)

    return bottleneck_adapter


def adapter_nodes(model: Any) -> list[Any]:
    """Return the operator's nodes in an `onnx_ir.Model`, in order."""
    return [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, NAME)]


def attach_functions(model: Any) -> list[str]:
    """Give every adapter node of an `onnx_ir.Model` its body; return the names of the variants."""
    ir = require("onnx_ir")
    nodes = adapter_nodes(model)
    variants = [_variant(node) for node in nodes]
    distinct = sorted(set(variants))
    for node, variant in zip(nodes, variants, strict=True):
        node.overload = variant.overload if len(distinct) > 1 else ""
    for variant in distinct:
        body = function_body(variant, model.opset_imports[""])
        body.overload = variant.overload if len(distinct) > 1 else ""
        function = ir.serde.deserialize_function(body)
        model.functions[function.identifier()] = function
    if nodes:
        model.opset_imports[DOMAIN] = DOMAIN_VERSION
    else:
        model.opset_imports.pop(DOMAIN, None)
    return [variant.overload for variant in distinct]


def _variant(node: Any) -> Variant:
    given = {name: value is not None for name, value in zip(INPUTS, node.inputs, strict=False)}
    activation = node.attributes["activation"].as_string()
    return Variant(activation, *(given.get(name, False) for name in OPTIONAL))


def function_body(variant: Variant, opset: int) -> Any:
    """Return the `onnx.FunctionProto` of `residual + scaling * (activation(h @ down.T + b) @ up.T + b)`.

    The scaling multiplies weight and bias, not the result: runtimes compute that once, when they load the model.
    """
    onnx = require("onnx")
    make = onnx.helper.make_node
    nodes = [
        make("Transpose", ["down_weight"], ["down_transposed"], perm=[1, 0]),
        make("MatMul", ["hidden_states", "down_transposed"], ["down" if variant.down_bias else "pre_activation"]),
    ]
    if variant.down_bias:
        nodes.append(make("Add", ["down", "down_bias"], ["pre_activation"]))
    for operator, inputs, output, attributes in _ACTIVATIONS[variant.activation]:
        nodes.append(make(operator, inputs, [output], **attributes))
    constant = make("Constant", [], ["scaling_float"])
    constant.attribute.append(
        onnx.AttributeProto(name="value_float", type=onnx.AttributeProto.FLOAT, ref_attr_name="scaling")
    )
    branch = "branch" if variant.residual else "output"
    nodes += [
        constant,
        make("CastLike", ["scaling_float", "up_weight"], ["factor"]),
        make("Transpose", ["up_weight"], ["up_transposed"], perm=[1, 0]),
        make("Mul", ["up_transposed", "factor"], ["up_scaled"]),
        make("MatMul", ["bottleneck", "up_scaled"], ["up" if variant.up_bias else branch]),
    ]
    if variant.up_bias:
        nodes.append(make("Mul", ["up_bias", "factor"], ["up_bias_scaled"]))
        nodes.append(make("Add", ["up", "up_bias_scaled"], [branch]))
    if variant.residual:
        nodes.append(make("Add", ["residual", "branch"], ["output"]))
    imports = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_function(DOMAIN, NAME, list(INPUTS), ["output"], nodes, imports, list(ATTRIBUTES))
