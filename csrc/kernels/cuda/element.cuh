// Element types of the kernels: conversion to the type arithmetic is done in, packed pairs, 16-byte vectors, and the
// way from a run-time dtype to its type.
#pragma once

#include <type_traits>

#include "../types.h"
#include "ptx.cuh"

namespace adapterx::cuda {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

// Arithmetic is done in fp32, or in fp64 where the elements are fp64.
template <typename Element>
using Compute = std::conditional_t<std::is_same_v<Element, double>, double, float>;

__device__ __forceinline__ float to_compute(float x) { return x; }
__device__ __forceinline__ double to_compute(double x) { return x; }
__device__ __forceinline__ float to_compute(bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_compute(float16 x) { return __half2float(x); }

template <typename Element>
__device__ __forceinline__ Element from_compute(Compute<Element> x) {
  if constexpr (std::is_same_v<Element, bfloat16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<Element, float16>) {
    return __float2half_rn(x);
  } else {
    return x;
  }
}

// Two neighbouring 16-bit elements in one register, the lower address in the lower half.
template <typename Element>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<Element, bfloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

template <typename Element>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
  if constexpr (std::is_same_v<Element, bfloat16>) {  // the upper half of a float
    const uint2 bits = make_uint2(pair << 16, pair & 0xffff0000u);
    return *reinterpret_cast<const float2*>(&bits);
  } else {
    const auto* elements = reinterpret_cast<const Element*>(&pair);
    return make_float2(to_compute(elements[0]), to_compute(elements[1]));
  }
}

// kCount elements moved by one instruction where the address is a multiple of their size.
template <typename Element, int kCount>
struct alignas(sizeof(Element) * kCount) Vector {
  Element values[kCount];
};

template <typename Element>
inline constexpr int kVectorWidth = 16 / sizeof(Element);

template <typename T>
struct Tag {
  using Type = T;
};

// Calls visitor(Tag<Element>) for the dtypes of the tensor-core kernels.
template <class Visitor>
auto visit_element(ScalarType dtype, const Visitor& visitor) {
  if (dtype == ScalarType::float16) return visitor(Tag<float16>());
  return visitor(Tag<bfloat16>());
}

// Calls visitor(Tag<Element>) for any dtype.
template <class Visitor>
cudaError_t visit_dtype(ScalarType dtype, const Visitor& visitor) {
  switch (dtype) {
    case ScalarType::float32: return visitor(Tag<float>());
    case ScalarType::float64: return visitor(Tag<double>());
    case ScalarType::bfloat16: return visitor(Tag<bfloat16>());
    case ScalarType::float16: return visitor(Tag<float16>());
  }
  return cudaErrorInvalidValue;
}

}  // namespace adapterx::cuda
