// The sequence of products and row-wise kernels. Epilogues are used where they compute exactly what is wanted:
//   bias                 always
//   tanh-GELU            bfloat16 only (cuBLASLt's tanh is an approximation that fp16 and fp32 would show)
// Not ReLU: cuBLASLt's may turn a NaN into zero, PyTorch's passes it on. Not column sums (BGRADB): on an H100 those of
// 340 rows of 23 fp16 numbers were wrong beside a product with one column, and the backward pass was not faster with
// them. Where cuBLASLt refuses an epilogue, the plain product and a row-wise kernel do the same.
#include "cublas_path.h"

#include "cublas_product.h"
#include "rowwise.h"
#include "sizes.h"

namespace adapterx::cuda {
namespace {

// For cuBLASLt itself: what NVIDIA's guide recommends for Hopper; smaller devices ask for less and leave the rest
// alone.
constexpr int64_t kCublasBytes = int64_t{32} << 20;

const char* in_words(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// A narrow matrix: (num_tokens, bottleneck_dim), contiguous.
RowMajor narrow(const Problem& problem, const void* data) {
  return {data, problem.num_tokens, problem.bottleneck_dim, problem.bottleneck_dim};
}

RowShape narrow_shape(const Problem& problem) { return {problem.dtype, problem.num_tokens, problem.bottleneck_dim}; }

RowMajor down_weight_of(const Problem& problem, const void* data) {
  return {data, problem.bottleneck_dim, problem.input_size, problem.input_size};
}

RowMajor up_weight_of(const Problem& problem, const void* data) {
  return {data, problem.hidden_size, problem.bottleneck_dim, problem.bottleneck_dim};
}

// The product with a bias for its columns (null: none). Where no epilogue adds it, it becomes the addend, which like in
// the epilogue meets the sum before that is rounded; it follows row-wise where there is another addend.
const char* multiply_with_bias(Product p, const void* bias, const RowShape& result, const CublasMeans& cublas,
                               cudaStream_t stream) {
  if (bias == nullptr) return multiply(p, cublas, stream);
  p.epilogue = Epilogue::bias;
  p.bias = const_cast<void*>(bias);
  const char* error = multiply(p, cublas, stream);
  if (error != kNoAlgorithm) return error;
  p.epilogue = Epilogue::none;
  p.bias = nullptr;
  if (p.addend.data != nullptr) {
    if (const char* failed = multiply(p, cublas, stream)) return failed;
    return in_words(scaled_residual(result, 1.0, p.result, bias, nullptr, 0, p.result, stream));
  }
  const cudaError_t filled = scaled_residual(result, 1.0, nullptr, bias, nullptr, 0, p.result, stream);
  if (filled != cudaSuccess) return in_words(filled);
  p.addend = {p.result, result.rows, result.columns, result.columns};
  return multiply(p, cublas, stream);
}

// ---- forward ----

struct CublasForward {
  void* activated = nullptr;    // (num_tokens, bottleneck_dim)
  void* scaled_bias = nullptr;  // hidden_size elements
  void* for_cublas = nullptr;

  CublasForward(const PathCall<ForwardTensors>& call, Arena& arena) {
    const Problem& problem = call.problem;
    const ForwardTensors& tensors = call.tensors;
    const bool identity = problem.activation == Activation::identity && tensors.pre_activation != nullptr;
    activated = identity ? tensors.pre_activation
                         : take_elements(arena, problem.dtype, problem.num_tokens * problem.bottleneck_dim);
    if (tensors.up_bias != nullptr && problem.scaling != 1.0) {
      scaled_bias = take_elements(arena, problem.dtype, problem.hidden_size);
    }
    for_cublas = arena.take<unsigned char>(kCublasBytes);
  }
};

// The epilogue that does all that stands between the two products, if there is one.
Epilogue activation_epilogue(const Problem& problem, const ForwardTensors& tensors) {
  const bool save = tensors.pre_activation != nullptr;
  if (problem.activation == Activation::gelu_tanh && problem.dtype == ScalarType::bfloat16) {
    if (!save) return Epilogue::gelu_tanh;
    if (problem.bottleneck_dim % 8 == 0) return Epilogue::gelu_tanh_aux;
  }
  return Epilogue::none;
}

// activated = activation(hidden_states @ down_weight^T + down_bias); the pre-activation where it is wanted.
const char* down(const Problem& problem, const ForwardTensors& tensors, const CublasMeans& cublas, void* activated,
                 cudaStream_t stream) {
  Product p;
  p.dtype = problem.dtype;
  p.a = {tensors.hidden_states, problem.num_tokens, problem.input_size, tensors.hidden_states_stride};
  p.b = down_weight_of(problem, tensors.down_weight);
  p.b_transposed = true;
  p.epilogue = activation_epilogue(problem, tensors);
  if (p.epilogue != Epilogue::none) {
    p.result = activated;
    p.bias = const_cast<void*>(tensors.down_bias);
    p.aux = tensors.pre_activation;
    const char* error = multiply(p, cublas, stream);
    if (error != kNoAlgorithm) return error;
  }
  p.epilogue = Epilogue::none;
  p.bias = p.aux = nullptr;
  p.result = tensors.pre_activation == nullptr ? activated : tensors.pre_activation;
  if (const char* error = multiply_with_bias(p, tensors.down_bias, narrow_shape(problem), cublas, stream)) return error;
  if (problem.activation == Activation::identity) return nullptr;  // both are one buffer
  return in_words(
      bias_activation(narrow_shape(problem), problem.activation, p.result, nullptr, activated, nullptr, stream));
}

// output = residual + scaling * (activated @ up_weight^T + up_bias)
const char* up(const Problem& problem, const ForwardTensors& tensors, const CublasMeans& cublas,
               const CublasForward& own, cudaStream_t stream) {
  const void* bias = tensors.up_bias;
  if (own.scaled_bias != nullptr) {  // an epilogue adds its bias after alpha
    const RowShape row = {problem.dtype, 1, problem.hidden_size};
    const cudaError_t error = scaled_residual(row, problem.scaling, bias, nullptr, nullptr, 0, own.scaled_bias, stream);
    if (error != cudaSuccess) return in_words(error);
    bias = own.scaled_bias;
  }
  Product p;
  p.dtype = problem.dtype;
  p.a = narrow(problem, own.activated);
  p.b = up_weight_of(problem, tensors.up_weight);
  p.b_transposed = true;
  p.addend = {tensors.residual, problem.num_tokens, problem.hidden_size, tensors.residual_stride};
  p.result = tensors.output;
  p.alpha = problem.scaling;
  const RowShape wide = {problem.dtype, problem.num_tokens, problem.hidden_size};
  return multiply_with_bias(p, bias, wide, cublas, stream);
}

// ---- backward ----

struct CublasBackward {
  bool through_activation;  // a wanted gradient passes through the activation
  void* narrow = nullptr;   // (num_tokens, bottleneck_dim): the activation, then the gradient of the pre-activation
  void* sums = nullptr;     // of the column sums
  void* for_cublas = nullptr;

  CublasBackward(const PathCall<BackwardTensors>& call, Arena& arena) {
    const Problem& problem = call.problem;
    const BackwardTensors& tensors = call.tensors;
    through_activation =
        tensors.grad_input != nullptr || tensors.grad_down_weight != nullptr || tensors.grad_down_bias != nullptr;
    if (through_activation || tensors.grad_up_weight != nullptr) {
      narrow = take_elements(arena, problem.dtype, problem.num_tokens * problem.bottleneck_dim);
    }
    int64_t sum_bytes = 0;
    if (tensors.grad_down_bias != nullptr) sum_bytes = column_sum_workspace(narrow_shape(problem));
    if (tensors.grad_up_bias != nullptr) {
      const RowShape wide = {problem.dtype, problem.num_tokens, problem.hidden_size};
      const int64_t wide_bytes = column_sum_workspace(wide);
      sum_bytes = wide_bytes > sum_bytes ? wide_bytes : sum_bytes;
    }
    if (sum_bytes > 0) sums = arena.take<unsigned char>(sum_bytes);
    for_cublas = arena.take<unsigned char>(kCublasBytes);
  }
};

RowMajor grad_output_of(const Problem& problem, const BackwardTensors& tensors) {
  return {tensors.grad_output, problem.num_tokens, problem.hidden_size, tensors.grad_output_stride};
}

const char* up_bias_gradient(const Problem& problem, const BackwardTensors& tensors, const CublasBackward& own,
                             cudaStream_t stream) {
  const RowShape wide = {problem.dtype, problem.num_tokens, problem.hidden_size};
  return in_words(column_sum(wide, problem.scaling, tensors.grad_output, tensors.grad_output_stride,
                             tensors.grad_up_bias, own.sums, stream));
}

// scaling * grad_output^T @ activated, the gradient of up_weight.
const char* up_weight_gradient(const Problem& problem, const BackwardTensors& tensors, const CublasMeans& cublas,
                               const CublasBackward& own, cudaStream_t stream) {
  const cudaError_t error = bias_activation(narrow_shape(problem), problem.activation, tensors.pre_activation, nullptr,
                                            own.narrow, nullptr, stream);
  if (error != cudaSuccess) return in_words(error);
  Product p;
  p.dtype = problem.dtype;
  p.a = grad_output_of(problem, tensors);
  p.a_transposed = true;
  p.b = narrow(problem, own.narrow);
  p.result = tensors.grad_up_weight;
  p.alpha = problem.scaling;
  return multiply(p, cublas, stream);
}

// The gradient of the pre-activation, and that of down_bias.
const char* pre_activation_gradient(const Problem& problem, const BackwardTensors& tensors, const CublasMeans& cublas,
                                    const CublasBackward& own, cudaStream_t stream) {
  Product p;
  p.dtype = problem.dtype;
  p.a = grad_output_of(problem, tensors);
  p.b = up_weight_of(problem, tensors.up_weight);
  p.result = own.narrow;
  if (const char* error = multiply(p, cublas, stream)) return error;
  return in_words(activation_gradient(narrow_shape(problem), problem.activation, problem.scaling,
                                      tensors.pre_activation, own.narrow, own.narrow, tensors.grad_down_bias,
                                      tensors.grad_down_bias == nullptr ? nullptr : own.sums, stream));
}

const char* down_weight_gradient(const Problem& problem, const BackwardTensors& tensors, const CublasMeans& cublas,
                                 const CublasBackward& own, cudaStream_t stream) {
  Product p;
  p.dtype = problem.dtype;
  p.a = narrow(problem, own.narrow);
  p.a_transposed = true;
  p.b = {tensors.hidden_states, problem.num_tokens, problem.input_size, tensors.hidden_states_stride};
  p.result = tensors.grad_down_weight;
  return multiply(p, cublas, stream);
}

const char* input_gradient(const Problem& problem, const BackwardTensors& tensors, const CublasMeans& cublas,
                           const CublasBackward& own, cudaStream_t stream) {
  Product p;
  p.dtype = problem.dtype;
  p.a = narrow(problem, own.narrow);
  p.b = down_weight_of(problem, tensors.down_weight);
  if (tensors.add_grad_output) p.addend = grad_output_of(problem, tensors);
  p.result = tensors.grad_input;
  return multiply(p, cublas, stream);
}

}  // namespace

void lay_out_cublas(const PathCall<ForwardTensors>& call, Arena& arena) { CublasForward(call, arena); }

void lay_out_cublas(const PathCall<BackwardTensors>& call, Arena& arena) { CublasBackward(call, arena); }

Status run_cublas(const PathCall<ForwardTensors>& call, Arena& arena, cudaStream_t stream) {
  const CublasForward own(call, arena);
  const CublasMeans cublas = {call.cublas, own.for_cublas, kCublasBytes};
  if (const char* error = down(call.problem, call.tensors, cublas, own.activated, stream)) return error;
  return up(call.problem, call.tensors, cublas, own, stream);
}

Status run_cublas(const PathCall<BackwardTensors>& call, Arena& arena, cudaStream_t stream) {
  const Problem& problem = call.problem;
  const BackwardTensors& tensors = call.tensors;
  const CublasBackward own(call, arena);
  const CublasMeans cublas = {call.cublas, own.for_cublas, kCublasBytes};
  // First, for it is done with the activation before the gradient takes its place.
  if (tensors.grad_up_weight != nullptr) {
    if (const char* error = up_weight_gradient(problem, tensors, cublas, own, stream)) return error;
  }
  if (tensors.grad_up_bias != nullptr) {
    if (const char* error = up_bias_gradient(problem, tensors, own, stream)) return error;
  }
  if (!own.through_activation) return cudaSuccess;
  if (const char* error = pre_activation_gradient(problem, tensors, cublas, own, stream)) return error;
  if (tensors.grad_down_weight != nullptr) {
    if (const char* error = down_weight_gradient(problem, tensors, cublas, own, stream)) return error;
  }
  return tensors.grad_input == nullptr ? nullptr : input_gradient(problem, tensors, cublas, own, stream);
}

}  // namespace adapterx::cuda
