// The Python module adapterx_emulator: the CUDA launchers of csrc/kernels/cuda, run on the host on NumPy arrays.
// bfloat16 arrays are uint16 views; float16, float32 and float64 arrays are themselves.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "adapter.h"
#include "cuda_emulator.h"
#include "fake_cublaslt.h"
#include "far_tokens.h"
#include "rowwise.h"
#include "segment_path.h"
#include "tile_path.h"

namespace py = pybind11;

namespace {

using namespace adapterx;
using namespace adapterx::cuda;
using OptionalArray = std::optional<py::array>;

const void* in(const OptionalArray& array) { return array ? array->data() : nullptr; }
void* out(OptionalArray& array) { return array ? array->mutable_data() : nullptr; }

// Elements between two rows of a matrix.
int64_t row_stride(const py::array& array) { return array.strides(0) / array.itemsize(); }
int64_t row_stride(const OptionalArray& array) { return array ? row_stride(*array) : 0; }

ScalarType scalar_type(const py::array& array) {
  if (array.dtype().kind() == 'u') return ScalarType::bfloat16;
  if (array.itemsize() == 2) return ScalarType::float16;
  return array.itemsize() == 4 ? ScalarType::float32 : ScalarType::float64;
}

Activation activation_named(const std::string& name) {
  const auto activation = parse_activation(name);
  if (!activation) throw py::value_error("activation must be a known name, got " + name);
  return *activation;
}

void check(const Status& status) {
  if (status.words != nullptr) throw std::runtime_error(status.words);
  if (!status.ok()) throw std::runtime_error(cudaGetErrorString(status.error));
}

// `tokens`: hidden_states or grad_output.
Problem make_problem(const py::array& tokens, const py::array& up_weight, int64_t bottleneck_dim,
                     const std::string& activation, double scaling) {
  return {scalar_type(tokens), activation_named(activation),          scaling,       tokens.shape(0),
          tokens.shape(1),     up_weight.shape(up_weight.ndim() - 2), bottleneck_dim};
}

// An array whose end is followed by an unreadable page, filled with NaN patterns.
py::array guarded(const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
  py::ssize_t bytes = dtype.itemsize();
  for (py::ssize_t extent : shape) bytes *= extent;
  auto* memory = new emulator::GuardedMemory(static_cast<size_t>(bytes));
  const py::capsule owner(memory, [](void* p) { delete static_cast<emulator::GuardedMemory*>(p); });
  return py::array(dtype, shape, memory->data(), owner);
}

// A matrix of zeros of any size, of which only the rows that are touched take memory.
py::array sparse(const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
  auto* memory = new emulator::SparseMemory(static_cast<size_t>(shape.at(0) * shape.at(1) * dtype.itemsize()));
  const py::capsule owner(memory, [](void* p) { delete static_cast<emulator::SparseMemory*>(p); });
  return py::array(dtype, shape, memory->data(), owner);
}

// The sorted order of `indices`, or one tile of the tokens `far`, all of one adapter, where there are any: weights have
// a leading dimension then.
struct OptionalSorted {
  emulator::GuardedMemory workspace;
  std::optional<emulator::FarTokens> far_tokens;
  SortedTokens sorted;
  bool present = false;

