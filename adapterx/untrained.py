"""Notice heads that loading has just filled with random numbers, and that attaching would freeze so."""

import re
import warnings
from collections.abc import Sequence

from torch import nn

from adapterx.errors import speaker
from adapterx.host import base_modules, base_parameters

# What `transformers` 5 leaves on each parameter that it has read from a file.
_LOADED = "_is_hf_initialized"
_WITH_TASK = re.compile(r"Classif|QuestionAnswering|MultipleChoice|Regression")


def warn_of_fresh_heads(model: nn.Module, trained: Sequence[str]) -> None:
    """Warn once of heads that no file held and that are in none of the trained modules.

    Args:
        model: what adapters are attached to.
        trained: qualified names of the modules of which the adapter trains a copy.
    """
    fresh = [name for name in fresh_heads(model) if not any(f"{name}.".startswith(f"{path}.") for path in trained)]
    if fresh:
        names = ", ".join(map(repr, fresh))
        warnings.warn(
            f"{speaker()}: {names} of the {type(model).__name__} was in no file that transformers loaded and may hold "
            f"random numbers, which attaching freezes; name it in modules_to_save=({names},), or attach to its base",
            UserWarning,
            stacklevel=4,
        )


def fresh_heads(model: nn.Module) -> list[str]:
    """Return the qualified names of the outermost trainable modules beside a loaded base that were in no file of it."""
    base = _loaded_base(model)
    if base is None:
        return []
    inside = {id(parameter) for parameter in base_parameters(base)}
    found = {
        path.split(".")[0]: None
        for path, module in base_modules(model).items()
        for parameter in module.parameters(recurse=False)
        if path and id(parameter) not in inside and parameter.requires_grad and not getattr(parameter, _LOADED, False)
    }
    return list(found)


def _loaded_base(model: nn.Module) -> nn.Module | None:
    """Return the part of a model that was read from files, if another part was not."""
    prefix = getattr(model, "base_model_prefix", None)
    if prefix is None:  # a wrapper around a model of transformers
        others = (module for path, module in base_modules(model).items() if path)
        return next((module for module in others if hasattr(module, "base_model_prefix") and _is_loaded(module)), None)
    base = getattr(model, str(prefix) or "_", None)
    marked = any(getattr(parameter, _LOADED, False) for parameter in base_parameters(model))
    return base if isinstance(base, nn.Module) and (marked or _changed_task(model)) else None


def _is_loaded(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "_name_or_path", ""))


def _changed_task(model: nn.Module) -> bool:
    """Tell whether the files were those of a model without this one's head; `transformers` 4 leaves no other trace."""
    saved = getattr(getattr(model, "config", None), "architectures", None)
    return bool(saved and _WITH_TASK.search(type(model).__name__) and type(model).__name__ not in saved)
