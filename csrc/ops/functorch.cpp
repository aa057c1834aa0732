// torch.func.vmap, and the vmap inside torch.autograd.grad(is_grads_batched=True): the formula, batched by ATen.
#include "composite.h"
#include "registration.h"

namespace adapterx::ops {

TORCH_LIBRARY_IMPL(adapterx, FuncTorchBatched, m) {
  register_operators<composite_forward, composite_train, composite_backward>(m);
}

}  // namespace adapterx::ops
