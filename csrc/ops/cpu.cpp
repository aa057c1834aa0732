// The operators on the CPU: checks, then the torch-free kernels over raw pointers and PyTorch's thread pool.
#include <ATen/Parallel.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/library.h>

#include "../kernels/cpu/bottleneck_adapter.h"
#include "checks.h"

namespace adapterx::ops {
namespace {

ScalarType kernel_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return ScalarType::float32;
    case at::kDouble: return ScalarType::float64;
    case at::kBFloat16: return ScalarType::bfloat16;
    case at::kHalf: return ScalarType::float16;
    default: TORCH_INTERNAL_ASSERT(false, "dtype that the checks should have refused");
  }
}

// PyTorch's pool through its C interface: at::parallel_for is an OpenMP pragma inside a header, so it would be serial
// without -fopenmp here, and with it could start a second OpenMP runtime that torch.set_num_threads does not reach.
void run_in_torch_pool(void*, int64_t count, ThreadPool::Body body, void* closure) {
  struct Task {
    ThreadPool::Body body;
    void* closure;
  } task{body, closure};
  const auto call = [](int64_t begin, int64_t end, void* context) {
    const auto& [task_body, task_closure] = *static_cast<Task*>(context);
    task_body(task_closure, begin, end);
  };
  TORCH_CHECK(torch_parallel_for(0, count, /*grain_size=*/1, call, &task) == 0,
              "bottleneck_adapter: a thread of the pool failed");
}

ThreadPool torch_pool() {
  // Inside another parallel region PyTorch runs everything on the calling thread.
  const int32_t num_threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return {run_in_torch_pool, nullptr, num_threads};
}

// A token tensor as a matrix of rows with one stride between them. Copies only where no such view exists.
struct Rows {
  Tensor owner;
  int64_t stride = 0;

  explicit Rows(const Tensor& tensor) : owner(has_row_stride(tensor) ? tensor : tensor.contiguous()) {
    stride = row_stride(owner);
  }

  const void* data() const { return owner.const_data_ptr(); }

 private:
  // Elements from one row to the next: the stride of the innermost leading dimension that has more than one entry.
  static int64_t row_stride(const Tensor& tensor) {
    for (int64_t i = tensor.dim() - 2; i >= 0; --i) {
      if (tensor.size(i) != 1) return tensor.stride(i);
    }
    return tensor.size(-1);
  }

  static bool has_row_stride(const Tensor& tensor) {
    if (tensor.is_contiguous()) return true;
    if (tensor.stride(-1) != 1 && tensor.size(-1) != 1) return false;
    int64_t expected = row_stride(tensor);
    for (int64_t i = tensor.dim() - 2; i >= 0; --i) {
      if (tensor.size(i) == 1) continue;
      if (tensor.stride(i) != expected) return false;
      expected *= tensor.size(i);
    }
    return true;
  }
};

int64_t count_tokens(const Tensor& tensor) { return tensor.numel() / tensor.size(-1); }

Tensor empty_tokens(const Tensor& tokens, int64_t columns) {
  at::DimVector sizes(tokens.sizes());
  sizes.back() = columns;
  return at::empty(sizes, tokens.options());
}

OptTensor contiguous(const OptTensor& tensor) { return tensor ? OptTensor(tensor->contiguous()) : std::nullopt; }

