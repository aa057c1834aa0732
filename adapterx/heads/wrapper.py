"""A base model with a head of ours, as the Hugging Face Trainer meets it: what it asks is handed on to the base."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from adapterx.errors import ConfigError


class HeadedModel(nn.Module):
    """What classifiers share: a base model that keeps its class and its keys, and a head that is saved apart.

    A subclass adds `head`, the module that turns hidden states into logits.

    Args:
        base_model: a Hugging Face encoder or decoder without head.
        hidden_size: width of the hidden states; None reads `base_model.config.hidden_size`.

    Raises:
        ConfigError: the base model does not tell its hidden size.
    """

    # The Trainer asks: the loss is a mean over the batch, whatever `num_items_in_batch` it counts.
    accepts_loss_kwargs = False

    def __init__(self, base_model: nn.Module, hidden_size: int | None) -> None:
        super().__init__()
        if hidden_size is None:
            hidden_size = getattr(getattr(base_model, "config", None), "hidden_size", None)
        if hidden_size is None:
            raise ConfigError(
                f"{type(self).__name__}: hidden_size must be given, {type(base_model).__name__} has no "
                "config.hidden_size"
            )
        self.base_model = base_model
        self.hidden_size = hidden_size
        known = inspect.signature(base_model.forward).parameters
        self._takes_token_types = "token_type_ids" in known
        # A decoder would otherwise return its key-value cache, which costs memory and which no exporter can carry.
        self._fixed = {"use_cache": False} if "use_cache" in known else {}

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None) -> Tensor:
        """Return the base model's last hidden states `(batch, tokens, hidden_size)`; the arguments as for `forward`."""
        extra = dict(self._fixed)
        if self._takes_token_types and token_type_ids is not None:
            extra["token_type_ids"] = token_type_ids
        return self.base_model(input_ids=input_ids, attention_mask=attention_mask, **extra)[0]

    @property
    def config(self) -> object:
        """The configuration of the base model, or None if it has none."""
        return getattr(self.base_model, "config", None)

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the base model can give up activations and compute them again in the backward pass."""
        return bool(getattr(self.base_model, "supports_gradient_checkpointing", False))

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether it does so now."""
        base = self.base_model
        newer = hasattr(type(base), "is_activation_checkpointing")
        return bool(getattr(base, "is_activation_checkpointing" if newer else "is_gradient_checkpointing", False))

    @property
    def is_gradient_checkpointing(self) -> bool:
        """The same, under its older name."""
        return self.is_activation_checkpointing

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, object] | None = None, **options: Any
    ) -> None:
        """Let the base model compute activations again in the backward pass, which saves memory and costs time.

        Args:
            activation_checkpointing_kwargs: for `torch.utils.checkpoint`; None takes `use_reentrant=False`, since the
                reentrant kind gives no gradient to adapters behind frozen embeddings.
            **options: what the base model's method takes besides.

        Raises:
            ConfigError: the base model has no such method.
        """
        kwargs = activation_checkpointing_kwargs
        kwargs = {"use_reentrant": False} if kwargs is None else kwargs
        if kwargs.get("use_reentrant", True):
            self._of_base("enable_input_require_grads")()
        if hasattr(self.base_model, "activation_checkpointing_enable"):  # transformers 5
            self.base_model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs, **options)
        else:
            self._of_base("gradient_checkpointing_enable")(gradient_checkpointing_kwargs=kwargs, **options)

    def activation_checkpointing_disable(self) -> None:
        """Let the base model keep its activations again."""
        newer = hasattr(self.base_model, "activation_checkpointing_disable")
        self._of_base("activation_checkpointing_disable" if newer else "gradient_checkpointing_disable")()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, object] | None = None, **options: Any
    ) -> None:
        """Do what `activation_checkpointing_enable` does, under its older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """Do what `activation_checkpointing_disable` does, under its older name."""
        self.activation_checkpointing_disable()

    def get_input_embeddings(self) -> nn.Module:
        """Return the base model's token embeddings; NEFTune adds noise there."""
        return self._of_base("get_input_embeddings")()

    def _of_base(self, method: str) -> Callable[..., Any]:
        found = getattr(self.base_model, method, None)
        if found is None:
            raise ConfigError(
                f"{type(self).__name__}: base_model must have {method}, {type(self.base_model).__name__} has none"
            )
        return found
