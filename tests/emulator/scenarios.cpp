// The emulator's own test: small kernels, right ones and ones with one fault each, on every schedule.
//
// A right kernel must give the numbers it names on every schedule; a faulty one must be stopped with the words it names
// on at least one. Prints a line for each that does not; exit status 0 where there is none.
#include <cstdio>
#include <functional>
#include <numeric>
#include <vector>

#include "ptx.cuh"

namespace {

using namespace adapterx::cuda;

constexpr int kCount = 1024;  // integers in each tensor
constexpr int64_t kShared = 16 * 1024;

struct Tensors {
  const unsigned* in;  // 0, 1, 2, ...
  unsigned* out;
};

struct Scenario {
  const char* name;
  const char* words;  // of the failure; "" for a right kernel, whose `out` is then `in`
  int threads, blocks;
  std::function<void(const Tensors&, unsigned char*)> kernel;
  bool programmatic = false;
};

uint64_t* barrier_in(unsigned char* shared, int i = 0) { return reinterpret_cast<uint64_t*>(shared) + i; }
unsigned* data_in(unsigned char* shared) { return reinterpret_cast<unsigned*>(shared + 128); }

void set_up(uint64_t* barrier, unsigned arrivals) {
  if (threadIdx.x == 0) barrier_init(barrier, arrivals), barrier_init_fence();
}
void ready(unsigned char* shared, unsigned arrivals = 1) {
  set_up(barrier_in(shared), arrivals);
  cluster_sync();
}
void copy_out(const Tensors& t, const unsigned* data, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) t.out[i] = data[i];
}
// The first `count` integers, in two copies.
void load(const Tensors& t, unsigned char* shared, unsigned count = kCount) {
  barrier_expect(barrier_in(shared), 4 * count);
  bulk_load(data_in(shared), t.in, 2 * count, barrier_in(shared));
  bulk_load(data_in(shared) + count / 2, t.in + count / 2, 2 * count, barrier_in(shared));
}
void store(const Tensors& t, unsigned char* shared) {
  bulk_store(t.out, data_in(shared), 4 * kCount);
  bulk_commit();
}
// Eight rows of 16 bytes for each of four matrices; a warp writes them.
void store_matrices(unsigned char* shared, unsigned value) {
  const uint32_t r[4] = {value, value, value, value};
  stmatrix_x4_trans(shared + 128 + 16 * threadIdx.x, r);
}