const void* data_or_null(const OptTensor& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

void* mutable_data_or_null(const Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

// Computes the output, and the pre-activation where one is given to be written.
Tensor run_forward(Activation activation, const Tensor& hidden_states, const OptTensor& residual,
                   const Tensor& down_weight, const OptTensor& down_bias, const Tensor& up_weight,
                   const OptTensor& up_bias, double scaling, const Tensor& pre_activation) {
  auto output = empty_tokens(hidden_states, up_weight.size(0));
  if (output.numel() == 0) return output;
  const Problem problem{kernel_dtype(hidden_states.scalar_type()),
                        activation,
                        scaling,
                        count_tokens(hidden_states),
                        hidden_states.size(-1),
                        up_weight.size(0),
                        down_weight.size(0)};
  const Rows hidden_rows(hidden_states);
  const auto residual_rows = residual ? std::optional<Rows>(*residual) : std::nullopt;
  const auto down_w = down_weight.contiguous(), up_w = up_weight.contiguous();
  const auto down_b = contiguous(down_bias), up_b = contiguous(up_bias);
  ForwardTensors tensors;
  tensors.hidden_states = hidden_rows.data();
  tensors.hidden_states_stride = hidden_rows.stride;
  tensors.residual = residual_rows ? residual_rows->data() : nullptr;
  tensors.residual_stride = residual_rows ? residual_rows->stride : 0;
  tensors.down_weight = down_w.const_data_ptr();
  tensors.down_bias = data_or_null(down_b);
  tensors.up_weight = up_w.const_data_ptr();
  tensors.up_bias = data_or_null(up_b);
  tensors.output = output.mutable_data_ptr();
  tensors.pre_activation = mutable_data_or_null(pre_activation);
  cpu::bottleneck_adapter_forward(problem, tensors, torch_pool());
  return output;
}

Tensor forward_cpu(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                   const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                   std::string_view activation, double scaling) {
  const auto parsed =
      check_forward(hidden_states, residual, down_weight, down_bias, up_weight, up_bias, activation, scaling);
  return run_forward(parsed, hidden_states, residual, down_weight, down_bias, up_weight, up_bias, scaling, Tensor());
}

TrainOutputs train_cpu(const Tensor& hidden_states, const OptTensor& residual, const Tensor& down_weight,
                       const OptTensor& down_bias, const Tensor& up_weight, const OptTensor& up_bias,
                       std::string_view activation, double scaling) {
  const auto parsed =
      check_forward(hidden_states, residual, down_weight, down_bias, up_weight, up_bias, activation, scaling);
  auto pre_activation = empty_tokens(hidden_states, down_weight.size(0));
  auto output =
      run_forward(parsed, hidden_states, residual, down_weight, down_bias, up_weight, up_bias, scaling, pre_activation);
  return {std::move(output), std::move(pre_activation)};
}

// Uninitialised gradients of the right shapes where they are wanted.
Gradients allocate_gradients(const Tensor& grad_output, const OptTensor& hidden_states, const OptTensor& pre_activation,
                             const OptTensor& down_weight, OutputMask output_mask) {
  const auto options = grad_output.options();
  const int64_t hidden_size = grad_output.size(-1);
  Gradients gradients;
  auto& [grad_hidden_states, grad_down_weight, grad_down_bias, grad_up_weight, grad_up_bias] = gradients;
  if (output_mask[kHiddenStates]) grad_hidden_states = empty_tokens(grad_output, down_weight->size(1));
  if (output_mask[kDownWeight]) {
    grad_down_weight = at::empty({pre_activation->size(-1), hidden_states->size(-1)}, options);
  }
  if (output_mask[kDownBias]) grad_down_bias = at::empty({pre_activation->size(-1)}, options);
  if (output_mask[kUpWeight]) grad_up_weight = at::empty({hidden_size, pre_activation->size(-1)}, options);
  if (output_mask[kUpBias]) grad_up_bias = at::empty({hidden_size}, options);
  return gradients;
}

Gradients backward_cpu(const Tensor& grad_output, const OptTensor& hidden_states, const OptTensor& pre_activation,
                       const OptTensor& down_weight, const OptTensor& up_weight, std::string_view activation,
                       double scaling, bool add_grad_output, OutputMask output_mask) {
  const auto parsed = check_backward(grad_output, hidden_states, pre_activation, down_weight, up_weight, activation,
                                     scaling, add_grad_output, output_mask);
  auto gradients = allocate_gradients(grad_output, hidden_states, pre_activation, down_weight, output_mask);
  auto& [grad_hidden_states, grad_down_weight, grad_down_bias, grad_up_weight, grad_up_bias] = gradients;
  if (grad_output.numel() == 0) {  // no tokens: the sums over tokens are zero
    for (const auto* gradient : {&grad_down_weight, &grad_down_bias, &grad_up_weight, &grad_up_bias}) {
      if (gradient->defined()) gradient->zero_();
    }
    return gradients;
  }
  // A size is zero where no wanted gradient depends on it.
  const int64_t input_size = output_mask[kHiddenStates] ? down_weight->size(1)
                             : output_mask[kDownWeight] ? hidden_states->size(-1)
                                                        : 0;
  const Problem problem{kernel_dtype(grad_output.scalar_type()),
                        parsed,
                        scaling,
                        count_tokens(grad_output),
                        input_size,
                        grad_output.size(-1),
                        pre_activation ? pre_activation->size(-1) : 0};
  const Rows grad_rows(grad_output);
  const auto hidden_rows = output_mask[kDownWeight] ? std::optional<Rows>(*hidden_states) : std::nullopt;
  const auto pre = contiguous(pre_activation), down_w = contiguous(down_weight), up_w = contiguous(up_weight);
  BackwardTensors tensors;
  tensors.grad_output = grad_rows.data();
  tensors.grad_output_stride = grad_rows.stride;
  tensors.hidden_states = hidden_rows ? hidden_rows->data() : nullptr;
  tensors.hidden_states_stride = hidden_rows ? hidden_rows->stride : 0;
  tensors.pre_activation = data_or_null(pre);
  tensors.down_weight = data_or_null(down_w);
  tensors.up_weight = data_or_null(up_w);
  tensors.add_grad_output = add_grad_output;
  tensors.grad_input = mutable_data_or_null(grad_hidden_states);
  tensors.grad_down_weight = mutable_data_or_null(grad_down_weight);
  tensors.grad_down_bias = mutable_data_or_null(grad_down_bias);
  tensors.grad_up_weight = mutable_data_or_null(grad_up_weight);
  tensors.grad_up_bias = mutable_data_or_null(grad_up_bias);
  cpu::bottleneck_adapter_backward(problem, tensors, torch_pool());
  return gradients;
}

}  // namespace

TORCH_LIBRARY_IMPL(adapterx, CPU, m) {
  m.impl("bottleneck_adapter", forward_cpu);
  m.impl("bottleneck_adapter_train", train_cpu);
  m.impl("bottleneck_adapter_backward", backward_cpu);
}

}  // namespace adapterx::ops
