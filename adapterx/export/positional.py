"""Give a model the form that exporters need: fixed tensors in, fixed tensors out, in eval mode, without a cache."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from adapterx.active import check_not_mixed
from adapterx.adapters import active_composition
from adapterx.compose.naming import divides
from adapterx.errors import ExportError, speaker, unspoken
from adapterx.positions import max_positions

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = (("logits",), ("start_logits", "end_logits"), ("last_hidden_state",))
PER_TOKEN = ("start_logits", "end_logits", "last_hidden_state")  # logits are if they have a dimension for it
EXAMPLE_SHAPE = (2, 8)  # a batch or a sequence of 1 makes tracers take these sizes for constants


class Positional(nn.Module):
    """Call a model with positional tensors and return the tensors named in `outputs`, one alone or a tuple."""

    def __init__(
        self, model: nn.Module, inputs: Sequence[str], fixed: Mapping[str, Any], outputs: Sequence[str]
    ) -> None:
        super().__init__()
        self.model = model
        self.inputs, self.fixed, self.outputs = tuple(inputs), dict(fixed), tuple(outputs)

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Take one tensor per name in `inputs`, in that order."""
        result = self.model(**dict(zip(self.inputs, tensors, strict=True)), **self.fixed)
        if isinstance(result, Mapping):
            chosen = tuple(result[name] for name in self.outputs)
        else:
            chosen = (result if isinstance(result, Tensor) else result[0],)
        return chosen[0] if len(chosen) == 1 else chosen


