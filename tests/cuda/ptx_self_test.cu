// Runs every instruction of ptx.cuh on known integers and compares with what its twin in the host emulator gives: the
// first thing to do with a new GPU, seconds long.
//
//     nvcc -std=c++17 -arch=sm_90 -o build/ptx_self_test tests/cuda/ptx_self_test.cu && build/ptx_self_test
//
// Prints one line of JSON for each group of instructions; exit status 0 where all are right. Where a group breaks the
// process or does not end, the next one runs in a new process, so that one fault is not taken for many.
// Compiled for the host with ADAPTERX_EMULATE this file writes ptx_expected.h (tests/cuda/ptx_expected.py).
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "../../csrc/kernels/cuda/launch.cuh"
#include "ptx_primitives.cuh"

#ifndef ADAPTERX_EMULATE
#include "ptx_expected.h"
#endif

namespace {

using namespace self_test;
using Kernel = void (*)(const uint32_t*, uint32_t*);

struct Group {
  const char* name;
  Kernel kernel;
  int threads = 32, blocks = 1;  // of one cluster
  int capability = 80;
  Kernel before = nullptr;  // in the same stream
};

const Group kGroups[] = {
    {"ldmatrix_x4", ldmatrix<false>},
    {"ldmatrix_x4_trans", ldmatrix<true>},
    {"mma bfloat16", tensor_core<bfloat16>},
    {"mma float16", tensor_core<float16>},
    {"cp_async16", copies},
    {"movmatrix_trans", transposition},
    {"block_barrier", named_barriers, 128},
    {"stmatrix_x4_trans", stmatrix, 32, 1, 90},
    {"cluster_sync cluster_map cluster_arrive cluster_wait", clusters, 32, 4, 90},
    {"barrier_init barrier_arrive barrier_wait", mbarriers, 64, 1, 90},
    {"bulk_load bulk_store async_proxy_fence", bulk_copies, 32, 1, 90},
    {"store_remote float4", remote_float4, 32, 4, 90},
    {"store_remote uint2", remote_uint2, 32, 4, 90},
    {"dependents_launch dependency_wait", dependent, 128, 1, 90, first_of_two},
};
constexpr int kCount = sizeof kGroups / sizeof *kGroups;

std::vector<uint32_t> input() {
  std::vector<uint32_t> words(kWords);
  for (uint32_t i = 0; i < kWords; ++i) words[i] = (i + 1) * 2654435761u ^ i << 7;
  return words;
}

// The groups' kernels, launched; `in` and `out` are device memory.
cudaError_t start(const Group& group, const uint32_t* in, uint32_t* out) {
  const auto blocks = static_cast<unsigned>(group.blocks);
  LaunchShape shape;
  shape.grid = dim3(blocks), shape.block = dim3(static_cast<unsigned>(group.threads));
  shape.shared_memory = kShared, shape.cluster_size = group.blocks;
  if (group.before != nullptr) {
    const cudaError_t error = launch(group.before, shape, nullptr, in, out);
    if (error != cudaSuccess) return error;
  }
  return launch(group.kernel, shape, nullptr, in, out);
}

constexpr int kRowWords = 32, kRows = kWords / kRowWords;

// A hash (FNV-1a) of each 32 words.
std::vector<uint32_t> hash_rows(const uint32_t* words) {
  std::vector<uint32_t> hashes(kRows, 2166136261u);
  for (int i = 0; i < kWords; ++i) hashes[i / kRowWords] = (hashes[i / kRowWords] ^ words[i]) * 16777619u;
  return hashes;
}

#ifdef ADAPTERX_EMULATE

// What the twins give on one schedule.
std::vector<uint32_t> emulate(const Group& group, int schedule) {
  const std::vector<uint32_t> words = input();
  const emulator::GuardedMemory in(4 * kWords), out(4 * kWords);
  std::memcpy(in.data(), words.data(), in.size());
  std::memset(out.data(), 0, out.size());
  emulator::machine().options = {static_cast<emulator::Order>(schedule % 3), schedule / 3 % 2 == 1, 1u + schedule,
                                 schedule / 6 == 1};
  start(group, reinterpret_cast<const uint32_t*>(in.data()), reinterpret_cast<uint32_t*>(out.data()));
  return hash_rows(reinterpret_cast<const uint32_t*>(out.data()));
}

// Writes the header; every schedule must give the same.
int write_expected() {
  std::printf("// What the twins of ptx.cuh give in the host emulator; written by tests/cuda/ptx_expected.py.\n");
  std::printf("#pragma once\n\n#include <cstdint>\n\n");
  std::printf("// For each group of ptx_self_test.cu the hash of each 32 words.\n");
  std::printf("inline constexpr uint32_t kExpected[%d][%d] = {\n", kCount, kRows);
  for (const Group& group : kGroups) {
    const std::vector<uint32_t> hashes = emulate(group, 0);
    for (int schedule = 1; schedule < 12; ++schedule) {
      if (emulate(group, schedule) != hashes) return std::fprintf(stderr, "%s: schedules differ\n", group.name), 1;
    }
    std::printf("    // %s\n    {", group.name);
    for (int i = 0; i < kRows; ++i) std::printf("%s0x%08x", i == 0 ? "" : i % 8 == 0 ? ",\n     " : ", ", hashes[i]);
    std::printf("},\n");
  }
  std::printf("};\n");
  return 0;
}

#else

constexpr unsigned kLimit = 10;      // seconds for a group, the start of a process included
constexpr int kMaxBrokenGroups = 3;  // that break or block their process; then the device is given up

std::string quoted(const char* words) { return std::string("\"") + words + "\""; }

// What a process tells the one that started it.
struct Progress {
  int group = 0, wrong = 0;  // the one that runs; groups that are not right
};

void say(const Group& group, const std::string& facts) {
  std::printf("{\"primitive\": %s, %s}\n", quoted(group.name).c_str(), facts.c_str());
  std::fflush(stdout);
}

// The group that runs has no result.
void fail(Progress& progress, const char* reason) {
  ++progress.wrong;
  say(kGroups[progress.group++], "\"ok\": false, \"reason\": " + quoted(reason));
}

// The words of the first wrong row, for whoever has to find out why.
std::string describe_wrong(const std::vector<int>& rows, const std::vector<uint32_t>& words) {
  std::string facts = "\"ok\": false, \"wrong_rows\": [";
  for (size_t i = 0; i < rows.size(); ++i) facts += (i == 0 ? "" : ", ") + std::to_string(rows[i]);
  facts += "], \"first\": [";
  for (int i = 0; i < kRowWords; ++i) facts += (i == 0 ? "" : ", ") + std::to_string(words[rows[0] * kRowWords + i]);
  return facts + "]";
}

struct DeviceMemory {
  uint32_t *in = nullptr, *out = nullptr;
  int capability = 0;

