"""The bugs that mutants.py plants in the CUDA kernels, one line a bug."""
# ruff: noqa: E501

from typing import NamedTuple


class Mutant(NamedTuple):
    """Replace the occurrence number `nth` (from 1) of `old` in `file` by `new`."""

    name: str
    file: str
    old: str
    new: str
    nth: int = 1


MUTANTS = [
    # The pipeline: barriers and waits.
    Mutant("no barrier after the wait", "tile.cuh", "      __syncthreads();\n", ""),
    Mutant("wait leaves one group too many", "tile.cuh", "cp_async_wait<kStages - 2>", "cp_async_wait<kStages - 1>"),
    Mutant("no barrier before stages are reused", "tile.cuh", "    __syncthreads();  // all stages are free again", ""),
    Mutant("load one chunk too far ahead", "tile.cuh", "i + kStages - 1;", "i + kStages;"),
    Mutant("no empty groups at the end", "tile.cuh", "      cp_async_commit();\n      compute", "      if (next < count) cp_async_commit();\n      compute"),
    Mutant("wrong stage", "tile.cuh", "compute(i, i % kStages)", "compute(i, (i + 1) % kStages)"),
    # Copies and their guards.
    Mutant("no row guard on loads", "tile.cuh", "if (place >= end) return -1;", ""),
    Mutant("no column guard on loads", "tile.cuh", "min(max(source.columns - (column0 + column), 0), kWidth)", "kWidth"),
    Mutant("tail not zeroed by element copies", "tile.cuh", "target[i] = i < valid ? from[i] : from_compute<Element>(0);", "if (i < valid) target[i] = from[i];"),
    Mutant("alignment of rows not looked at", "tile.cuh", "is_aligned(data, 16) && stride % kVectorWidth<Element> == 0", "is_aligned(data, 16)"),
    # Fragments.
    Mutant("wrong ldmatrix column, rows first", "tile.cuh", "lane % 16 * stride + lane / 16 * 8", "lane % 16 * stride + lane / 8 % 2 * 8"),
    Mutant("wrong ldmatrix row, columns first", "tile.cuh", "lane % 8 + lane / 16 * 8", "lane % 8 + lane / 8 % 2 * 8"),
    Mutant("transposed B not transposed", "tile.cuh", "ldmatrix_x4_trans(b, rows_first", "ldmatrix_x4(b, rows_first"),
    Mutant("transposed A not transposed", "tile.cuh", "ldmatrix_x4_trans(a, columns_first", "ldmatrix_x4(a, columns_first"),
    Mutant("first product: fragments swapped", "bottleneck_tile.cuh", "(sums[n / 8], a, b[0], b[1])", "(sums[n / 8], a, b[0], b[2])"),
    Mutant("second product: fragments swapped", "bottleneck_tile.cuh", "(product[1], a, b[2], b[3])", "(product[1], a, b[3], b[2])"),
    Mutant("second product: wrong column", "bottleneck_tile.cuh", "finish_output(product[1], block, arguments, column + 8)", "finish_output(product[1], block, arguments, column + 4)"),
    Mutant("operand read at the wrong stride", "bottleneck_tile.cuh", "load_a<false>(a, rows + k, Config::kUpStride", "load_a<false>(a, rows + k, Config::kUpStride - 8"),
    # The exchange between warps and blocks.
    Mutant("no barrier before the exchange", "bottleneck_tile.cuh", "  block.barrier();\n  exchange", "  exchange"),
    Mutant("no barrier after the exchange", "bottleneck_tile.cuh", "  block.barrier();  // also keeps a block alive until the others have read its shared memory\n", ""),
    Mutant("block barrier in place of the cluster's", "bottleneck_tile.cuh", "      cluster_sync();\n", "      __syncthreads();\n"),
    Mutant("last block left out of the sum", "bottleneck_tile.cuh", "source < cluster_size; ++source", "source < max(1, cluster_size - 1); ++source"),
    Mutant("sum starts at the wrong block", "bottleneck_tile.cuh", "block.in_block(from, source)", "block.in_block(from, (source + 1) % cluster_size)"),
    Mutant("sum of one warp's share only", "bottleneck_tile.cuh", "block.partial + group * Config::kPartialPlane", "block.partial + 0 * group * Config::kPartialPlane"),
    Mutant("result kept from the other blocks", "bottleneck_tile.cuh", "block.in_block(to, target)", "block.in_block(to, block.rank)"),
    Mutant("shares rounded down", "bottleneck_tile.cuh", "(block.rank + 1) * kItems / cluster_size;", "block.rank * kItems / cluster_size + kItems / cluster_size;"),
    Mutant("barrier in a divergent branch", "bottleneck_tile.cuh", "  block.barrier();\n  exchange", "  if (block.row_group == 0) __syncthreads();\n  block.barrier();\n  exchange"),
    # Output.
    Mutant("no row guard on the output", "bottleneck_tile.cuh", "token < 0 || output_column >= columns", "output_column >= columns"),
    Mutant("no column guard on the output", "bottleneck_tile.cuh", "token < 0 || output_column >= columns", "token < 0"),
    Mutant("no warp barrier before the store", "bottleneck_tile.cuh", "  __syncwarp();  // a warp stores what its own lanes have written\n", ""),
    Mutant("bias not scaled", "bottleneck_tile.cuh", "arguments.scale * (product[half * 2 + i] + bias[i])", "arguments.scale * product[half * 2 + i] + bias[i]"),
    Mutant("residual always added", "bottleneck_tile.cuh", "arguments.add_base ? to_compute(base.values[i]) + term : term", "to_compute(base.values[i]) + term"),
    Mutant("separate residual not copied", "bottleneck_tile.cuh", "if (arguments.replacement.data != nullptr)", "if (false)"),
    Mutant("shared memory one stage short", "bottleneck_tile.cuh", "(tile + kStages * kStageElements", "(tile + (kStages - 1) * kStageElements"),
    Mutant("columns of the last chunk dropped", "bottleneck_tile.cuh", "(columns + Config::kChunk - 1) / Config::kChunk", "columns / Config::kChunk"),
    # Between the products.
    Mutant("pre-activation without bias", "bottleneck_middle.cuh", "values[i] += to_compute(bias[group_bias + column + i]);", "values[i] += 0.f;"),
    Mutant("no column guard on the pre-activation", "bottleneck_middle.cuh", "if (column + i < columns) to[i] = quad.values[i];", "to[i] = quad.values[i];"),
    Mutant("no row guard on the pre-activation's load", "bottleneck_middle.cuh", "row >= 0 && column + i < columns ? to_compute(from[i]) : 0.f", "column + i < columns ? to_compute(from[i]) : 0.f"),
    Mutant("no row guard on the pre-activation's store", "bottleneck_middle.cuh", "if (target == nullptr || row < 0) return;", "if (target == nullptr) return;"),
    Mutant("gradient without scaling", "bottleneck_middle.cuh", "values[i] *= scaling * activation_derivative", "values[i] *= activation_derivative"),
    Mutant("derivative taken at the gradient", "bottleneck_middle.cuh", "activation_derivative(activation, u[i])", "activation_derivative(activation, values[i])"),
    # Weight gradients.
    Mutant("ones in a row, not a column", "tile.cuh", "return lane / 4 == 0 ?", "return lane % 4 == 0 ?"),
    Mutant("bias read from the wrong accumulator", "weight_gradient.cuh", "target[lane / 4 + 8] = sums[2];", "target[lane / 4 + 8] = sums[1];"),
    Mutant("range runs into the next one", "weight_gradient.cuh", "end < arguments.activated.rows ? end : arguments.activated.rows", "arguments.activated.rows"),
    Mutant("ranges share their partial sums", "weight_gradient.cuh", "arguments.partial + blockIdx.y * arguments.layout.size()", "arguments.partial"),
    Mutant("down partial sums: same ranges", "weight_gradient.cuh", "arguments.partial + blockIdx.y * arguments.layout.size()", "arguments.partial", 2),
    Mutant("up bias not scaled", "partial_sums.cu", "layout.up_bias(), d, scaling}", "layout.up_bias(), d, 1}"),
    Mutant("ranges summed backwards", "partial_sums.cu", "from[range * arguments.range_size]", "from[(end - 1 - range + first) * arguments.range_size]"),
    Mutant("up bias taken from the weight's sums", "partial_sums.h", "return down_weight() + (has_down_weight ? padded_bottleneck * padded_input : 0);", "return down_weight();"),
    Mutant("down gradient: fragments swapped", "weight_gradient.cuh", "b[n / 2][n % 2 * 2 + 1]", "b[n / 2][(n + 1) % 2 * 2 + 1]"),
    Mutant("up gradient: second row tile forgotten", "weight_gradient.cuh", "wide + k * Config::kWideStride + warp_column + i * 16", "wide + k * Config::kWideStride + warp_column"),
    # Grouped adapters.
    Mutant("places ignore earlier blocks", "grouping.cu", "tables.first_token[group] + tables.counts[row + group]", "tables.first_token[group]"),
    Mutant("segments straddle adapters", "grouping.cu", "min(begin + size, tables.first_token[low + 1])", "begin + size"),
    Mutant("no barrier after loading the groups", "grouping.cu", "  __syncthreads();\n", ""),
    Mutant("no barrier in the scan", "grouping.cu", "  __syncthreads();\n", "", 2),
    Mutant("tokens without adapter get one", "grouping.cu", "low == tables.num_groups ? kNoAdapter : low", "low"),
    Mutant("index not checked", "grouping.cu", "if (index < -1 || index >= tables.num_groups) {", "if (false) {"),
    Mutant("weights of the first adapter", "bottleneck_tile.cuh", "weight.data += group * weight.rows * weight.columns;", ""),
    Mutant("up bias of the first adapter", "bottleneck_tile.cuh", "static_cast<int64_t>(block.group) * columns + first", "first"),
    Mutant("down bias of the first adapter", "bottleneck_middle.cuh", "static_cast<int64_t>(group) * access.columns", "0"),
    Mutant("residual of tokens without adapter", "bottleneck_tile.cuh", "arguments.replacement.data != nullptr ? arguments.replacement : arguments.tile", "arguments.tile"),
    Mutant("pre-activation without adapter not cleared", "bottleneck_tile.cuh", "middle.clear(token, threadIdx.x * 4)", "(void)0"),
    Mutant("no barrier after the tile's tokens", "bottleneck_tile.cuh", "    __syncthreads();\n    return tile_group;", "    return tile_group;"),
    Mutant("gradients of the first adapter only", "partial_sums.cu", "matrix.target + blockIdx.y * matrix.rows * matrix.columns", "matrix.target"),
    Mutant("gradient sums a range too many", "partial_sums.cu", "arguments.first_range[blockIdx.y + 1]", "arguments.first_range[blockIdx.y + 1] + 1"),
    # Launchers.
    Mutant("activated and gradient share memory", "backward.cu", "return up ? narrow_bytes : 0;", "return 0;"),
    Mutant("down gradient reads grad_output", "backward.cu", "make_matrix<Element>(tensors.hidden_states, tensors.hidden_states_stride", "make_matrix<Element>(tensors.grad_output, tensors.hidden_states_stride"),
    Mutant("residual taken for the input", "forward.cu", "tensors.residual != nullptr && !same", "false"),
    # Element-wise kernels.
    Mutant("column sums without barrier", "rowwise.cuh", "  __syncthreads();\n", ""),
    Mutant("column sums miss a row of threads", "rowwise.cuh", "for (int y = 1;", "for (int y = 2;"),
    Mutant("column sums: range end not looked at", "rowwise.cuh", "first + arguments.range_rows < arguments.rows ? first + arguments.range_rows : arguments.rows", "arguments.rows"),
    Mutant("column sums: ranges backwards", "rowwise.cuh", "partial[range * columns + column]", "partial[(ranges - 1 - range) * columns + column]"),
    Mutant("vectors past the last column", "rowwise.cu", "shape.columns % kWidth == 0 && stride % kWidth == 0", "true"),
    Mutant("derivative of gelu without density", "activation.cuh", "return cdf + x * Real", "return cdf + 0 * x * Real"),
    Mutant("derivative of silu wrong", "activation.cuh", "s * (Real(1) + x * (Real(1) - s))", "s * (Real(1) + x * s)"),
    Mutant("gelu by tanh", "activation.cuh", "return Real(0.5) * x * (Real(1) + math_erf(x * Real(kSqrtHalf)));", "return Real(0.5) * x * (Real(1) + gelu_tanh_inner(x));"),
]  # fmt: skip
