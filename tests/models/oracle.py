"""Judge where adapters belong, from a forward pass alone: walk the autograd graph for what adds to the residual stream.

Nothing here knows how adapterx chooses modules. A block's output is followed backwards to its input. Each addition on
the way whose one operand leads back to what the other one was computed from is a residual addition; the modules whose
output, up to norms, dropout, reshaping and scaling, is the other operand are right places for an adapter.
"""

import re
from dataclasses import dataclass, field

import torch
from torch import nn

_RESHAPES = re.compile(
    r"(UnsafeView|View|Reshape|ReshapeAlias|Transpose|T|Permute|Unsqueeze|Squeeze|Expand|Clone|ToCopy|Slice|Select|Index|"
    r"Roll|ConstantPadNd|AsStrided|Alias|NativeDropout|Dropout|Split|SplitWithSizes|Unbind|MaskedFill|Neg|Where|Repeat|"
    r"Clamp|ClampMin|ClampMax|Hardtanh|Swapaxes|Movedim|Unfold|UnsafeSplit|IndexSelect|Gather|CopySlices|CopyBackwards|Div|Copy|MaskedSelect|Scatter|FlipBackward|Flip|Narrow|Chunk|Im2Col|Col2Im|MaskedScatter|IndexPut)(Backward\d*|Backward)?|CopySlices|CopyBackwards"
)
_MIXING = re.compile(
    r"(GridSampler.*|ScaledDotProduct.*|Bmm|Baddbmm|Cumsum|FftR2C|FftC2C|.*Scan.*|Cumprod|Logcumsumexp)Backward\d*|.*FlashAttention.*"
)
_MAYBE_MIXING = re.compile(
    r"(GridSampler.*|Convolution|AvgPool\w*|AdaptiveAvgPool\w*|.*Pool2D.*|Thnn.*|Sort|Cdist|Lstm.*|Gru.*|Mkldnn.*|.*Rnn.*)(Backward\d*)?"
)
_MATRIX = re.compile(r"(Addmm|Mm|Bmm|Baddbmm|Convolution|Addbmm|GroupedMm|_GroupedMm|Mv|Addmv|Linear)Backward\d*")


@dataclass(eq=False)
class Call:
    module: str
    order: int
    inputs: list  # grad_fn of the first floating-point argument
    output: object
    input_shape: tuple | None
    output_shape: tuple | None
    end: int = 0
    single: bool = False  # whether one argument alone carries gradients


@dataclass
class Sublayer:
    """One residual addition (or one term of it)."""

    block: str
    right: set[str]
    kind: str  # attention, feed_forward, either
    sources: set[str] = field(default_factory=set)
    attends: bool = False
    optional: bool = False
    terms: set[str] = field(default_factory=set)  # what is summed up where a module in `right` returns the sum


class Recorder:
    """Record the calls of all modules of one forward pass."""

    def __init__(self, model):
        self.model, self.calls, self.kept, self.handles, self.stack = model, [], [], [], []

    def __enter__(self):
        seen = set()
        for name, module in self.model.named_modules():
            if module in seen:
                continue
            seen.add(module)
            self.handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            self.handles.append(module.register_forward_hook(self._after(name), with_kwargs=True))
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def _before(self, name):
        def hook(module, args, kwargs):
            tensor = first_tensor(args, kwargs)
            call = Call(name, len(self.calls), [], None, None, None)
            if tensor is not None:
                self.kept.append(tensor)
                call.inputs, call.input_shape = [tensor.grad_fn], tuple(tensor.shape)
                carrying = {id(v) for v in [*args, *kwargs.values()] if isinstance(v, torch.Tensor) and v.requires_grad}
                call.single = carrying <= {id(tensor)}
            self.calls.append(call)
            self.stack.append(call)

        return hook

    def _after(self, name):
        def hook(module, args, kwargs, output):
            while self.stack and self.stack[-1].module != name:
                self.stack.pop()
            if not self.stack:
                return
            call = self.stack.pop()
            call.end = len(self.calls)
            tensor = main_output(output)
            if tensor is not None:
                self.kept.append(tensor)
                call.output, call.output_shape = tensor.grad_fn, tuple(tensor.shape)

        return hook


def first_tensor(args, kwargs):
    for value in [*args[:1], kwargs.get("hidden_states"), *kwargs.values()]:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value
    return None


