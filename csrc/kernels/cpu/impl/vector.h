// Vectors of one instruction set, and the conversions between storage types and accumulation types.
// Accumulation is float for float, bfloat16 and half, double for double. Rounding is to nearest, ties to even.
#pragma once

#include "outside.h"

#ifndef ADAPTERX_ISA
#error "vector.h: isa_*.cpp must say for which instruction set, by ADAPTERX_ISA and ADAPTERX_VECTOR_BYTES"
#endif

#define AX_INLINE inline __attribute__((always_inline))
#define AX_LAMBDA __attribute__((always_inline))

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

constexpr int64_t kVectorBytes = ADAPTERX_VECTOR_BYTES;

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <typename E, int64_t kBytes>
struct VectorType {
  typedef E type __attribute__((vector_size(kBytes)));
};
using Floats = VectorType<float, kVectorBytes>::type;
using Doubles = VectorType<double, kVectorBytes>::type;
using Words = VectorType<uint32_t, kVectorBytes>::type;  // bit patterns of Floats
using DoubleWords = VectorType<uint64_t, kVectorBytes>::type;
using Integers = VectorType<int32_t, kVectorBytes>::type;        // what comparing Floats gives
using HalfWords = VectorType<uint16_t, kVectorBytes / 2>::type;  // as many lanes as Floats

template <typename A, typename B>
constexpr bool kSame = false;
template <typename A>
constexpr bool kSame<A, A> = true;

template <typename T>
struct Accumulation {
  using Scalar = float;
  using Vector = Floats;
};
template <>
struct Accumulation<double> {
  using Scalar = double;
  using Vector = Doubles;
};
template <typename T>
using Acc = typename Accumulation<T>::Scalar;
template <typename T>
using Vec = typename Accumulation<T>::Vector;
// Lanes of an accumulation vector.
template <typename T>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(Acc<T>));

template <typename To, typename From>
AX_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

template <typename A>
AX_INLINE A min_of(A a, A b) {
  return a < b ? a : b;
}
template <typename A>
AX_INLINE A max_of(A a, A b) {
  return a > b ? a : b;
}
AX_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
AX_INLINE int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

template <typename V, typename A>
AX_INLINE V splat(A value) {
  return value - V{};  // "- 0" and not "+ 0": keeps the sign of -0.0
}

// ---- 16-bit storage ----

AX_INLINE Floats widen(const BFloat16*, HalfWords bits) {
  return bit_cast<Floats>(__builtin_convertvector(bits, Words) << 16);
}

AX_INLINE HalfWords narrow_by_integers(Floats value) {
  const Words bits = bit_cast<Words>(value);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words quiet_nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector(value == value ? rounded : quiet_nan, HalfWords);
}

#ifdef ADAPTERX_BF16_DOT
// What the conversions of AVX512_BF16 would take for zero; a residual stream may hold some.
AX_INLINE __mmask16 is_subnormal(Floats value) { return _mm512_fpclass_ps_mask(bit_cast<__m512>(value), 0x20); }
#endif

AX_INLINE HalfWords narrow(const BFloat16*, Floats value) {
#ifdef ADAPTERX_BF16_DOT
  if (__builtin_expect(is_subnormal(value) != 0, 0)) return narrow_by_integers(value);
  return bit_cast<HalfWords>(_mm512_cvtneps_pbh(bit_cast<__m512>(value)));
#else
  return narrow_by_integers(value);
#endif
}

AX_INLINE Floats widen(const Half*, HalfWords bits) {
#if defined(ADAPTERX_X86_VECTORS) && ADAPTERX_VECTOR_BYTES == 64
  return bit_cast<Floats>(_mm512_cvtph_ps(bit_cast<__m256i>(bits)));
#elif defined(ADAPTERX_X86_VECTORS)
  return bit_cast<Floats>(_mm256_cvtph_ps(bit_cast<__m128i>(bits)));
#else
  const Words wide = __builtin_convertvector(bits, Words);
  const Words magnitude = (wide & 0x7fffu) << 13;
  // A factor of 2^112 moves the exponent's bias from 15 to 127 and makes half's subnormals normal.
  const Words finite = bit_cast<Words>(bit_cast<Floats>(magnitude) * 0x1p112f);
  const Words special = magnitude | 0x7f800000u;
  const Words sign = (wide & 0x8000u) << 16;
  return bit_cast<Floats>((magnitude >= 0x0f800000u ? special : finite) | sign);
#endif
}