@dataclass(frozen=True)
class Prepared:
    """A model ready to be exported, and what is needed to make inputs for it.

    Attributes:
        module: the wrapped model, in eval mode.
        example: one tensor `(batch, sequence)` per input.
        max_sequence: the longest sequence that the model takes, in tokens; None: no limit is known.
        vocab_size: token ids are in `[0, vocab_size)`.
        pad_token_id: what stands where the mask is 0.
        token_types: token type ids are in `[0, token_types)`.
        device: where the parameters are.
        dtypes: the floating dtypes among them, most frequent first, without `torch.`.
    """

    module: Positional
    example: tuple[Tensor, ...]
    max_sequence: int | None
    vocab_size: int
    pad_token_id: int | None
    token_types: int
    device: torch.device
    dtypes: tuple[str, ...]

    def inputs_at(self, batch: int, sequence: int) -> tuple[Tensor, ...]:
        """Return reproducible inputs in which every row but the first is padded: at the right, the next at the left.

        Both sides are needed: a decoder that looks at padding is only found out by padding that comes first.
        """
        generator = torch.Generator().manual_seed(1000 * batch + sequence)
        ids = torch.randint(self.vocab_size, (batch, sequence), generator=generator)
        lengths = torch.tensor([max(1, sequence - row * sequence // batch) for row in range(batch)])
        mask = (torch.arange(sequence) < lengths[:, None]).long()
        mask[2::2] = mask[2::2].flip(1)
        if self.pad_token_id is not None:
            # Real tokens are not the padding token: some models count positions, or find the last token, by it.
            ids = torch.where(ids == self.pad_token_id, (ids + 1) % self.vocab_size, ids)
            if "attention_mask" in self.module.inputs:
                ids = torch.where(mask == 0, self.pad_token_id, ids)
        types = torch.randint(self.token_types, (batch, sequence), generator=generator)
        tensors = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return tuple(tensors[name].to(self.device) for name in self.module.inputs)

    def clip(self, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the shapes with no sequence longer than the model takes, each once."""
        limit = self.max_sequence
        return list(dict.fromkeys((b, s if limit is None else min(s, limit)) for b, s in shapes))


@contextmanager
def prepared(
    model: nn.Module,
    *,
    example: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    inputs: Sequence[str] | None = None,
) -> Iterator[Prepared]:
    """Put the model into the state for exporting, and back into the old one whatever happens.

    Args:
        model: see `to_torchscript`.
        example: see `to_torchscript`.
        inputs: names of the inputs; None finds them in the example or in the signature of the model's forward.

    Raises:
        ExportError: this kind of model cannot be exported, or the example does not fit.
        RuntimeError: the model is inside a `mixed` block.
    """
    if not isinstance(model, nn.Module):
        raise ExportError(f"{speaker()}: model must be a torch.nn.Module, got {type(model).__name__}")
    check_not_mixed(model)
    if divides(composition := active_composition(model)):
        raise ExportError(
            f"{speaker()}: model must serve every batch, got the active composition {composition!r}, which divides "
            "batches or sequences of one size"
        )
    parameters = _parameters(model)
    config = _config(model)
    if isinstance(example, Mapping):
        names = tuple(example)
    else:
        names = tuple(inputs or _input_names(model, config, parameters))
        if example is not None:
            tensors = (example,) if isinstance(example, Tensor) else tuple(example)
            names = names[: len(tensors)] if len(tensors) < len(names) else names
            example = dict(zip(names, tensors, strict=False)) if len(tensors) <= len(names) else _too_many(names)
    _check_names(names, parameters)
    device, dtypes = _device_and_dtypes(model)
    fixed = {"use_cache": False} if "use_cache" in parameters else {}
    with _eval_without_cache(model), torch.no_grad(), torch.autocast(device.type, enabled=False):
        facts = {
            "max_sequence": max_positions(model, config),
            "vocab_size": _vocab_size(model, config),
            "pad_token_id": getattr(config, "pad_token_id", None),
            "token_types": max(1, getattr(config, "type_vocab_size", None) or 1),
            "device": device,
            "dtypes": dtypes,
        }
        draft = Prepared(Positional(model, names, fixed, ()), (), **facts)
        tensors = draft.inputs_at(*draft.clip([EXAMPLE_SHAPE])[0]) if example is None else _checked(example, device)
        outputs = _output_names(draft.module, tensors)
        yield Prepared(Positional(model, names, fixed, outputs).eval(), tensors, **facts)


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Silence what tracing a Hugging Face model says without meaning; the result is validated anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", r".*torch\.jit.*", category)
        warnings.filterwarnings("ignore", r".*is_gradient_checkpointing.*", FutureWarning)  # a tracer reads properties
        warnings.filterwarnings("ignore", r".*treespec, LeafSpec.*", FutureWarning)
        warnings.filterwarnings("ignore", r"# The axis name: .* will not be used", UserWarning)
        yield


@contextmanager
def _eval_without_cache(model: nn.Module) -> Iterator[None]:
    training = [(module, module.training) for module in model.modules()]
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}.values()
    wanted = {"use_cache": False, "return_dict": True}
    old = [(c, key, vars(c)[key]) for c in configs if hasattr(c, "__dict__") for key in wanted if key in vars(c)]
    try:
        model.eval()
        for config, key, _ in old:
            setattr(config, key, wanted[key])
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for config, key, value in old:
            setattr(config, key, value)


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def _config(model: nn.Module) -> Any:
    for owner in (model, getattr(model, "base_model", None)):
        config = getattr(owner, "config", None)
        if config is not None:
            return config
    raise ExportError(
        f"{speaker()}: model must have a config (a Hugging Face model, or a SequenceClassifier around one), "
        f"{type(model).__name__} has none"
    )


def _input_names(model: nn.Module, config: Any, parameters: Mapping[str, inspect.Parameter]) -> tuple[str, ...]:
    known = list(parameters)
    if "decoder_input_ids" in known:
        raise ExportError(
            f"{speaker()}: encoder-decoder models such as {type(model).__name__} cannot be exported yet; "
            "export the encoder alone (model.get_encoder())"
        )
    if "input_ids" not in known:
        raise ExportError(
            f"{speaker()}: the model's forward must take input_ids, {type(model).__name__} takes {', '.join(known)}"
        )
    if not (getattr(config, "type_vocab_size", None) or 0) > 1:
        known = [name for name in known if name != "token_type_ids"]  # GPT-2 would look them up among the words
    return tuple(name for name in INPUTS if name in known)


def _too_many(names: Sequence[str]) -> NoReturn:
    raise ExportError(f"{speaker()}: example must hold at most {len(names)} tensors ({', '.join(names)})")


def _check_names(names: Sequence[str], parameters: Mapping[str, inspect.Parameter]) -> None:
    unknown = [name for name in names if name not in INPUTS or name not in parameters]
    if unknown or "input_ids" not in names:
        raise ExportError(
            f"{speaker()}: example must name input_ids and besides only inputs of the model among {', '.join(INPUTS)}, "
            f"got {', '.join(map(str, names))}"
        )


def _device_and_dtypes(model: nn.Module) -> tuple[torch.device, tuple[str, ...]]:
    tensors = [*model.parameters(), *model.buffers()]
    devices = sorted({str(tensor.device) for tensor in tensors})
    if len(devices) != 1 or devices == ["meta"]:
        raise ExportError(f"{speaker()}: model must be on one real device, got {', '.join(devices) or 'no parameters'}")
    counts: dict[str, int] = {}
    for tensor in model.parameters():
        if tensor.is_floating_point():
            name = str(tensor.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + tensor.numel()
    return torch.device(devices[0]), tuple(sorted(counts, key=counts.__getitem__, reverse=True))


def _vocab_size(model: nn.Module, config: Any) -> int:
    size = getattr(config, "vocab_size", None)
    if not isinstance(size, int) or size < 1:
        raise ExportError(f"{speaker()}: the model's config must have a vocab_size, got {size!r}")
    return size


def _checked(example: Mapping[str, Tensor], device: torch.device) -> tuple[Tensor, ...]:
    shapes = {name: tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for name, t in example.items()}
    shape = shapes["input_ids"]
    same = all(other == shape for other in shapes.values())
    if not same or not isinstance(shape, tuple) or len(shape) != 2 or min(shape) < 2:
        raise ExportError(
            f"{speaker()}: example must hold tensors of one shape (batch, sequence), both at least 2 (a tracer takes "
            f"sizes of 1 for constants), got {shapes}"
        )
    return tuple(tensor.to(device) for tensor in example.values())


def _output_names(module: Positional, example: tuple[Tensor, ...]) -> tuple[str, ...]:
    try:
        with unspoken():
            result = module.model(**dict(zip(module.inputs, example, strict=True)), **module.fixed)
    except Exception as error:
        raise ExportError(f"{speaker()}: the model cannot run the example: {type(error).__name__}: {error}") from error
    if isinstance(result, Mapping):
        for names in OUTPUTS:
            if all(isinstance(result.get(name), Tensor) for name in names):
                return names
        raise ExportError(f"{speaker()}: the model must return logits or last_hidden_state, got {', '.join(result)}")
    first = result[0] if isinstance(result, (tuple, list)) and result else result
    if not isinstance(first, Tensor):
        raise ExportError(f"{speaker()}: the model must return tensors, got {type(first).__name__}")
    return ("output",)
