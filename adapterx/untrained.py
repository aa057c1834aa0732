"""Notice heads that loading has just filled with random numbers, and that attaching would freeze so."""

import re
import warnings
from collections.abc import Sequence

from torch import nn

from adapterx.errors import speaker
from adapterx.host import base_modules

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
            f"{speaker()}: {names} of the {type(model).__name__} was in no file that was loaded: it holds random "
            f"numbers, and attaching freezes it; name it in modules_to_save=({names},), or load a model with its head",
            UserWarning,
            stacklevel=4,
        )


def fresh_heads(model: nn.Module) -> list[str]:
    """Return the qualified names of the outermost heads that `from_pretrained` could not find in its files."""
    base = getattr(model, str(getattr(model, "base_model_prefix", None) or "_"), None)
    if not isinstance(base, nn.Module) or base is model:
        return []
    inside = {id(parameter) for parameter in base.parameters()}
    heads: dict[str, bool] = {}
    for path, module in base_modules(model).items():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in inside:
                head = path.split(".")[0]
                heads[head] = heads.get(head, False) or not getattr(parameter, _LOADED, False)
    loaded_by_parameter = any(getattr(parameter, _LOADED, False) for parameter in model.parameters())
    if not loaded_by_parameter and not _changed_task(model):
        return []
    return [head for head, is_fresh in heads.items() if is_fresh and head]


def _changed_task(model: nn.Module) -> bool:
    """Tell whether the files were those of a model without this one's head; `transformers` 4 leaves no other trace."""
    saved = getattr(getattr(model, "config", None), "architectures", None)
    return bool(saved and _WITH_TASK.search(type(model).__name__) and type(model).__name__ not in saved)
