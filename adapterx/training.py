"""What a training loop needs around the model: parameter groups, sampling, seeds, checks and scores. Torch only."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from adapterx.adapters import adapter_parameters
from adapterx.errors import ConfigError, DataError, TrainingError
from adapterx.host import walk
from adapterx.route import SwitchableModules


def seed_everything(seed: int) -> None:
    """Seed Python's and PyTorch's generators (every device)."""
    random.seed(seed)
    torch.manual_seed(seed)


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters that make up the head.

    These are the trainable parameters outside `model.base_model`; in a model without such a part, the trainable
    parameters that belong to no adapter.
    """
    base = getattr(model, "base_model", None)
    if isinstance(base, nn.Module) and base is not model:
        inside = {id(parameter) for parameter in base.parameters()}
    else:
        inside = {id(parameter) for _, parameter in adapter_parameters(model)}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in inside]


def parameter_groups(
    model: nn.Module, *, learning_rate: float, head_learning_rate: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, object]]:
    """Sort the trainable parameters into optimizer groups; the head may learn at a rate of its own.

    Biases, LayerNorm weights and learned scalings (all with fewer than two dimensions) are not decayed.

    Args:
        model: the model, its frozen parameters marked by `requires_grad=False`.
        learning_rate: rate of the adapters, or of the base model when it is trained in full.
        head_learning_rate: rate of the head; None takes `learning_rate`.
        weight_decay: decay of the weight matrices.

    Returns:
        Groups for `torch.optim.AdamW` and others, each with `params`, `lr`, `weight_decay` and a readable `name`.

    Raises:
        TrainingError: nothing is trainable.
    """
    heads = {id(parameter) for parameter in head_parameters(model)}
    sorted_parameters: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
    for parameter in model.parameters():
        if parameter.requires_grad:
            sorted_parameters[id(parameter) in heads, parameter.ndim >= 2].append(parameter)
    if not sorted_parameters:
        raise TrainingError("parameter_groups: model must have trainable parameters, got none; attach an adapter first")
    head_rate = learning_rate if head_learning_rate is None else head_learning_rate
    return [
        {
            "params": parameters,
            "lr": head_rate if is_head else learning_rate,
            "weight_decay": weight_decay if decayed else 0.0,
            "name": f"{'head' if is_head else 'adapters' if heads else 'model'}{'' if decayed else ', not decayed'}",
        }
        # The adapters' group comes first: its rate is the one that loops usually print.
        for (is_head, decayed), parameters in sorted(
            sorted_parameters.items(), key=lambda item: (item[0][0], not item[0][1])
        )
    ]


def unused_adapters(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return what trains to nothing: active adapters and trained copies that no gradient reached, or that are frozen.

    Ask after `backward()` and before `zero_grad()`. A module that is read and never called, a branch that is not taken,
    or an expert that no token was routed to does not run what hangs on it.

    Args:
        model: any module that encloses adapted ones.

    Returns:
        By name of the adapter, the qualified names of the modules on which it got no gradient; empty where all did.
    """
    found: dict[str, list[str]] = defaultdict(list)
    hung = [(path, module) for path, module in walk(model) if isinstance(module, SwitchableModules)]
    # What modules share gets a gradient when any of them runs.
    times = Counter(id(p) for _, switchable in hung for module in switchable.values() for p in module.parameters())
    for path, switchable in hung:
        for name, module in switchable.items():
            told = name in switchable.told_to_train  # whoever freezes a model may have frozen them since
            trained = [p for p in module.parameters() if (p.requires_grad or told) and times[id(p)] == 1]
            if trained and all(parameter.grad is None for parameter in trained):
                found[name].append(path.rpartition(".")[0])
    return {name: tuple(paths) for name, paths in found.items()}


def check_finite_loss(loss: Tensor | float, *, step: int, epoch: float | None, learning_rate: float) -> None:
    """Stop a training run whose loss is no number any more.

    Args:
        loss: of one step, a single number.
        step: number of the step, for the message.
        epoch: how many epochs are done, for the message; None where it is not known.
        learning_rate: the one in use, for the message.

    Raises:
        TrainingError: the loss is infinite or NaN; the text names the step, the epoch, the rate and what to try.
    """
    value = float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
    if math.isfinite(value):
        return
    where = f"step {step}" + ("" if epoch is None else f" (epoch {epoch:.2f})")
    raise TrainingError(
        f"check_finite_loss: loss must be finite, the loss became {value} at {where} with learning rate "
        f"{learning_rate:.3g}; try a learning rate of {learning_rate / 10:.1g} or lower, a longer warm-up, or fp32 or "
        "bf16 instead of fp16"
    )


def check_finite_parameters(model: nn.Module, *, step: int) -> None:
    """Refuse to go on, or to save, when a trainable tensor holds a value that is not finite.

    Args:
        model: its trainable parameters are looked at.
        step: number of the step, for the message.

    Raises:
        TrainingError: it does; the text names the tensor.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter.detach()).all():
            raise TrainingError(
                f"check_finite_parameters: {name} must be finite, it holds values that are not finite at step {step}, "
                "so this state is not saved; try a lower learning rate, or fp32 or bf16 instead of fp16"
            )


