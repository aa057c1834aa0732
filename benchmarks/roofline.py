"""How long the kernels should take on a GPU, and what limits them: predictions, not measurements.

A launch is held against five limits. *memory*: its bytes at the speed of a copy. *tensor cores*: its mma at the rate of
mma.sync. *issue*: its warp instructions at one a cycle and scheduler. *shared memory*: what its accesses take of each
SM's pipe at 128 bytes a cycle. *latency*: blocks come in waves; within a wave a warp executes an instruction every few
cycles, the more of them the more warps share its scheduler, and waits for each chunk of columns (or tile) once. The
prediction is the launch and its longest limit. Instructions and shared-memory cycles are those counted in the SASS
(tests/cuda/instruction_budgets.csv), so a kernel that changes is predicted anew once its budgets are.

The constants of the latency were fitted to the sweep of one H100 (calibrate_roofline.py), where the tile kernels have
no other limit; those of the cublas path to the same sweep. The median error there is 10 %.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

BUDGETS = Path(__file__).resolve().parent.parent / "tests" / "cuda" / "instruction_budgets.csv"
BYTES = 2  # of an element: bfloat16 or float16
MAX_BOTTLENECK_DIM = 128

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

    instructions: int
    shared_cycles: int


def sum_loops(rows: Iterable[tuple[str, str, int, int]]) -> dict[tuple[str, str], Loop]:
    """Return the sums over each kernel's loops, from rows of architecture, kernel, instructions, shared cycles."""
    found: dict[tuple[str, str], Loop] = defaultdict(lambda: Loop(0, 0))
    for arch, kernel, instructions, shared_cycles in rows:
        before = found[arch, kernel]
        found[arch, kernel] = Loop(before.instructions + instructions, before.shared_cycles + shared_cycles)
    return dict(found)


