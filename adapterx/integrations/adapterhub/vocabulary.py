"""The options that AdapterHub has for a bottleneck adapter, its presets, and its names for what we call otherwise."""

from typing import Any

DEFAULTS: dict[str, Any] = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights": "bert",
    "init_weights_seed": None,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "is_parallel": False,
    "learn_phm": True,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": None,
    "non_linearity": None,
    "original_ln_after": True,
    "original_ln_before": False,
    "output_adapter": None,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_layer": False,
    "phm_rank": 1,
    "reduction_factor": None,
    "residual_before_ln": True,
    "scaling": 1.0,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "stochastic_depth": 0.0,
    "use_gating": False,
}
_FFN = {"mh_adapter": False, "output_adapter": True}
_BOTH = {"mh_adapter": True, "output_adapter": True}
_SEQ = _FFN | {"original_ln_before": True, "non_linearity": "relu", "reduction_factor": 16}
_DOUBLE = _BOTH | {"non_linearity": "swish", "reduction_factor": 16}
_PARALLEL = _FFN | {
    "is_parallel": True, "non_linearity": "relu", "reduction_factor": 2, "scaling": 4.0, "init_weights": "mam_adapter"
}  # fmt: skip
_INVERTIBLE = {"inv_adapter": "nice", "inv_adapter_reduction_factor": 2}
_COMPACTER = {"phm_layer": True, "reduction_factor": 32, "non_linearity": "gelu"}
PRESETS = {
    "seq_bn": _SEQ,
    "pfeiffer": _SEQ,
    "double_seq_bn": _DOUBLE,
    "houlsby": _DOUBLE,
    "par_bn": _PARALLEL,
    "parallel": _PARALLEL,
    "scaled_par_bn": _PARALLEL | {"scaling": "learned"},
    "scaled_parallel": _PARALLEL | {"scaling": "learned"},
    "seq_bn_inv": _SEQ | _INVERTIBLE,
    "pfeiffer+inv": _SEQ | _INVERTIBLE,
    "double_seq_bn_inv": _DOUBLE | _INVERTIBLE,
    "houlsby+inv": _DOUBLE | _INVERTIBLE,
    "compacter++": _SEQ | _COMPACTER,
    "compacter": _DOUBLE | _COMPACTER,
}
"""A document may hold one of these names in place of the options."""
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python": "gelu",
    "swish": "silu",
    "leakyrelu": "leaky_relu",
    "linear": "identity",
}
"""Where the names differ; transformers has several for one function."""
PHM = {
    "phm_dim": "dim",
    "phm_rank": "rank",
    "phm_bias": "bias",
    "phm_c_init": "c_init",
    "phm_init_range": "init_range",
    "learn_phm": "learn",
    "factorized_phm_W": "factorized_weight",
    "shared_W_phm": "shared_weight",
    "factorized_phm_rule": "factorized_rule",
    "shared_phm_rule": "shared_rule",
}
PHM_INITS = {
    "glorot-uniform": "xavier_uniform",
    "glorot-normal": "xavier_normal",
    "normal": "normal",
    "phm": "xavier_normal",
}
"""How blocks of new adapters are drawn, which no saved one depends on; we draw none as "phm" does."""
SAME_NAME = (
    "gelu", "silu", "relu", "tanh", "sigmoid", "leaky_relu", "relu6", "relu2", "mish", "quick_gelu", "gelu_10",
    "laplace", "prelu",
)  # fmt: skip
