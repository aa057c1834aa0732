"""What is known of the hot loops of each kernel from its configuration, for the counting of their instructions."""

from dataclasses import dataclass, field

from sass_loops import Trips

STAGES_IN_0_1 = 4  # TileConfig had their number where it now has the columns of a chunk


@dataclass(frozen=True)
class ExpectedLoop:
    """What is known of a hot loop from the kernel's configuration."""

    loop: str
    copies: int  # of 16 bytes a thread, or in bulk, in one iteration
    products: int = 1  # how many of the two products of the adapter it computes; 0: it only copies
    bulk_bytes: int = 0  # that a warp copies in bulk in one iteration
    copying: float = 1.0  # the part of the warps that copies
    trips: Trips = field(default_factory=Trips)


def units(elements: int, threads: int) -> int:
    """Return the copies of 16 bytes that a thread has to do."""
    return -(-elements // (8 * threads))


def expected_loops(name: str) -> list[ExpectedLoop]:
    """Return the hot loops of a kernel, in the order of its code."""
    numbers = [int(n) for n in name.split()[-1].split(",") if n.isdigit()]
    if name.startswith("resident_tile_kernel"):
        size, columns, _ = numbers
        tokens, warps, copy_warps, cluster_size = 32, 16, 8, 8
        # A block finishes its share of the middle's mma tiles, a warp each at a time.
        finishing = tokens // 8 * (size // 16) / cluster_size / warps
        rows = 2 * tokens // copy_warps  # in, and out
        return [ExpectedLoop("tile", rows, 2, rows * 2 * columns, copy_warps / warps, Trips(sending=finishing))]
    if name.startswith("bottleneck_tile_kernel"):
        size, threads, rows, chunk = tile_sizes(numbers)
        weights, tile = units(chunk * size, threads), units(rows * chunk, threads)
        if numbers[4] == STAGES_IN_0_1:
            return [ExpectedLoop("first product", tile + weights), ExpectedLoop("second product", weights)]
        products = [ExpectedLoop("first product", weights), ExpectedLoop("second product", weights)]
        return [*products, ExpectedLoop("tile rows", tile, 0)]
    if name.startswith("weight_gradient_kernel"):
        size, threads, tokens = numbers[0], 128, 32
        copies = units(tokens * (64 if size > 64 else 128), threads) + units(tokens * size, threads)
        return [ExpectedLoop("up gradient", copies), ExpectedLoop("down gradient", copies)]
    if name.startswith("gradient_stream_kernel"):
        tokens = 32 // 4  # of a warp that copies: a wide row each, their narrow ones together
        copied = 2 * tokens * (256 + numbers[0] + 8)
        copies = ExpectedLoop("copies", tokens + 1, 0, copied, trips=Trips(bulk=tokens + 1))
        return [ExpectedLoop("down gradient", 0), ExpectedLoop("up gradient", 0), copies]
    return []


def tile_sizes(numbers: list[int]) -> tuple[int, int, int, int]:
    """Return padded bottleneck, threads, rows and columns of a chunk from the numbers of TileConfig."""
    if numbers[4] == STAGES_IN_0_1:
        size, row_groups, column_groups, chunk, _, _ = numbers
        return size, 32 * row_groups * column_groups, 16 * row_groups, chunk
    size, row_groups, row_tiles, column_groups, chunk, _ = numbers
    return size, 32 * row_groups * column_groups, 16 * row_groups * row_tiles, chunk
