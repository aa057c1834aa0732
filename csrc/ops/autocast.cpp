// Automatic mixed precision: the branch is computed in the lower precision, as torch.nn.functional.linear would; the
// residual is not cast, so that the result has the dtype of the plain formula under autocast: bfloat16 + bfloat16 stays
// bfloat16, a float32 residual stream stays float32.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "operators.h"

namespace adapterx::ops {
namespace {

template <c10::DispatchKey autocast_key, c10::DeviceType device_type>
Tensor forward_autocast(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                        const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                        std::string_view activation, double scaling) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(autocast_key);
  const auto lower = at::autocast::get_lower_precision_fp_from_device_type(device_type);
  const auto cast = [&](const auto& tensor) { return at::autocast::cached_cast(lower, tensor, device_type); };
  const auto hidden = cast(hidden_states);
  const auto down_w = cast(down_weight), up_w = cast(up_weight);
  const auto down_b = cast(down_bias), up_b = cast(up_bias);
  // Without a cast both are still one tensor, and the fused backward stays possible.
  if (!residual || residual->scalar_type() == hidden.scalar_type()) {
    return forward_operator().call(hidden, residual, down_w, down_b, up_w, up_b, activation, scaling);
  }
  const auto branch = forward_operator().call(hidden, std::nullopt, down_w, down_b, up_w, up_b, activation, scaling);
  return residual->add(branch);
}

}  // namespace

TORCH_LIBRARY_IMPL(adapterx, AutocastCPU, m) {
  m.impl("bottleneck_adapter", TORCH_FN((forward_autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>)));
}

TORCH_LIBRARY_IMPL(adapterx, AutocastCUDA, m) {
  m.impl("bottleneck_adapter", TORCH_FN((forward_autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>)));
}

}  // namespace adapterx::ops