def main_output(output, depth=2):
    """Return the tensor that a module returns first, which may stand in a tuple of a tuple."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and depth:
        return main_output(output[0], depth - 1)
    if isinstance(output, dict) and output:
        first = next(iter(output.values()))
        return first if isinstance(first, torch.Tensor) else None
    return None


def _name(node):
    return node.name()


class Graph:
    """The autograd graph of one pass, with the modules' outputs marked in it."""

    def __init__(self, model, calls, given=()):
        self.given = set(given)  # nodes of the model's own inputs
        modules = dict(model.named_modules())
        self.modules = modules
        self.matrices = {name: any(p.dim() > 1 for p in m.parameters()) for name, m in modules.items()}
        self.calls = calls
        self.by_output = {}
        self.chains = {}
        for call in calls:
            if call.output is not None:
                self.by_output.setdefault(call.output, []).append(call)

    def operands(self, node):
        return [n for n, _ in node.next_functions if n is not None]

    def is_parameter(self, node, depth=6):
        """Tell whether a node is computed from parameters alone, by a few operations."""
        if node in self.given:
            return False
        if node.name() == "torch::autograd::AccumulateGrad":
            return True
        if depth == 0 or _MATRIX.fullmatch(node.name()) or node.name().startswith("Embedding"):
            return False
        below = self.operands(node)
        return bool(below) and all(self.is_parameter(n, depth - 1) for n in below)

    def data(self, node):
        return [n for n in self.operands(node) if not self.is_parameter(n)]

    def step(self, node):
        """Return the node that this one is but a norm, a reshaping, a scaling of; None where it is more."""
        for call in self.by_output.get(node, ()):
            if (
                not self.matrices[call.module]
                and call.single
                and call.inputs[0] is not None
                and call.inputs[0] is not node
            ):
                return call.inputs[0]
        name, data = node.name(), self.data(node)
        operands = self.operands(node)
        if name.startswith("AddBackward") and len(data) == 1 and len(operands) == 2 and self._plain_residual(operands):
            return None  # the stream begins with learned queries
        if len(data) == 1 and (
            _RESHAPES.fullmatch(name)
            or name.startswith(
                (
                    "AddBackward",
                    "MulBackward",
                    "SubBackward",
                    "NativeLayerNorm",
                    "NativeBatchNorm",
                    "NativeGroupNorm",
                    "RmsNorm",
                    "FusedRmsNorm",
                    "CudnnBatchNorm",
                    "Rsub",
                )
            )
        ):
            return data[0]
        if name.startswith("MulBackward") and len(data) == 2:
            mine, other = getattr(node, "_saved_self", None), getattr(node, "_saved_other", None)
            if mine is not None and other is not None and mine.numel() != other.numel():
                return self.operands(node)[0 if mine.numel() > other.numel() else 1]
        if name.startswith(("CatBackward", "IndexPut", "CopySlices")) and len(data) >= 1 and name != "CatBackward0":
            return data[-1] if name == "CopySlices" else data[0]
        return None

    def chain(self, node):
        """Return the node and all that it is but a norm, reshaping, scaling of."""
        if node not in self.chains:
            found, current = [], node
            while current is not None and len(found) < 400:
                found.append(current)
                current = self.step(current)
            self.chains[node] = found
        return self.chains[node]

    def reaches(self, node, goals, floor):
        """Return the nodes between, if any of `goals` is among what `node` was computed from; else None."""
        seen, stack, hit = {node}, [node], False
        while stack:
            current = stack.pop()
            if current in goals:
                hit = True
                continue
            for below in self.operands(current):
                leaf = below.name() == "torch::autograd::AccumulateGrad"
                if below not in seen and (below in goals or (below._sequence_nr() >= floor and not leaf)):
                    seen.add(below)
                    stack.append(below)
        return seen if hit else None

    def reads(self, node, goals):
        """Tell whether a node is the stream, normed, or mixed with others by no linear module."""
        if not goals.isdisjoint(self.chain(node)) or self._weighs(node, goals):
            return True
        between = self.reaches(node, goals, _floor(goals))
        if between is None:
            return False
        above: dict = {}
        for n in between:
            for below in self.operands(n):
                above.setdefault(below, []).append(n)
        stack, path = [g for g in goals if g in above], set()
        while stack:
            for n in above.get(stack.pop(), ()):
                if n not in path and n not in goals:
                    path.add(n)
                    stack.append(n)
        calls = (c for n in path for c in self.by_output.get(n, ()))
        return not any(hasattr(self.modules[c.module], "in_features") and "norm" not in c.module for c in calls)

    def reads_with_more(self, node, goals):
        """Tell whether a node is the stream with something added to it, normed (the mixers of Zamba)."""
        last = self.chain(node)[-1]
        return last.name().startswith("AddBackward") and any(
            not goals.isdisjoint(self.chain(n)) for n in self.data(last)
        )

    def _weighs(self, node, goals):
        """Tell whether a node is the mean of parallel streams, weighed by what is computed from them."""
        last = self.chain(node)[-1]
        if not last.name().startswith(("MeanBackward1", "SumBackward1")):
            return False
        product = self.chain(self.data(last)[0])[-1]
        return product.name().startswith("MulBackward") and any(
            not goals.isdisjoint(self.chain(n)) for n in self.data(product)
        )

    def labels(self, chain):
        found = {
            c.module for node in chain for c in self.by_output.get(node, ()) if c.module and self.matrices[c.module]
        }
        if chain[-1].name() == "CatBackward0":  # tokens of two kinds that one module has returned
            found |= set().union(*(self.labels(self.chain(n)) for n in self.data(chain[-1])))
        return found

    def residual(self, node):
        """Return (skip operand, its chain, branch operands) of a residual addition, or None."""
        if not node.name().startswith("AddBackward"):
            return None
        data = self.operands(node)
        if len(data) != 2:
            return None
        if (plain := self._plain_residual(data)) is not None:
            return plain
        for first, other in (data, data[::-1]):  # (residual + attention) + feed-forward
            inner = self.chain(first)[-1]
            if inner is node or not inner.name().startswith("AddBackward"):
                continue
            found = self.residual(inner)
            if found is not None:
                skip, chain, branches = found
                if self.reaches(other, set(chain), _floor(chain)) is not None:
                    return skip, chain, [*branches, other]
        return None

    def _plain_residual(self, data):
        for skip, branch in (data, data[::-1]):
            chain = self.chain(skip)
            goals = set(chain)
            if chain[-1].name() == "CatBackward0":
                goals = goals.union(*(self.chain(n) for n in self.data(chain[-1])))
            floor = _floor(goals)
            between = self.reaches(branch, goals, floor)
            if (
                between is not None
                and branch not in goals
                and any(_MATRIX.fullmatch(n.name()) for n in between - goals)
            ):
                return skip, chain, [branch]
        return None

    def terms(self, branch):
        """Yield (chain, labels) of a branch, or of the terms of its sum where no module returns the sum."""
        chain = self.chain(branch)
        labels = self.labels(chain)
        last = chain[-1]
        if not labels and last.name().startswith("SubBackward") and len(self.data(last)) == 2:
            yield from self.terms(self.data(last)[0])  # stream + rate * (new - stream)
            return
        if labels or not last.name().startswith("AddBackward") or len(self.data(last)) != 2:
            yield chain, labels
            return
        for operand in self.data(last):
            yield from self.terms(operand)

    def summed(self, node):
        """Return the modules that return the terms of a sum."""
        if not node.name().startswith("AddBackward"):
            return set()
        return set().union(*(self.labels(self.chain(operand)) for operand in self.data(node)))


