"""Compare the modules that adapterx chose with the evidence of the oracle, and prove that the adapters work there."""

import re
import tempfile

import torch
from evidence import floats, has_gradient, weighted_sum

from adapterx import AdapterConfig, attach, detach, load_adapter, save_adapter

MODES = {"houlsby": {}, "pfeiffer": {"positions": ("feed_forward",)}, "parallel": {"placement": "parallel"}}


def list_of(block):
    return block.rpartition(".")[0]


def judge(facts, report, positions):
    """Return problems as (kind, words): `wrong`, `part` (in part without a word), `said` (with one), `unseen`."""
    subs, ran, hit = facts["subs"], set(facts["ran"]), set()
    problems = []
    for target in report.targets:
        if target.module not in ran:
            problems.append(("unseen", target.module))
            continue
        mine = [number for number, sub in enumerate(subs) if target.module in sub["right"]]
        hit |= set(mine)
        problems += [("wrong", words) for words in _faults(facts, target, [subs[number] for number in mine])]
    lists = {list_of(subs[number]["block"]) for number in hit}
    for number, sub in enumerate(subs):
        if number in hit or sub["optional"] or not _is_wanted(sub, lists, positions):
            continue
        if _is_inside_another(sub, subs) or _is_alone(sub, subs):
            continue
        if not any(t.module.startswith(f"{right}.") for t in report.targets for right in sub["right"]):
            said = any(_says(note, sub) for note in report.notes)
            problems.append(("said" if said else "part", f"{sub['block']} {sub['kind']} {sub['right']}"))
    return problems


def _is_inside_another(sub, subs):
    """Tell whether an addition is a part of what another sublayer computes."""
    others = {right for other in subs if other is not sub for right in other["right"]}
    return any(name.startswith(f"{other}.") for name in sub["right"] for other in others)


def _is_alone(sub, subs):
    """Tell whether an addition without attention, in no block of a list, has no like with another number.

    The task of OneFormer, for one: a perceptron computes it, and positions are added to it.
    """
    if sub["attends"] or re.search(r"(^|\.)\d+(\.|$)", sub["block"]):
        return False
    likes = {without_indices(name) for name in sub["right"]}
    return not any(
        without_indices(name) in likes and name not in sub["right"] for other in subs for name in other["right"]
    )


