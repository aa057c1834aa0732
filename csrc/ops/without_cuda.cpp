// CUDA tensors in a library built without the CUDA kernels: say so, and what to do about it.
#ifndef ADAPTERX_WITH_CUDA

#include "registration.h"

namespace adapterx::ops {
namespace {

[[noreturn]] void refuse(const char* function) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, function,
      ": the tensors must be on the CPU, because this adapterx was built without CUDA kernels, got CUDA tensors; "
      "with a CUDA build of torch and a CUDA toolkit, `ADAPTERX_CUDA=1 pip install --no-build-isolation .` builds "
      "them, or says what it is missing");
}

Tensor forward_refused(const ForwardArguments& arguments) { refuse(arguments.name()); }
TrainOutputs train_refused(const ForwardArguments& arguments) { refuse(arguments.name()); }
Gradients backward_refused(const BackwardArguments& arguments) { refuse(arguments.name()); }
Tensor sort_refused(const Tensor&, int64_t, int64_t) { refuse("sort_tokens"); }

}  // namespace

TORCH_LIBRARY_IMPL(adapterx, CUDA, m) {
  register_operators<forward_refused, train_refused, backward_refused>(m);
  m.impl("sort_tokens", sort_refused);
}

}  // namespace adapterx::ops

#endif
