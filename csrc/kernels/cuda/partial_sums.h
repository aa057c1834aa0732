// Partial sums of the weight gradients, one set for each range of tokens, and their sum in a fixed order.
#pragma once

#include "../problem.h"
#include "runtime.h"
#include "sort_tokens.h"

namespace adapterx::cuda {

// Where the sums of one range lie, in elements of the type arithmetic is done in. Sizes are padded so that a kernel
// stores whole vectors or windows without looking at limits; a weight gradient that nobody wants takes no space.
struct PartialLayout {
  int64_t padded_hidden = 0;
  int64_t padded_input = 0;
  int64_t padded_bottleneck = 0;
  bool has_up_weight = true;
  bool has_down_weight = true;

  __host__ __device__ int64_t up_weight() const { return 0; }  // padded_hidden x padded_bottleneck
  __host__ __device__ int64_t down_weight() const { return has_up_weight ? padded_hidden * padded_bottleneck : 0; }
  __host__ __device__ int64_t up_bias() const {
    return down_weight() + (has_down_weight ? padded_bottleneck * padded_input : 0);
  }
  __host__ __device__ int64_t down_bias() const { return up_bias() + padded_hidden; }
  __host__ __device__ int64_t size() const { return down_bias() + padded_bottleneck; }
};

// Device pointer to sets of fp32 sums (fp64 for fp64 tensors). Without sorted tokens all belong to the one adapter.
struct PartialSums {
  const void* data = nullptr;
  PartialLayout layout;
  int64_t ranges = 0;
  // Sorted tokens: adapters of one range have their gradients already, and have no set; the sets are those that
  // partial_set() says. Else each range has a set, and each adapter is summed here.
  bool long_only = false;
  bool programmatic = false;  // the kernel that writes them says when this one may start
};

// The set of a range that begins at `begin` of the sorted order and is not its adapter's only one. Ranges that another
// one follows are full: two of them begin at least kRangeTokens apart. The last range goes by the one before it.
__host__ __device__ inline int64_t partial_set(int64_t begin, bool last) {
  return last ? (begin - kRangeTokens) / kRangeTokens * 2 + 1 : begin / kRangeTokens * 2;
}
constexpr int64_t max_partial_sets(int64_t num_tokens) { return num_tokens / kRangeTokens * 2; }

// One launch: each wanted gradient of each adapter is the sum of its ranges, in order; the up gradients times scaling.
cudaError_t reduce_partial_sums(const Problem& problem, const BackwardTensors& tensors, const PartialSums& partial,
                                const SortedTokens* sorted, cudaStream_t stream);

// Where there are no tokens: sets the wanted gradients of the weights and biases of all adapters to zero.
cudaError_t clear_weight_gradients(const Problem& problem, const BackwardTensors& tensors, int64_t num_adapters,
                                   cudaStream_t stream);

}  // namespace adapterx::cuda
