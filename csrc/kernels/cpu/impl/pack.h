// Copies into the layouts that the products read. A packed panel is [step][column][pair] with zeros as padding;
// a matrix of several panels keeps the panel at column c at offset c * steps * kPair.
#pragma once

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

// A panel from a matrix whose columns are contiguous: element (k, c) at from[k * stride + c].
template <typename T>
void pack_rows(const T* from, int64_t stride, int64_t depth, int64_t count, int64_t width, Operand<T>* to) {
  for (int64_t k = 0; k < depth; k += kPair<T>) {
    const T* row = from + k * stride;
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
        store_pairs(&to[c * 2].bits, first, k + 1 < depth ? bits(row + stride + c) : HalfWords{});
      } else {
        store(to + c, load_some(row + c, left));
      }
    }
    to += width * kPair<T>;
  }
}

// One stage of the transposition: exchanges the off-diagonal blocks of size kHalf of rows i and i + kHalf.
template <int64_t kHalf, size_t... kLane>
AX_INLINE void exchange(Words& a, Words& b, std::index_sequence<kLane...>) {
  constexpr size_t kCount = sizeof...(kLane);
#if defined(__clang__)
  const Words low = __builtin_shufflevector(a, b, ((kLane & kHalf) == 0 ? kLane : kCount + kLane - kHalf)...);
  const Words high = __builtin_shufflevector(a, b, ((kLane & kHalf) == 0 ? kLane + kHalf : kCount + kLane)...);
#else
  const Words low =
      __builtin_shuffle(a, b, Words{static_cast<uint32_t>((kLane & kHalf) == 0 ? kLane : kCount + kLane - kHalf)...});
  const Words high =
      __builtin_shuffle(a, b, Words{static_cast<uint32_t>((kLane & kHalf) == 0 ? kLane + kHalf : kCount + kLane)...});
#endif
  a = low;
  b = high;
}

template <int64_t kHalf>
AX_INLINE void transpose_blocks(Words (&rows)[kLanes<float>]) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes<float>; ++i) {
    if ((i & kHalf) == 0) exchange<kHalf>(rows[i], rows[i + kHalf], std::make_index_sequence<kLanes<float>>{});
  }
  if constexpr (kHalf > 1) transpose_blocks<kHalf / 2>(rows);
}

// A square of 32-bit lanes, in registers.
AX_INLINE void transpose(Words (&rows)[kLanes<float>]) { transpose_blocks<kLanes<float> / 2>(rows); }

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

// A panel from a matrix whose depth is contiguous: element (k, c) at from[c * stride + k].
template <typename T>
void pack_columns(const T* from, int64_t stride, int64_t depth, int64_t count, int64_t width, Operand<T>* to) {
  int64_t k = 0;
  if constexpr (sizeof(Operand<T>) * kPair<T> == 4) {
    constexpr int64_t kSide = kLanes<float>;
    constexpr int64_t kDeep = kSide * kPair<T>;
    for (; k + kDeep <= depth; k += kDeep) {
      for (int64_t c = 0; c < width; c += kSide) {
        Words square[kSide] = {};
        for (int64_t i = 0; i < min_of(kSide, count - c); ++i) {
          copy_row(from + (c + i) * stride + k, kDeep, reinterpret_cast<Operand<T>*>(&square[i]));
        }
        transpose(square);
        for (int64_t i = 0; i < kSide; ++i) {
          __builtin_memcpy(to + k * width + (i * width + c) * kPair<T>, &square[i], sizeof(Words));
        }
      }
    }
  }
  for (; k < depth; k += kPair<T>) pack_step(from, stride, k, depth, count, width, to);
}

// All panels of a matrix with `count` columns padded to `columns`.
template <typename T>
void pack_matrix(bool depth_is_contiguous, const T* from, int64_t stride, int64_t depth, int64_t count, int64_t columns,
                 Operand<T>* to) {
  const int64_t padded_depth = round_up(depth, kPair<T>);
  for (int64_t c = 0; c < columns; c += kPanelColumns<T>) {
    const int64_t width = min_of(kPanelColumns<T>, columns - c);
    const int64_t left = min_of(count - c, width);
    if (depth_is_contiguous) {
      pack_columns(from + c * stride, stride, depth, left, width, to + c * padded_depth);
    } else {
      pack_rows(from + c, stride, depth, left, width, to + c * padded_depth);
    }
  }
}

// Rows of tokens as left operand: in place where the storage is what the multiplier takes, else staged.
template <typename T>
LeftOperand<T> view_rows(const T* from, int64_t stride, int64_t rows, int64_t count, Operand<T>* staging) {
  if constexpr (kSame<T, Operand<T>>) {
    if (count % kPair<T> == 0) return {from, stride, kPair<T>};
  }
  const int64_t padded = round_up(count, kPair<T>);
  for (int64_t r = 0; r < rows; ++r) {
    copy_row(from + r * stride, count, staging + r * padded);
    for (int64_t c = count; c < padded; ++c) staging[r * padded + c] = Operand<T>{};
  }
  return {staging, padded, kPair<T>};
}

// A bias in accumulation type times `factor`, padded with zeros to `columns`; null stays null.
template <typename T>
const Acc<T>* pack_bias(const T* from, Acc<T> factor, int64_t count, int64_t columns, Acc<T>* to) {
  if (from == nullptr) return nullptr;
  for (int64_t c = 0; c < columns; c += kLanes<T>) {
    store(to + c, factor * load_some(from + c, max_of<int64_t>(count - c, 0)));
  }
  return to;
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