const std::vector<Scenario> kRight = {
    {"load", "", 64, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) load(t, s);
       barrier_wait(barrier_in(s), 0);
       copy_out(t, data_in(s), kCount);
     }},
    {"ring of two stages", "", 64, 1,
     [](const Tensors& t, unsigned char* s) {
       uint64_t *full = barrier_in(s), *empty = barrier_in(s, 2);
       for (int i = 0; i < 2; ++i) set_up(full + i, 1), set_up(empty + i, 1);
       __syncthreads();
       const bool produces = threadIdx.x == 32;
       for (int i = 0; i < 8; ++i) {
         unsigned* stage = data_in(s) + i % 2 * 128;
         const unsigned parity = i / 2 % 2;
         if (produces) {
           barrier_wait(empty + i % 2, parity ^ 1);
           barrier_expect(full + i % 2, 512);
           for (int j = 0; j < 4; ++j) bulk_load(stage + 32 * j, t.in + 128 * i + 32 * j, 128, full + i % 2);
         } else if (threadIdx.x < 32) {
           barrier_wait(full + i % 2, parity);
           for (int j = threadIdx.x; j < 128; j += 32) t.out[128 * i + j] = stage[j];
           __syncwarp();
           if (threadIdx.x == 0) barrier_arrive(empty + i % 2);
         }
       }
     }},
    {"dependent launch", "", 64, 2,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x == 0) dependency_wait(), load(t, s);
       barrier_wait(barrier_in(s), 0);
       dependents_launch();
       if (threadIdx.x >= 32) return;
       dependency_wait();
       for (int i = threadIdx.x; i < kCount; i += 32) t.out[i] = data_in(s)[i];
     },
     true},
    {"load and store", "", 64, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x > 0) return;
       load(t, s);
       barrier_wait(barrier_in(s), 0);
       store(t, s);
       bulk_wait_read<0>();
     }},
    {"groups of stores", "", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       if (threadIdx.x > 0) return;
       for (int i = 0; i < 4; ++i) {  // two buffers of 256 integers take turns
         bulk_wait_read<1>();
         barrier_expect(barrier_in(s), 1024);
         bulk_load(data_in(s) + i % 2 * 256, t.in + 256 * i, 1024, barrier_in(s));
         barrier_wait(barrier_in(s), i % 2);
         bulk_store(t.out + 256 * i, data_in(s) + i % 2 * 256, 1024);
         bulk_commit();
       }
       bulk_wait<0>();
     }},
    {"stores between blocks", "", 64, 4,
     [](const Tensors& t, unsigned char* s) {
       ready(s);
       const unsigned rank = cluster_rank();
       if (threadIdx.x == 0) barrier_expect(barrier_in(s), 1024);
       for (unsigned to = 0; to < 4; ++to) {  // 256 integers for each block, 64 of them from each
         auto* place = reinterpret_cast<uint2*>(data_in(s)) + 32 * rank + threadIdx.x % 32;
         const unsigned first = 256 * to + 64 * rank + 2 * (threadIdx.x % 32);
         if (threadIdx.x < 32) store_remote(place, to, uint2{t.in[first], t.in[first + 1]}, barrier_in(s));
       }
       barrier_wait_cluster(barrier_in(s), 0);
       for (int i = threadIdx.x; i < 256; i += 64) t.out[256 * rank + i] = data_in(s)[i];
       cluster_sync();
     }},
    {"split barrier of the cluster", "", 32, 2,
     [](const Tensors& t, unsigned char* s) {
       for (int i = 0; i < 4; ++i) {
         auto* word = data_in(s) + threadIdx.x;
         for (int j = 0; j < 4; ++j) word[32 * j] = t.in[256 * i + 128 * cluster_rank() + 32 * j + threadIdx.x];
         cluster_arrive();
         cluster_wait();
         const unsigned other = cluster_rank() ^ 1;
         for (int j = 0; j < 4; ++j) {
           t.out[256 * i + 128 * other + 32 * j + threadIdx.x] = cluster_map(word, other)[32 * j];
         }
         cluster_arrive_relaxed();
         cluster_wait();
       }
     }},
    {"barriers of some warps", "", 128, 1,
     [](const Tensors& t, unsigned char* s) {
       const int half = threadIdx.x / 64, i = threadIdx.x % 64;
       for (int round = 0; round < 8; ++round) {
         unsigned* data = data_in(s) + 64 * half;
         data[i ^ 63] = t.in[128 * round + 64 * half + (i ^ 63)];
         block_barrier(1 + half, 64);
         t.out[128 * round + 64 * half + i] = data[i];
         block_barrier(1 + half, 64);
       }
     }},
    {"stmatrix, ldmatrix and movmatrix", "", 32, 1,
     [](const Tensors& t, unsigned char* s) {
       for (int round = 0; round < 8; ++round) {
         uint32_t r[4], loaded[4];
         for (int i = 0; i < 4; ++i) r[i] = t.in[128 * round + 32 * i + threadIdx.x] << 16 | round;
         stmatrix_x4_trans(s + 16 * threadIdx.x, r);
         __syncwarp();
         round % 2 ? ldmatrix_x4(loaded, s + 16 * threadIdx.x) : ldmatrix_x4_trans(loaded, s + 16 * threadIdx.x);
         for (int i = 0; i < 4; ++i) {
           const uint32_t pair = round % 2 ? movmatrix_trans(loaded[i]) : loaded[i];
           t.out[128 * round + 32 * i + threadIdx.x] = pair >> 16;
         }
         __syncwarp();
       }
     }},
    {"stmatrix, fence and store", "", 64, 1,
     [](const Tensors& t, unsigned char* s) {
       for (int round = 0; round < 4; ++round) {  // 256 integers, every one the two halves of its own transposition
         uint32_t r[4];
         const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
         auto* words = data_in(s) + 128 * warp;
         for (int i = 0; i < 4; ++i) words[32 * i + lane] = t.in[256 * round + 128 * warp + 32 * i + lane];
         __syncwarp();
         ldmatrix_x4_trans(r, words + 4 * lane);
         __syncwarp();
         stmatrix_x4_trans(words + 4 * lane, r);
         async_proxy_fence();
         __syncthreads();
         if (threadIdx.x == 0) {
           bulk_store(t.out + 256 * round, data_in(s), 1024);
           bulk_commit();
           bulk_wait_read<0>();
         }
         __syncthreads();
       }
     }},
};

#include "scenarios_faulty.h"

void run(const Scenario& scenario, const Tensors& tensors) {
  emulator::machine().launch([&] { scenario.kernel(tensors, emulator::machine().block().shared.data()); },
                             dim3(scenario.blocks), dim3(scenario.threads), kShared, scenario.blocks,
                             scenario.programmatic);
}

// Words of the failure on one schedule; "" where there is none and `out` is `in`.
std::string outcome(const Scenario& scenario) {
  const emulator::GuardedMemory in(4 * kCount), out(4 * kCount);
  auto* first = reinterpret_cast<unsigned*>(in.data());
  std::iota(first, first + kCount, 0u);
  try {
    run(scenario, {first, reinterpret_cast<unsigned*>(out.data())});
  } catch (const emulator::Error& error) {
    return error.what();
  }
  return std::memcmp(in.data(), out.data(), 4 * kCount) == 0 ? "" : "wrong numbers";
}

bool passes(const Scenario& scenario) {
  const bool right = *scenario.words == '\0';
  std::string seen;
  for (int schedule = 0; schedule < 24; ++schedule) {
    emulator::machine().options = {static_cast<emulator::Order>(schedule % 3), schedule / 3 % 2 == 1, 3u + schedule,
                                   schedule / 6 % 2 == 1};
    const std::string words = outcome(scenario);
    if (right && words.empty()) continue;
    if (!right && words.find(scenario.words) != std::string::npos) return true;
    if (seen.find(words) == std::string::npos) seen += "\n    " + words;
  }
  if (right && seen.empty()) return true;
  std::printf("%s: expected \"%s\", got: %s\n", scenario.name, scenario.words, seen.c_str());
  return false;
}

}  // namespace

int main() {
  int failed = 0;
  for (const Scenario& scenario : kRight) failed += !passes(scenario);
  for (const Scenario& scenario : kFaulty) failed += !passes(scenario);
  std::printf("%zu right and %zu faulty kernels, %d not as expected\n", kRight.size(), kFaulty.size(), failed);
  return failed == 0 ? 0 : 1;
}
