// Register-tiled products. A tile is kTileRows rows by up to kPanelVectors vectors of columns; its accumulators stay
// in registers over the whole depth. A is read by broadcast, B by vector from a packed panel.
// With bfloat16 dot products one step of depth is a pair of elements, else one element.
#pragma once

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

// sums[r][v] = sum over steps of A[r, step] * B[step, v].
template <typename T, int64_t kRows, int64_t kVectors>
AX_INLINE void multiply_tile(int64_t steps, const Operand<T>* a, int64_t a_row, int64_t a_step, const Operand<T>* b,
                             int64_t b_step, Vec<T> (&sums)[kRows][kVectors]) {
#pragma GCC unroll 32
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = Vec<T>{};
  }
#pragma GCC unroll 1
  for (int64_t step = 0; step < steps; ++step) {
    Vec<T> columns[kVectors];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      __builtin_memcpy(&columns[v], b + v * kLanes<T> * kPair<T>, sizeof(columns[v]));
    }
#pragma GCC unroll 32
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) multiply_add<T>(sums[r][v], a + r * a_row, columns[v]);
    }
    a += a_step;
    b += b_step;
  }
}

// One matrix operand A: element (row, step) starts at data + row * row_stride + step * step_stride.
template <typename T>
struct LeftOperand {
  const Operand<T>* data;
  int64_t row_stride;
  int64_t step_stride;
};

// All rows of a panel of kVectors vectors; finish(row, sums_of_row) takes each row while it is in registers.
template <typename T, int64_t kVectors, int64_t kRows, typename Finish>
AX_INLINE int64_t multiply_rows(int64_t row, int64_t rows, int64_t steps, LeftOperand<T> a, const Operand<T>* b,
                                int64_t b_step, Finish& finish) {
  for (; row + kRows <= rows; row += kRows) {
    Vec<T> sums[kRows][kVectors];
    multiply_tile<T, kRows, kVectors>(steps, a.data + row * a.row_stride, a.row_stride, a.step_stride, b, b_step, sums);
#pragma GCC unroll 32
    for (int64_t r = 0; r < kRows; ++r) finish(row + r, sums[r]);
  }
  return row;
}

template <typename T, int64_t kVectors, typename Finish>
AX_INLINE void multiply_panel(int64_t rows, int64_t steps, LeftOperand<T> a, const Operand<T>* b, int64_t b_step,
                              Finish& finish) {
  constexpr int64_t kRows = kTileAccumulators / kVectors < 12 ? kTileAccumulators / kVectors : 12;
  int64_t row = multiply_rows<T, kVectors, kRows>(0, rows, steps, a, b, b_step, finish);
  row = multiply_rows<T, kVectors, 4>(row, rows, steps, a, b, b_step, finish);
  multiply_rows<T, kVectors, 1>(row, rows, steps, a, b, b_step, finish);
}

// Calls multiply_panel with the number of vectors as a constant. finish must accept any of them.
template <typename T, typename Finish>
AX_INLINE void multiply_any_panel(int64_t vectors, int64_t rows, int64_t steps, LeftOperand<T> a, const Operand<T>* b,
                                  int64_t b_step, Finish&& finish) {
  if constexpr (kPanelVectors >= 4) {
    if (vectors == 4) return multiply_panel<T, 4>(rows, steps, a, b, b_step, finish);
    if (vectors == 3) return multiply_panel<T, 3>(rows, steps, a, b, b_step, finish);
  }
  if (vectors == 2) return multiply_panel<T, 2>(rows, steps, a, b, b_step, finish);
  multiply_panel<T, 1>(rows, steps, a, b, b_step, finish);
}

// ---- the products of the adapter ----

// One panel: out (rows, width) (+)= A B.
template <typename T>
void multiply_into(int64_t rows, int64_t steps, int64_t width, LeftOperand<T> a, const Operand<T>* b, int64_t b_step,
                   bool add, Acc<T>* out, int64_t out_stride) {
  multiply_any_panel<T>(width / kLanes<T>, rows, steps, a, b, b_step, [&](int64_t row, const auto& sums) AX_LAMBDA {
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
  T* out;
  int64_t out_stride;
  const T* residual;
  int64_t residual_stride;
  const Acc<T>* bias;  // already scaled, padded to whole vectors
  Acc<T> scaling;
  int64_t count;
};

template <typename T>
void multiply_residual(int64_t rows, int64_t steps, LeftOperand<T> a, const Operand<T>* b, const WideResult<T>& to) {
  const int64_t vectors = divide_up(to.count, kLanes<T>);
  const bool whole = to.count == vectors * kLanes<T>;
  const Vec<T> scaling = splat<Vec<T>>(to.scaling);
  multiply_any_panel<T>(vectors, rows, steps, a, b, vectors * kLanes<T> * kPair<T>,
                        [&](int64_t row, const auto& sums) AX_LAMBDA {
                          constexpr int64_t kVectors = sizeof(sums) / sizeof(Vec<T>);
                          T* out = to.out + row * to.out_stride;
                          const T* residual = to.residual + (to.residual ? row * to.residual_stride : 0);
#pragma GCC unroll 4
                          for (int64_t v = 0; v < kVectors; ++v) {
                            const int64_t c = v * kLanes<T>;
                            const int64_t left = whole ? kLanes<T> : to.count - c;
                            Vec<T> value = to.bias ? scaling * sums[v] + load(to.bias + c) : scaling * sums[v];
                            if (to.residual) value += load_some(residual + c, left);
                            store_some(out + c, value, left);
                          }
                        });
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
