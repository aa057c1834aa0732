"""The options of AdapterHub's bottleneck configuration, and what they are in `AdapterConfig`; others are refused.

With a sublayer's output h, the residual stream r behind it, u = h + r, and the adapter's branch g:

| `original_ln_before` | `original_ln_after` | `residual_before_ln` | post-LN model | pre-LN model |
|---|---|---|---|---|
| False | True | any but "post_add" | LN(h + g(h) + r): `sequential` | h + g(h) + r: `sequential` |
| True | True | True | LN(u + g(LN(u))): `normed_sum` | u + g(u): `residual_sum` |
| True | True | False | LN(LN(u) + g(LN(u)) + r): ... `normed_plus_residual` | u + g(u) + r: ... `sum_plus_residual` |
| True | True | "post_add" | LN(u + g(LN(u)) + r): ... `sum_plus_residual` | an error in `adapters` |
| True | False | False | LN(u) + g(LN(u)): ... `normed` | u + g(u): `residual_sum` |

`is_parallel` reads r in place of h and adds to h: `parallel` in post-LN models, else `parallel_residual`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterx.errors import CheckpointError, speaker
from adapterx.integrations.adapterhub.families import HOOKED, POST_NORM
from adapterx.integrations.adapterhub.interface import Interface
from adapterx.integrations.adapterhub.vocabulary import ACTIVATIONS, DEFAULTS, PHM, PHM_INITS, PRESETS, SAME_NAME

_BEFORE_VERSIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}  # what `adapters` reads in documents without a version
_FLAGS = tuple(
    key for key, value in DEFAULTS.items() if isinstance(value, bool) or key in ("mh_adapter", "output_adapter")
)


def options_of(document: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return all options of a bottleneck adapter that a document describes, with the defaults of `adapters`.

    Raises:
        CheckpointError: it describes another method, or an option that no version of `adapters` has.
    """
    given = document["config"]
    if isinstance(given, str):
        if given not in PRESETS:
            raise _refused(source, "config", f"name a bottleneck adapter ({', '.join(sorted(PRESETS))})", given)
        given = PRESETS[given]
    if not isinstance(given, Mapping):
        raise _refused(source, "config", "be an object or a name", given)
    method = given.get("architecture")
    if method not in (None, "bottleneck"):
        raise _refused(source, "architecture", "be that of a bottleneck adapter (None)", method)
    options = {key: value for key, value in given.items() if key not in ("architecture", "invertible_adapter")}
    # How the first versions said it; those for tasks had none, whatever they said.
    if (legacy := given.get("invertible_adapter")) and document.get("type") != "text_task":
        options["inv_adapter"], options["inv_adapter_reduction_factor"] = _legacy_invertible(legacy, source)
    if unknown := sorted(options.keys() - DEFAULTS.keys()):
        raise CheckpointError(
            f"{speaker()}: config of {source} must hold the options of AdapterHub's bottleneck adapters, it has "
            f"others: {', '.join(unknown[:8])}"
        )
    options = DEFAULTS | options
    if "version" not in document and options["non_linearity"] in _BEFORE_VERSIONS:
        options["non_linearity"] = _BEFORE_VERSIONS[options["non_linearity"]]
    for key in _FLAGS:
        if not isinstance(options[key], bool) and key != "residual_before_ln":
            raise _refused(source, key, "be true or false", options[key])
    return options


def _legacy_invertible(legacy: Any, source: Path) -> tuple[Any, Any]:
    if not isinstance(legacy, Mapping) or not {"block_type", "reduction_factor"} <= legacy.keys():
        raise _refused(source, "invertible_adapter", "hold block_type and reduction_factor", legacy)
    return legacy["block_type"], legacy["reduction_factor"]


@dataclass(frozen=True)
class Surroundings:
    """What the meaning of the options depends on: the kind of model, and what its hooks are.

    Attributes:
        model_type: `config.model_type` of the model.
        order: that of its family.
        interface: what `adapters` hooks in; None for the families that it knows itself.
    """

    model_type: str
    order: str
    interface: Interface | None = None


def placement_of(
    options: Mapping[str, Any], positions: tuple[str, ...], around: Surroundings, source: Path
) -> tuple[str, str]:
    """Return `placement` and `added_to` for what the options say.

    Raises:
        CheckpointError: they say what `adapters` itself cannot compute, or what no placement is.
    """
    reads = {position: _residual(position, around, source, options) for position in positions}
    if around.model_type == "albert" and "attention" in positions:
        return _exchanged(options, positions, source)
    if options["is_parallel"]:
        return _parallel(options, reads, around, source)
    return _sequential(options, reads, around, source)


def _sequential(
    options: Mapping[str, Any], reads: Mapping[str, str | None], around: Surroundings, source: Path
) -> tuple[str, str]:
    before, after, residual = (
        options[key] for key in ("original_ln_before", "original_ln_after", "residual_before_ln")
    )
    if residual not in (True, False, "post_add"):
        raise _refused(source, "residual_before_ln", "be true, false or 'post_add'", residual)
    if not after and (around.order == HOOKED or not before or residual is not False):
        why = "leave the residual stream in: with original_ln_before and without residual_before_ln it may be false"
        raise _refused(source, "original_ln_after", why, after)
    if not before:
        if residual == "post_add":
            raise _refused(source, "residual_before_ln", "be true or false without original_ln_before", residual)
        return "sequential", "sum"
    if around.order == POST_NORM:
        if not after:
            return "normed_sum", "normed"
        return "normed_sum", {True: "sum", False: "normed_plus_residual", "post_add": "sum_plus_residual"}[residual]
    return _without_norm(residual, after, reads, source)


