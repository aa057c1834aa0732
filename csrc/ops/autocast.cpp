// Automatic mixed precision: the branch is computed in the lower precision, as torch.nn.functional.linear would; the
// residual is not cast, so that the result has the dtype of the plain formula under autocast: bfloat16 + bfloat16 stays
// bfloat16, a float32 residual stream stays float32.
#include <ATen/autocast_mode.h>

#include "registration.h"

namespace adapterx::ops {
namespace {

template <c10::DispatchKey autocast_key, c10::DeviceType device_type>
Tensor autocast(const ForwardArguments& a) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(autocast_key);
  const auto lower = at::autocast::get_lower_precision_fp_from_device_type(device_type);
  const auto cast = [&](const auto& tensor) { return at::autocast::cached_cast(lower, tensor, device_type); };
  const auto hidden = cast(a.hidden_states);
  const auto down_w = cast(a.down_weight), up_w = cast(a.up_weight);
  const auto down_b = cast(a.down_bias), up_b = cast(a.up_bias);
  const auto call = [&](const OptTensor& residual) {
    return call_forward({hidden, residual, down_w, down_b, up_w, up_b, a.activation, a.scaling, a.adapter_indices});
  };
  // Without a cast both are still one tensor, and the fused backward stays possible.
  if (!a.residual || a.residual->scalar_type() == hidden.scalar_type()) return call(a.residual);
  return a.residual->add(call(kNone));
}

template <c10::DispatchKey autocast_key, c10::DeviceType device_type>
void register_autocast(torch::Library& library) {
  library.impl("bottleneck_adapter", TORCH_FN((Flat<autocast<autocast_key, device_type>, ForwardSignature>::call)));
}

}  // namespace

TORCH_LIBRARY_IMPL(adapterx, AutocastCPU, m) {
  register_autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>(m);
}

TORCH_LIBRARY_IMPL(adapterx, AutocastCUDA, m) {
  register_autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>(m);
}

}  // namespace adapterx::ops
