// Register-tiled products. A tile is up to 12 rows by up to kPanelVectors vectors of columns; its accumulators stay in
// registers over the whole depth. A is read by broadcast, B by vector from a panel, which is packed as a rule.
// With bfloat16 dot products one step of depth is a pair of elements, else one element.
#pragma once

#include "rows.h"
#include "vector.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

#ifdef ADAPTERX_BF16_DOT
template <typename T>
constexpr bool kDot = kSame<T, BFloat16>;
#else
template <typename T>
constexpr bool kDot = false;
#endif

// What the multiplier takes: T itself or its accumulation type.
template <typename T, bool kUseDot = kDot<T>>
struct OperandOf {
  using type = Acc<T>;
};
template <typename T>
struct OperandOf<T, true> {
  using type = T;
};
template <typename T>
using Operand = typename OperandOf<T>::type;
template <typename T>
constexpr int64_t kPair = kDot<T> ? 2 : 1;

// 32 vector registers with AVX-512, 16 with AVX2 and SSE2: tiles of 24 (12) accumulators leave room for B and A.
constexpr bool kManyRegisters = kVectorBytes == 64;
constexpr int64_t kPanelVectors = kManyRegisters ? 4 : 2;
constexpr int64_t kTileAccumulators = kManyRegisters ? 24 : 12;
template <typename T>
constexpr int64_t kPanelColumns = kPanelVectors * kLanes<T>;

template <typename T>
AX_INLINE void multiply_add(Vec<T>& sum, const Operand<T>* a, Vec<T> b) {
#ifdef ADAPTERX_BF16_DOT
  if constexpr (kDot<T>) {
    int32_t pair;
    __builtin_memcpy(&pair, a, sizeof(pair));
    sum = bit_cast<Vec<T>>(
        _mm512_dpbf16_ps(bit_cast<__m512>(sum), bit_cast<__m512bh>(_mm512_set1_epi32(pair)), bit_cast<__m512bh>(b)));
    return;
  }
#endif
  if constexpr (!kDot<T>) sum += *a * b;
}

// Work that is done beside a product, a little within each tile and after it: here none. See Ahead for some.
struct Nothing {
  AX_INLINE void within_tile() {}
  AX_INLINE void within_low_tile() {}
  AX_INLINE void after_tile() {}
};
// Steps of a tile between two calls of within_tile(): fetched a few at a time, lines do not hold up the tile's loads.
constexpr int64_t kStepsBetween = 8;

// Rows of the tallest tile of a panel.
constexpr int64_t tile_rows(int64_t vectors) {
  return kTileAccumulators / vectors < 12 ? kTileAccumulators / vectors : 12;
}

// One matrix operand A: element (row, step) starts at data + token(row) * row_stride + step * step_stride.
template <typename T>
struct LeftOperand {
  const Operand<T>* data;
  int64_t row_stride;
  int64_t step_stride;
  TokenRows rows = kAllRows;
};

// sums[r][v] = sum over steps of A[row + r, step] * B[step, v].
template <typename T, int64_t kRows, int64_t kVectors, typename Beside>
AX_INLINE void multiply_tile(int64_t row, int64_t steps, const LeftOperand<T>& a, const Operand<T>* b, int64_t b_step,
                             Beside& beside, Vec<T> (&sums)[kRows][kVectors]) {
  const Operand<T>* rows[kRows];
#pragma GCC unroll 32
  for (int64_t r = 0; r < kRows; ++r) rows[r] = a.data + a.rows.token(row + r) * a.row_stride;
  int64_t at = 0;
#pragma GCC unroll 32
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = Vec<T>{};
  }
  const auto multiply_step = [&]() AX_LAMBDA {
    Vec<T> columns[kVectors];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      __builtin_memcpy(&columns[v], b + v * kLanes<T> * kPair<T>, sizeof(columns[v]));
    }
#pragma GCC unroll 32
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) multiply_add<T>(sums[r][v], rows[r] + at, columns[v]);
    }
    at += a.step_stride;
    b += b_step;
  };
  if constexpr (kSame<Beside, Nothing>) {
#pragma GCC unroll 1
    for (int64_t step = 0; step < steps; ++step) multiply_step();
  } else {
#pragma GCC unroll 1
    for (int64_t step = 0; step < steps;) {
      if constexpr (kRows >= 4) {
        beside.within_tile();
      } else {
        beside.within_low_tile();
      }
      const int64_t end = min_of(steps, step + kStepsBetween);
#pragma GCC unroll 1
      for (; step < end; ++step) multiply_step();
    }
  }
}

// All rows of a panel of kVectors vectors; finish(row, sums_of_row) takes each row while it is in registers.
template <typename T, int64_t kVectors, int64_t kRows, typename Beside, typename Finish>
AX_INLINE int64_t multiply_rows(int64_t row, int64_t rows, int64_t steps, const LeftOperand<T>& a, const Operand<T>* b,
                                int64_t b_step, Beside& beside, Finish& finish) {
  for (; row + kRows <= rows; row += kRows) {
    Vec<T> sums[kRows][kVectors];
    multiply_tile<T, kRows, kVectors>(row, steps, a, b, b_step, beside, sums);
#pragma GCC unroll 32
    for (int64_t r = 0; r < kRows; ++r) finish(row + r, sums[r]);
    beside.after_tile();
  }
  return row;
}

