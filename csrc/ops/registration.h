// From the dispatcher's flat argument lists to the structs of operators.h: a dispatch key whose kernels take the
// structs registers all three operators with three functions.
#pragma once

#include <torch/library.h>

#include "operators.h"

namespace adapterx::ops {

// An operator's flat signature over a function of one struct, whose members are the parameters in their order.
template <auto function, class Signature>
struct Flat;

template <class Arguments, class Result, class... Parameters, Result (*function)(const Arguments&)>
struct Flat<function, Result(Parameters...)> {
  static Result call(Parameters... parameters) { return function(Arguments{parameters...}); }
};

template <Tensor (*forward)(const ForwardArguments&), TrainOutputs (*train)(const ForwardArguments&),
          Gradients (*backward)(const BackwardArguments&)>
void register_operators(torch::Library& library) {
  library.impl("bottleneck_adapter", TORCH_FN((Flat<forward, ForwardSignature>::call)));
  library.impl("bottleneck_adapter_train", TORCH_FN((Flat<train, TrainSignature>::call)));
  library.impl("bottleneck_adapter_backward", TORCH_FN((Flat<backward, BackwardSignature>::call)));
}

}  // namespace adapterx::ops
