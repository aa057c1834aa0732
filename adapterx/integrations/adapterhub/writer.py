"""Write an adapter as AdapterHub's `adapters` would have saved it; what it cannot say is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adapterx.adapters import adapters
from adapterx.checkpoint.tensors import resolve_name
from adapterx.config import POSITIONS, AdapterConfig
from adapterx.couplings import INVERTIBLES
from adapterx.errors import CheckpointError, TargetError, speaker, speaking_as
from adapterx.host import ADAPTERS, base_modules
from adapterx.integrations.adapterhub.blocks import factor_of, numbers_of
from adapterx.integrations.adapterhub.described import OPTION_OF_POSITION
from adapterx.integrations.adapterhub.families import HOOKED, Family, Place, family_of
from adapterx.integrations.adapterhub.files import ADAPTER, write_files
from adapterx.integrations.adapterhub.interface import KNOWN
from adapterx.integrations.adapterhub.keys import invertible_names, parameter_names, shared_names
from adapterx.integrations.adapterhub.options import Surroundings, branch_of, placement_of
from adapterx.integrations.adapterhub.vocabulary import ACTIVATIONS, DEFAULTS, PHM, PHM_INITS, SAME_NAME
from adapterx.phm import PHMConfig
from adapterx.records import Attachment
from adapterx.targets import find_targets

_ORDERS = (
    {},
    {"original_ln_before": True},
    {"original_ln_before": True, "residual_before_ln": False},
    {"original_ln_before": True, "residual_before_ln": "post_add"},
    {"original_ln_before": True, "residual_before_ln": False, "original_ln_after": False},
    {"is_parallel": True},
)
_INITS = {"houlsby": "houlsby", "he": "mam_adapter", "xavier": "bert"}
_THEIR_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())} | {"gelu": "gelu"}


@speaking_as("save_adapter")
def save_adapter(model: nn.Module, folder: str | Path, name: str | None = None) -> None:
    """Write an adapter for AdapterHub's `adapters` 1.3.0, which gives the outputs that it gives here.

    Written are `adapter_config.json`, `pytorch_adapter.bin` and, unless two names stand for one tensor (a norm before
    the bottleneck, prelu), `adapter.safetensors`; all weights in float32. `model.load_adapter(folder)` of `adapters`
    reads the `.bin`, with `use_safetensors=True` the other.

    Args:
        model: the module that was given to `adapterx.attach`.
        folder: made if it is not there.
        name: which adapter; None takes the only one, or the only active one.

    Raises:
        UnknownAdapterError: the adapter is not attached, or None does not say which one.
        CheckpointError: AdapterHub's configuration cannot say what the adapter is, in words; or the folder cannot be
            written, or holds another library's files.
    """
    name = resolve_name(model, name)
    attachment, modules = adapters(model)[name], base_modules(model)
    model_type, family = family_of(modules)
    around = Surroundings(model_type, family.order, KNOWN[model_type] if family.order == HOOKED else None)
    places = places_of(attachment, modules, family)
    options = _options(attachment, places, around)
    names, common = parameter_names(options), {own for all_ in shared_names(options).values() for own in all_}
    tensors: dict[str, Tensor] = {}
    for target in attachment.targets:
        own = modules[target.module]._modules[ADAPTERS][name].state_dict(keep_vars=True)
        location = f"{family.prefix}{family.key_of_place(places[target.module])}.adapters.{name}"
        tensors |= {f"{location}.{theirs}": own[ours] for theirs, ours in names if ours in own and ours not in common}
    if attachment.invertible:
        tensors |= _coupling(attachment, modules, model_type, family)
    for theirs, (ours, *_) in shared_names(options).items():
        if ours in own:
            tensors[f"{family.prefix}shared_parameters.{name}.{theirs}"] = own[ours]
    document = {"config": options, "name": name, **described_model(model, model_type)}
    write_files(Path(folder), ADAPTER, document, tensors)


def described_model(model: nn.Module, model_type: str | None) -> dict[str, Any]:
    """Return what every document of AdapterHub says of the model."""
    config = getattr(model, "config", None)
    return {
        "hidden_size": getattr(config, "hidden_size", None),
        "model_class": type(model).__name__,
        "model_name": getattr(config, "_name_or_path", None) or None,
        "model_type": model_type,
    }


def _coupling(
    attachment: Attachment, modules: Mapping[str, nn.Module], model_type: str, family: Family
) -> dict[str, Tensor]:
    """Return the tensors of the invertible adapter by their key in AdapterHub."""
    if family.invertible is None:
        raise _unsayable("invertible", f"be None for {model_type!r} in AdapterHub", attachment.config.invertible)
    name = attachment.name
    own = modules[attachment.invertible[0]]._modules[INVERTIBLES][name].state_dict(keep_vars=True)
    location = f"{family.prefix}{family.invertible}invertible_adapters.{name}"
    return {f"{location}.{theirs}": own[ours] for theirs, ours in invertible_names().items() if ours in own}


def places_of(attachment: Attachment, modules: Mapping[str, nn.Module], family: Family) -> dict[str, Place]:
    """Return the place of every module that adapters of this placement can hang on.

    Raises:
        CheckpointError: the adapter hangs elsewhere.
    """
    found = {}
    for position in POSITIONS:
        try:
            everywhere = replace(
                attachment.config, positions=(position,), layers=None, target_modules=None, modules_to_save=()
            )
            targets = find_targets(modules, everywhere)[0]
        except TargetError:
            continue  # a model without cross-attention, for one
        found |= {target.module: family.place_of_target(target) for target in targets}
    if strange := sorted({target.module for target in attachment.targets} - found.keys()):
        raise CheckpointError(
            f"{speaker()}: adapters has no place for an adapter of placement {attachment.config.placement!r} on "
            f"{strange[0]}"
        )
    return found


def _options(attachment: Attachment, places: Mapping[str, Place], around: Surroundings) -> dict[str, Any]:
    """Return the options of AdapterHub; those that it lacks are refused."""
    config = attachment.config
    for option, usual in (("down_bias", True), ("up_bias", True), ("modules_to_save", ()), ("train_norms", False)):
        if getattr(config, option) != usual:
            raise _unsayable(option, f"be {usual!r} for an adapter of AdapterHub", getattr(config, option))
    used = {places[target.module].position for target in attachment.targets}
    positions = tuple(position for position in POSITIONS if position in used)
    options = DEFAULTS | {option: position in used for position, option in OPTION_OF_POSITION.items()}
    options |= _branch(config)
    options |= _order(config, options, positions, around)
    if (
        config.norm_after == "sum"
        and branch_of(options, config.placement, config.added_to, Path())["norm_after"] != "sum"
    ):
        raise _unsayable("norm_after", "be 'branch' or None for a parallel adapter of AdapterHub", config.norm_after)
    kept = {places[target.module]: target for target in attachment.targets}
    options["leave_out"] = numbers_of(kept, [place for place in places.values() if place.position in used])
    widths = {
        place: (target.hidden_size, config.resolve_bottleneck_dim(target.hidden_size, target.block))
        for place, target in kept.items()
    }
    options["reduction_factor"] = factor_of(config.reduction_factor, widths, [*places.values()])
    return options


def _branch(config: AdapterConfig) -> dict[str, Any]:
    if config.invertible not in (None, "nice"):
        raise _unsayable("invertible", "be None or 'nice', AdapterHub cannot run others", config.invertible)
    activation = _THEIR_NAMES.get(config.activation, config.activation)
    if activation not in (*ACTIVATIONS, *SAME_NAME):
        raise _unsayable("activation", "be one that AdapterHub knows", config.activation)
    return {
        "non_linearity": activation,
        "scaling": "channel" if config.scaling == "learned_per_channel" else config.scaling,
        "dropout": config.dropout,
        "init_weights": _INITS[config.init],
        "inv_adapter": config.invertible,
        "inv_adapter_reduction_factor": config.invertible_reduction_factor if config.invertible else None,
        "ln_before": config.norm_before,
        "ln_after": config.norm_after is not None,
        "adapter_residual_before_ln": config.norm_after == "sum",
        "use_gating": config.gating,
        "stochastic_depth": config.stochastic_depth,
    } | _phm(config.phm)


def _phm(config: PHMConfig | None) -> dict[str, Any]:
    if config is None:
        return {"phm_layer": False}
    theirs = {init: name for name, init in reversed(PHM_INITS.items())}
    options = {name: getattr(config, own) for name, own in PHM.items()}
    # With another `init_weights`, `adapters` fails while it builds such a layer.
    return options | {"phm_layer": True, "hypercomplex_nonlinearity": theirs[config.init], "init_weights": "bert"}


def _order(
    config: AdapterConfig, options: Mapping[str, Any], positions: tuple[str, ...], around: Surroundings
) -> dict[str, Any]:
    """Return the options that a reader takes for the placement: there is no second table to contradict the first."""
    wanted = (config.placement, config.added_to)
    for order in _ORDERS:
        try:
            if placement_of(DEFAULTS | options | order, positions, around, Path()) == wanted:
                branch_of(options | order, *wanted, Path())
                return order
        except CheckpointError:
            continue
    raise _unsayable(
        "placement", f"be one that adapters has behind {' and '.join(positions)} of {around.model_type!r}", wanted
    )


def _unsayable(option: str, rule: str, value: Any) -> CheckpointError:
    return CheckpointError(f"{speaker()}: {option} must {rule}, got {value!r}")
