// Uses the CUDA kernels through their door, as a framework does. Without a GPU it plans; a call, which would need one,
// is linked and not made.
#include <cstdio>

#include "kernels/cuda/adapter.h"

namespace {

using namespace adapterx;

struct Case {
  const char* what;
  ScalarType dtype;
  int64_t num_adapters;
  cuda::Path path;
};

constexpr Case kCases[] = {{"bfloat16, one adapter", ScalarType::bfloat16, 0, cuda::Path::tile},
                           {"bfloat16, three adapters", ScalarType::bfloat16, 3, cuda::Path::tile},
                           {"float32, one adapter", ScalarType::float32, 0, cuda::Path::cublas},
                           {"float32, three adapters", ScalarType::float32, 3, cuda::Path::segments}};

}  // namespace

int main(int argc, char**) {
  const cuda::Device device = {90, 227 * 1024, 132};
  for (const Case& c : kCases) {
    const Problem problem = {c.dtype, Activation::gelu, 1.0, 512, 768, 768, 64};
    const AdapterIndices indices = {nullptr, c.num_adapters};
    const ForwardTensors forward;
    const BackwardTensors backward;
    const cuda::Plan plan = cuda::plan(problem, forward, indices, device, "");
    const cuda::Plan plan_back = cuda::plan(problem, backward, indices, device, "");
    std::printf("%s: workspace %lld B %s\n", c.what, static_cast<long long>(plan.workspace), plan.refusal.c_str());
    if (plan.path != c.path || plan_back.path != c.path || !plan.refusal.empty()) return 1;
    if (argc < 2) continue;
    if (!cuda::run(plan, problem, forward, indices, {}, nullptr, nullptr).ok()) return 1;
    if (!cuda::run(plan_back, problem, backward, indices, {}, nullptr, nullptr).ok()) return 1;
  }
  return 0;
}
