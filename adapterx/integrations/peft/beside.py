"""PEFT's other methods on a model with attached adapters: neither freezes the other, and none hides the other.

`PeftModel` freezes all that is not its own. It shall leave alone what `adapterx.attach` has hung on the model, and may
not wrap what adapters hang on: wrappers around two methods of PEFT and one of transformers see to that.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers.integrations.peft import PeftAdapterMixin

from adapterx.errors import ConfigError, TargetError
from adapterx.host import is_hung, walk
from adapterx.integrations.peft.config import BottleneckConfig
from adapterx.integrations.peft.layer import TunedAdapters
from adapterx.neighbours import replaced_by_others


def register_neighbours() -> None:
    """Let `PeftModel` respect adapters, and the `add_adapter` of transformers say what to call instead."""
    PeftModel.__init__ = _respecting(PeftModel.__init__)
    PeftModel.add_adapter = _respecting(PeftModel.add_adapter)
    PeftAdapterMixin.add_adapter = _pointing_on(PeftAdapterMixin.add_adapter)


def _respecting(method: Any) -> Any:
    @functools.wraps(method)
    def wrapped(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        first = "_modules" not in vars(self)  # `__init__`, where the model is an argument
        model = kwargs.get("model", *args[:1]) if first else self
        if first:
            _check_not_tuned(model)
        with _training_kept(model):
            result = method(self, *args, **kwargs)
        if taken := _taken(self):
            _undo(self, taken, None if first else kwargs.get("adapter_name", *args[:1]))
            shown = ", ".join(path.removeprefix("base_model.model.") for path in list(taken)[:4])
            raise TargetError(
                f"{'get_peft_model' if first else 'add_adapter'}: target_modules and modules_to_save must not take "
                f"modules that adapters of adapterx hang on or in, got {shown}; leave them out of one of both"
            )
        return result

    return wrapped


def _pointing_on(method: Any) -> Any:
    @functools.wraps(method)
    def wrapped(self: nn.Module, adapter_config: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(adapter_config, BottleneckConfig):
            raise TypeError(
                f"add_adapter: a {type(self).__name__} must get a BottleneckConfig by peft.get_peft_model(model, "
                "config), or an AdapterConfig by adapterx.attach(model, config)"
            )
        return method(self, adapter_config, *args, **kwargs)

    return wrapped


@contextmanager
def _training_kept(model: nn.Module) -> Iterator[None]:
    """Let what hangs on the model require gradients at the end as it did at the beginning."""
    hung = [module for _, module in walk(model) if is_hung(module)]
    flags = {parameter: parameter.requires_grad for module in hung for parameter in module.parameters()}
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _check_not_tuned(model: nn.Module) -> None:
    """Refuse a model that has a tuner already: PEFT would save and switch its layers as those of the second one."""
    if any(isinstance(module, TunedAdapters) for _, module in walk(model)):
        raise ConfigError(
            "get_peft_model: model must not have a BottleneckConfig already; hang bottleneck adapters beside other "
            "methods of PEFT by adapterx.attach(model, config)"
        )


def _taken(model: PeftModel) -> dict[str, nn.Module]:
    """Return the modules, by qualified name, in place of which PEFT has put something, and in which adapters hang.

    Their names would be others, and a trained copy would have adapters of its own.
    """
    held = {path: replaced_by_others(module) for path, module in walk(model)}
    return {path: own for path, own in held.items() if own is not None and any(map(is_hung, own.modules()))}


def _undo(model: PeftModel, taken: dict[str, nn.Module], adapter: str | None) -> None:
    """Take off what PEFT has just added: one more adapter, or, for None, its first."""
    for path, own in taken.items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, own)
    if adapter is not None:
        model.delete_adapter(adapter)
    elif isinstance(model.base_model, BaseTuner):
        model.base_model.unload()
