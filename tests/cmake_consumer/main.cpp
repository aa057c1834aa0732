// A C++ program without Python: the operator must be there because the library is linked, and give the right numbers.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdio>
#include <string_view>

int main() {
  at::manual_seed(0);
  const at::Tensor h = at::randn({5, 8}, at::kDouble), down = at::randn({3, 8}, at::kDouble);
  const at::Tensor up = at::randn({8, 3}, at::kDouble);
  const at::Tensor exact = h + 0.5 * at::matmul(at::gelu(at::matmul(h, down.t())), up.t());
  using Optional = const std::optional<at::Tensor>&;
  const at::Tensor actual = c10::Dispatcher::singleton()
                                .findSchemaOrThrow("adapterx::bottleneck_adapter", "")
                                .typed<at::Tensor(const at::Tensor&, Optional, const at::Tensor&, Optional,
                                                  const at::Tensor&, Optional, std::string_view, double, Optional)>()
                                .call(h, h, down, std::nullopt, up, std::nullopt, "gelu", 0.5, std::nullopt);
  const double error = (actual - exact).abs().max().item<double>();
  std::printf("largest difference from the formula: %.1e\n", error);
  return error < 1e-12 ? 0 : 1;
}
