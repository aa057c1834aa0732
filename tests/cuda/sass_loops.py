"""The hot loops of a kernel in its disassembly: how many instructions a warp executes in one iteration.

A function of `cuobjdump -sass` becomes basic blocks, cut at branches and their targets. Blocks that store single
16-bit elements belong to the slow copy of unaligned rows: they are taken out, with all that only they lead to; what is
left is the aligned path. Loops are the natural loops of this graph (a back edge leads to a block that dominates it).
One iteration is the longest path from the loop's head back to it: every optional part runs, as with all of the
operator's arguments given and rows inside the matrix. An inner loop counts as often as the immediate that bounds its
counter says, and once where none does (waiting for a barrier). Where the number of copies of an iteration is known,
only paths with so many are compared: a loop whose copies are optional has several.
"""

import itertools
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

INSTRUCTION = re.compile(r"/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
SINGLE_ELEMENT_STORE = re.compile(r"ST[SG]?\.(\w+\.)*[US]16")
WIDE = re.compile(r"(LDG|STG|LDGSTS)\.(\w+\.)*128|UBLKCP|HMMA")
WIDTHS = {"32": 1, "64": 2, "128": 4}  # of an access of the whole warp, in cycles of 128 bytes

RELOAD = 16  # loads of a stretch of code that fetches operands to keep: once for many iterations
END = sys.maxsize  # the address of the block that stands for leaving the function

Paths = dict[int, Counter]  # by the number of copies, 16 bytes or in bulk: what the longest path with so many executes


@dataclass(frozen=True)
class Instruction:
    """One line of SASS."""

    address: int
    predicate: str  # such as @!P0; empty: always executed
    opcode: str
    operands: str

    @property
    def target(self) -> int | None:
        """The address that a branch or a call leads to."""
        found = re.search(r"\b0x([0-9a-f]+)", self.operands) if re.match(r"(BRA|JMP|CALL)\b", self.opcode) else None
        return int(found.group(1), 16) if found else None

    @property
    def always(self) -> bool:
        """Whether nothing guards it."""
        return self.predicate in ("", "@PT") and "P" not in self.operands.split("0x")[0]

    @property
    def jumps(self) -> bool:
        """Whether it may leave the straight line.

        BRA.DIV does where lanes have parted, which the path counted does not do. CALL comes back, unless it is guarded:
        on sm_80 loops are left so.
        """
        if self.opcode.startswith("CALL"):
            return not self.always
        return bool(re.match(r"(BRA|JMP|BRX|EXIT|RET|KILL)", self.opcode)) and ".DIV" not in self.opcode


@dataclass(frozen=True)
class Block:
    """A basic block: instructions of which all are executed, or none."""

    instructions: tuple[Instruction, ...]
    successors: tuple[int, ...]  # addresses of the blocks that may follow


@dataclass(frozen=True)
class Loop:
    """A natural loop: its head and all blocks from which the head is reached again without leaving it."""

    head: int
    body: frozenset[int]
    latches: frozenset[int]  # blocks of the back edges


def read_instructions(code: str) -> list[Instruction]:
    """Read the disassembly of one function."""
    return [
        Instruction(int(address, 16), predicate or "", opcode, operands.strip())
        for address, predicate, opcode, operands in INSTRUCTION.findall(code)
    ]


def cut_blocks(instructions: list[Instruction]) -> dict[int, Block]:
    """Cut a function into basic blocks, by the address of their first instruction."""
    starts = {instructions[0].address} | {i.target for i in instructions if i.jumps and i.target is not None}
    starts |= {after.address for i, after in itertools.pairwise(instructions) if i.jumps}
    groups: list[list[Instruction]] = []
    for instruction in instructions:
        if instruction.address in starts:
            groups.append([])
        groups[-1].append(instruction)
    successors = {}
    for group, after in zip(groups, [*groups[1:], None], strict=True):
        last, next_block = group[-1], END if after is None else after[0].address
        jump = [END if last.target is None else last.target] if last.jumps and not is_switch(last) else []
        straight_on = [] if last.jumps and last.always else [next_block]
        successors[group[0].address] = jump + straight_on
    for address, targets in switch_targets(groups, successors).items():
        successors[address] += targets
    blocks = {g[0].address: Block(tuple(g), tuple(dict.fromkeys(successors[g[0].address]))) for g in groups}
    return blocks | {END: Block((), ())}


def is_switch(instruction: Instruction) -> bool:
    """Return whether an instruction jumps to an address that a register holds."""
    return instruction.opcode.startswith("BRX")


def switch_targets(groups: list[list[Instruction]], successors: dict[int, list[int]]) -> dict[int, list[int]]:
    """Return where each indirect branch may lead: the blocks behind it, up to the next one, that no other reaches."""
    reached = {target for targets in successors.values() for target in targets}
    reached |= {i.target for group in groups for i in group if i.target is not None}  # where lanes have parted too
    found: dict[int, list[int]] = {}
    switch = None
    for group in groups:
        address = group[0].address
        if switch is not None and address not in reached:
            found[switch].append(address)
        if is_switch(group[-1]):
            switch = address
            found[switch] = []
    return found


def aligned_blocks(blocks: dict[int, Block]) -> dict[int, Block]:
    """Return the graph of the aligned path: without what stores single elements, and what only leads there."""
    slow = {a for a, block in blocks.items() if any(SINGLE_ELEMENT_STORE.match(i.opcode) for i in block.instructions)}
    wide = {a for a, block in blocks.items() if any(WIDE.match(i.opcode) for i in block.instructions)}
    loads = {a: sum(i.opcode.startswith("LDG") for i in block.instructions) for a, block in blocks.items()}

    def kept_out(region: set[int]) -> bool:
        return not region & wide and (bool(region & slow) or sum(loads[a] for a in region) >= RELOAD)

    joins = postdominators(blocks)
    edges = {}
    for address, block in blocks.items():
        within = set(blocks) - joins[address]
        regions = {s: reachable([s] if s in within else [], blocks, within) for s in block.successors}
        edges[address] = [s for s, region in regions.items() if not kept_out(region)]
    pruned = {a: Block(block.instructions, tuple(edges[a])) for a, block in blocks.items() if a not in slow}
    forward = reachable({min(blocks)} & set(pruned), pruned, set(pruned))
    kept = forward & reachable([END], pruned, set(pruned), backwards=True)
    return {a: Block(pruned[a].instructions, tuple(s for s in edges[a] if s in kept)) for a in sorted(kept)}


def predecessors(blocks: dict[int, Block]) -> dict[int, set[int]]:
    """Return the blocks that may come before each block."""
    found: dict[int, set[int]] = {a: set() for a in blocks}
    for address, block in blocks.items():
        for successor in block.successors:
            if successor in found:
                found[successor].add(address)
    return found


def reachable(
    starts: Iterable[int], blocks: dict[int, Block], within: set[int] | frozenset[int], *, backwards: bool = False
) -> set[int]:
    """Return what is reached from `starts`, these included, without leaving `within`."""
    before = predecessors(blocks) if backwards else {}
    found, waiting = set(starts), list(starts)
    while waiting:
        address = waiting.pop()
        for neighbour in before[address] if backwards else blocks[address].successors:
            if neighbour in within and neighbour not in found:
                found.add(neighbour)
                waiting.append(neighbour)
    return found


def dominators(nodes: list[int], before: dict[int, set[int]], entries: set[int]) -> dict[int, set[int]]:
    """Return which nodes lie on every path from an entry to a node, the node itself included."""
    found = {a: {a} if a in entries else set(nodes) for a in nodes}
    changed = True
    while changed:
        changed = False
        for node in nodes:
            if node in entries:
                continue
            sets = [found[b] for b in before[node]]
            new = {node} | (set.intersection(*sets) if sets else set())
            changed, found[node] = changed or new != found[node], new
    return found


def postdominators(blocks: dict[int, Block]) -> dict[int, set[int]]:
    """Return which other blocks lie on every path from a block to the end of the function."""
    after = {a: set(block.successors) for a, block in blocks.items()}
    found = dominators(sorted(blocks, reverse=True), after, {END})
    return {a: joins - {a} for a, joins in found.items()}


def find_loops(blocks: dict[int, Block]) -> list[Loop]:
    """Return the natural loops, inner ones before outer ones."""
    above = dominators(sorted(blocks), predecessors(blocks), {min(blocks)})
    latches: dict[int, set[int]] = defaultdict(set)
    for address, block in blocks.items():
        for successor in block.successors:
            if successor in above[address]:
                latches[successor].add(address)
    loops = []
    for head, ends in latches.items():
        body = {head} | reachable(ends - {head}, blocks, set(blocks) - {head}, backwards=True)
        loops.append(Loop(head, frozenset(body), frozenset(ends)))
    return sorted(loops, key=lambda loop: (len(loop.body), loop.head))


def costs(instruction: Instruction) -> Counter:
    """Return what one instruction of a warp takes: an issue slot, and its share of each pipe."""
    name, *modifiers = instruction.opcode.split(".")
    found = Counter(instructions=1)
    if instruction.predicate == "@!PT":
        return found
    cycles = next((WIDTHS[m] for m in modifiers if m in WIDTHS), 1)
    if name == "HMMA":
        found["mma"] = 1
    elif name in ("LDSM", "STSM"):
        found["ldmatrix"], found["shared_cycles"] = (
            int(name == "LDSM"),
            int(modifiers[-1]) if modifiers[-1] in "24" else 1,
        )
    elif name in ("LDS", "STS", "ATOMS", "SYNCS"):
        found["shared_accesses"], found["shared_cycles"] = 1, cycles
    elif name == "LDGSTS":
        found["copies"], found["shared_cycles"] = int(cycles == 4), cycles
    elif name == "UBLKCP":
        found["bulk_copies"] = 1
    elif name == "STAS":
        found["remote_stores"] = 1
    elif name in ("LDG", "STG", "LD", "ST"):
        found["global_accesses"] = 1
    elif name == "BAR" or name.startswith("UCGABAR"):
        found["barriers"] = 1
    return found


def block_costs(block: Block) -> Counter:
    """Return what a block takes."""
    total: Counter = Counter()
    for instruction in block.instructions:
        total.update(costs(instruction))
    return total


def trip_count(loop: Loop, blocks: dict[int, Block]) -> int:
    """Return how often a loop runs whose counter starts below its step; 1 where its bound is no immediate."""
    body = [i for address in sorted(loop.body) for i in blocks[address].instructions]
    for latch in sorted(loop.latches):
        predicate = blocks[latch].instructions[-1].predicate.lstrip("@!")
        compares = [i for i in body if i.opcode.startswith("ISETP.G") and i.operands.startswith(f"{predicate}, ")]
        for compare in compares if predicate else ():
            found = re.search(r"PT, (R\d+)(?:\.reuse)?, (-?0x[0-9a-f]+), PT", compare.operands)
            step = found and step_of(found.group(1), body)
            if step:
                instruction, carried, by = step
                bound = int(found.group(2), 16) + (".GT" in compare.opcode)
                # Compared before it is raised, or raised from one step below before the first iteration's end.
                ahead = carried != found.group(1) or compare.address < instruction.address
                return max(1, -(-bound // by) + ahead)
    return 1


def step_of(register: str, body: list[Instruction]) -> tuple[Instruction, str, int] | None:
    """Return the instruction that raises a loop's counter, the register that carries it on, and by how much."""
    for instruction in body:
        found = re.match(rf"{register}, (R\d+)(?:\.reuse)?, (0x[0-9a-f]+)(?:, RZ)?$", instruction.operands)
        if not found or not instruction.opcode.startswith(("VIADD", "IADD3", "IMAD.IADD")):
            continue
        moves = [i.operands for i in body if "MOV" in i.opcode and i.operands.startswith(f"{found.group(1)}, ")]
        if found.group(1) == register or any(re.search(rf"\b{register}$", move) for move in moves):
            return instruction, found.group(1), int(found.group(2), 16)
    return None


def merge(paths: Paths, others: Paths) -> None:
    """Keep the longer path of each number of copies."""
    for copies, cost in others.items():
        if copies not in paths or cost["instructions"] > paths[copies]["instructions"]:
            paths[copies] = cost


def add(paths: Paths, cost: Counter) -> Paths:
    """Lengthen all paths by the same."""
    copied = cost["copies"] + cost["bulk_copies"]
    return {copies + copied: path + cost for copies, path in paths.items()}


@dataclass(frozen=True)
class Trips:
    """How often inner loops run whose bounds are known at run time only."""

    bulk: int = 1  # one that issues bulk copies, lane by lane
    sending: float = 1.0  # one that stores to other blocks of the cluster, on average over the warps


def iterations(loop: Loop, loops: list[Loop], blocks: dict[int, Block], trips: Trips) -> Paths:
    """Return the longest paths through one iteration of a loop."""
    inner = [other for other in loops if other.body < loop.body]
    nested = {o.head: o for o in inner if not any(o.body < other.body for other in inner)}
    node_of = {a: o.head for o in nested.values() for a in o.body}
    after: dict[int, set[int]] = defaultdict(set)  # between blocks and, as one node each, inner loops
    for address in loop.body:
        node = node_of.get(address, address)
        for successor in blocks[address].successors:
            if successor in loop.body and successor != loop.head:
                after[node] |= {node_of.get(successor, successor)} - {node}
    paths: dict[int, Paths] = {}
    for node in backwards_from(node_of.get(loop.head, loop.head), after):
        members = nested[node].body if node in nested else {node}
        cost = inner_cost(nested[node], loops, blocks, trips) if node in nested else block_costs(blocks[node])
        rest: Paths = {0: Counter()} if loop.latches & members else {}
        for successor in after[node]:
            merge(rest, paths.get(successor, {}))
        paths[node] = add(rest, cost)
    return paths[node_of.get(loop.head, loop.head)]


def backwards_from(start: int, after: dict[int, set[int]]) -> list[int]:
    """Return the nodes of a graph without cycles, each behind all that come after it."""
    order, seen, waiting = [], set(), [(start, False)]
    while waiting:
        node, expanded = waiting.pop()
        if expanded:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            waiting += [(node, True), *((successor, False) for successor in sorted(after[node]))]
    return order


def inner_cost(loop: Loop, loops: list[Loop], blocks: dict[int, Block], trips: Trips) -> Counter:
    """Return what an inner loop takes in all."""
    once = longest(iterations(loop, loops, blocks, trips))
    times: float = trip_count(loop, blocks)
    if once["bulk_copies"] == 1:
        times = trips.bulk
    elif once["remote_stores"] and any(other.body < loop.body for other in loops):
        times = trips.sending
    return Counter({name: times * count for name, count in once.items()})


def longest(paths: Paths) -> Counter:
    """Return the path with the most instructions."""
    return max(paths.values(), key=lambda cost: cost["instructions"])


def hot_loops(code: str, trips: Trips = Trips()) -> list[Paths]:
    """Return the paths of the innermost loops of a function that multiply on tensor cores, in the order of the code."""
    blocks = aligned_blocks(cut_blocks(read_instructions(code)))
    loops = find_loops(blocks) if blocks else []
    holding = [loop for loop in loops if any(block_costs(blocks[a])["mma"] for a in loop.body)]
    innermost = [loop for loop in holding if not any(other.body < loop.body for other in holding)]
    return [iterations(loop, loops, blocks, trips) for loop in sorted(innermost, key=lambda loop: loop.head)]