def without_indices(name):
    """Return a module's name with a star for every index."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _numbers(name):
    return [part for part in name.split(".") if part.isdecimal()]


def _is_wanted(sub, lists, positions):
    names = ".".join([sub["block"], *sub["right"]])
    if not re.search(r"(^|\.)\d+(\.|$)", names):
        return False  # no part of a repeated block
    attends = sub["attends"] or sub["kind"] == "attention"
    at_position = "feed_forward" in positions if sub["kind"] == "either" else sub["kind"] in positions
    return at_position and (attends or list_of(sub["block"]) in lists)


def _faults(facts, target, mine):
    """Yield in words what is wrong with one target."""
    if not mine:
        if not _is_right_elsewhere(target.module, facts["subs"]):
            yield f"{target.module} ({target.position}) adds to no residual stream"
        return
    kind = "feed_forward" if target.position == "feed_forward" else "attention"
    if not any(sub["kind"] in (kind, "either") for sub in mine):
        yield f"{target.module} is {target.position}, the oracle says {mine[0]['kind']}"
    shapes = facts["shapes"].get(target.module)
    if shapes and shapes[1] and shapes[1][-1] != target.hidden_size:
        yield f"{target.module} is {shapes[1][-1]} wide, not {target.hidden_size}"
    source = target.input_module
    if source is None or any(source in sub["sources"] or sub["optional"] for sub in mine):
        return
    if not any(_is_term(target.module, source, sub) for sub in facts["subs"]):
        yield f"{target.module} does not receive what {source} receives"


def _is_term(module, source, sub):
    """Tell whether what a module adds to is a term of a sublayer's sum, whose input `source` receives.

    A first block may have no stream that the sum is added to: then its like in another block tells.
    """
    terms = [_numbers(term) for term in sub["terms"] if without_indices(term) == without_indices(module)]
    sources = [_numbers(name) for name in sub["sources"] if without_indices(name) == without_indices(source)]
    own, read = _numbers(module), _numbers(source)
    same_block = own[: len(read)] == read
    return same_block and any(term[: len(name)] == name for term in terms for name in sources)


def _is_right_elsewhere(module, subs):
    """A first block may have no residual stream yet: then its like in another block tells."""
    for digit in re.finditer(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", module):
        before, behind = re.escape(module[: digit.start()]), re.escape(module[digit.end() :])
        if any(re.fullmatch(rf"{before}\d+{behind}", right) for sub in subs for right in sub["right"]):
            return True
    return False


def _says(note, sub):
    """Tell whether a note of the report speaks of a sublayer."""
    block, rights = sub["block"], sub["right"] or [sub["block"]]
    if " was left out" in note:
        name = note.split(" was left out")[0]
        return any(right == name or right.startswith(f"{name}.") for right in rights)
    head, _, words = note.partition(": ")
    where, module = head.partition("[")[0], words.split(" ")[0]
    if any(list_of(right) == where for right in sub["right"]):  # an element of the list itself
        return True
    # What a model adds in its own loop stands in no block; its name says to which it belongs.
    names = (re.match(rf"(?:.*\.)?{re.escape(where)}\.\d+", name) for name in [block, *rights])
    match = next(filter(None, names), None)
    if match is None:
        return False
    if not sub["right"] or "no attention sublayer" in note:
        return not sub["right"]
    inner = [right[len(match[0]) + 1 :] for right in rights if right.startswith(f"{match[0]}.")]
    return any(_overlap(name, module) for name in inner)


def _overlap(name, other):
    return name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.")


def prove(model, facts, runnable, mode):
    """Attach, run, train a step, save, load and detach. Return (report, problems) or raise what adapterx raises."""
    parts = [(part, {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in values.items()})
             for _, part, values in runnable]  # fmt: skip
    model.requires_grad_(False)  # torch.nn.MultiheadAttention rounds otherwise when it is frozen
    before = outputs(parts)
    report = attach(model, AdapterConfig(bottleneck_dim=4, **MODES[mode]), "proof", seed=0)
    try:
        if not parts:
            return report, []
        return report, _problems(model, report, facts, parts, before)
    finally:
        if any("adapterx" in name.split(".") for name, _ in model.named_modules()):
            detach(model)


def _problems(model, report, facts, parts, before):
    problems = [] if same(outputs(parts), before) else ["new adapters change the output"]
    weighted_sum(outputs(parts, grad=True)).backward(retain_graph=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    stray = [n for n, p in model.named_parameters() if p.grad is not None and ".adapterx." not in f".{n}"]
    reached = [t.module for t in report.targets if _got_tokens(facts, t.module) and t.module in facts["learns"]]
    idle = [name for name in reached if not _learns(model, name)]
    problems += [f"{name} got gradients" for name in stray[:3]] + [f"{name} learns nothing" for name in idle[:3]]
    with torch.no_grad():
        for parameter in trained.values():
            if parameter.grad is not None:
                parameter -= parameter.grad / parameter.grad.abs().max().clamp_min(1e-30)
                parameter.grad = None
    after = outputs(parts)
    if same(after, before):
        problems.append("a step of training changes nothing")
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder, "proof")
        detach(model)
        if not same(outputs(parts), before):
            problems.append("detach does not restore the model")
        load_adapter(model, folder, "again")
    if not same(outputs(parts), after):
        problems.append("loaded adapters differ")
    return problems


def _got_tokens(facts, module):
    shapes = facts["shapes"].get(module)
    return shapes is not None and shapes[1] is not None and 0 not in shapes[1]


def _learns(model, module):
    adapter = model.get_submodule(f"{module}.adapterx.proof") if module else model.adapterx["proof"]
    return any(map(has_gradient, adapter.parameters()))


def outputs(parts, grad=False):
    """Return all floating-point tensors that the parts return."""
    found = []
    with torch.set_grad_enabled(grad):
        for part, values in parts:
            torch.manual_seed(1)
            found += floats(part(**values))
    return found


def same(found, expected):
    return len(found) == len(expected) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found, expected, strict=True)
    )


__all__ = ["MODES", "judge", "prove"]
