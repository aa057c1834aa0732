// Forward of few tokens: the weights are the work, so threads share their columns and not the rows.
#pragma once

#include "driver.h"
#include "forward.h"
#include "gemm.h"
#include "pack.h"
#include "rows.h"
#include "vector.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

constexpr int64_t kFewTokens = 32;
// Multiplications below which waking other threads costs more than they save (some 5 us).
constexpr int64_t kSmallestShared = 256 * 1024;

// Some tokens of one adapter; their sums are rows [begin, begin + count).
struct AdapterRows {
  int64_t adapter;
  int64_t begin;
  int64_t count;
  TokenRows rows;
};

// What the threads share.
template <typename T>
struct FewTokens {
  const ForwardJob<T>& job;
  AdapterRows* runs = nullptr;
  Acc<T>* chunk_sums = nullptr;     // (chunks of depth, rows, inner)
  Operand<T>* activated = nullptr;  // (rows, inner)
  Acc<T>* down_bias = nullptr;
  int64_t num_runs = 0;
  int64_t num_rows = 0;

  void lay_out(Pieces& pieces) {
    const int64_t most = job.problem.num_tokens;
    const int64_t chunks = divide_up(job.problem.input_size, kChunkDepth<T>);
    runs = pieces.take<AdapterRows>(most);
    chunk_sums = pieces.take<Acc<T>>(chunks * most * job.inner);
    activated = pieces.take<Operand<T>>(most * job.inner);
    if (job.tensors.down_bias) down_bias = pieces.take<Acc<T>>(job.inner);
  }

  void add(int64_t adapter, TokenRows rows, int64_t count) {
    runs[num_runs++] = {adapter, num_rows, count, rows};
    num_rows += count;
  }
};

// What a worker needs: one packed chunk or panel of a weight, used at once.
template <typename T>
struct ChunkScratch {
  int64_t rows;
  int64_t packed_size;
  Operand<T>* packed = nullptr;
  Operand<T>* staging = nullptr;
  Acc<T>* bias = nullptr;

  void lay_out(Pieces& pieces) {
    packed = pieces.take<Operand<T>>(packed_size);
    staging = pieces.take<Operand<T>>(rows * kChunkDepth<T>);
    bias = pieces.take<Acc<T>>(kPanelColumns<T>);
  }
};

// The chunk's part of the down products of a run.
template <typename T>
void multiply_down_chunk(const FewTokens<T>& few, const AdapterRows& run, int64_t chunk) {
  const ForwardJob<T>& job = few.job;
  const int64_t k = chunk * kChunkDepth<T>;
  ChunkScratch<T> scratch{run.count, kChunkDepth<T> * job.inner};
  place(ScratchOwner::worker, scratch);
  pack(chunk_of(job.down_weight(run.adapter), k), scratch.packed);
  const ChunkOperands<T> operands{job.hidden_chunk(k, run.rows, run.count, scratch.staging), scratch.packed};
  Acc<T>* sums = few.chunk_sums + (chunk * few.num_rows + run.begin) * job.inner;
  Nothing nothing;
  multiply_narrow<T>(
      run.count, min_of(kChunkDepth<T>, job.problem.input_size - k), job.inner, [&](int64_t) { return operands; }, sums,
      nothing);
}

// The partial sums of the chunks of depth are added in the order of multiply_narrow: a row's bits do not depend on the
// number of rows.
template <typename T>
void finish_down_runs(const FewTokens<T>& few, int64_t chunks) {
  const ForwardJob<T>& job = few.job;
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < few.num_rows * job.inner; i += kLanes<T>) {
      const Acc<T>* more = few.chunk_sums + chunk * few.num_rows * job.inner + i;
      store(few.chunk_sums + i, load(static_cast<const Acc<T>*>(few.chunk_sums + i)) + load(more));
    }
  }
  for (int64_t i = 0; i < few.num_runs; ++i) {
    const AdapterRows& run = few.runs[i];
    const ForwardTensors from = with_adapter<T>(job.problem, job.tensors, run.adapter);
    if (few.down_bias) {
      pack_bias(static_cast<const T*>(from.down_bias), Acc<T>(1), job.problem.bottleneck_dim, job.inner, few.down_bias);
    }
    const int64_t at = run.begin * job.inner;
    finish_down(job, run.rows, run.count, few.down_bias, few.chunk_sums + at, few.activated + at);
  }
}

// Panel at column c of a run's output rows.
template <typename T>
void write_run_panel(const FewTokens<T>& few, const AdapterRows& run, int64_t c) {
  const ForwardJob<T>& job = few.job;
  const Problem& problem = job.problem;
  const ForwardTensors from = with_adapter<T>(problem, job.tensors, run.adapter);
  const int64_t size = problem.bottleneck_dim;
  const int64_t width = min_of(kPanelColumns<T>, job.columns - c);
  ChunkScratch<T> scratch{run.count, round_up(size, kPair<T>) * kPanelColumns<T>};
  place(ScratchOwner::worker, scratch);
  pack(panel_of(job.up_weight(run.adapter), c), scratch.packed);
  if (from.up_bias) {
    pack_bias(static_cast<const T*>(from.up_bias) + c, static_cast<Acc<T>>(problem.scaling), problem.hidden_size - c,
              width, scratch.bias);
  }
  Nothing nothing;
  write_output_panel(job, run.rows, run.count, c, scratch.packed, from.up_bias ? scratch.bias : nullptr,
                     few.activated + run.begin * job.inner, nothing);
}

template <typename T>
void forward_few(const FewTokens<T>& few, const ThreadPool& pool) {
  const Problem& problem = few.job.problem;
  const int64_t weights = (problem.input_size + problem.hidden_size) * problem.bottleneck_dim;
  const ThreadPool used = weights * few.num_rows < kSmallestShared ? ThreadPool{} : pool;
  const int64_t chunks = divide_up(problem.input_size, kChunkDepth<T>);
  const int64_t panels = divide_up(few.job.columns, kPanelColumns<T>);
  parallel_for(used, few.num_runs * chunks,
               [&](int64_t i) { multiply_down_chunk(few, few.runs[i / chunks], i % chunks); });
  finish_down_runs(few, chunks);
  parallel_for(used, few.num_runs * panels,
               [&](int64_t i) { write_run_panel(few, few.runs[i / panels], i % panels * kPanelColumns<T>); });
}

template <typename T>
void forward(const Problem& problem, const ForwardTensors& tensors, const ThreadPool& pool) {
  if (problem.num_tokens == 0) return;
  const ForwardJob<T> job{problem, tensors};
  if (problem.num_tokens <= kFewTokens) {
    FewTokens<T> few{job};
    place(ScratchOwner::call, few);
    few.add(0, kAllRows, problem.num_tokens);
    forward_few(few, pool);
  } else {
    forward_by_rows(job, pool);
  }
  trim_scratch(ScratchOwner::call);
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
