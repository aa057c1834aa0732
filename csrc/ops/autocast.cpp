// Automatic mixed precision: the branch is computed in the lower precision, as torch.nn.functional.linear would; the
// residual is not cast, so that the result has the dtype of the plain formula under autocast: bfloat16 + bfloat16 stays
// bfloat16, a float32 residual stream stays float32.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "operators.h"

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
    return call_forward({hidden, residual, a.adapter_indices, down_w, down_b, up_w, up_b, a.activation, a.scaling});
  };
  // Without a cast both are still one tensor, and the fused backward stays possible.
  if (!a.residual || a.residual->scalar_type() == hidden.scalar_type()) return call(a.residual);
  return a.residual->add(call(kNone));
}

template <c10::DispatchKey autocast_key, c10::DeviceType device_type>
Tensor forward_autocast(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                        const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                        std::string_view activation, double scaling) {
  return autocast<autocast_key, device_type>(
      {hidden_states, residual, kNone, down_weight, down_bias, up_weight, up_bias, activation, scaling});
}

template <c10::DispatchKey autocast_key, c10::DeviceType device_type>
Tensor grouped_autocast(const Tensor& hidden_states, const OptTensor& residual, const Tensor& adapter_indices,
                        const Tensor& down_weight, const OptTensor& down_bias, const Tensor& up_weight,
                        const OptTensor& up_bias, std::string_view activation, double scaling) {
  const OptTensor indices = adapter_indices;
  return autocast<autocast_key, device_type>(
      {hidden_states, residual, indices, down_weight, down_bias, up_weight, up_bias, activation, scaling});
}

template <c10::DispatchKey autocast_key, c10::DeviceType device_type>
void register_autocast(torch::Library& library) {
  library.impl("bottleneck_adapter", TORCH_FN((forward_autocast<autocast_key, device_type>)));
  library.impl("grouped_bottleneck_adapter", TORCH_FN((grouped_autocast<autocast_key, device_type>)));
}

}  // namespace

TORCH_LIBRARY_IMPL(adapterx, AutocastCPU, m) {
  register_autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>(m);
}

TORCH_LIBRARY_IMPL(adapterx, AutocastCUDA, m) {
  register_autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>(m);
}

}  // namespace adapterx::ops