  OptionalSorted(const OptionalArray& indices, int64_t num_adapters, int row_tile, const std::vector<int64_t>& far = {},
                 int64_t num_tokens = 0, int64_t tokens_each = 1) {
    if (!far.empty()) {
      present = true;
      sorted = far_tokens.emplace(far).sorted(num_tokens, row_tile);
    }
    if (!indices) return;
    present = true;
    const int64_t tokens = indices->shape(0) * tokens_each;
    Arena measure;
    lay_out_tokens(tokens, num_adapters, row_tile, measure);
    workspace = emulator::GuardedMemory(round_up(measure.used(), kWorkspaceAlignment));
    Arena arena(workspace.data());
    sorted = lay_out_tokens(tokens, num_adapters, row_tile, arena);
    check(sort_tokens(static_cast<const int64_t*>(indices->data()), sorted, nullptr, tokens_each));
  }
  const SortedTokens* get() const { return present ? &sorted : nullptr; }
};

// Runs one path on its own, with a workspace of exactly the size that it measures.
template <class Tensors>
void run_path(void (*lay_out)(const PathCall<Tensors>&, Arena&),
              Status (*run)(const PathCall<Tensors>&, Arena&, cudaStream_t), const PathCall<Tensors>& call) {
  Arena measure;
  lay_out(call, measure);
  const emulator::GuardedMemory workspace(static_cast<size_t>(measure.used()));
  Arena arena(workspace.data());
  check(run(call, arena, nullptr));
}

// A copy of a device table.
template <typename T>
py::array copy_of(const T* data, std::vector<py::ssize_t> shape) {
  return py::array_t<T>(std::move(shape), data);
}

// The sorted order, both tables as rows (adapter, begin, end), and where each adapter's ranges begin.
py::tuple sort_tokens_binding(const py::array& indices, int64_t num_adapters, int row_tile, int64_t tokens_each) {
  const OptionalSorted owner(indices, num_adapters, row_tile, {}, 0, tokens_each);
  const SortedTokens& sorted = owner.sorted;
  const auto table = [](const Segment* segments, int64_t count) { return copy_of(&segments->adapter, {count, 3}); };
  return py::make_tuple(copy_of(sorted.tokens, {sorted.num_tokens}), table(sorted.tiles, sorted.max_tiles),
                        table(sorted.ranges, sorted.max_ranges), copy_of(sorted.first_range, {num_adapters + 1}));
}

int64_t bottleneck_of(const py::array& down_weight) { return down_weight.shape(down_weight.ndim() - 2); }

ForwardTensors forward_tensors(const py::array& hidden_states, const OptionalArray& residual,
                               const py::array& down_weight, const OptionalArray& down_bias, const py::array& up_weight,
                               const OptionalArray& up_bias, py::array& output, OptionalArray& pre_activation) {
  ForwardTensors tensors;
  tensors.hidden_states = hidden_states.data();
  tensors.hidden_states_stride = row_stride(hidden_states);
  tensors.residual = in(residual);
  tensors.residual_stride = row_stride(residual);
  tensors.down_weight = down_weight.data();
  tensors.down_bias = in(down_bias);
  tensors.up_weight = up_weight.data();
  tensors.up_bias = in(up_bias);
  tensors.output = output.mutable_data();
  tensors.pre_activation = out(pre_activation);
  return tensors;
}

// On the tile path.
void forward(const py::array& hidden_states, const OptionalArray& residual, const py::array& down_weight,
             const OptionalArray& down_bias, const py::array& up_weight, const OptionalArray& up_bias, py::array output,
             OptionalArray pre_activation, const std::string& activation, double scaling, int row_tile,
             int cluster_size, const OptionalArray& indices, const std::vector<int64_t>& far) {
  const Problem problem = make_problem(hidden_states, up_weight, bottleneck_of(down_weight), activation, scaling);
  const ForwardTensors tensors =
      forward_tensors(hidden_states, residual, down_weight, down_bias, up_weight, up_bias, output, pre_activation);
  const OptionalSorted sorted(indices, down_weight.shape(0), row_tile, far, problem.num_tokens);
  const Device device = {90, 227 * 1024, 3 * cluster_size};  // so few that persistent kernels walk over several tiles
  run_path<ForwardTensors>(lay_out_tile, run_tile,
                           {problem, tensors, sorted.get(), {row_tile, cluster_size}, {}, device});
}

// On the segment path.
void segments_forward(const py::array& hidden_states, const OptionalArray& residual, const py::array& down_weight,
                      const OptionalArray& down_bias, const py::array& up_weight, const OptionalArray& up_bias,
                      py::array output, OptionalArray pre_activation, const std::string& activation, double scaling,
                      const py::array& indices, int row_tile) {
  const Problem problem = make_problem(hidden_states, up_weight, bottleneck_of(down_weight), activation, scaling);
  const ForwardTensors tensors =
      forward_tensors(hidden_states, residual, down_weight, down_bias, up_weight, up_bias, output, pre_activation);
  const OptionalSorted sorted(indices, down_weight.shape(0), row_tile);
  run_path<ForwardTensors>(lay_out_segments, run_segments, {problem, tensors, sorted.get()});
}

BackwardTensors backward_tensors(const py::array& grad_output, const OptionalArray& hidden_states,
                                 const py::array& pre_activation, const py::array& down_weight,
                                 const py::array& up_weight, std::vector<OptionalArray>& gradients,
                                 bool add_grad_output) {
  BackwardTensors tensors;
  tensors.grad_output = grad_output.data();
  tensors.grad_output_stride = row_stride(grad_output);
  tensors.hidden_states = in(hidden_states);
  tensors.hidden_states_stride = row_stride(hidden_states);
  tensors.pre_activation = pre_activation.data();
  tensors.down_weight = down_weight.data();
  tensors.up_weight = up_weight.data();
  tensors.add_grad_output = add_grad_output;
  tensors.grad_input = out(gradients.at(0));
  tensors.grad_down_weight = out(gradients.at(1));
  tensors.grad_down_bias = out(gradients.at(2));
  tensors.grad_up_weight = out(gradients.at(3));
  tensors.grad_up_bias = out(gradients.at(4));
  return tensors;
}

void backward(const py::array& grad_output, const OptionalArray& hidden_states, const py::array& pre_activation,
              const py::array& down_weight, const py::array& up_weight, std::vector<OptionalArray> gradients,
              const std::string& activation, double scaling, bool add_grad_output, int row_tile, int cluster_size,
              const OptionalArray& indices, int capability, int multiprocessors, const std::vector<int64_t>& far) {
  const Problem problem = make_problem(grad_output, up_weight, bottleneck_of(down_weight), activation, scaling);
  const BackwardTensors tensors =
      backward_tensors(grad_output, hidden_states, pre_activation, down_weight, up_weight, gradients, add_grad_output);
  const OptionalSorted sorted(indices, down_weight.shape(0), row_tile, far, problem.num_tokens);
  const Device device = {capability, 227 * 1024, multiprocessors};
  run_path<BackwardTensors>(lay_out_tile, run_tile,
                            {problem, tensors, sorted.get(), {row_tile, cluster_size}, {}, device});
}

void segments_backward(const py::array& grad_output, const OptionalArray& hidden_states,
                       const py::array& pre_activation, const py::array& down_weight, const py::array& up_weight,
                       std::vector<OptionalArray> gradients, const std::string& activation, double scaling,
                       bool add_grad_output, const py::array& indices, int row_tile) {
  Problem problem = make_problem(grad_output, up_weight, bottleneck_of(down_weight), activation, scaling);
  problem.input_size = down_weight.shape(2);
  const BackwardTensors tensors =
      backward_tensors(grad_output, hidden_states, pre_activation, down_weight, up_weight, gradients, add_grad_output);
  const OptionalSorted sorted(indices, down_weight.shape(0), row_tile);
  run_path<BackwardTensors>(lay_out_segments, run_segments, {problem, tensors, sorted.get()});
}

const char* name_of(Path path) { return path == Path::tile ? "tile" : path == Path::cublas ? "cublas" : "segments"; }

// A call through the door alone, as a framework makes it, with a workspace of exactly the size that the plan says.
// Returns the path; raises ValueError with the refusal.
template <class Tensors>
std::string through_the_door(const Problem& problem, const Tensors& tensors, const OptionalArray& indices,
                             const OptionalArray& sorted, int64_t num_adapters, const std::string& pin) {
  AdapterIndices picked;
  if (indices) picked = {static_cast<const int64_t*>(indices->data()), num_adapters, in(sorted)};
  const Plan plan = cuda::plan(problem, tensors, picked, {90, 227 * 1024, 132}, pin);
  if (!plan.refusal.empty()) throw py::value_error(plan.refusal);
  // The workspace begins at a multiple of 256 bytes, and the fake cuBLASLt does not touch its own part.
  const emulator::GuardedMemory workspace(static_cast<size_t>(round_up(plan.workspace, kWorkspaceAlignment)));
  check(cuda::run(plan, problem, tensors, picked, {&fake_cublaslt_handle, false}, workspace.data(), nullptr));
  return name_of(plan.path);
}

std::string door_forward(const py::array& hidden_states, const OptionalArray& residual, const py::array& down_weight,
                         const OptionalArray& down_bias, const py::array& up_weight, const OptionalArray& up_bias,
                         py::array output, OptionalArray pre_activation, const std::string& activation, double scaling,
                         const OptionalArray& indices, const OptionalArray& sorted, const std::string& pin) {
  const Problem problem = make_problem(hidden_states, up_weight, bottleneck_of(down_weight), activation, scaling);
  const ForwardTensors tensors =
      forward_tensors(hidden_states, residual, down_weight, down_bias, up_weight, up_bias, output, pre_activation);
  return through_the_door(problem, tensors, indices, sorted, down_weight.shape(0), pin);
}

std::string door_backward(const py::array& grad_output, const OptionalArray& hidden_states,
                          const py::array& pre_activation, const py::array& down_weight, const py::array& up_weight,
                          std::vector<OptionalArray> gradients, const std::string& activation, double scaling,
                          bool add_grad_output, const OptionalArray& indices, const OptionalArray& sorted,
                          const std::string& pin) {
  Problem problem = make_problem(grad_output, up_weight, bottleneck_of(down_weight), activation, scaling);
  problem.input_size = down_weight.shape(down_weight.ndim() - 1);
  const BackwardTensors tensors =
      backward_tensors(grad_output, hidden_states, pre_activation, down_weight, up_weight, gradients, add_grad_output);
  return through_the_door(problem, tensors, indices, sorted, down_weight.shape(0), pin);
}

// What a sort leaves for calls through the door, in memory of exactly the size that the door asks for.
py::array door_sort(const py::array& indices, int64_t num_adapters) {
  const int64_t tokens = indices.shape(0);
  const int64_t bytes = round_up(cuda::sorted_bytes(tokens, num_adapters), kWorkspaceAlignment);
  py::array sorted = guarded({bytes}, py::dtype("uint8"));
  const emulator::GuardedMemory workspace(
      static_cast<size_t>(round_up(cuda::sort_workspace(tokens, num_adapters), kWorkspaceAlignment)));
  check(cuda::sort({static_cast<const int64_t*>(indices.data()), num_adapters}, tokens, sorted.mutable_data(),
                   workspace.data(), nullptr));
  return sorted;
}

// What the door says to a problem of these sizes, without tensors: (workspace bytes, refusal).
py::tuple door_plan(int64_t num_tokens, int64_t size, int64_t bottleneck_dim, int64_t num_adapters,
                    const std::string& pin) {
  const Problem problem = {ScalarType::bfloat16, Activation::gelu, 1.0, num_tokens, size, size, bottleneck_dim};
  const Plan plan = cuda::plan(problem, ForwardTensors(), {nullptr, num_adapters}, {90, 227 * 1024, 132}, pin);
  return py::make_tuple(plan.workspace, plan.refusal);
}

RowShape row_shape(const py::array& matrix) { return {scalar_type(matrix), matrix.shape(0), matrix.shape(1)}; }

void bias_activation_binding(const py::array& input, const OptionalArray& bias, py::array activated,
                             OptionalArray pre_activation, const std::string& activation) {
  check(bias_activation(row_shape(input), activation_named(activation), input.data(), in(bias),
                        activated.mutable_data(), out(pre_activation), nullptr));
}

void scaled_residual_binding(const OptionalArray& branch, const OptionalArray& bias, const OptionalArray& residual,
                             py::array output, double scaling) {
  check(scaled_residual(row_shape(output), scaling, in(branch), in(bias), in(residual), row_stride(residual),
                        output.mutable_data(), nullptr));
}

void activation_gradient_binding(const py::array& pre_activation, const py::array& grad_activated, py::array gradient,
                                 OptionalArray grad_bias, const std::string& activation, double scaling) {
  const RowShape shape = row_shape(pre_activation);
  const emulator::GuardedMemory workspace(column_sum_workspace(shape));
  check(activation_gradient(shape, activation_named(activation), scaling, pre_activation.data(), grad_activated.data(),
                            gradient.mutable_data(), out(grad_bias), grad_bias ? workspace.data() : nullptr, nullptr));
}

void column_sum_binding(const py::array& input, py::array sums, double scaling) {
  const RowShape shape = row_shape(input);
  const emulator::GuardedMemory workspace(column_sum_workspace(shape));
  check(column_sum(shape, scaling, input.data(), row_stride(input), sums.mutable_data(), workspace.data(), nullptr));
}

// (row_tile, cluster_size, bytes of shared memory); num_adapters 0: without adapter indices.
py::tuple plan_tile_binding(const std::string& dtype, int64_t tokens, int64_t hidden_size, int64_t bottleneck_dim,
                            int capability, int64_t shared_memory, const std::string& name, int64_t num_adapters) {
  const ScalarType type = dtype == "float16"   ? ScalarType::float16
                          : dtype == "float32" ? ScalarType::float32
                                               : ScalarType::bfloat16;
  const Problem problem = {type, Activation::gelu, 1.0, tokens, hidden_size, hidden_size, bottleneck_dim};
  const Device device = {capability, shared_memory};
  const Direction direction = name == "backward" ? Direction::backward : Direction::forward;
  const TileShape tile = plan_tile(problem, device, direction, num_adapters, true);
  return py::make_tuple(tile.row_tile, tile.cluster_size, tile.row_tile == 0 ? 0 : tile_shared_memory(problem, tile));
}

void configure(const std::string& order, bool eager_copies, unsigned seed, const std::string& guard,
               bool greedy_blocks) {
  emulator::guarded_edge = guard == "begin" ? emulator::Edge::begin : emulator::Edge::end;
  auto& options = emulator::machine().options;
  options.order = order == "reverse"  ? emulator::Order::reverse
                  : order == "random" ? emulator::Order::random
                                      : emulator::Order::forward;
  options.eager_copies = eager_copies;
  options.seed = seed;
  options.greedy_blocks = greedy_blocks;
}

py::dict take_counters() {
  const emulator::Counters counters = std::exchange(emulator::machine().counters, {});
  py::dict result;
  result["launches"] = counters.launches;
  result["switches"] = counters.switches;
  result["mma"] = counters.mma;
  result["ldmatrix"] = counters.ldmatrix;
  result["bank_conflicts"] = counters.bank_conflicts;
  result["copied_bytes"] = counters.copied_bytes;
  result["dependents_launches"] = counters.dependents_launches;
  result["dependency_waits"] = counters.dependency_waits;
  return result;
}

}  // namespace