def _exchanged(options: Mapping[str, Any], positions: tuple[str, ...], source: Path) -> tuple[str, str]:
    """Return the placement behind ALBERT's attention, for which `adapters` takes r for h and h for r."""
    around = Surroundings("albert", POST_NORM)
    reads = dict.fromkeys(positions, "residual")
    if options["is_parallel"] or not options["original_ln_before"]:
        if positions != ("attention",) or (options["ln_after"] and options["adapter_residual_before_ln"]):
            why = "be false for ALBERT, behind whose attention adapters takes the residual stream for the output"
            raise _refused(source, "mh_adapter", why, True)
        if options["is_parallel"]:
            return "sequential", _parallel(options, reads, around, source)[1]
        return "parallel", _sequential(options, reads, around, source)[1]
    placement, added_to = _sequential(options, reads, around, source)
    if added_to not in ("sum", "normed"):  # these two know no difference between the two summands
        why = "be true for ALBERT, behind whose attention adapters takes the residual stream for the output"
        raise _refused(source, "residual_before_ln", why, options["residual_before_ln"])
    return placement, added_to


def _without_norm(residual: Any, after: bool, reads: Mapping[str, str | None], source: Path) -> tuple[str, str]:
    """Return what `original_ln_before` means where no norm stands behind the sublayers."""
    if residual == "post_add":
        raise _refused(
            source, "residual_before_ln", "be true or false in models that norm before each sublayer", residual
        )
    if set(reads.values()) == {None}:
        return "sequential", "sum"
    if set(reads.values()) != {"residual"}:
        why = "be false, adapters reads the sublayer's normed input for the residual stream in this model"
        raise _refused(source, "original_ln_before", why, True)
    return "residual_sum", "sum" if residual or not after else "sum_plus_residual"


def _parallel(
    options: Mapping[str, Any], reads: Mapping[str, str | None], around: Surroundings, source: Path
) -> tuple[str, str]:
    if not options["original_ln_after"]:
        raise _refused(source, "original_ln_after", "be true where is_parallel is", False)
    if around.order == POST_NORM or set(reads.values()) == {"input"}:
        return "parallel", "sum"
    if set(reads.values()) == {"residual"}:
        return "parallel_residual", "sum"
    raise _refused(source, "is_parallel", "be false where adapters hooks in no residual stream", True)


def _residual(position: str, around: Surroundings, source: Path, options: Mapping[str, Any]) -> str | None:
    """Return what stands for the residual stream in `adapters`."""
    if around.interface is None:
        return "residual"
    norm = around.interface.norm(position)
    if norm is not None and options["original_ln_before"] and not options["is_parallel"]:
        why = f"be false: of {around.model_type}, adapters takes {norm} of the last block in every block"
        raise _refused(source, "original_ln_before", why, True)
    return around.interface.reads(around.model_type, position)


def branch_of(options: Mapping[str, Any], placement: str, added_to: str, source: Path) -> dict[str, Any]:
    """Return the options of the branch, for `AdapterConfig`, where its placement is known.

    Raises:
        CheckpointError: an option has a value that an adapter of ours cannot have.
    """
    kind, factor = options["inv_adapter"], options["inv_adapter_reduction_factor"]
    if kind not in (None, "nice"):
        raise _refused(source, "inv_adapter", "be None or 'nice', adapters itself cannot run others", kind)
    after = None
    if options["ln_after"]:
        after = "sum" if options["adapter_residual_before_ln"] and not options["is_parallel"] else "branch"
    if after == "sum" and placement == "normed_sum" and added_to != "normed":
        # Our norm would stand behind the residual stream, theirs stands before it is added.
        raise _refused(source, "adapter_residual_before_ln", "be false where original_ln_before is true", True)
    scaling = options["scaling"]
    return {
        "activation": _activation(options["non_linearity"], source),
        "scaling": "learned_per_channel" if scaling == "channel" else scaling,
        "dropout": options["dropout"],
        "init": "he" if options["init_weights"] == "mam_adapter" else "houlsby",
        "invertible": kind,
        **({"invertible_reduction_factor": factor} if kind else {}),
        "norm_before": options["ln_before"],
        "norm_after": after,
        "gating": options["use_gating"],
        # Its parallel adapters take no notice of the option.
        "stochastic_depth": 0.0 if options["is_parallel"] else options["stochastic_depth"],
        "phm": {ours: options[theirs] for theirs, ours in PHM.items()} | {"init": _phm_init(options, source)}
        if options["phm_layer"]
        else None,
    }


def _phm_init(options: Mapping[str, Any], source: Path) -> str:
    name = options["hypercomplex_nonlinearity"]
    if name not in PHM_INITS:
        raise _refused(source, "hypercomplex_nonlinearity", f"be one of {', '.join(PHM_INITS)}", name)
    return PHM_INITS[name]


def _activation(name: Any, source: Path) -> str:
    plain = name.lower() if isinstance(name, str) else name
    if plain not in (*ACTIVATIONS, *SAME_NAME):
        raise _refused(source, "non_linearity", f"be one of {', '.join(sorted({*ACTIVATIONS, *SAME_NAME}))}", name)
    return ACTIVATIONS.get(plain, plain)


def _refused(source: Path, option: str, rule: str, value: Any) -> CheckpointError:
    return CheckpointError(f"{speaker()}: {option} of {source} must {rule}, got {value!r}")
