// Adds the partial sums of the weight gradients.
// Grid: x strides over the elements of a gradient, y over the adapters. A thread owns one element at a time and reads it
// from each range in turn: neighbouring threads read neighbouring elements. No shared memory. Accumulation in fp32, or
// fp64 for fp64.
#include <algorithm>

#include "element.cuh"
#include "launch.cuh"
#include "partial_sums.h"

namespace adapterx::cuda {
namespace {

constexpr int64_t kThreads = 256;
constexpr int64_t kBlocks = 4 * 132;  // of one adapter, at most; 132 SMs
constexpr int64_t kAdapterRows = 8;   // of the grid, where most adapters have no partial sums

template <typename Element>
struct ReduceArguments {
  const Compute<Element>* partial = nullptr;
  int64_t range_size = 0;
  int ranges = 0;
  int num_adapters = 1;
  const int32_t* first_range = nullptr;  // grouped: where the ranges of each adapter begin; null: one adapter
  const int32_t* first_token = nullptr;  // grouped, long_only: likewise its sorted tokens; null: a set for each range
};

// The sets of partial sums of one adapter: range i of `count` is set `first + i`, or that of the token it begins with.
struct AdapterSets {
  int adapter = 0, first = 0, count = 0;
  bool by_token = false;

  __device__ __forceinline__ int64_t operator()(int i) const {
    return by_token ? partial_set(first + i * kRangeTokens, i + 1 == count) : first + i;
  }
};

// One gradient, (rows, columns) for each adapter, and where it lies in the partial sums.
template <typename Element>
struct ReducedMatrix {
  Element* target = nullptr;  // null: not wanted
  int64_t rows = 0, columns = 0;
  int64_t offset = 0, stride = 0;
  Compute<Element> scale = 1;
};

template <typename Element>
struct ReducedGradients {
  ReducedMatrix<Element> up_weight, down_weight, up_bias, down_bias;
};

// Index: 32 bits where they suffice, since a division of 64 bits costs a hundred instructions.
template <typename Index, typename Element>
__device__ __forceinline__ void reduce_elements(const ReducedMatrix<Element>& matrix,
                                                const ReduceArguments<Element>& arguments, const AdapterSets& sets) {
  const Index count = static_cast<Index>(matrix.rows * matrix.columns), width = static_cast<Index>(matrix.columns);
  const Index step = static_cast<Index>(gridDim.x) * blockDim.x;
  Element* target = matrix.target + sets.adapter * matrix.rows * matrix.columns;
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const Compute<Element>* from = arguments.partial + matrix.offset + i / width * matrix.stride + i % width;
    Compute<Element> sum = 0;
    for (int range = 0; range < sets.count; ++range) sum += from[sets(range) * arguments.range_size];
    target[i] = from_compute<Element>(matrix.scale * sum);
  }
}

// target[row][column] = scale * the sum over ranges, in order, of partial[range][offset + row * stride + column].
template <typename Element>
__device__ __forceinline__ void reduce_matrix(const ReducedMatrix<Element>& matrix,
                                              const ReduceArguments<Element>& arguments, const AdapterSets& sets) {
  if (matrix.target == nullptr) return;
  if (matrix.rows * matrix.columns < int64_t{1} << 31) {
    reduce_elements<uint32_t>(matrix, arguments, sets);
  } else {
    reduce_elements<uint64_t>(matrix, arguments, sets);
  }
}

template <typename Element>
__global__ void partial_sum_kernel(const ReduceArguments<Element> arguments,
                                   const ReducedGradients<Element> gradients) {
  dependency_wait();
  for (int adapter = blockIdx.y; adapter < arguments.num_adapters; adapter += gridDim.y) {
    AdapterSets sets = {adapter, 0, arguments.ranges};
    if (arguments.first_range != nullptr) {
      sets.first = arguments.first_range[adapter];
      sets.count = arguments.first_range[adapter + 1] - sets.first;
    }
    if (arguments.first_token != nullptr) {
      if (sets.count == 1) continue;
      sets.first = arguments.first_token[adapter];
      sets.by_token = true;
    }
    reduce_matrix(gradients.up_weight, arguments, sets);
    reduce_matrix(gradients.down_weight, arguments, sets);
    reduce_matrix(gradients.up_bias, arguments, sets);
    reduce_matrix(gradients.down_bias, arguments, sets);
  }
}

template <typename Element>
ReducedGradients<Element> reduced_gradients(const Problem& problem, const BackwardTensors& tensors,
                                            const PartialLayout& layout) {
  const int64_t d = problem.hidden_size, n = problem.input_size, m = problem.bottleneck_dim;
  const auto scaling = static_cast<Compute<Element>>(problem.scaling);
  const auto target = [](void* pointer) { return static_cast<Element*>(pointer); };
  return {{target(tensors.grad_up_weight), d, m, layout.up_weight(), layout.padded_bottleneck, scaling},
          {target(tensors.grad_down_weight), m, n, layout.down_weight(), layout.padded_input, 1},
          {target(tensors.grad_up_bias), 1, d, layout.up_bias(), d, scaling},
          {target(tensors.grad_down_bias), 1, m, layout.down_bias(), m, 1}};
}

}  // namespace

