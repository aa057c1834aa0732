// Runs the CPU kernels without Python: under the sanitizers over odd shapes, or timed on one shape.
//   adapterx_kernel_driver
//       every dtype, activation, capability and way in which tokens pick adapters; exit status 1 on NaN
//   adapterx_kernel_driver T d m dtype threads repeats [G]
//       median ms of processor time (all threads) and GFLOP/s per core; with G also G adapters, in runs and at random
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/kernels/cpu/dispatch.h"
#include "run_on_threads.h"

namespace {

using namespace adapterx;
using namespace adapterx::cpu;

constexpr const char* kDtypes[] = {"float32", "float64", "bfloat16", "float16"};

// A buffer of exactly the size asked for, so that the address sanitizer sees every access beyond it.
class Buffer {
 public:
  Buffer(ScalarType dtype, int64_t count) : dtype_(dtype), count_(count), bytes_(count * size_of(dtype)) {
    for (int64_t i = 0; i < count; ++i) set(i, static_cast<double>((i * 7919 + 13) % 1009) / 1009 - 0.5);
  }
  void* data() { return bytes_.data(); }
  bool all_finite() const {
    for (int64_t i = 0; i < count_; ++i) {
      if (!finite(i)) return false;
    }
    return true;
  }

 private:
  static int64_t size_of(ScalarType dtype) {
    return dtype == ScalarType::float64 ? 8 : dtype == ScalarType::float32 ? 4 : 2;
  }
  void set(int64_t i, double value) {
    const float single = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    uint16_t word = static_cast<uint16_t>(bits >> 16);
    if (dtype_ == ScalarType::float16) word = static_cast<uint16_t>((bits >> 31) << 15 | (std::abs(i) % 15360));
    char* at = bytes_.data() + i * size_of(dtype_);
    if (dtype_ == ScalarType::float64) {
      std::memcpy(at, &value, 8);
    } else if (dtype_ == ScalarType::float32) {
      std::memcpy(at, &single, 4);
    } else {
      std::memcpy(at, &word, 2);
    }
  }
  bool finite(int64_t i) const {
    const char* at = bytes_.data() + i * size_of(dtype_);
    double wide = 0;
    float single = 0;
    uint16_t word = 0;
    switch (dtype_) {
      case ScalarType::float64: std::memcpy(&wide, at, 8); return std::isfinite(wide);
      case ScalarType::float32: std::memcpy(&single, at, 4); return std::isfinite(single);
      case ScalarType::bfloat16: std::memcpy(&word, at, 2); return (word & 0x7f80) != 0x7f80;
      case ScalarType::float16: std::memcpy(&word, at, 2); return (word & 0x7c00) != 0x7c00;
    }
    return false;
  }

  ScalarType dtype_;
  int64_t count_;
  std::vector<char> bytes_;
};

// How the tokens of a call pick adapters; `one`: not grouped at all.
enum class Pick { one, runs, scattered, few_of_many, same, none };
constexpr Pick kPicks[] = {Pick::one, Pick::runs, Pick::scattered, Pick::few_of_many, Pick::same, Pick::none};

std::vector<int64_t> pick_adapters(Pick pick, int64_t num_tokens, int64_t num_adapters) {
  std::vector<int64_t> indices(num_tokens);
  for (int64_t i = 0; i < num_tokens; ++i) {
    const int64_t scattered = (i * 7919 + 5) % 1009 % (num_adapters + 1) - 1;
    switch (pick) {
      case Pick::one: break;
      case Pick::runs: indices[i] = i * num_adapters / num_tokens; break;
      case Pick::scattered: indices[i] = scattered; break;
      case Pick::few_of_many: indices[i] = scattered % 2 == 0 ? num_adapters - 1 : -1; break;
      case Pick::same: indices[i] = num_adapters - 1; break;
      case Pick::none: indices[i] = -1; break;
    }
  }
  return indices;
}

struct Call {
  Problem problem;
  int64_t num_adapters;  // zero: not grouped
  std::vector<int64_t> indices;
  Buffer hidden_states, down_weight, down_bias, up_weight, up_bias, output, pre_activation, grad_output;
  Buffer grad_input, grad_down_weight, grad_down_bias, grad_up_weight, grad_up_bias;
  int32_t threads;

  Call(const Problem& p, Pick pick, int64_t groups, int32_t threads)
      : problem(p),
        num_adapters(pick == Pick::one ? 0 : groups),
        indices(pick_adapters(pick, p.num_tokens, groups)),
        hidden_states(p.dtype, p.num_tokens * p.input_size),
        down_weight(p.dtype, adapters() * p.bottleneck_dim * p.input_size),
        down_bias(p.dtype, adapters() * p.bottleneck_dim),
        up_weight(p.dtype, adapters() * p.hidden_size * p.bottleneck_dim),
        up_bias(p.dtype, adapters() * p.hidden_size),
        output(p.dtype, p.num_tokens * p.hidden_size),
        pre_activation(p.dtype, p.num_tokens * p.bottleneck_dim),
        grad_output(p.dtype, p.num_tokens * p.hidden_size),
        grad_input(p.dtype, p.num_tokens * p.input_size),
        grad_down_weight(p.dtype, adapters() * p.bottleneck_dim * p.input_size),
        grad_down_bias(p.dtype, adapters() * p.bottleneck_dim),
        grad_up_weight(p.dtype, adapters() * p.hidden_size * p.bottleneck_dim),
        grad_up_bias(p.dtype, adapters() * p.hidden_size),
        threads(threads) {}

  int64_t adapters() const { return std::max<int64_t>(1, num_adapters); }

