"""The launches of each kernel for a problem: the geometry that csrc/kernels/cuda gives them (see roofline.py)."""

import math
from dataclasses import dataclass, field

from gpu_limits import (
    BYTES,
    CUBLAS,
    Cell,
    Constants,
    Gpu,
    Launch,
    Loop,
    Loops,
    Plan,
    architecture,
    read_loops,
    weighted,
)

MAX_BOTTLENECK_DIM = 128


@dataclass(frozen=True)
class TileLayout:
    """The numbers of TileConfig that a kernel's name holds."""

    size: int  # bottleneck_dim, padded
    row_groups: int
    row_tiles: int  # of a warp; 0: the layout of the kernels that the first sweep measured
    column_groups: int
    chunk: int  # columns

    @classmethod
    def of(cls, kernel: str) -> "TileLayout":
        """Read a kernel's name; the fifth number is 4 (stages) in that of the old layout."""
        size, row_groups, third, fourth, fifth, _ = map(int, kernel.split()[-1].split(","))
        if fifth == 4:
            return cls(size, row_groups, 0, third, fourth)
        return cls(size, row_groups, third, fourth, fifth)

    @property
    def rows(self) -> int:
        return 16 * self.row_groups * max(self.row_tiles, 1)

    @property
    def warps(self) -> int:
        return self.row_groups * self.column_groups

    def slice(self, columns: int, cluster_size: int) -> int:
        """Return the columns of a block."""
        unit = 16 if self.row_tiles else self.chunk
        return unit * math.ceil(math.ceil(columns / unit) / cluster_size)

    def shared_bytes(self, columns: int, cluster_size: int) -> int:
        """Return what a block asks for at least (TileConfig::shared_memory)."""
        width = self.chunk * math.ceil(self.slice(columns, cluster_size) / self.chunk)
        stage = max(self.size * (self.chunk + 8), self.chunk * (self.size + 8))
        elements = self.rows * (width + 8) + (2 if self.row_tiles else 4) * stage + self.rows * (self.size + 8)
        if not self.row_tiles:
            return 2 * elements + 4 * self.column_groups * self.rows * (self.size + 4) + 8 * self.rows
        splits = self.column_groups // min(self.size // 16, self.column_groups)
        return 2 * (elements + width) + 4 * splits * self.rows * (self.size + 4) + 8 * (self.rows + 2)

    def blocks_per_sm(self, gpu: Gpu, columns: int, cluster_size: int) -> int:
        """Return how many blocks run on an SM: by registers four of 4 warps or two of 8."""
        return min(gpu.shared_bytes // (self.shared_bytes(columns, cluster_size) + 1024), 16 // self.warps)


@dataclass(frozen=True)
class Model:
    """What predictions rest on."""

    constants: Constants = field(default_factory=Constants)
    loops: Loops = field(default_factory=read_loops)

    def loop(self, gpu: Gpu, kernel: str, weights: dict[str, float] | None = None) -> Loop:
        """Return what an iteration takes of a kernel's loops for a device; `weights` by the loops' names."""
        return weighted(self.loops[architecture(gpu), kernel], weights or {})

    def has(self, gpu: Gpu, kernel: str) -> bool:
        """Return whether a kernel was counted for a device."""
        return (architecture(gpu), kernel) in self.loops

    def tile_kernel(self, gpu: Gpu, direction: str, size: int, plan: Plan) -> str | None:
        """Return the tile kernel that serves a plan; where there are two, the one with the layout of today."""
        start, clustered = f"bottleneck_tile_kernel {direction} bf16 {size},", str(int(plan[1] > 1))
        names = [name for arch, name in self.loops if arch == architecture(gpu) and name.startswith(start)]
        fitting = [name for name in names if name.endswith(f",{clustered}") and TileLayout.of(name).rows == plan[0]]
        return max(fitting, key=lambda name: TileLayout.of(name).row_tiles, default=None)


MODEL = Model()


def padded(bottleneck_dim: int, least: int = 16) -> int:
    """Return the size of the kernel that serves a bottleneck."""
    return next(size for size in (16, 32, 64, 128) if max(bottleneck_dim, least) <= size)


def fits(gpu: Gpu, cell: Cell, plan: Plan, model: Model = MODEL) -> bool:
    """Return whether a plan serves a problem on this device."""
    (_, columns, bottleneck), (rows, cluster_size) = cell, plan
    if plan == CUBLAS:
        return True
    if cluster_size not in gpu.clusters or bottleneck > MAX_BOTTLENECK_DIM:
        return False
    if rows == 32:
        own, most = resident_columns(cell, cluster_size), 256 if bottleneck > 64 else 512
        served = columns % 8 == 0 and own <= most and own * (cluster_size - 1) < columns
        return served and model.has(gpu, resident_kernel("forward", cell, cluster_size))
    kernel = model.tile_kernel(gpu, "forward", padded(bottleneck), plan)
    return kernel is not None and TileLayout.of(kernel).blocks_per_sm(gpu, columns, cluster_size) > 0


def resident_columns(cell: Cell, cluster_size: int) -> int:
    """Return the columns of a block of the resident kernel."""
    return 16 * math.ceil(cell[1] / cluster_size / 16)


def resident_kernel(direction: str, cell: Cell, cluster_size: int) -> str:
    """Return the name of the resident kernel that serves a problem."""
    size = padded(cell[2], 32)
    columns = 256 if size == 128 or resident_columns(cell, cluster_size) <= 256 else 512
    return f"resident_tile_kernel {direction} bf16 {size},{columns},0"


def tile_launch(gpu: Gpu, direction: str, cell: Cell, plan: Plan, model: Model) -> Launch:
    """Return the tile kernel: forward, or backward for the gradient of the input."""
    (tokens, columns, bottleneck), (rows, cluster_size) = cell, plan
    kernel = model.tile_kernel(gpu, direction, padded(bottleneck), plan)
    layout, tiles = TileLayout.of(kernel), math.ceil(tokens / rows)
    return Launch(
        model.loop(gpu, kernel),
        warps=layout.warps,
        blocks=tiles * cluster_size,
        cluster_size=cluster_size,
        iterations=math.ceil(layout.slice(columns, cluster_size) / layout.chunk),
        total_iterations=tiles * math.ceil(columns / layout.chunk),
        blocks_per_sm=layout.blocks_per_sm(gpu, columns, cluster_size),
        moved_bytes=BYTES * (2 * tokens * columns + 2 * columns * bottleneck),
        mma_flops=4 * tiles * rows * columns * layout.size,
        wait_cycles=model.constants.wait_cycles,
        block=model.constants.block,
    )


def resident_launch(gpu: Gpu, direction: str, cell: Cell, plan: Plan, model: Model) -> Launch:
    """Return the resident kernel: as many clusters as run at once, each with its share of the tiles."""
    (tokens, columns, bottleneck), (_, cluster_size) = cell, plan
    tiles = math.ceil(tokens / 32)
    clusters = min(tiles, gpu.clusters[cluster_size])
    return Launch(
        model.loop(gpu, resident_kernel(direction, cell, cluster_size)),
        warps=16,
        blocks=clusters * cluster_size,
        cluster_size=cluster_size,
        iterations=math.ceil(tiles / clusters),
        total_iterations=tiles * cluster_size,
        blocks_per_sm=1,
        moved_bytes=BYTES * (2 * tokens * columns + 2 * columns * bottleneck),
        mma_flops=4 * tiles * 32 * columns * padded(bottleneck, 32),
        wait_cycles=model.constants.wait_cycles,
        block=model.constants.block,
    )


def weight_gradient_launches(gpu: Gpu, cell: Cell, model: Model) -> list[Launch]:
    """Return the kernel of both weight gradients, and the sums over its ranges of tokens where it has partial ones."""
    tokens, columns, bottleneck = cell
    size = padded(bottleneck)
    stream = f"gradient_stream_kernel bf16 {size}"
    if columns % 8 == 0 and model.has(gpu, stream):
        return [stream_launch(gpu, cell, model, stream)]
    window, per_sm = (64, 3) if size == 128 else (128, 4)
    windows = 2 * math.ceil(columns / window)
    ranges = min(32, max(1, tokens // 256), math.ceil(4 * 132 / windows))
    stages = math.ceil(math.ceil(tokens / ranges) / 32)
    partial = 4 * ranges * 2 * size * columns
    half = {"up gradient": 0.5, "down gradient": 0.5}  # a block computes one of the two
    launch = Launch(
        model.loop(gpu, f"weight_gradient_kernel bf16 {size}", half),
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
    return [launch, Launch(Loop(0, 0), 8, 1, 1, 0, 0, 1, partial + 2 * BYTES * columns * bottleneck, 0.0, 0.0, 0.0)]


def stream_launch(gpu: Gpu, cell: Cell, model: Model, kernel: str) -> Launch:
    """Return the kernel that streams tokens through clusters, a window of columns each (weight_gradient.cu)."""
    tokens, columns, bottleneck = cell
    windows = 2 * math.ceil(columns / 256)
    possible = [r for r in (8, 4, 2) if windows * r <= gpu.sms and tokens >= 128 * r and gpu.clusters[r] >= windows]
    ranges = next(iter(possible), 1)
    blocks = windows * ranges if ranges > 1 else min(windows, gpu.sms)
    stages = math.ceil(math.ceil(tokens / ranges) / 32)
    weights = {"up gradient": 0.5, "down gradient": 0.5, "copies": 0.5}  # four warps copy for eight
    return Launch(
        model.loop(gpu, kernel, weights),
        warps=8,
        blocks=blocks,
        cluster_size=ranges,
        iterations=stages * math.ceil(windows * ranges / blocks),
        total_iterations=windows * ranges * stages,
        blocks_per_sm=1,
        moved_bytes=2 * BYTES * (tokens * (columns + bottleneck) + columns * bottleneck),
        mma_flops=4 * tokens * columns * padded(bottleneck),
        wait_cycles=model.constants.gradient_wait_cycles,
        block=model.constants.block,
    )
