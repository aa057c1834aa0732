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
    Mutant("pre-activation without bias", "bottleneck_middle.cuh", "values[i] += to_compute(bias[adapter_bias + column + i]);", "values[i] += 0.f;"),
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
    # The sort of the tokens.
    Mutant("places ignore earlier blocks", "sort_tokens.cu", "tables.first_token[slot] + earlier +", "tables.first_token[slot] +"),
    Mutant("places ignore earlier tokens", "sort_tokens.cu", "count_slot(memory.slots, slot, threadIdx.x)", "count_slot(memory.slots, slot, threadIdx.x / 4 * 4)"),
    Mutant("tokens behind the end counted", "sort_tokens.cu", "i + j < end && four", "four"),
    Mutant("segments straddle adapters", "sort_tokens.cu", "min(begin + table.length, sorted.first_token[low + 1])", "begin + table.length"),
    Mutant("tables one segment short", "sort_tokens.cu", "num_tokens / table.length + std::min<int64_t>(table.slots, num_tokens)", "num_tokens / table.length + std::min<int64_t>(table.slots - 1, num_tokens) - 1"),
    Mutant("no barrier after loading the slots", "sort_tokens.cu", "  slots[threadIdx.x] = slot;\n  __syncthreads();\n", "  slots[threadIdx.x] = slot;\n"),
    Mutant("no barrier between the parts of the scan", "sort_tokens.cu", "  __syncthreads();\n  for (int slot = first_slot; slot < slots && part", "  for (int slot = first_slot; slot < slots && part"),
    Mutant("no barrier after the totals", "sort_tokens.cu", "    if (part == parts - 1) memory.totals[slot] = before;\n  }\n  __syncthreads();\n", "    if (part == parts - 1) memory.totals[slot] = before;\n  }\n"),
    Mutant("no barrier between reading and adding", "sort_tokens.cu", "place - offset] : 0;\n    __syncthreads();\n", "place - offset] : 0;\n"),
    Mutant("scan one step short", "sort_tokens.cu", "offset < kBlockTokens; offset", "offset < kBlockTokens / 2; offset"),
    Mutant("parts of the scan left out", "sort_tokens.cu", "other < part; ++other", "other < part - 1; ++other"),
    Mutant("few indices: tokens placed too early", "sort_tokens.cu", "  scan_slots(memory, own);\n  __syncthreads();\n", "  scan_slots(memory, own);\n"),
    Mutant("few indices: scanned too early", "sort_tokens.cu", "slot, count) * each;\n  }\n  __syncthreads();\n", "slot, count) * each;\n  }\n"),
    Mutant("few indices: places ignore earlier indices", "sort_tokens.cu", "count_slot(memory.slots, slot, index) * each", "count_slot(memory.slots, slot, index) * 0"),
    Mutant("few indices: places within an index swapped", "sort_tokens.cu", "static_cast<int32_t>(token % each)", "static_cast<int32_t>(each - 1 - token % each)"),
    Mutant("few indices: slots kept to itself", "sort_tokens.cu", "if (blockIdx.x == 0) store_firsts", "if (false) store_firsts"),
    Mutant("tokens without adapter get one", "sort_tokens.cu", "low == sorted.num_adapters ? kNoAdapter : low", "low"),
    Mutant("index not checked", "sort_tokens.cu", "if (index < -1 || index >= num_adapters) {", "if (false) {"),
    # The kernels of the segment path: multiplication.
    Mutant("segments: result read too early", "segment_multiply.cuh", "    }\n  }\n  __syncthreads();\n}", "    }\n  }\n}"),
    Mutant("segments: rows of a transposed window mixed", "segment_multiply.cuh", "lane / 4 * 2 + half : lane / 4 + half * 8", "lane / 4 + half * 8 : lane / 4 + half * 8"),
    Mutant("segments: wrong columns by FMA", "segment_multiply.cuh", "right, column + j * 8, term)", "right, column + j * 4, term)"),
    Mutant("segments: last terms of a stage dropped", "segment_multiply.cuh", "term < Config::kTerms; term += kWidth", "term < Config::kTerms - kWidth; term += kWidth"),
    Mutant("segments: fragments swapped", "segment_multiply.cuh", "mma<Element>(sums[i][1], a, b[2], b[3])", "mma<Element>(sums[i][1], a, b[3], b[2])"),
    Mutant("segments: shared memory one stage short", "segment_multiply.cuh", "kTokenBytes + (kStages * kStageBytes > kResultBytes ? kStages * kStageBytes", "kTokenBytes + (kStages * kStageBytes > kResultBytes ? (kStages - 1) * kStageBytes"),
    Mutant("segments: right operand over the left one", "segments.cuh", "copy_terms<Config, kTransposed>(stage + Config::kWindow, weight", "copy_terms<Config, kTransposed>(stage, weight"),
    Mutant("segments: few rows where there are many", "segments.cuh", "segment.end - segment.begin <= Config::kFewRows", "segment.end - segment.begin <= 2 * Config::kFewRows"),
    # Their places.
    Mutant("segments: weights of the first adapter", "segments.cuh", "  weight.data += segment.adapter * weight.rows * weight.columns;\n", ""),
    Mutant("segments: unused tiles not skipped", "segments.cuh", "  if (segment.adapter == kUnusedSegment) return;\n", ""),
    Mutant("segments: no adapter multiplied", "segments.cuh", "if (segment.adapter != kNoAdapter) multiply_tile", "multiply_tile"),
    Mutant("segments: no barrier after the tokens", "segments.cuh", "  __syncthreads();\n  unsigned char* stages", "  unsigned char* stages"),
    Mutant("segments: no row guard", "segments.cuh", "tokens[row] < 0 || column >= columns", "column >= columns"),
    Mutant("segments: no column guard", "segments.cuh", "tokens[row] < 0 || column >= columns", "tokens[row] < 0"),
    Mutant("segments: every window the first", "segments.cuh", "static_cast<int>(blockIdx.x % arguments.windows) * Config::kColumns", "0"),
    Mutant("segments: tokens not sorted", "segments.cuh", "const WindowRows sorted = {segment.begin, segment.end, arguments.tokens}", "const WindowRows sorted = {segment.begin, segment.end, nullptr}"),
    Mutant("segments: range runs into the next one", "segments.cuh", "{range.first + chunk * Config::kTerms, range.end, range.tokens}", "{range.first + chunk * Config::kTerms, range.end + 1, range.tokens}"),
    Mutant("segments: ranges share their partial sums", "segments.cuh", "arguments.partial + blockIdx.y * arguments.range_size", "arguments.partial"),
    Mutant("segments: rows and columns of windows swapped", "segments.cuh", "window / product.column_windows * Config::kRows", "window % product.column_windows * Config::kRows"),
    Mutant("segments: down windows start too late", "segments.cuh", "static_cast<int>(blockIdx.x) - (is_up ? 0 : arguments.up.windows)", "static_cast<int>(blockIdx.x)"),
    Mutant("segments: bias of one row twice", "segments.cuh", "sums[i][2] += rows[1][t]", "sums[i][2] += rows[0][t]"),
    Mutant("segments: no row guard on the bias", "segments.cuh", "if (row < rows) target[row]", "target[row]"),
    Mutant("segments: no guard on the partial sums", "segments.cuh", "row0 + row >= product.left.columns || ", ""),
    # What follows their products.
    Mutant("segments: pre-activation without bias", "segment_finish.cuh", "values[i] += b[i];", "values[i] += 0 * b[i];"),
    Mutant("segments: activation left out", "segment_finish.cuh", "values[i] = activate(activation, values[i]);", ""),
    Mutant("segments: derivative at the activation", "segment_finish.cuh", "activation_derivative(activation, u[i]);", "activation_derivative(activation, activate(activation, u[i]));"),
    Mutant("segments: bias not scaled", "segment_finish.cuh", "x[i] + scale * (values[i] + b[i])", "x[i] + scale * values[i] + b[i]"),
    Mutant("segments: residual scaled", "segment_finish.cuh", "x[i] + scale * (values[i] + b[i])", "scale * (x[i] + values[i] + b[i])"),
    Mutant("segments: bias of the first adapter", "segment_finish.cuh", "load_unit(b, bias, adapter, column)", "load_unit(b, bias, 0, column)", 2),
    Mutant("segments: pre-activation not cleared", "segment_finish.cuh", "    pre_activation.store(token, column, Unit<Element>{});\n", ""),
    Mutant("segments: no base without adapter", "segment_finish.cuh", "if (base.data != nullptr) load_unit(x, base, token, column);", "", 2),
    Mutant("segments: unit past the end of a row", "segment_finish.cuh", "column + i < matrix.columns ? to_compute(from[i]) : 0", "to_compute(from[i])"),
    Mutant("segments: store past the end of a row", "segment_finish.cuh", "if (column + i < columns) to[i]", "to[i]"),
    # Their launchers.
    Mutant("segments: activated and gradient share memory", "segments.cu", "gradient = take_narrow(problem, arena);", "gradient = has_activated ? activated : take_narrow(problem, arena);"),
    Mutant("segments: grad_output always added", "segments.cu", "tensors.add_grad_output ? tensors.grad_output : nullptr", "tensors.grad_output"),
    Mutant("segments: alignment of rows not looked at", "segments.cu", "is_aligned(data, 16) && columns % kVectorWidth<Element> == 0", "is_aligned(data, 16)"),
    Mutant("segments: no space for the gradient", "segments.cu", "if (has_gradient) gradient = take_narrow(problem, arena);", "Arena copy = arena; if (has_gradient) gradient = take_narrow(problem, copy);"),
    Mutant("segments: windows of the weight nobody wants", "segments.cu", "    product.right.columns = 0;\n", ""),
    # The tile kernels with several adapters.
    Mutant("weights of the first adapter", "bottleneck_tile.cuh", "weight.data += adapter * weight.rows * weight.columns;", ""),
    Mutant("up bias of the first adapter", "bottleneck_tile.cuh", "static_cast<int64_t>(block.adapter) * columns + first", "first"),
    Mutant("down bias of the first adapter", "bottleneck_middle.cuh", "static_cast<int64_t>(adapter) * access.columns", "0"),
    Mutant("residual of tokens without adapter", "bottleneck_tile.cuh", "arguments.replacement.data != nullptr ? arguments.replacement : arguments.tile", "arguments.tile"),
    Mutant("pre-activation without adapter not cleared", "bottleneck_tile.cuh", "middle.clear(token, column)", "(void)0"),
    Mutant("every second row of the base left out", "bottleneck_tile.cuh", "row += Config::kThreads / 32", "row += Config::kThreads / 16"),
    Mutant("vectors of the base past its slice", "bottleneck_tile.cuh", "i < columns; i += 32 * width", "i < columns + 8; i += 32 * width"),
    Mutant("no barrier after the tile's tokens", "bottleneck_tile.cuh", "    __syncthreads();\n    return tile_adapter;", "    return tile_adapter;"),
    Mutant("gradients of the first adapter only", "partial_sums.cu", "matrix.target + blockIdx.y * matrix.rows * matrix.columns", "matrix.target"),
    Mutant("gradient sums a range too many", "partial_sums.cu", "arguments.first_range[blockIdx.y + 1]", "arguments.first_range[blockIdx.y + 1] + 1"),
    # Launchers.
    Mutant("activated and gradient share memory", "backward.cu", "own.gradient = take_elements(arena, problem.dtype, narrow);", "own.gradient = own.up ? own.activated : take_elements(arena, problem.dtype, narrow);"),
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