  // Says what failed, if anything did.
  cudaError_t prepare() {
    int major = 0, minor = 0;
    cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    if (error == cudaSuccess) error = cudaMalloc(&in, 4 * kWords);
    if (error == cudaSuccess) error = cudaMalloc(&out, 4 * kWords);
    if (error == cudaSuccess) error = cudaMemcpy(in, input().data(), 4 * kWords, cudaMemcpyHostToDevice);
    capability = 10 * major + minor;
    return error;
  }
};

// Runs one group; an error of the device leaves this process of no use.
cudaError_t run_group(const DeviceMemory& memory, const Group& group, const uint32_t* expected, int& wrong) {
  std::vector<uint32_t> words(kWords);
  cudaError_t error = cudaMemset(memory.out, 0, 4 * kWords);
  if (error == cudaSuccess) error = start(group, memory.in, memory.out);
  if (error == cudaSuccess) error = cudaMemcpy(words.data(), memory.out, 4 * kWords, cudaMemcpyDeviceToHost);
  if (error != cudaSuccess) return error;
  const std::vector<uint32_t> hashes = hash_rows(words.data());
  std::vector<int> rows;
  for (int i = 0; i < kRows; ++i) {
    if (hashes[i] != expected[i]) rows.push_back(i);
  }
  wrong += !rows.empty();
  say(group, rows.empty() ? "\"ok\": true" : describe_wrong(rows, words));
  return cudaSuccess;
}

// Runs the groups from `progress.group` on, as far as the device goes along.
void run_groups(Progress& progress) {
  alarm(kLimit);
  DeviceMemory memory;
  cudaError_t error = memory.prepare();
  for (; progress.group < kCount; ++progress.group) {
    const Group& group = kGroups[progress.group];
    alarm(kLimit);
    if (error == cudaSuccess && memory.capability < group.capability) {
      say(group, "\"ok\": null, \"reason\": \"needs compute capability 9.0\"");
      continue;
    }
    if (error == cudaSuccess) error = run_group(memory, group, kExpected[progress.group], progress.wrong);
    if (error == cudaSuccess) continue;
    fail(progress, cudaGetErrorString(error));
    _exit(1);
  }
  _exit(0);
}

int run_all() {
  void* shared = mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return std::perror("mmap"), 2;
  auto& progress = *new (shared) Progress();
  for (int broken = 0; progress.group < kCount;) {
    if (broken == kMaxBrokenGroups) {
      fail(progress, "not run after so many faults");
      continue;
    }
    const pid_t child = fork();
    if (child == 0) run_groups(progress);
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return std::perror("fork"), 2;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) break;
    ++broken;
    if (!WIFSIGNALED(status)) continue;
    const bool late = WTERMSIG(status) == SIGALRM;
    const std::string reason = late ? "does not end" : "ended by signal " + std::to_string(WTERMSIG(status));
    fail(progress, reason.c_str());
    if (late) broken = kMaxBrokenGroups;  // what hangs on the device may hold up all that follows
  }
  return progress.wrong == 0 ? 0 : 1;
}

#endif

}  // namespace

int main() {
#ifdef ADAPTERX_EMULATE
  return write_expected();
#else
  return run_all();
#endif
}
