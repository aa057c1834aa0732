"""The control flow of a kernel in its disassembly (`cuobjdump -sass`): basic blocks, the aligned path, loops.

Blocks are cut at branches and their targets. Blocks that store single 16-bit elements belong to the slow copy of rows
that are not aligned; where a branch leads to one of these, and to no mma and no wide access before its two ways meet
again, that way is taken out. So is one that fetches operands to keep, or clears what no copy fills: not once an
iteration; and copies that fill up with zeros, at a matrix's edge, where there are others. What is left is the aligned
path. Loops are the natural loops of this graph: a back edge leads to a block that dominates it.
"""

import itertools
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

INSTRUCTION = re.compile(r"/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
SINGLE_ELEMENT_STORE = re.compile(r"ST[SG]?\.(\w+\.)*[US]16")
EDGE_COPY = re.compile(rf"{SINGLE_ELEMENT_STORE.pattern}|LDGSTS\.(\w+\.)*ZFILL")
WIDE = re.compile(r"(LDG|STG|LDGSTS)\.(\w+\.)*128|UBLKCP|HMMA")
RARE = 16  # loads, or stores to shared memory, of a stretch of code that fetches operands to keep or clears stages
END = sys.maxsize  # the address of the block that stands for leaving the function


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
    copies = [i.opcode for block in blocks.values() for i in block.instructions if i.opcode.startswith("LDGSTS")]
    slow_copy = EDGE_COPY if any("ZFILL" not in copy for copy in copies) else SINGLE_ELEMENT_STORE
    slow = {a for a, block in blocks.items() if any(slow_copy.match(i.opcode) for i in block.instructions)}
    wide = {a for a, block in blocks.items() if any(WIDE.match(i.opcode) for i in block.instructions)} - slow
    filling = {
        a: sum(bool(re.match(r"LDG|STS\.128", i.opcode)) for i in block.instructions) for a, block in blocks.items()
    }

    def kept_out(region: set[int]) -> bool:
        return not region & wide and (bool(region & slow) or sum(filling[a] for a in region) >= RARE)

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
