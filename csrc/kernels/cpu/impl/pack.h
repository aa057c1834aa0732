// Copies into the layouts that the products read. A packed panel is [step][column][pair] with zeros as padding;
// a matrix of several panels keeps the panel at column c at offset c * steps * kPair.
#pragma once

#include "gemm.h"
#include "rows.h"
#include "transpose.h"
#include "vector.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

// `count` elements as operands, without touching what lies behind them.
template <typename T>
AX_INLINE void copy_row(const T* from, int64_t count, Operand<T>* to) {
  if constexpr (kDot<T>) {
    __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
  } else {
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(from + i));
    for (; i < count; ++i) to[i] = to_scalar(from + i);
  }
}

// Interleaves two rows into pairs: to[2 i] = first[i], to[2 i + 1] = second[i].
AX_INLINE void store_pairs(uint16_t* to, HalfWords first, HalfWords second) {
  const Words pairs = __builtin_convertvector(first, Words) | (__builtin_convertvector(second, Words) << 16);
  __builtin_memcpy(to, &pairs, sizeof(pairs));
}

// A panel from a matrix whose columns are contiguous: element (k, c) at from[rows.token(k) * stride + c].
template <typename T>
void pack_rows(const T* from, int64_t stride, TokenRows rows, int64_t depth, int64_t count, int64_t width,
               Operand<T>* to) {
  for (int64_t k = 0; k < depth; k += kPair<T>) {
    const T* row = from + rows.token(k) * stride;
    for (int64_t c = 0; c < width; c += kLanes<T>) {
      const int64_t left = max_of<int64_t>(count - c, 0);
      if constexpr (kDot<T>) {
        const auto bits = [&](const T* at) AX_LAMBDA {
          HalfWords words = {};
          if (left >= kLanes<T>) {  // a copy of constant size is one load; one of variable size is a call
            __builtin_memcpy(&words, at, sizeof(words));
          } else {
            __builtin_memcpy(&words, at, static_cast<size_t>(left) * sizeof(T));
          }
          return words;
        };
        const HalfWords first = bits(row + c);
        store_pairs(&to[c * 2].bits, first, k + 1 < depth ? bits(from + rows.token(k + 1) * stride + c) : HalfWords{});
      } else {
        store(to + c, load_some(row + c, left));
      }
    }
    to += width * kPair<T>;
  }
}

// Steps [k, k + kPair) of the element by element path.
template <typename T>
AX_INLINE void pack_step(const T* from, int64_t stride, int64_t k, int64_t depth, int64_t count, int64_t width,
                         Operand<T>* to) {
  for (int64_t c = 0; c < width; ++c) {
    for (int64_t p = 0; p < kPair<T>; ++p) {
      Operand<T>* at = to + k * width + c * kPair<T> + p;
      *at = Operand<T>{};
      if (c < count && k + p < depth) copy_row(from + c * stride + k + p, 1, at);
    }
  }
}

// As many steps as fill a vector: 32-bit elements, or pairs of 16-bit ones.
template <typename T>
AX_INLINE Words load_steps(const T* from) {
  if constexpr (kDot<T>) {
    Words steps;
    __builtin_memcpy(&steps, from, sizeof(steps));
    return steps;
  } else {
    return bit_cast<Words>(load(from));
  }
}

// A square of 32-bit steps (pairs of 16-bit elements) whose depth is contiguous; only the first `count` rows exist. All
// indices are constants, so that the square lives in registers.
template <bool kWhole, typename T>
AX_INLINE void pack_square(const T* from, int64_t stride, int64_t count, Operand<T>* to, int64_t to_stride) {
  Words rows[kLanes<float>];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes<float>; ++i) {
    rows[i] = Words{};
    if (kWhole || i < count) rows[i] = load_steps(from + i * stride);
  }
  transpose(rows);
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes<float>; ++i) __builtin_memcpy(to + i * to_stride, &rows[i], sizeof(Words));
}

#if defined(ADAPTERX_X86_VECTORS) && ADAPTERX_VECTOR_BYTES == 64
constexpr bool kFourRows = true;
// Four rows of such a square. More stores than by whole squares, but eight registers are enough.
template <typename T>
AX_INLINE void pack_four_rows(const T* from, int64_t stride, Operand<T>* to, int64_t to_stride) {
  Words rows[4];
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4; ++i) rows[i] = load_steps(from + i * stride);
  transpose_blocks(rows);
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4; ++i) {
    const __m512i row = bit_cast<__m512i>(rows[i]);
    const auto put = [&](int64_t block, __m128i four)
                         AX_LAMBDA { __builtin_memcpy(to + (block * 4 + i) * to_stride, &four, sizeof(four)); };
    put(0, _mm512_castsi512_si128(row));
    put(1, _mm512_extracti32x4_epi32(row, 1));
    put(2, _mm512_extracti32x4_epi32(row, 2));
    put(3, _mm512_extracti32x4_epi32(row, 3));
  }
}
#else
constexpr bool kFourRows = false;
#endif

// The depth of a slab: that of a square.
template <typename T>
constexpr int64_t kSlabDepth = kLanes<float> * kPair<T>;
// Whether slabs are packed by squares.
template <typename T>
constexpr bool kSquares = sizeof(Operand<T>) * kPair<T> == sizeof(float);

