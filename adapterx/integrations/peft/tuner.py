"""The method as a tuner of PEFT: it attaches, switches, saves and detaches as adapterx does."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

from peft import mapping
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import _set_adapter, set_additional_trainable_modules
from torch import Tensor, nn

from adapterx.active import set_active
from adapterx.adapters import adapter_names, check_known, check_whole, merge_adapter
from adapterx.attachment import detach
from adapterx.checkpoint.contents import describe_target
from adapterx.combining import combine_adapters
from adapterx.devices import device_and_dtype
from adapterx.errors import ConfigError, speaking_as
from adapterx.host import ADAPTERS, base_modules, switchable_modules, walk
from adapterx.integrations.peft.batches import mixed_batch
from adapterx.integrations.peft.choosing import flags_kept, plan_injection, wrappers
from adapterx.integrations.peft.config import AdapterxType, BottleneckConfig
from adapterx.integrations.peft.keys import in_files, in_model, tensor_names
from adapterx.integrations.peft.layer import TunedAdapters
from adapterx.neighbours import others_parameters
from adapterx.records import Attachment
from adapterx.route import SwitchableModules


class BottleneckModel(BaseTuner):
    """The tuner that `peft.get_peft_model` makes of a `BottleneckConfig`; `PeftModel.base_model`.

    Adapters hang on the modules of the model as `adapterx.attach` hangs them, which keep their classes and their keys.
    All functions of adapterx work on the model.

    Args:
        model: the model to adapt.
        peft_config: configurations by name of the adapter.
        adapter_name: which of them to attach first.
        low_cpu_mem_usage: of no effect: adapters are small.
        state_dict: refused, as `inject_adapter_in_model` is.

    Raises:
        TypeError: it is not `get_peft_model` or `PeftModel` that builds it.
        ConfigError: the model has adapters already, of adapterx or another method, or a name is none for an adapter.
        TargetError: the modules to adapt cannot be chosen.
    """

    prefix = ADAPTERS
    tuner_layer_cls = TunedAdapters
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT reads an attribute of the class

    def __init__(
        self,
        model: nn.Module,
        peft_config: dict[str, BottleneckConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        if not isinstance(peft_config, dict) or state_dict is not None:
            raise TypeError(
                "BottleneckModel: a BottleneckConfig must be given to peft.get_peft_model(model, config), "
                "inject_adapter_in_model and the add_adapter of transformers do not take it"
            )
        if attached := adapter_names(model):
            raise ConfigError(
                f"get_peft_model: model must have no adapters that adapterx.attach has hung on it, got "
                f"{', '.join(map(repr, attached))}; detach them, or attach them afterwards"
            )
        if others_parameters(base_modules(model)):
            raise ConfigError(
                "get_peft_model: model must not be adapted by another method of PEFT already; hang bottleneck adapters "
                "beside it by adapterx.attach(model, config)"
            )
        self._off = False
        super().__init__(model, peft_config, adapter_name, low_cpu_mem_usage, state_dict)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Attach an adapter as its configuration says; everything is checked before the model is touched."""
        # A copy: what is filled in belongs to this model, and the configuration may be used for others.
        config = copy.copy(self.peft_config[adapter_name])
        first = not adapter_names(model)
        with speaking_as("get_peft_model" if first else "add_adapter"):
            plan = plan_injection(model, adapter_name, config)
        # The first one freezes the model; after that what is there trains as before.
        with nullcontext() if first else flags_kept(model):
            report = plan.commit(active=False, holder=TunedAdapters)
            try:
                self._finish(model, adapter_name, config, report)
            except BaseException:
                detach(model, adapter_name)
                raise

    def _finish(self, model: nn.Module, name: str, config: BottleneckConfig, report: Attachment) -> None:
        for target in report.targets:
            base = model.get_submodule(target.module)
            base._modules[ADAPTERS].base = (base,)
        config.adapted_modules = {target.module: describe_target(target) for target in report.targets}
        self.peft_config[name] = config
        self.targeted_module_names = [*dict.fromkeys([*self.targeted_module_names, *config.adapted_modules])]
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=self.get_model_config(self),
            adapter_name=name,
            activate_adapter=name in self.active_adapters,
        )

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter active, or several, which are stacked in this order.

        Args:
            adapter_name: one name, or several.
            inference_mode: whether what is activated shall not train.

        Raises:
            UnknownAdapterError: a name is not attached.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        with speaking_as("set_adapter"):
            check_known(self.model, names)
            if names:
                _set_adapter(self.model, adapter_name, inference_mode=inference_mode)  # the modules to save
            self.active_adapter = adapter_name
            if self._off:
                for layer in self._layers():
                    layer.mark(names, enabled=False)
            else:
                set_active(self.model, names or None)
        for each in switchable_modules(self.model):
            each.train_only(() if inference_mode else names)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Let the parameters of adapters, and of their modules to save, require gradients or not."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for each in switchable_modules(self.model):
            for name in names:
                if name in each:
                    each[name].requires_grad_(requires_grad)
        for wrapper in wrappers(self.model):
            wrapper.set_requires_grad(adapter_names=names, requires_grad=requires_grad)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        """Run the base model alone, or the active adapters again; what trains stays as it is."""
        names = list(self.active_adapters)
        self._off = not enabled
        with flags_kept(self.model):
            for layer in self._layers():
                layer.mark(names, enabled=enabled)
            set_active(self.model, names if enabled and names else None)
            for wrapper in wrappers(self.model):
                wrapper.enable_adapters(enabled)

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter off the model; if it was the active one, the first of the others takes its place.

        Raises:
            ValueError: there is no such adapter.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(f"delete_adapter: adapter_name must be an adapter of the model, got {adapter_name!r}")
        active = [name for name in self.active_adapters if name != adapter_name]
        was_active = len(active) < len(self.active_adapters)
        detach(self.model, adapter_name)
        del self.peft_config[adapter_name]
        if not active and self.peft_config and was_active:
            active = [next(iter(self.peft_config))]
            warnings.warn(
                f"delete_adapter: {adapter_name!r} was active, now {active[0]!r} is", UserWarning, stacklevel=3
            )
        for wrapper in wrappers(self.model):
            wrapper.delete_adapter(adapter_name, new_active_adapters=active or None)
        if was_active:
            self.active_adapter = active
            if active:
                self.set_adapter(active)

    def unload(self) -> nn.Module:
        """Take all adapters off, and return the model that was given to `get_peft_model`, as it was before."""
        for name in self.peft_config:
            detach(self.model, name)
        return super().unload()

    def _check_merge_allowed(self) -> NoReturn:
        merge_adapter(self.model)  # which says why not

    def unmerge_adapter(self) -> NoReturn:
        """Refuse, because nothing can have been merged."""
        merge_adapter(self.model)

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "linear"
    ) -> None:
        """Add an adapter of which every parameter is the weighted sum of those of others (`combine_adapters`).

        Args:
            adapters: their names.
            weights: a factor for each.
            adapter_name: of the new one, which is not activated.
            combination_type: `"linear"`; the others are about products of two matrices.

        Raises:
            ConfigError: another type, or adapters that cannot be combined.
        """
        if combination_type != "linear" or len(adapters) != len(weights):
            raise ConfigError(
                "add_weighted_adapter: combination_type must be 'linear', with a weight for each adapter, got "
                f"{combination_type!r} and {len(weights)} weights for {len(adapters)}"
            )
        if saved := [name for name in adapters for wrapper in wrappers(self.model) if name in wrapper._adapters]:
            raise ConfigError(f"add_weighted_adapter: adapters must have no modules_to_save, {saved[0]!r} has some")
        check_known(self.model, adapters)
        with flags_kept(self.model):
            combine_adapters(self.model, adapter_name, dict(zip(adapters, weights, strict=True)), active=False)
        self.peft_config[adapter_name] = copy.copy(self.peft_config[adapters[0]])

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        with mixed_batch(self.model, set(self.peft_config), kwargs):
            yield

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Adapters are float32 on modules of 16 bits already; without autocast they get the dtype of their modules."""
        if autocast_adapter_dtype:
            return
        for _, base in walk(self.model):
            for each in base.children():
                dtype = device_and_dtype(base, self.model)[1]
                if isinstance(each, SwitchableModules) and adapter_name in each and dtype.is_floating_point:
                    each[adapter_name].to(dtype)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: BottleneckConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        with speaking_as("save_pretrained"):
            check_whole(model)
            check_known(model, [adapter_name])
        return in_files(tensor_names(model, adapter_name), state_dict)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key  # `_get_adapter_state_dict` has left it out

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: BottleneckConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return in_model(tensor_names(model, adapter_name), state_dict, adapter_name)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("BottleneckModel: adapters hang on modules, and replace none")

    def _layers(self) -> list[TunedAdapters]:
        return [each for each in switchable_modules(self.model) if isinstance(each, TunedAdapters)]


def register() -> None:
    """Write the method into the tables of PEFT; `register_peft_method` takes members of `PeftType` alone."""
    kind = AdapterxType.ADAPTERX_BOTTLENECK
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind] = BottleneckConfig
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind] = BottleneckModel
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind] = BottleneckModel.prefix