PYBIND11_MODULE(adapterx_emulator, m) {
  py::register_exception<emulator::Error>(m, "EmulatorError", PyExc_RuntimeError);
  m.def("guarded", &guarded, py::arg("shape"), py::arg("dtype"));
  m.def("sparse", &sparse, py::arg("shape"), py::arg("dtype"));
  m.def("configure", &configure, py::arg("order") = "forward", py::arg("eager_copies") = false, py::arg("seed") = 1,
        py::arg("guard") = "end", py::arg("greedy_blocks") = false);
  m.def("take_counters", &take_counters);
  m.def("plant_refusal", [](const std::string& name) { fake_cublaslt::refusal = fake_cublaslt::refusal_named(name); });
  m.def("half_bits", py::vectorize(&emulator::half_bits));
  m.def("half_float", py::vectorize(&emulator::half_float));
  m.def("bfloat16_bits", py::vectorize(&emulator::bfloat16_bits));
  const auto array = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("forward", &forward, array("hidden_states"), array("residual"), array("down_weight"), array("down_bias"),
        array("up_weight"), array("up_bias"), array("output"), array("pre_activation"), py::kw_only(),
        py::arg("activation"), py::arg("scaling"), py::arg("row_tile"), py::arg("cluster_size"),
        py::arg("indices") = py::none(), py::arg("far") = std::vector<int64_t>());
  m.def("sort_tokens", &sort_tokens_binding, array("indices"), py::kw_only(), py::arg("num_adapters"),
        py::arg("row_tile"), py::arg("tokens_each") = 1);
  m.def("segments_forward", &segments_forward, array("hidden_states"), array("residual"), array("down_weight"),
        array("down_bias"), array("up_weight"), array("up_bias"), array("output"), array("pre_activation"),
        py::kw_only(), py::arg("activation"), py::arg("scaling"), array("indices"),
        py::arg("row_tile") = kSegmentRowTile);
  m.def("door_forward", &door_forward, array("hidden_states"), array("residual"), array("down_weight"),
        array("down_bias"), array("up_weight"), array("up_bias"), array("output"), array("pre_activation"),
        py::kw_only(), py::arg("activation"), py::arg("scaling"), py::arg("indices") = py::none(),
        py::arg("sorted") = py::none(), py::arg("pin") = "");
  m.def("door_sort", &door_sort, array("indices"), py::kw_only(), py::arg("num_adapters"));
  m.def("door_backward", &door_backward, array("grad_output"), array("hidden_states"), array("pre_activation"),
        array("down_weight"), array("up_weight"), py::arg("gradients"), py::kw_only(), py::arg("activation"),
        py::arg("scaling"), py::arg("add_grad_output"), py::arg("indices") = py::none(), py::arg("sorted") = py::none(),
        py::arg("pin") = "");
  m.def("door_plan", &door_plan, py::kw_only(), py::arg("num_tokens"), py::arg("size"), py::arg("bottleneck_dim"),
        py::arg("num_adapters") = 0, py::arg("pin") = "");
  m.def("backward", &backward, array("grad_output"), array("hidden_states"), array("pre_activation"),
        array("down_weight"), array("up_weight"), py::arg("gradients"), py::kw_only(), py::arg("activation"),
        py::arg("scaling"), py::arg("add_grad_output"), py::arg("row_tile"), py::arg("cluster_size"),
        py::arg("indices") = py::none(), py::arg("capability") = 90, py::arg("multiprocessors") = 132,
        py::arg("far") = std::vector<int64_t>());
  m.def("segments_backward", &segments_backward, array("grad_output"), array("hidden_states"), array("pre_activation"),
        array("down_weight"), array("up_weight"), py::arg("gradients"), py::kw_only(), py::arg("activation"),
        py::arg("scaling"), py::arg("add_grad_output"), array("indices"), py::arg("row_tile") = kSegmentRowTile);
  m.def("bias_activation", &bias_activation_binding, array("input"), array("bias"), array("activated"),
        array("pre_activation"), py::kw_only(), py::arg("activation"));
  m.def("scaled_residual", &scaled_residual_binding, array("branch"), array("bias"), array("residual"), array("output"),
        py::kw_only(), py::arg("scaling"));
  m.def("activation_gradient", &activation_gradient_binding, array("pre_activation"), array("grad_activated"),
        array("gradient"), array("grad_bias"), py::kw_only(), py::arg("activation"), py::arg("scaling"));
  m.def("column_sum", &column_sum_binding, array("input"), array("sums"), py::kw_only(), py::arg("scaling"));
  m.def("plan_tile", &plan_tile_binding, py::kw_only(), py::arg("dtype"), py::arg("tokens"), py::arg("hidden_size"),
        py::arg("bottleneck_dim"), py::arg("capability"), py::arg("shared_memory"), py::arg("direction") = "forward",
        py::arg("num_adapters") = 0);
  m.def("plan_table_source", &plan_table_source);
}