  void forward(const Kernels& kernels) {
    const bool same = problem.input_size == problem.hidden_size;
    const ForwardTensors tensors{hidden_states.data(), problem.input_size, same ? hidden_states.data() : nullptr,
                                 problem.hidden_size,  down_weight.data(), down_bias.data(),
                                 up_weight.data(),     up_bias.data(),     output.data(),
                                 pre_activation.data()};
    const Entries& entries = kernels.of(problem.dtype);
    const ThreadPool pool{run_on_threads, &threads, threads};
    if (num_adapters == 0) return entries.forward(problem, tensors, pool);
    entries.grouped_forward(problem, tensors, {indices.data(), num_adapters}, pool);
  }
  void backward(const Kernels& kernels) {
    const bool same = problem.input_size == problem.hidden_size;
    const BackwardTensors tensors{
        grad_output.data(),    problem.hidden_size,     hidden_states.data(),  problem.input_size,
        pre_activation.data(), down_weight.data(),      up_weight.data(),      same,
        grad_input.data(),     grad_down_weight.data(), grad_down_bias.data(), grad_up_weight.data(),
        grad_up_bias.data()};
    const Entries& entries = kernels.of(problem.dtype);
    const ThreadPool pool{run_on_threads, &threads, threads};
    if (num_adapters == 0) return entries.backward(problem, tensors, pool);
    entries.grouped_backward(problem, tensors, {indices.data(), num_adapters}, pool);
  }
  bool all_finite() const {
    return output.all_finite() && pre_activation.all_finite() && grad_input.all_finite() &&
           grad_down_weight.all_finite() && grad_down_bias.all_finite() && grad_up_weight.all_finite() &&
           grad_up_bias.all_finite();
  }
};

// Every shape and way to pick adapters at one dtype and activation; false where a result is not finite.
bool run_shapes(const Kernels& kernels, ScalarType dtype, Activation activation, int& runs) {
  constexpr int64_t kShapes[][4] = {{0, 8, 8, 3},   {1, 1, 1, 1},    {3, 13, 13, 7},    {101, 61, 61, 19},
                                    {97, 5, 77, 1}, {29, 70, 3, 48}, {25, 33, 33, 130}, {130, 272, 272, 33}};
  for (const auto& shape : kShapes) {
    for (const Pick pick : kPicks) {
      const int64_t groups = pick == Pick::few_of_many ? 40 : 1 + runs % 5;
      Call call({dtype, activation, 0.5, shape[0], shape[1], shape[2], shape[3]}, pick, groups, 1 + runs / 5 % 3);
      call.forward(kernels);
      call.backward(kernels);
      ++runs;
      if (!call.all_finite()) return false;
    }
  }
  return true;
}

int run_all() {
  int runs = 0;
  for (const char* capability : {"avx512_bf16", "avx512", "avx2", "baseline"}) {
    const Kernels* kernels = find_kernels(capability);
    for (int dtype = 0; kernels != nullptr && dtype < 4; ++dtype) {
      for (int activation = 0; activation < static_cast<int>(std::size(kActivationNames)); ++activation) {
        if (!run_shapes(*kernels, static_cast<ScalarType>(dtype), static_cast<Activation>(activation), runs)) {
          std::printf("not finite: %s %s %s\n", capability, kDtypes[dtype], kActivationNames[activation].data());
          return 1;
        }
      }
    }
  }
  std::printf("%d calls of forward and backward, all finite\n", runs);
  return 0;
}

template <typename Body>
void time_it(const char* name, double flop, int repeats, Body body) {
  std::vector<double> ms;
  for (int i = 0; i < repeats + 3; ++i) {
    timespec start, end;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
    body();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    if (i >= 3) ms.push_back((end.tv_sec - start.tv_sec) * 1e3 + (end.tv_nsec - start.tv_nsec) * 1e-6);
  }
  std::sort(ms.begin(), ms.end());
  const double median = ms[ms.size() / 2];
  std::printf("%s median %.3f ms (p20 %.3f, p80 %.3f), %.1f GFLOP/s, best %.1f\n", name, median, ms[ms.size() / 5],
              ms[ms.size() * 4 / 5], flop / median / 1e6, flop / ms[0] / 1e6);
}

void time_pick(const char* name, const Problem& problem, Pick pick, int64_t groups, int32_t threads, int repeats) {
  Call call(problem, pick, groups, threads);
  const Kernels* kernels = find_kernels(cpu_capability());
  const double flop = 4.0 * problem.num_tokens * problem.hidden_size * problem.bottleneck_dim;
  time_it((std::string("forward ") + name).c_str(), flop, repeats, [&] { call.forward(*kernels); });
  time_it((std::string("backward") + name).c_str(), 2 * flop, repeats, [&] { call.backward(*kernels); });
}

int time_one(int argc, char** argv) {
  const int64_t tokens = std::atoll(argv[1]), width = std::atoll(argv[2]), inner = std::atoll(argv[3]);
  int dtype = 0;
  while (dtype < 3 && std::string(argv[4]) != kDtypes[dtype]) ++dtype;
  const int32_t threads = std::atoi(argv[5]);
  const int repeats = std::max(1, std::atoi(argv[6]));
  const Problem problem{static_cast<ScalarType>(dtype), Activation::gelu, 1.0, tokens, width, width, inner};
  time_pick("", problem, Pick::one, 1, threads, repeats);
  if (argc == 7) return 0;
  const int64_t groups = std::max<int64_t>(1, std::atoll(argv[7]));
  time_pick(", runs", problem, Pick::runs, groups, threads, repeats);
  time_pick(", scattered", problem, Pick::scattered, groups, threads, repeats);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 7 || argc == 8) return time_one(argc, argv);
  if (argc == 1) return run_all();
  std::printf("usage: %s [T d m dtype threads repeats [G]]\n", argv[0]);
  return 2;
}