def _positions_by_label(labels: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    positions: dict[Hashable, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        positions[label].append(index)
    # Sorted, so that the draw depends on the seed and the data, not on which label happens to stand first.
    return dict(sorted(positions.items(), key=lambda item: str(item[0])))


def _shuffled(indices: list[int], generator: torch.Generator) -> list[int]:
    return [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]


def examples_per_class(labels: Sequence[Hashable], count: int, *, seed: int) -> list[int]:
    """Draw a few-shot sample: `count` examples of every class.

    Args:
        labels: the label of every example.
        count: examples to draw for each class.
        seed: seed of the draw.

    Returns:
        Sorted positions in `labels`.

    Raises:
        ConfigError: `count` is below 1.
        DataError: a class has fewer examples.
    """
    if count < 1:
        raise ConfigError(f"examples_per_class: count must be at least 1, got {count}")
    positions = _positions_by_label(labels)
    short = {label: len(found) for label, found in positions.items() if len(found) < count}
    if short:
        told = ", ".join(f"{label!r} has {found}" for label, found in list(short.items())[:8])
        raise DataError(f"examples_per_class: every class must have at least {count} examples, but {told}")
    generator = torch.Generator().manual_seed(seed)
    return sorted(i for found in positions.values() for i in _shuffled(found, generator)[:count])


def stratified_split(labels: Sequence[Hashable], fraction: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Split positions into a training part and a held-out part, with the same share of every class.

    A class with two or more examples gives at least one to each part; a single example stays in training.

    Args:
        labels: the label of every example.
        fraction: share that is held out, strictly between 0 and 1.
        seed: seed of the draw.

    Returns:
        Sorted positions (training, held out).

    Raises:
        ConfigError: `fraction` is outside its range.
        DataError: no class has two examples, so nothing can be held out.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"stratified_split: fraction must lie strictly between 0 and 1, got {fraction}")
    generator = torch.Generator().manual_seed(seed)
    training, held_out = [], []
    for found in _positions_by_label(labels).values():
        shuffled = _shuffled(found, generator)
        count = min(max(round(len(found) * fraction), 1), len(found) - 1)
        held_out += shuffled[:count]
        training += shuffled[count:]
    if not held_out:
        raise DataError("stratified_split: at least one class must have two examples, got one example of each")
    return sorted(training), sorted(held_out)


def classification_scores(predictions: Sequence[int], labels: Sequence[int]) -> dict[str, float]:
    """Return accuracy and macro-F1.

    Macro-F1 is the plain mean of the classes' F1 over every class that occurs in `labels` or `predictions`; a class
    without a correct prediction counts 0.

    Args:
        predictions: the class that was predicted, for every example.
        labels: the class that is right, for every example.

    Returns:
        `{"accuracy": ..., "macro_f1": ...}`, both from 0 to 1.

    Raises:
        DataError: the two differ in length, or are empty.
    """
    if len(predictions) != len(labels) or not labels:
        raise DataError(
            f"classification_scores: predictions and labels must have the same length above 0, "
            f"got {len(predictions)} and {len(labels)}"
        )
    pairs = list(zip(predictions, labels, strict=True))
    scores = []
    for each in sorted(set(predictions) | set(labels)):
        hits = sum(1 for guess, truth in pairs if guess == truth == each)
        mistakes = sum(1 for guess, truth in pairs if (guess == each) != (truth == each))
        scores.append(2 * hits / (2 * hits + mistakes))
    correct = sum(1 for guess, truth in pairs if guess == truth)
    return {"accuracy": correct / len(pairs), "macro_f1": sum(scores) / len(scores)}
