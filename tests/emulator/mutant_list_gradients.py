"""The bugs that mutants.py plants in the weight gradients of the tile path, one line a bug."""
# ruff: noqa: E501

# (name, file, old, new), and which occurrence where it is not the first.
GRADIENT_BUGS = [
    # Any rows: weight_gradient.cuh.
    ("bias read from the wrong accumulator", "weight_gradient.cuh", "store_bias(gradient, target, place + lane / 4 + 8, sums[2]);", "store_bias(gradient, target, place + lane / 4 + 8, sums[1]);"),
    ("range runs into the next one", "weight_gradient.cuh", "end < arguments.activated.rows ? end : arguments.activated.rows", "arguments.activated.rows"),
    ("ranges share their partial sums", "weight_gradient.cuh", "arguments.partial + blockIdx.y * arguments.partial_size", "arguments.partial"),
    ("down gradient: fragments swapped", "weight_gradient.cuh", "b[n / 2][n % 2 * 2 + 1]", "b[n / 2][(n + 1) % 2 * 2 + 1]"),
    ("up gradient: second row tile forgotten", "weight_gradient.cuh", "wide + k * Config::kWideStride + warp_column + i * 16", "wide + k * Config::kWideStride + warp_column"),
    # Streamed: gradient_stream.cuh.
    ("copies do not wait for an empty stage", "gradient_stream.cuh", "    barrier_wait(ring.empty(), ring.parity ^ 1);\n", ""),
    ("products do not wait for a full stage", "gradient_stream.cuh", "    barrier_wait(ring.full(), ring.parity);\n", ""),
    ("the ring's parity never turns", "gradient_stream.cuh", "    parity ^= 1;\n", ""),
    ("rows behind the range not zeroed", "gradient_stream.cuh", "    if (rows % 16 != 0) {", "    if (false) {"),
    ("zeros begin a row late", "gradient_stream.cuh", "clear_rows(ring, begin + mine,", "clear_rows(ring, begin + mine + 1,"),
    ("rows of sorted tokens copied as neighbours", "gradient_stream.cuh", "arguments.tokens == nullptr && narrow.stride", "narrow.stride"),
    ("last step of a stage skipped", "gradient_stream.cuh", "if (left > 16) {", "if (left > 17) {"),
    ("windows copied beyond the columns", "gradient_stream.cuh", "min(wide.columns - column0, Config::kColumns)", "Config::kColumns"),
    ("exchange over stages that others still read", "gradient_stream.cuh", "  block_barrier(1, Config::kComputeThreads);\n", ""),
    ("a block of the cluster ends early", "gradient_stream.cuh", "  if (cluster) cluster_sync();  // a block lives until", "  if (cluster) __syncthreads();  // a block lives until"),
    ("blocks added from the own rank on", "gradient_stream.cuh", "cluster_map(mine, static_cast<unsigned>(source))", "cluster_map(mine, static_cast<unsigned>((source + rank) % blocks))"),
    ("all blocks of a cluster sum the first range", "gradient_stream.cuh", "arguments.ranges + block_rank(arguments)) * arguments.range_tokens", "arguments.ranges) * arguments.range_tokens"),
    ("note overwritten while lanes read it", "gradient_stream.cuh", "    __syncwarp();  // all lanes have read the last note\n", ""),
    ("down bias stored by each window", "gradient_stream.cuh", "} else if (item.window == 0 && warp", "} else if (warp"),
    ("bias of the first 16 columns twice", "gradient_stream.cuh", "column0 + i * 16, sums.bias[i]", "column0 + i * 16, sums.bias[0]"),
    ("the kernel ahead not waited for", "gradient_stream.cuh", "  dependency_wait();\n", ""),
    # Where the sums go: gradient_store.cuh.
    ("lanes exchange the half that they keep", "gradient_store.cuh", "shuffle_xor(odd ? left : right, 1)", "shuffle_xor(odd ? right : left, 1)"),
    ("down gradient not transposed", "gradient_store.cuh", "kTransposed ? movmatrix_trans(blocks[0][i]) : blocks[i][0]", "blocks[kTransposed ? 0 : i][kTransposed ? i : 0]"),
    ("up gradient not scaled", "gradient_store.cuh", "pack<Element>(gradient.scale * first[2 * half], gradient.scale", "pack<Element>(first[2 * half], gradient.scale"),
    ("gradients of the first adapter only", "gradient_store.cuh", "gradient.weight + target.adapter * gradient.rows * gradient.row.columns", "gradient.weight"),
    ("bias behind the end", "gradient_store.cuh", "gradient.bias != nullptr && place < gradient.bias_size", "gradient.bias != nullptr"),
    # Partial sums and their reduction.
    ("sums read before they are there", "partial_sums.cu", "  dependency_wait();\n", ""),
    ("up bias not scaled", "partial_sums.cu", "layout.up_bias(), d, scaling}", "layout.up_bias(), d, 1}"),
    ("ranges summed backwards", "partial_sums.cu", "from[sets(range) * arguments.range_size]", "from[sets(sets.count - 1 - range) * arguments.range_size]"),
    ("up bias taken from the weight's sums", "partial_sums.h", "return down_weight() + (has_down_weight ? padded_bottleneck * padded_input : 0);", "return down_weight();"),
    ("reduced gradients of the first adapter only", "partial_sums.cu", "matrix.target + sets.adapter * matrix.rows * matrix.columns", "matrix.target"),
    ("gradient sums a range too many", "partial_sums.cu", "sets.count = arguments.first_range[adapter + 1] - sets.first;", "sets.count = arguments.first_range[adapter + 1] - sets.first + 1;"),
    ("adapters without tokens keep what was there", "partial_sums.cu", "if (sets.count == 1) continue;", "if (sets.count <= 1) continue;"),
    ("gradients of one range overwritten", "partial_sums.cu", "if (sets.count == 1) continue;", "if (sets.count == 1) sets.count = 0;"),
    # The launch.
    ("activated and gradient share memory", "weight_gradient.cu", "work.gradient = take_elements(arena, problem.dtype, narrow);", "work.gradient = work.up ? work.activated : take_elements(arena, problem.dtype, narrow);"),
    ("down gradient reads grad_output", "weight_gradient.cu", "make_matrix<Element>(tensors.hidden_states, tensors.hidden_states_stride", "make_matrix<Element>(tensors.grad_output, tensors.hidden_states_stride"),
    ("narrow rows without their pitch", "backward.cu", "make_quad_access<Element>(problem, work.pitch,", "make_quad_access<Element>(problem, m,"),
]  # fmt: skip
