"""What AdapterHub's plugin interface hooks into a model: read from a file, or known for its own model types."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from adapterx.checkpoint.document import named_errors, read_json
from adapterx.errors import CheckpointError, speaker
from adapterx.targets.layouts import LAYOUTS, Sublayer

INTERFACE_FILE = "adapter_interface.json"


@dataclass(frozen=True, kw_only=True)
class Interface:
    """Names of modules relative to a block (`model_layers`: to the base model), under the names of `adapters`.

    The two that begin with `layer_pre` receive what the hooks take for the residual stream; the two norms are those
    that `original_ln_before` applies.
    """

    model_layers: str
    layer_self_attn: str
    attn_o_proj: str
    layer_output_proj: str
    layer_pre_self_attn: str | None = None
    layer_pre_ffn: str | None = None
    layer_ln_1: str | None = None
    layer_ln_2: str | None = None

    def reads(self, model_type: str, position: str) -> str | None:
        """Return what the hooks read where AdapterHub says residual: `"residual"`, the sublayer's `"input"`, or None.

        Raises:
            CheckpointError: they hang elsewhere than the table of this model type says.
        """
        attention = position == "attention"
        output = f"{self.layer_self_attn}.{self.attn_o_proj}" if attention else self.layer_output_proj
        before = self.layer_pre_self_attn if attention else self.layer_pre_ffn
        sublayer = _sublayer(model_type, position)
        if sublayer.output != output:
            raise CheckpointError(
                f"{speaker()}: {INTERFACE_FILE} must hook the {position} adapter into {sublayer.output}, got {output}"
            )
        if before is None:
            return None
        if before == sublayer.stream:
            return "residual"
        if before == sublayer.input or sublayer.input.startswith(f"{before}."):
            return "input"
        raise CheckpointError(
            f"{speaker()}: {INTERFACE_FILE} must hook the residual stream of the {position} sublayer from "
            f"{sublayer.stream} or {sublayer.input}, got {before}"
        )

    def norm(self, position: str) -> str | None:
        """Return the norm that `original_ln_before` applies behind a sublayer."""
        return self.layer_ln_1 if position == "attention" else self.layer_ln_2


def _sublayer(model_type: str, position: str) -> Sublayer:
    tables = LAYOUTS.get(model_type, ())
    if len(tables) != 1 or position not in ("attention", "feed_forward"):
        raise CheckpointError(
            f"{speaker()}: model must be of a type with one table of sublayers for what {INTERFACE_FILE} hooks in, "
            f"got {model_type!r}"
        )
    return getattr(tables[0], position)


_QWEN = Interface(
    model_layers="layers",
    layer_self_attn="self_attn",
    attn_o_proj="o_proj",
    layer_output_proj="mlp.down_proj",
    layer_pre_self_attn="input_layernorm",
    layer_pre_ffn="post_attention_layernorm",
)
_GEMMA = replace(  # which norms its sublayers' outputs too
    _QWEN,
    layer_pre_ffn="pre_feedforward_layernorm",
    layer_ln_1="post_attention_layernorm",
    layer_ln_2="post_feedforward_layernorm",
)
_MODERNBERT = Interface(
    model_layers="layers",
    layer_self_attn="attn",
    attn_o_proj="Wo",
    layer_output_proj="mlp.Wo",
    layer_pre_self_attn="attn",
    layer_pre_ffn="mlp",
    layer_ln_1="mlp_norm",
)
KNOWN = {"gemma2": _GEMMA, "gemma3_text": _GEMMA, "qwen2": _QWEN, "qwen3": _QWEN, "modernbert": _MODERNBERT}
"""Those that `adapters` 1.3.0 has for its own."""


def read_interface(folder: Path) -> Interface | None:
    """Return what stands in `adapter_interface.json`; None where there is no such file.

    Raises:
        CheckpointError: it does not hold an interface.
    """
    path = folder / INTERFACE_FILE
    with named_errors(path):
        if not path.exists():
            return None
    values = read_json(path).get("interface")
    optional = {field.name: field.default is None for field in fields(Interface)}
    given = {key: value for key, value in values.items() if key in optional} if isinstance(values, Mapping) else {}
    needed = {key for key in optional if not optional[key]}
    if not needed <= given.keys() or not all(_is_name(v) or (v is None and optional[k]) for k, v in given.items()):
        raise CheckpointError(f"{speaker()}: {path} must name the modules of an interface, got {values!r}")
    return Interface(**given)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and all(part.isidentifier() or part.isdecimal() for part in value.split("."))
