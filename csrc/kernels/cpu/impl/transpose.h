// The transposition of a square of 32-bit lanes in registers.
#pragma once

#include "vector.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

// The elements of a and b at constant positions, those of b counted after those of a.
template <size_t... kPosition, typename V>
AX_INLINE V shuffle(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kPosition...);
#else
  using Element = decltype(a[0] + 0);
  using Positions = typename VectorType<Element, sizeof(V)>::type;
  return __builtin_shuffle(a, b, Positions{static_cast<Element>(kPosition)...});
#endif
}

// Within each 128-bit block: a0 b0 a1 b1 (kHigh = 0) or a2 b2 a3 b3 (kHigh = 2); the same for halves of blocks.
template <size_t kHigh, size_t... kLane>
AX_INLINE Words interleave(Words a, Words b, std::index_sequence<kLane...>) {
  return shuffle<(kLane / 4 * 4 + kLane % 4 / 2 + kHigh + kLane % 2 * sizeof...(kLane))...>(a, b);
}
template <size_t kHigh, size_t... kLane>
AX_INLINE Words interleave_halves(Words a, Words b, std::index_sequence<kLane...>) {
  return bit_cast<Words>(shuffle<(kLane / 2 * 2 + kHigh + kLane % 2 * sizeof...(kLane))...>(bit_cast<DoubleWords>(a),
                                                                                            bit_cast<DoubleWords>(b)));
}
// The even (kOdd = 0) or odd (kOdd = 1) 128-bit blocks of a and b.
template <size_t kOdd, size_t... kLane>
AX_INLINE Words every_other_block(Words a, Words b, std::index_sequence<kLane...>) {
  return bit_cast<Words>(
      shuffle<(kLane / 2 * 4 + kOdd * 2 + kLane % 2)...>(bit_cast<DoubleWords>(a), bit_cast<DoubleWords>(b)));
}

// Four rows, each 128-bit block of them by itself.
AX_INLINE void transpose_blocks(Words* rows) {
  constexpr auto kAll = std::make_index_sequence<kLanes<float>>{};
  constexpr auto kHalf = std::make_index_sequence<kLanes<float> / 2>{};
  const Words low = interleave<0>(rows[0], rows[1], kAll);
  const Words high = interleave<2>(rows[0], rows[1], kAll);
  const Words next_low = interleave<0>(rows[2], rows[3], kAll);
  const Words next_high = interleave<2>(rows[2], rows[3], kAll);
  rows[0] = interleave_halves<0>(low, next_low, kHalf);
  rows[1] = interleave_halves<1>(low, next_low, kHalf);
  rows[2] = interleave_halves<0>(high, next_high, kHalf);
  rows[3] = interleave_halves<1>(high, next_high, kHalf);
}

template <int64_t kDistance>
AX_INLINE void exchange_blocks(Words (&rows)[kLanes<float>]) {
  constexpr auto kHalf = std::make_index_sequence<kLanes<float> / 2>{};
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes<float>; ++i) {
    if ((i & kDistance) != 0) continue;
    const Words even = every_other_block<0>(rows[i], rows[i + kDistance], kHalf);
    rows[i + kDistance] = every_other_block<1>(rows[i], rows[i + kDistance], kHalf);
    rows[i] = even;
  }
  if constexpr (2 * kDistance < kLanes<float>) exchange_blocks<2 * kDistance>(rows);
}

// A square of 32-bit lanes, in registers: first within the 128-bit blocks of four rows, then the blocks. Shuffles that
// stay within blocks, or move whole ones, are the cheap ones.
AX_INLINE void transpose(Words (&rows)[kLanes<float>]) {
#pragma GCC unroll 4
  for (int64_t i = 0; i < kLanes<float>; i += 4) transpose_blocks(rows + i);
  if constexpr (kLanes<float> > 4) exchange_blocks<4>(rows);
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