AX_INLINE HalfWords narrow(const Half*, Floats value) {
#if defined(ADAPTERX_X86_VECTORS) && ADAPTERX_VECTOR_BYTES == 64
  return bit_cast<HalfWords>(_mm512_cvtps_ph(bit_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
#elif defined(ADAPTERX_X86_VECTORS)
  return bit_cast<HalfWords>(_mm256_cvtps_ph(bit_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
#else
  const Words bits = bit_cast<Words>(value);
  const Words sign = bits & 0x80000000u;
  const Words magnitude = bits ^ sign;
  // From 2^16 on (values above 65520 round there by themselves): infinity, or NaN.
  const Words special = magnitude > 0x7f800000u ? (Words{} + 0x7e00u) : (Words{} + 0x7c00u);
  // Below 2^-14 half is subnormal: adding 0.5 lets the float adder do the shift and the rounding.
  const Words subnormal = bit_cast<Words>(bit_cast<Floats>(magnitude) + 0.5f) - 0x3f000000u;
  const Words normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  const Words finite = magnitude < 0x38800000u ? subnormal : normal;
  return __builtin_convertvector((magnitude >= 0x47800000u ? special : finite) | (sign >> 16), HalfWords);
#endif
}

// ---- loads and stores: kLanes<T> elements, converted; unaligned ----

template <typename T>
AX_INLINE Vec<T> load(const T* from) {
  if constexpr (kSame<T, float> || kSame<T, double>) {
    Vec<T> value;
    __builtin_memcpy(&value, from, sizeof(value));
    return value;
  } else {
    HalfWords bits;
    __builtin_memcpy(&bits, from, sizeof(bits));
    return widen(from, bits);
  }
}

template <typename T>
AX_INLINE void store(T* to, Vec<T> value) {
  if constexpr (kSame<T, float> || kSame<T, double>) {
    __builtin_memcpy(to, &value, sizeof(value));
  } else {
    const HalfWords bits = narrow(to, value);
    __builtin_memcpy(to, &bits, sizeof(bits));
  }
}

// Several vectors to neighbouring places.
template <typename T, int64_t kVectors>
AX_INLINE void store_all(T* to, const Vec<T> (&values)[kVectors]) {
#ifdef ADAPTERX_BF16_DOT
  if constexpr (kSame<T, BFloat16>) {
    __mmask16 subnormal = 0;
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) subnormal |= is_subnormal(values[v]);
    if (__builtin_expect(subnormal == 0, 1)) {
#pragma GCC unroll 4
      for (int64_t v = 0; v + 1 < kVectors; v += 2) {
        const auto both = _mm512_cvtne2ps_pbh(bit_cast<__m512>(values[v + 1]), bit_cast<__m512>(values[v]));
        __builtin_memcpy(to + v * kLanes<T>, &both, sizeof(both));
      }
      if constexpr (kVectors % 2 == 1) {
        const auto last = _mm512_cvtneps_pbh(bit_cast<__m512>(values[kVectors - 1]));
        __builtin_memcpy(to + (kVectors - 1) * kLanes<T>, &last, sizeof(last));
      }
      return;
    }
  }
#endif
#pragma GCC unroll 4
  for (int64_t v = 0; v < kVectors; ++v) store(to + v * kLanes<T>, values[v]);
}

// The first `count` elements (any count); the other lanes are zero.
template <typename T>
AX_INLINE Vec<T> load_some(const T* from, int64_t count) {
  if (count >= kLanes<T>) return load(from);
  T buffer[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = from[i];
  return load(static_cast<const T*>(buffer));
}

template <typename T>
AX_INLINE void store_some(T* to, Vec<T> value, int64_t count) {
  if (count >= kLanes<T>) return store(to, value);
  T buffer[kLanes<T>];
  store(static_cast<T*>(buffer), value);
  for (int64_t i = 0; i < count; ++i) to[i] = buffer[i];
}

template <typename T>
AX_INLINE Acc<T> to_scalar(const T* from) {
  if constexpr (kSame<T, float> || kSame<T, double>) {
    return *from;
  } else {
    return load_some(from, 1)[0];
  }
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