template <typename T, int64_t kVectors, typename Beside, typename Finish>
AX_INLINE void multiply_panel(int64_t rows, int64_t steps, const LeftOperand<T>& a, const Operand<T>* b, int64_t b_step,
                              Beside& beside, Finish& finish) {
  int64_t row = multiply_rows<T, kVectors, tile_rows(kVectors)>(0, rows, steps, a, b, b_step, beside, finish);
  row = multiply_rows<T, kVectors, 4>(row, rows, steps, a, b, b_step, beside, finish);
  row = multiply_rows<T, kVectors, 2>(row, rows, steps, a, b, b_step, beside, finish);
  multiply_rows<T, kVectors, 1>(row, rows, steps, a, b, b_step, beside, finish);
}

// Calls multiply_panel with the number of vectors as a constant. finish must accept any of them.
template <typename T, typename Beside, typename Finish>
AX_INLINE void multiply_any_panel(int64_t vectors, int64_t rows, int64_t steps, const LeftOperand<T>& a,
                                  const Operand<T>* b, int64_t b_step, Beside& beside, Finish&& finish) {
  if constexpr (kPanelVectors >= 4) {
    if (vectors == 4) return multiply_panel<T, 4>(rows, steps, a, b, b_step, beside, finish);
    if (vectors == 3) return multiply_panel<T, 3>(rows, steps, a, b, b_step, beside, finish);
  }
  if (vectors == 2) return multiply_panel<T, 2>(rows, steps, a, b, b_step, beside, finish);
  multiply_panel<T, 1>(rows, steps, a, b, b_step, beside, finish);
}

// ---- the products of the adapter ----

// One panel: out (rows, width) (+)= A B.
template <typename T, typename Beside>
void multiply_into(int64_t rows, int64_t steps, int64_t width, const LeftOperand<T>& a, const Operand<T>* b,
                   int64_t b_step, bool add, Acc<T>* out, int64_t out_stride, Beside& beside) {
  multiply_any_panel<T>(width / kLanes<T>, rows, steps, a, b, b_step, beside,
                        [&](int64_t row, const auto& sums) AX_LAMBDA {
                          constexpr int64_t kVectors = sizeof(sums) / sizeof(Vec<T>);
                          Acc<T>* to = out + row * out_stride;
#pragma GCC unroll 4
                          for (int64_t v = 0; v < kVectors; ++v) {
                            Acc<T>* at = to + v * kLanes<T>;
                            store(at, add ? load(static_cast<const Acc<T>*>(at)) + sums[v] : sums[v]);
                          }
                        });
}

// One panel of out (rows, count <= panel) = residual + scaling * (A B) + bias; bias may be null, residual too.
template <typename T>
struct WideResult {
  TokenRows rows;  // of out and residual
  T* out;
  int64_t out_stride;
  const T* residual;
  int64_t residual_stride;
  const Acc<T>* bias;  // already scaled, padded to whole vectors
  Acc<T> scaling;
  int64_t count;
};

// The last panel where its columns are no whole vectors: a few rows at a time by way of memory.
template <typename T>
void multiply_residual_some(int64_t rows, int64_t steps, const LeftOperand<T>& a, const Operand<T>* b,
                            const WideResult<T>& to) {
  constexpr int64_t kRows = 24;
  const int64_t width = round_up(to.count, kLanes<T>);
  Acc<T> sums[kRows * kPanelColumns<T>];
  Nothing nothing;
  for (int64_t row = 0; row < rows; ++row) {
    if (row % kRows == 0) {
      multiply_into<T>(min_of(kRows, rows - row), steps, width, {a.data, a.row_stride, a.step_stride, a.rows.from(row)},
                       b, width * kPair<T>, false, static_cast<Acc<T>*>(sums), width, nothing);
    }
    const int64_t token = to.rows.token(row);
    for (int64_t c = 0; c < width; c += kLanes<T>) {
      Vec<T> value = load(static_cast<const Acc<T>*>(sums) + row % kRows * width + c) * to.scaling;
      if (to.bias) value += load(to.bias + c);
      if (to.residual) value += load_some(to.residual + token * to.residual_stride + c, to.count - c);
      store_some(to.out + token * to.out_stride + c, value, to.count - c);
    }
  }
}

template <typename T, typename Beside>
void multiply_residual(int64_t rows, int64_t steps, const LeftOperand<T>& a, const Operand<T>* b,
                       const WideResult<T>& to, Beside& beside) {
  if (to.count % kLanes<T> != 0) return multiply_residual_some(rows, steps, a, b, to);
  multiply_any_panel<T>(to.count / kLanes<T>, rows, steps, a, b, to.count * kPair<T>, beside,
                        [&](int64_t row, auto& sums) AX_LAMBDA {
                          constexpr int64_t kVectors = sizeof(sums) / sizeof(Vec<T>);
                          const int64_t token = to.rows.token(row);
                          T* out = to.out + token * to.out_stride;
                          const T* residual = to.residual ? to.residual + token * to.residual_stride : nullptr;
                          Vec<T> values[kVectors];
#pragma GCC unroll 4
                          for (int64_t v = 0; v < kVectors; ++v) {
                            values[v] = sums[v] * to.scaling;
                            if (to.bias) values[v] += load(to.bias + v * kLanes<T>);
                            if (residual) values[v] += load(residual + v * kLanes<T>);
                          }
                          store_all(out, values);
                        });
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
