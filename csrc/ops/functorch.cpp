// torch.func.vmap, and the vmap inside torch.autograd.grad(is_grads_batched=True): the formula, batched by ATen.
#include <torch/library.h>

#include "composite.h"

TORCH_LIBRARY_IMPL(adapterx, FuncTorchBatched, m) {
  m.impl("bottleneck_adapter", adapterx::ops::composite_forward);
  m.impl("bottleneck_adapter_train", adapterx::ops::composite_train);
  m.impl("bottleneck_adapter_backward", adapterx::ops::composite_backward);
}
