"""What a GPU can do, what an iteration of a kernel's loop takes, and what limits a launch of it (see roofline.py)."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

BUDGETS = Path(__file__).resolve().parent.parent / "tests" / "cuda" / "instruction_budgets.csv"
BYTES = 2  # of an element: bfloat16 or float16

Cell = tuple[int, int, int]  # num_tokens, hidden_size, bottleneck_dim
Plan = tuple[int, int]  # row_tile, cluster_size; row_tile 0 is the cublas path
CUBLAS: Plan = (0, 1)


@dataclass(frozen=True)
class Gpu:
    """What a device can do; times are microseconds."""

    name: str
    capability: int
    sms: int
    clock: float  # cycles a microsecond, under load
    copy_bytes: float  # a microsecond, read and written
    mma_flops: float  # a microsecond, by mma.sync
    shared_bytes: int  # of an SM; a block reserves 1 KiB, and may ask for 1 KiB less than all
    # Clusters of each size that run at once with one block on an SM: blocks of a cluster share a part of the device.
    clusters: dict[int, int] = field(default_factory=dict)


# Measured: the speeds of copies of H100 and H200, and (by the steps in the sweep) how many clusters fit on an H100. The
# rest is from data sheets; mma.sync is taken to reach 62 % of what wgmma does on Hopper, and A100 copies 80 % of its
# memory's speed.
HOPPER_CLUSTERS = {1: 132, 2: 66, 4: 30, 8: 15}
GPUS = {
    "H100": Gpu("H100", 90, 132, 1755.0, 2.8e6, 613e6, 228 * 1024, HOPPER_CLUSTERS),
    "H200": Gpu("H200", 90, 132, 1755.0, 4.3e6, 613e6, 228 * 1024, HOPPER_CLUSTERS),
    "A100": Gpu("A100", 80, 108, 1410.0, 1.6e6, 312e6, 164 * 1024, {1: 108}),
}


@dataclass(frozen=True)
class Constants:
    """What was fitted to measurements; microseconds, unless said otherwise."""

    launch: float = 1.2
    cycles: float = 3.7  # from one instruction of a warp to its next, where it has a scheduler to itself
    more_cycles: float = 1.0  # for each further warp on that scheduler
    wait_cycles: float = 500.0  # for a chunk of columns: copies, barrier, first operands
    block: float = 3.7  # start, exchange and end of a block
    gradient_wait_cycles: float = 0.0  # the same two of the kernel of the weight gradients
    gradient_block: float = 0.7
    cublas: tuple[float, float] = (10.5, 25.2)  # forward, backward: all launches
    cublas_column: tuple[float, float] = (0.7e-3, 0.2e-3)  # for each column: one block sums over all of them
    cublas_speed: tuple[float, float] = (0.945, 0.763)  # of a copy's


@dataclass(frozen=True)
class Loop:
    """What one iteration of a hot loop takes a warp."""

    instructions: float
    shared_cycles: float


Loops = dict[tuple[str, str], dict[str, Loop]]  # by architecture and kernel; by the loop's name


def collect_loops(rows: Iterable[tuple[str, str, str, int, int]]) -> Loops:
    """Return the loops of each kernel, from rows of architecture, kernel, loop, instructions, shared-memory cycles."""
    found: Loops = defaultdict(dict)
    for arch, kernel, loop, instructions, shared_cycles in rows:
        found[arch, kernel][loop] = Loop(instructions, shared_cycles)
    return dict(found)


def read_loops(path: Path = BUDGETS) -> Loops:
    """Return the loops of each kernel from the table of the budgets."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return collect_loops(
        (row["arch"], row["kernel"], row["loop"], int(row["instructions"]), int(row["shared_cycles"])) for row in rows
    )


def weighted(loops: dict[str, Loop], weights: dict[str, float]) -> Loop:
    """Return what loops take together, those not named once."""
    return Loop(
        sum(weights.get(name, 1.0) * loop.instructions for name, loop in loops.items()),
        sum(weights.get(name, 1.0) * loop.shared_cycles for name, loop in loops.items()),
    )


def architecture(gpu: Gpu) -> str:
    """Return the architecture whose code runs on a device."""
    return "90" if gpu.capability >= 90 else "80"


@dataclass(frozen=True)
class Launch:
    """A kernel on its grid. An iteration is a chunk of columns, of tokens, or a whole tile."""

    loop: Loop  # of one warp
    warps: int  # of a block
    blocks: int
    cluster_size: int
    iterations: int  # of a block
    total_iterations: int  # of all blocks: the last of a cluster may have fewer
    blocks_per_sm: int
    moved_bytes: float
    mma_flops: float
    wait_cycles: float  # of an iteration
    block: float  # microseconds

    def waves(self, gpu: Gpu) -> Iterator[tuple[float, int]]:
        """Yield how many waves there are with so many blocks on each SM."""
        at_once = gpu.clusters[self.cluster_size]
        whole, rest = divmod(-(-self.blocks // self.cluster_size), at_once * self.blocks_per_sm)
        if whole:
            yield whole, self.blocks_per_sm
        if rest:
            yield 1, -(-rest // at_once)

    def limits(self, gpu: Gpu, constants: Constants) -> dict[str, float]:
        """Return the microseconds that each limit asks for."""
        work = self.warps * self.total_iterations
        latency = 0.0
        for waves, blocks in self.waves(gpu):
            warps = blocks * self.warps / 4  # on a scheduler
            cycles = max(constants.cycles + constants.more_cycles * (warps - 1), warps)
            iteration = (self.loop.instructions * cycles + self.wait_cycles) / gpu.clock
            latency += waves * (self.iterations * iteration + self.block)
        return {
            "memory": self.moved_bytes / gpu.copy_bytes,
            "tensor cores": self.mma_flops / gpu.mma_flops,
            "issue": work * self.loop.instructions / (4 * gpu.sms * gpu.clock),
            "shared memory": work * self.loop.shared_cycles / (gpu.sms * gpu.clock),
            "latency": latency,
        }
