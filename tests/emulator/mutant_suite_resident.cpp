// The resident kernel in the mutation suite: so few clusters that each walks over more tiles than it has stages.
#include "mutant_suite.h"

namespace suite {

void run_resident_kernel() {
  const auto few = [](int32_t blocks) { return Device{90, emulator::kMaxSharedMemory, blocks}; };
  // Slices of at most 256 columns, and of at most 512 with a last block that has fewer.
  test_forward({330, 72, 30, {32, 1}, "resident forward, one block", few(1)}, false, true);
  test_forward({170, 1032, 32, {32, 2}, "resident forward, a cluster, no residual", few(2)}, false, false);
  test_forward({40, 264, 24, {32, 8}, "resident forward, a cluster of 8", few(8)}, false, true);
  test_backward({330, 72, 24, {32, 1}, "resident backward, one block", few(1)}, true, 31);
  test_backward({100, 1032, 30, {32, 4}, "resident backward, a cluster", few(8)}, false, 31);
  test_grouped(24, {32, 2}, few(2));
  test_far_tokens({32, 8}, few(8));
}

}  // namespace suite
