// Host twins of CUDA's built-in types, 16-bit floats and qualifiers: the emulator needs no CUDA toolkit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(8) uint2 {
  unsigned x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Device code calls these without a namespace.
using std::max;
using std::min;

using cudaStream_t = struct EmulatedStream*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNotSupported = 801 };
inline const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  return error == cudaErrorInvalidValue ? "invalid argument" : "operation not supported";
}
inline cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  std::memset(target, value, bytes);
  return cudaSuccess;
}

namespace emulator {
inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Round to nearest, ties to even, as cvt.rn does.
inline uint16_t bfloat16_bits(float x) {
  const uint32_t bits = float_bits(x);
  if (std::isnan(x)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float bfloat16_float(uint16_t bits) { return bits_float(static_cast<uint32_t>(bits) << 16); }

inline float half_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = bits & 0x8000 ? -1.f : 1.f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(fraction | 1024), exponent - 25);
}
inline uint16_t half_bits(float x) {
  const uint16_t sign = static_cast<uint16_t>(float_bits(x) >> 16 & 0x8000);
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (magnitude == 0.f) return sign;
  if (magnitude >= 65520.f) return sign | 0x7c00;  // halfway between the largest half and 2^16 rounds up to infinity
  int exponent;
  std::frexp(magnitude, &exponent);
  const int unit = std::max(exponent - 11, -24);  // exponent of the last place
  const float scaled = std::nearbyint(std::ldexp(magnitude, -unit));
  const uint16_t units = static_cast<uint16_t>(scaled);
  // Units of 2^-24 are the bit pattern of a subnormal; above, each step of the exponent field is worth 1024 units.
  return sign | static_cast<uint16_t>(units + (unit + 24) * 1024);
}
}  // namespace emulator

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
  __half x, y;
};
inline float __bfloat162float(__nv_bfloat16 x) { return emulator::bfloat16_float(x.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {emulator::bfloat16_bits(x)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
  return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}
inline float __half2float(__half x) { return emulator::half_float(x.bits); }
inline __half __float2half_rn(float x) { return {emulator::half_bits(x)}; }
inline __half2 __floats2half2_rn(float low, float high) { return {__float2half_rn(low), __float2half_rn(high)}; }
