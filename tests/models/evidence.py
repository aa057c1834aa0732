"""Run a tiny model, whole or in parts, and collect what the oracle sees: sublayers, what ran, shapes."""

import torch
from oracle import Recorder, sublayers
from tiny_inputs import block_candidates, candidates
from torch import nn
from transformers import PreTrainedModel


def floats(value):
    """Return the floating-point tensors in what a model returns."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in floats(item)] if isinstance(value, (tuple, list)) else []


def has_gradient(parameter):
    """Tell whether a parameter got a gradient that is neither zero nor NaN."""
    return parameter.grad is not None and bool(parameter.grad.nan_to_num().any())


def leaves(values):
    """Return the arguments with gradients asked of what is floating-point, so that the stream can be followed."""
    return {
        name: value.clone().requires_grad_(True).clone()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in values.items()
    }


def first_that_runs(module, choices):
    """Return the first arguments that the module takes, and its calls; raise the first error where none does."""
    first = None
    for values in choices:
        values = leaves(values)
        try:
            with Recorder(module) as recorder:
                returned = floats(module(**values))
            if returned and not any(tensor.isfinite().any() for tensor in returned):
                raise ArithmeticError("the model returns no finite number")
            return values, recorder
        except Exception as error:  # the next arguments may do
            first = first or error
    raise first or RuntimeError("no arguments are known")


def parts_of(model):
    """Return the models inside a model, outermost first."""
    return [("", model), *((n, m) for n, m in model.named_modules() if n and isinstance(m, PreTrainedModel))]


def collect(model):
    """Return (facts as JSON holds them, runnable parts as (name, module, arguments))."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    facts = {"subs": [], "ran": set(), "errors": [], "shapes": {}}
    runnable = []
    for name, part in parts_of(model):
        if name and name in facts["ran"]:
            continue
        try:
            values, recorder = first_that_runs(part, candidates(part))
        except Exception as error:
            facts["errors"].append((name, f"{type(error).__name__}: {str(error)[:150]}"))
            continue
        runnable.append((name, part, values))
        _note(facts, name, part, values, recorder)
    for name, block in _idle_blocks(model, facts["ran"]):
        try:
            values, recorder = first_that_runs(block, block_candidates(block, _width(block), _head_size(block)))
        except Exception:
            continue
        if _note(facts, name, block, values, recorder, only_with_sublayers=True):
            runnable.append((name, block, values))
    facts["ran"] = sorted(facts["ran"])
    facts["learns"] = _learning(model, runnable)
    return facts, runnable


def weighted_sum(returned):
    """Return a number to differentiate: weights of their own, because squares of what is normed do not change."""
    generator = torch.Generator().manual_seed(5)
    finite = [value.float() for value in returned if value.isfinite().all()]  # NaN would be the gradient of everything
    return sum((value * torch.randn(value.shape, generator=generator)).sum() for value in finite)


def _learning(model, runnable):
    """Return the modules whose own parameters get gradients: below a quantizer, for one, none do."""
    for _, part, values in runnable:
        try:
            returned = [value for value in floats(part(**values)) if value.requires_grad]
            if returned:  # some models keep what they computed from their weights: the graph must stay
                weighted_sum(returned).backward(retain_graph=True)
        except (AssertionError, RuntimeError):
            continue  # the backward pass of Reformer and RWKV
    parameters = list(model.named_parameters(remove_duplicate=False))
    reached = [n for n, p in parameters if has_gradient(p)]
    model.zero_grad(set_to_none=True)
    return sorted({name[:end] for name in reached for end, letter in enumerate(name) if letter == "."} | {""})


def _note(facts, name, part, values, recorder, only_with_sublayers=False):
    prefix = f"{name}." if name else ""

    def full(relative):
        return prefix + relative if relative else name

    given = {v.grad_fn for v in values.values() if isinstance(v, torch.Tensor) and v.grad_fn is not None}
    additions = sublayers(part, recorder.calls, given, root=name != "" and not isinstance(part, PreTrainedModel))
    if only_with_sublayers and not any(not found.optional for found in additions):
        return False  # its additions stand in what calls it
    for found in additions:
        facts["subs"].append(
            {
                "block": full(found.block),
                "right": sorted(map(full, found.right)),
                "kind": found.kind,
                "sources": sorted(map(full, found.sources)),
                "attends": found.attends,
                "optional": found.optional,
                "terms": sorted(map(full, found.terms)),
            }
        )
    for call in recorder.calls:
        facts["ran"].add(full(call.module))
        facts["shapes"].setdefault(full(call.module), [call.input_shape, call.output_shape])
    return True


def _idle_blocks(model, ran):
    """Yield the elements of lists that no part of the model has run."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            for key, block in module.named_children():
                path = f"{name}.{key}" if name else key
                if path not in ran and next(block.children(), None) is not None:
                    yield path, block


def _width(block):
    for module in block.modules():
        weight = module._parameters.get("weight")
        if "Norm" in type(module).__name__ and weight is not None and weight.dim() == 1:
            return weight.shape[0]
    return next((m.in_features for m in block.modules() if isinstance(m, nn.Linear)), 32)


def _head_size(block):
    return next((m.head_dim for m in block.modules() if isinstance(getattr(m, "head_dim", None), int)), 8)