// Up to kSlabDepth of a panel from a matrix whose depth is contiguous: element (k, c) at from[c * stride + k].
template <typename T>
void pack_columns(const T* from, int64_t stride, int64_t depth, int64_t count, int64_t width, Operand<T>* to) {
  if constexpr (kSquares<T>) {
    constexpr int64_t kSide = kLanes<float>;
    for (int64_t c = 0; depth == kSlabDepth<T> && c < width; c += kSide) {
      if (count - c >= kSide) {
        pack_square<true>(from + c * stride, stride, kSide, to + c * kPair<T>, width * kPair<T>);
      } else {
        pack_square<false>(from + c * stride, stride, count - c, to + c * kPair<T>, width * kPair<T>);
      }
    }
    if (depth == kSlabDepth<T>) return;
  }
  for (int64_t k = 0; k < depth; k += kPair<T>) pack_step(from, stride, k, depth, count, width, to);
}

// A weight, or a part of one, as right operand: (depth, count).
template <typename T>
struct Weight {
  const T* from;
  bool depth_is_contiguous;
  int64_t stride;
  int64_t depth;
  int64_t count;
  int64_t columns;  // count, padded to whole vectors
};

// Steps of depth that accumulate in registers before the sum goes to memory. Short chains keep fp32 accurate (error
// grows with the chain's length), and a packed chunk of 64 columns stays in the L1 cache.
constexpr int64_t kDepthSteps = 128;
template <typename T>
constexpr int64_t kChunkDepth = kDepthSteps * kPair<T>;

// The part that the narrow product takes at once: a chunk of the depth, from element k on.
template <typename T>
Weight<T> chunk_of(const Weight<T>& weight, int64_t k) {
  Weight<T> chunk = weight;
  chunk.from += k * (weight.depth_is_contiguous ? 1 : weight.stride);
  chunk.depth = min_of(kChunkDepth<T>, weight.depth - k);
  return chunk;
}

// The part that the wide product takes at once: a panel over the whole depth, from column c on.
template <typename T>
Weight<T> panel_of(const Weight<T>& weight, int64_t c) {
  Weight<T> panel = weight;
  panel.from += c * (weight.depth_is_contiguous ? weight.stride : 1);
  panel.columns = min_of(kPanelColumns<T>, weight.columns - c);
  panel.count = min_of(panel.columns, weight.count - c);
  return panel;
}

// Where the slab at element k of the depth begins: the last one ends with the depth, even where it then begins within
// the slab before it, since whole squares are much the fastest.
template <typename T>
int64_t slab_begin(const Weight<T>& part, int64_t k) {
  const bool squares = kSquares<T> && part.depth_is_contiguous && part.depth % kPair<T> == 0;
  return squares && part.depth >= kSlabDepth<T> ? min_of(k, part.depth - kSlabDepth<T>) : k;
}

// The slab at element (k, c) of a part, to its place in the packed part.
template <typename T>
void pack_slab(const Weight<T>& part, int64_t k, int64_t c, Operand<T>* to) {
  k = slab_begin(part, k);
  const int64_t width = min_of(kPanelColumns<T>, part.columns - c);
  const int64_t count = min_of(part.count - c, width);
  const int64_t depth = min_of(kSlabDepth<T>, part.depth - k);
  to += c * round_up(part.depth, kPair<T>) + k * width;
  if (part.depth_is_contiguous) {
    pack_columns(part.from + c * part.stride + k, part.stride, depth, count, width, to);
  } else {
    pack_rows(part.from + k * part.stride + c, part.stride, kAllRows, depth, count, width, to);
  }
}

// All panels of a part.
template <typename T>
void pack(const Weight<T>& part, Operand<T>* to) {
  for (int64_t c = 0; c < part.columns; c += kPanelColumns<T>) {
    for (int64_t k = 0; k < part.depth; k += kSlabDepth<T>) pack_slab(part, k, c, to);
  }
}

// Rows of tokens as left operand: in place where the storage is what the multiplier takes, else staged.
template <typename T>
LeftOperand<T> view_rows(const T* from, int64_t stride, TokenRows rows, int64_t num_rows, int64_t count,
                         Operand<T>* staging) {
  if constexpr (kSame<T, Operand<T>>) {
    if (count % kPair<T> == 0) return {from, stride, kPair<T>, rows};
  }
  const int64_t padded = round_up(count, kPair<T>);
  for (int64_t r = 0; r < num_rows; ++r) {
    copy_row(from + rows.token(r) * stride, count, staging + r * padded);
    for (int64_t c = count; c < padded; ++c) staging[r * padded + c] = Operand<T>{};
  }
  return {staging, padded, kPair<T>};
}

// Zero beside the last element of a row of `count`, where a pair reads it: the product with a padded weight is zero times
// whatever a token holds, which is NaN where that is infinite.
template <typename T>
AX_INLINE void end_last_pair(Operand<T>* row, int64_t count) {
  if (count % kPair<T> != 0) row[count] = Operand<T>{};
}

// A bias in accumulation type times `factor`, padded with zeros to `columns`.
template <typename T>
void pack_bias(const T* from, Acc<T> factor, int64_t count, int64_t columns, Acc<T>* to) {
  for (int64_t c = 0; c < columns; c += kLanes<T>) {
    store(to + c, factor * load_some(from + c, max_of<int64_t>(count - c, 0)));
  }
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