def read_loops(path: Path = BUDGETS) -> dict[tuple[str, str], Loop]:
    """Return what an iteration of all of a kernel's loops takes, by architecture and kernel."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return sum_loops((r["arch"], r["kernel"], int(r["instructions"]), int(r["shared_cycles"])) for r in rows)


@dataclass(frozen=True)
class Model:
    """What predictions rest on."""

    constants: Constants = field(default_factory=Constants)
    loops: dict[tuple[str, str], Loop] = field(default_factory=read_loops)

    def loop(self, gpu: Gpu, kernel: str) -> Loop:
        """Return what was counted of a kernel for the architecture that serves a device."""
        return self.loops["90" if gpu.capability >= 90 else "80", kernel]


MODEL = Model()


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


@dataclass(frozen=True)
class Prediction:
    """The time of a call, and the limit that takes the largest part of it."""

    us: float
    limit: str
    limits: dict[str, float]  # the sums over its launches


def padded(bottleneck_dim: int, least: int = 16) -> int:
    """Return the size of the kernel that serves a bottleneck."""
    return next(size for size in (16, 32, 64, 128) if max(bottleneck_dim, least) <= size)


def tile_shared_bytes(cell: Cell, plan: Plan) -> int:
    """Return what a block of the tile kernel asks for (TileConfig::shared_memory)."""
    rows, cluster_size = plan
    size, chunk, groups = padded(cell[2]), *((64, 4) if rows == 16 else (32, 1))
    columns = math.ceil(math.ceil(cell[1] / chunk) / cluster_size) * chunk
    stages = 4 * max(size * (chunk + 8), chunk * (size + 8))
    return 2 * (rows * (columns + 8) + stages + rows * (size + 8)) + 4 * groups * rows * (size + 4) + 8 * rows


def fits(gpu: Gpu, cell: Cell, plan: Plan) -> bool:
    """Return whether a plan serves a problem on this device."""
    rows, cluster_size = plan
    if plan == CUBLAS:
        return True
    if cluster_size not in gpu.clusters or cell[2] > MAX_BOTTLENECK_DIM:
        return False
    if rows == 32:
        columns, most = resident_columns(cell, cluster_size), 256 if cell[2] > 64 else 512
        return gpu.capability >= 90 and cell[1] % 8 == 0 and columns <= most and columns * (cluster_size - 1) < cell[1]
    return tile_shared_bytes(cell, plan) + 1024 <= gpu.shared_bytes


def resident_columns(cell: Cell, cluster_size: int) -> int:
    """Return the columns of a block of the resident kernel."""
    return 16 * math.ceil(cell[1] / cluster_size / 16)


def tile_launch(gpu: Gpu, direction: str, cell: Cell, plan: Plan, model: Model) -> Launch:
    """Return the tile kernel: forward, or backward for the gradient of the input."""
    (tokens, columns, bottleneck), (rows, cluster_size) = cell, plan
    size, tiles = padded(bottleneck), math.ceil(tokens / rows)
    chunk, shape = (64, "1,4,64") if rows == 16 else (32, "4,1,32")
    kernel = f"bottleneck_tile_kernel {direction} bf16 {size},{shape},4,{int(cluster_size > 1)}"
    chunks = math.ceil(columns / chunk)
    per_sm = min(gpu.shared_bytes // (tile_shared_bytes(cell, plan) + 1024), 4)  # four: by registers
    moved = BYTES * (2 * tokens * columns + 2 * columns * bottleneck)
    return Launch(
        model.loop(gpu, kernel),
        warps=4,
        blocks=tiles * cluster_size,
        cluster_size=cluster_size,
        iterations=math.ceil(chunks / cluster_size),
        total_iterations=tiles * chunks,
        blocks_per_sm=per_sm,
        moved_bytes=moved,
        mma_flops=4 * tiles * rows * columns * size,
        wait_cycles=model.constants.wait_cycles,
        block=model.constants.block,
    )


def resident_launch(gpu: Gpu, direction: str, cell: Cell, plan: Plan, model: Model) -> Launch:
    """Return the resident kernel: as many clusters as run at once, each with its share of the tiles."""
    (tokens, columns, bottleneck), (_, cluster_size) = cell, plan
    size = padded(bottleneck, 32)
    slice_columns = 256 if size == 128 or resident_columns(cell, cluster_size) <= 256 else 512
    tiles = math.ceil(tokens / 32)
    clusters = min(tiles, gpu.clusters[cluster_size])
    return Launch(
        model.loop(gpu, f"resident_tile_kernel {direction} bf16 {size},{slice_columns}"),
        warps=8,
        blocks=clusters * cluster_size,
        cluster_size=cluster_size,
        iterations=math.ceil(tiles / clusters),
        total_iterations=tiles * cluster_size,
        blocks_per_sm=1,
        moved_bytes=BYTES * (2 * tokens * columns + 2 * columns * bottleneck),
        mma_flops=4 * tiles * 32 * columns * size,
        wait_cycles=model.constants.wait_cycles,
        block=model.constants.block,
    )


def weight_gradient_launches(gpu: Gpu, cell: Cell, model: Model) -> Iterator[Launch]:
    """Yield the kernel of both weight gradients, and the sums over its ranges of tokens (see backward.cu)."""
    tokens, columns, bottleneck = cell
    size = padded(bottleneck)
    window, per_sm = (64, 3) if size == 128 else (128, 4)
    windows = 2 * math.ceil(columns / window)
    ranges = min(32, max(1, tokens // 256), math.ceil(4 * 132 / windows))
    stages = math.ceil(math.ceil(tokens / ranges) / 32)
    partial = 4 * ranges * 2 * size * columns
    both = model.loop(gpu, f"weight_gradient_kernel bf16 {size}")  # a block runs one of the two
    yield Launch(
        Loop(both.instructions // 2, both.shared_cycles // 2),
        warps=4,
        blocks=windows * ranges,
        cluster_size=1,
        iterations=stages,
        total_iterations=windows * ranges * stages,
        blocks_per_sm=per_sm,
        moved_bytes=2 * BYTES * tokens * (columns + bottleneck) + partial,
        mma_flops=4 * tokens * columns * size,
        wait_cycles=model.constants.gradient_wait_cycles,
        block=model.constants.gradient_block,
    )
    yield Launch(Loop(0, 0), 8, 1, 1, 0, 0, 1, partial + 2 * BYTES * columns * bottleneck, 0.0, 0.0, 0.0)


def predict(gpu: Gpu, direction: str, cell: Cell, plan: Plan, model: Model = MODEL) -> Prediction:
    """Return how long a call should take within a CUDA graph; `direction` is "forward" or "backward"."""
    (tokens, columns, bottleneck), constants = cell, model.constants
    if plan == CUBLAS:
        way = int(direction == "backward")
        moved = BYTES * ((5 if way else 3) * tokens * columns + (6 if way else 2) * columns * bottleneck)
        limits = {
            "memory": moved / (constants.cublas_speed[way] * gpu.copy_bytes),
            "launches": constants.cublas[way] + constants.cublas_column[way] * columns,
        }
        return Prediction(sum(limits.values()), max(limits, key=limits.get), limits)
    tile = resident_launch if plan[0] == 32 else tile_launch
    launches = [tile(gpu, direction, cell, plan, model)]
    if direction == "backward":
        launches += weight_gradient_launches(gpu, cell, model)
    limits, us = defaultdict(float), 0.0
    for launch in launches:
        own = launch.limits(gpu, constants)
        us += constants.launch + max(own.values())
        for name, value in own.items():
            limits[name] += value
    return Prediction(us, max(limits, key=limits.get), dict(limits))
