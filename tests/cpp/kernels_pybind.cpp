// Python module `adapterx_kernels`: the torch-free CPU kernels on NumPy buffers, for the tests.
// bfloat16 and float16 arrays are passed as uint16 views. Without adapter_indices the tensors are those of one adapter.
#include <pybind11/pybind11.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/kernels/cpu/dispatch.h"
#include "run_on_threads.h"

namespace py = pybind11;

namespace {

using namespace adapterx;
using namespace adapterx::cpu;

ScalarType parse_dtype(const std::string& name) {
  if (name == "float32") return ScalarType::float32;
  if (name == "float64") return ScalarType::float64;
  if (name == "bfloat16") return ScalarType::bfloat16;
  if (name == "float16") return ScalarType::float16;
  throw std::invalid_argument("dtype must be float32, float64, bfloat16 or float16, got " + name);
}

const Kernels& kernels_named(const std::string& capability) {
  const Kernels* kernels = find_kernels(capability);
  if (kernels == nullptr) throw std::invalid_argument("capability must be available here, got " + capability);
  return *kernels;
}

// An array or None as pointer and stride; keeps the buffer alive.
struct View {
  std::optional<py::buffer_info> info;

  explicit View(const py::object& array, bool writable = false) {
    if (!array.is_none()) info = py::reinterpret_borrow<py::buffer>(array).request(writable);
  }
  void* data() const { return info ? info->ptr : nullptr; }
  int64_t stride() const { return info ? info->strides[0] / info->itemsize : 0; }
};

Problem make_problem(const std::string& dtype, const std::string& activation, double scaling, const py::tuple& sizes) {
  const auto parsed = parse_activation(activation);
  if (!parsed) throw std::invalid_argument("activation must be known, got " + activation);
  return {parse_dtype(dtype),
          *parsed,
          scaling,
          sizes[0].cast<int64_t>(),
          sizes[1].cast<int64_t>(),
          sizes[2].cast<int64_t>(),
          sizes[3].cast<int64_t>()};
}

std::optional<AdapterIndices> make_groups(const View& indices, int64_t num_adapters) {
  if (!indices.info) return std::nullopt;
  return AdapterIndices{static_cast<const int64_t*>(indices.data()), num_adapters};
}

void forward(const std::string& dtype, const std::string& activation, double scaling, const py::tuple& sizes,
             const py::object& hidden_states, const py::object& residual, const py::object& adapter_indices,
             int64_t num_adapters, const py::object& down_weight, const py::object& down_bias,
             const py::object& up_weight, const py::object& up_bias, const py::object& output,
             const py::object& pre_activation, int32_t threads, const std::string& capability) {
  const Problem problem = make_problem(dtype, activation, scaling, sizes);
  const View h(hidden_states), x(residual), i(adapter_indices), wd(down_weight), bd(down_bias), wu(up_weight);
  const View bu(up_bias), out(output, true), u(pre_activation, true);
  const ForwardTensors tensors{h.data(),  h.stride(), x.data(),  x.stride(), wd.data(),
                               bd.data(), wu.data(),  bu.data(), out.data(), u.data()};
  const auto groups = make_groups(i, num_adapters);
  const Entries& entries = kernels_named(capability).of(problem.dtype);
  const ThreadPool pool{run_on_threads, &threads, threads};
  py::gil_scoped_release release;
  groups ? entries.grouped_forward(problem, tensors, *groups, pool) : entries.forward(problem, tensors, pool);
}

void backward(const std::string& dtype, const std::string& activation, double scaling, const py::tuple& sizes,
              const py::object& grad_output, const py::object& hidden_states, const py::object& pre_activation,
              const py::object& adapter_indices, int64_t num_adapters, const py::object& down_weight,
              const py::object& up_weight, bool add_grad_output, const py::object& grad_input,
              const py::object& grad_down_weight, const py::object& grad_down_bias, const py::object& grad_up_weight,
              const py::object& grad_up_bias, int32_t threads, const std::string& capability) {
  const Problem problem = make_problem(dtype, activation, scaling, sizes);
  const View g(grad_output), h(hidden_states), u(pre_activation), i(adapter_indices), wd(down_weight), wu(up_weight);
  const View dx(grad_input, true), dwd(grad_down_weight, true), dbd(grad_down_bias, true);
  const View dwu(grad_up_weight, true), dbu(grad_up_bias, true);
  const BackwardTensors tensors{g.data(),        g.stride(), h.data(),   h.stride(), u.data(),   wd.data(), wu.data(),
                                add_grad_output, dx.data(),  dwd.data(), dbd.data(), dwu.data(), dbu.data()};
  const auto groups = make_groups(i, num_adapters);
  const Entries& entries = kernels_named(capability).of(problem.dtype);
  const ThreadPool pool{run_on_threads, &threads, threads};
  py::gil_scoped_release release;
  groups ? entries.grouped_backward(problem, tensors, *groups, pool) : entries.backward(problem, tensors, pool);
}

py::list capabilities() {
  py::list names;
  for (const char* name : {"avx512_bf16", "avx512", "avx2", "baseline"}) {
    if (find_kernels(name) != nullptr) names.append(name);
  }
  return names;
}

}  // namespace

PYBIND11_MODULE(adapterx_kernels, module) {
  module.def("forward", &forward);
  module.def("backward", &backward);
  module.def("capabilities", &capabilities, "Instruction sets usable on this machine, best first.");
  module.def("cpu_capability", &cpu_capability);
}
