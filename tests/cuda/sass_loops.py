"""The hot loops of a kernel in its disassembly: how many instructions a warp executes in one iteration.

One iteration is the longest path from a loop's head back to it, on the aligned path (sass_blocks.py): every optional
part runs, as with all of the operator's arguments given and rows inside the matrix. An inner loop counts as often as
the immediate that bounds its counter says; where none does, as often as `Trips` says, or once (waiting for a barrier).
Where the number of copies of an iteration is known, only paths with so many are compared: a loop whose copies are
optional has several.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass

from sass_blocks import Block, Instruction, Loop, aligned_blocks, cut_blocks, find_loops, read_instructions

WIDTHS = {"32": 1, "64": 2, "128": 4}  # of an access of the whole warp, in cycles of 128 bytes

# By the number of copies, of 16 bytes or in bulk: what the longest path with so many executes.
Paths = dict[int, Counter]


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
    """Return how often a loop runs whose counter starts below its step, or at 0; 1 where its bound is no immediate."""
    body = [i for address in sorted(loop.body) for i in blocks[address].instructions]
    for latch in sorted(loop.latches):
        predicate = blocks[latch].instructions[-1].predicate.lstrip("@!")
        compares = [
            i for i in body if i.opcode.startswith(("ISETP.G", "ISETP.NE")) and i.operands.startswith(f"{predicate}, ")
        ]
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
    blocks, loops = find_all(code)
    holding = [loop for loop in loops if any(block_costs(blocks[a])["mma"] for a in loop.body)]
    return [iterations(loop, loops, blocks, trips) for loop in innermost(holding)]


def copy_loops(code: str, trips: Trips = Trips()) -> list[Paths]:
    """Return the paths of the loops that copy and do not multiply, in the order of the code: those around bulk copies,
    and the innermost ones of 16-byte copies.
    """
    blocks, loops = find_all(code)
    totals = {loop.head: sum((block_costs(blocks[a]) for a in loop.body), Counter()) for loop in loops}
    idle = [loop for loop in loops if not totals[loop.head]["mma"]]
    bulk = [loop for loop in idle if totals[loop.head]["bulk_copies"]]
    around = [loop for loop in bulk if any(other.body < loop.body for other in bulk)]
    single = [loop for loop in idle if totals[loop.head]["copies"]]
    return [iterations(loop, loops, blocks, trips) for loop in innermost(around) + innermost(single)]


def find_all(code: str) -> tuple[dict[int, Block], list[Loop]]:
    """Return the aligned path of a function and its loops."""
    blocks = aligned_blocks(cut_blocks(read_instructions(code)))
    return blocks, find_loops(blocks) if blocks else []


def innermost(loops: list[Loop]) -> list[Loop]:
    """Return the loops that hold no other of them, in the order of the code."""
    found = [loop for loop in loops if not any(other.body < loop.body for other in loops)]
    return sorted(found, key=lambda loop: loop.head)