def _floor(chain):
    """Return the number of the oldest node; what is older cannot lead there."""
    return min((n._sequence_nr() for n in chain if n.name() != "torch::autograd::AccumulateGrad"), default=-1)


def is_element(name, modules):
    """Tell whether a module is an element of a list of modules."""
    parent = modules.get(name.rpartition(".")[0])
    return name != "" and isinstance(parent, (nn.ModuleList, nn.Sequential, nn.ModuleDict))


def sublayers(model, calls, given=(), root=False):
    """Return the residual sublayers of all blocks that ran."""
    graph = Graph(model, calls, given)
    modules, found = graph.modules, {}
    for call in calls:
        element = is_element(call.module, modules) or (root and call.module == "")
        if not element or call.output is None or not graph.matrices[call.module]:
            continue
        _walk(graph, call, found)
    blocks = [call for call in calls if is_element(call.module, modules)]
    for call in calls:  # models that add in their own loop (XLM), streams inside a sublayer (MobileBERT)
        if call.output is not None and graph.matrices[call.module] and not is_element(call.module, modules):
            around = [block for block in blocks if block.order <= call.order and call.end <= block.end]
            _walk(graph, call, found, first=False, scope=around[-1] if around else call)
    return list(found.values())


def _walk(graph, call, found, first=True, scope=None):
    """Follow a block's output back to its input, and note the residual additions on the way.

    What reads the stream is sought among what runs in `scope`: what feeds a sublayer may stand beside its output
    projection (LXMERT's intermediate modules).
    """
    start = call.inputs[0] if call.inputs else None
    floor = start._sequence_nr() if start is not None else -1
    node, additions, steps = call.output, [], 0
    pending, seen = [node], set()
    while pending and steps < 3000:
        node, steps = pending.pop(), steps + 1
        if node is None or node in seen:
            continue
        seen.add(node)
        for current in graph.chain(node):
            last = current
            if current._sequence_nr() <= floor:
                break
            if current.name().startswith(("IndexPut", "MaskedScatter", "CopySlices", "Where")):
                pending += graph.data(current)
        if last._sequence_nr() <= floor:
            continue
        if last.name() == "CatBackward0":
            pending += graph.data(last)
            continue
        residual = graph.residual(last)
        if residual is None:
            if last.name().startswith("AddBackward"):  # a sum of which no term leads to the other
                for operand in graph.data(last):
                    labels = graph.labels(graph.chain(operand))
                    found.setdefault((last, operand), Sublayer(call.module, labels, "either", optional=True))
                    pending += graph.data(graph.chain(operand)[-1])
            elif not first:  # what projects the stream at its end
                returned = [c for n in graph.chain(node) for c in graph.by_output.get(n, ())]
                ends = [c for c in returned if c.module.rpartition(".")[0] == call.module]
                pending += [c.inputs[0] for c in ends if hasattr(graph.modules[c.module], "in_features")]
            continue
        skip, chain, branches = residual
        # What was computed before the block began is a condition that it was given, no sublayer of it.
        additions += [(last, chain, branch) for branch in branches if branch._sequence_nr() > floor]
        if not first:  # streams inside a sublayer
            names = {c for branch in branches for n in graph.chain(branch) for c in graph.by_output.get(n, ())}
            pending += [c.inputs[0] for c in names if c.inputs]
        pending.append(skip)
    # The innermost block that holds an addition keeps it.
    for node, chain, branch in additions:
        for terms, labels in graph.terms(branch):
            key = terms[0]
            old = found.get((node, key))
            if old is not None and not (first and len(call.module) > len(old.block)):
                continue
            goals = set(chain)
            if chain[-1].name() == "CatBackward0":
                goals = goals.union(*(graph.chain(n) for n in graph.data(chain[-1])))
            nodes = graph.reaches(terms[0], goals, _floor(goals)) or set()
            around = scope or call
            inner = [c for c in graph.calls[around.order : around.end] if c.inputs and c.inputs[0] is not None]
            sources = {c.module for c in inner if graph.reads(c.inputs[0], goals)}
            sources |= {c.module for c in inner if c.module in labels and graph.reads_with_more(c.inputs[0], goals)}
            kind = _kind(graph, nodes - goals)
            own = " ".join(label[len(call.module) :] for label in labels)
            if ("att" in own and kind == "feed_forward") or ("mlp" in own and kind == "attention"):
                kind = "either"  # additive attention, without a product of two; a convolution behind an mlp
            mixes = any("Softmax" in n.name() or "ScaledDot" in n.name() for n in nodes)
            summed = graph.summed(terms[-1])
            found[(node, key)] = Sublayer(call.module, labels, kind, sources, mixes, terms=summed)


def _kind(graph, nodes):
    kind = "feed_forward"
    for node in nodes:
        name = node.name()
        if name.startswith("Bmm") or name.startswith("Baddbmm"):
            if len(graph.data(node)) >= 2:
                return "attention"
        elif _MIXING.fullmatch(name):
            return "attention"
        elif _MAYBE_MIXING.fullmatch(name) or name.endswith("Backward"):
            kind = "either"
    return kind