cudaError_t reduce_partial_sums(const Problem& problem, const BackwardTensors& tensors, const PartialSums& partial,
                                const SortedTokens* sorted, cudaStream_t stream) {
  return visit_dtype(problem.dtype, [&](auto tag) {
    using Element = typename decltype(tag)::Type;
    ReduceArguments<Element> arguments;
    arguments.partial = static_cast<const Compute<Element>*>(partial.data);
    arguments.range_size = partial.layout.size();
    arguments.ranges = static_cast<int>(partial.ranges);
    if (sorted != nullptr) {
      arguments.num_adapters = sorted->num_adapters;
      arguments.first_range = sorted->first_range;
      if (partial.long_only) arguments.first_token = sorted->first_token;
    }
    const int64_t adapter_rows =
        partial.long_only ? std::min<int64_t>(arguments.num_adapters, kAdapterRows) : arguments.num_adapters;
    // The bottleneck_dim is 0 where the gradient of up_bias alone is wanted.
    const int64_t widest =
        std::max(problem.hidden_size, problem.input_size) * std::max(problem.bottleneck_dim, int64_t{1});
    const int64_t blocks = partial.long_only ? ceil_div(kBlocks, adapter_rows) : kBlocks;
    LaunchShape shape = {
        dim3(static_cast<unsigned>(std::min(blocks, ceil_div(widest, kThreads))), static_cast<unsigned>(adapter_rows)),
        dim3(static_cast<unsigned>(kThreads))};
    shape.programmatic = partial.programmatic;
    return launch(partial_sum_kernel<Element>, shape, stream, arguments,
                  reduced_gradients<Element>(problem, tensors, partial.layout));
  });
}

cudaError_t clear_weight_gradients(const Problem& problem, const BackwardTensors& tensors, int64_t num_adapters,
                                   cudaStream_t stream) {
  const int64_t d = problem.hidden_size, n = problem.input_size, m = problem.bottleneck_dim;
  const std::pair<void*, int64_t> parts[] = {{tensors.grad_down_weight, m * n},
                                             {tensors.grad_down_bias, m},
                                             {tensors.grad_up_weight, d * m},
                                             {tensors.grad_up_bias, d}};
  return visit_dtype(problem.dtype, [&](auto tag) {
    constexpr int64_t kSize = sizeof(typename decltype(tag)::Type);  // all formats write zero as zero bytes
    for (const auto& [target, count] : parts) {
      if (target == nullptr) continue;
      const auto bytes = static_cast<size_t>(num_adapters * count * kSize);
      if (const cudaError_t error = cudaMemsetAsync(target, 0, bytes, stream); error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}

}  // namespace adapterx::cuda
