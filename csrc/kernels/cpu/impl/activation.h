// Activations and their derivatives on vectors. float: own polynomials (a few ulp); double: the C library per lane.
#pragma once

#include "vector.h"

namespace adapterx::cpu::ADAPTERX_ISA {
namespace {

constexpr double kInverseSqrt2 = 0.70710678118654752440;
constexpr double kInverseSqrt2Pi = 0.39894228040143267794;
constexpr double kSqrt2OverPi = 0.79788456080286535588;
constexpr double kGeluTanhCubic = 0.044715;

AX_INLINE Floats magnitude(Floats x) { return bit_cast<Floats>(bit_cast<Words>(x) & 0x7fffffffu); }
AX_INLINE Floats with_sign_of(Floats magnitude, Floats sign) {
  return bit_cast<Floats>(bit_cast<Words>(magnitude) | (bit_cast<Words>(sign) & 0x80000000u));
}

// exp, about 1 ulp. Source: Cephes expf (range reduction by ln 2 in two parts, degree-5 polynomial).
AX_INLINE Floats exp_of(Floats x) {
  constexpr float kLargest = 88.37f;    // above: 2^n leaves the normal range; infinity
  constexpr float kSmallest = -87.33f;  // below: subnormal; zero
  const Floats clamped = x > kLargest ? splat<Floats>(kLargest) : x < kSmallest ? splat<Floats>(kSmallest) : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the mantissa.
  const Floats shifted = clamped * 1.44269504088896341f + 12582912.0f;
  const Floats n = shifted - 12582912.0f;
  const Floats r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Floats result = p * bit_cast<Floats>((bit_cast<Words>(shifted) << 23) + 0x3f800000u);
  return x > kLargest ? splat<Floats>(__builtin_inff()) : x < kSmallest ? Floats{} : result;
}

// tanh, about 2 ulp. Source: Cephes tanhf below 0.625, exp above.
AX_INLINE Floats tanh_of(Floats x) {
  const Floats t = magnitude(x);
  const Floats s = x * x;
  Floats p = s * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * s + -5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s + -3.33332819422e-1f;
  const Floats small = p * s * x + x;
  const Floats large = with_sign_of(1.0f - 2.0f / (exp_of(t + t) + 1.0f), x);
  return t >= 0.625f ? large : small;
}

// The normal distribution function 0.5 * (1 + erf(x / sqrt 2)).
// Source: minimax polynomials of N. Juffa's erff (about 1 ulp); the tail is taken as erfc, so it keeps its digits.
AX_INLINE Floats normal_cdf(Floats x) {
  const Floats a = x * static_cast<float>(kInverseSqrt2);
  const Floats t = magnitude(a);
  const Floats s = a * a;
  Floats r = t * -1.72853470e-5f + 3.83197126e-4f;
  const Floats u = t * -3.88396438e-3f + 2.42546219e-2f;
  r = r * s + u;
  r = r * t + -1.06777877e-1f;
  r = r * t + -6.34846687e-1f;
  r = r * t + -1.28717512e-1f;
  r = r * t - t;
  const Floats half_erfc = 0.5f * exp_of(r);
  Floats p = s * -5.96761703e-4f + 4.99119423e-3f;
  p = p * s + -2.67681349e-2f;
  p = p * s + 1.12819925e-1f;
  p = p * s + -3.76125336e-1f;
  p = p * s + 1.28379166e-1f;
  const Floats central = (p * a + a) * 0.5f + 0.5f;
  return t > 0.927734375f ? (x < 0.0f ? half_erfc : 1.0f - half_erfc) : central;
}

template <double (*kFunction)(double)>
AX_INLINE Doubles each_lane(Doubles x) {
  for (int64_t i = 0; i < kLanes<double>; ++i) x[i] = kFunction(x[i]);
  return x;
}
AX_INLINE double libm_exp(double x) { return __builtin_exp(x); }
AX_INLINE double libm_tanh(double x) { return __builtin_tanh(x); }
AX_INLINE double libm_erfc(double x) { return __builtin_erfc(x); }
AX_INLINE Doubles exp_of(Doubles x) { return each_lane<libm_exp>(x); }
AX_INLINE Doubles tanh_of(Doubles x) { return each_lane<libm_tanh>(x); }
AX_INLINE Doubles normal_cdf(Doubles x) { return 0.5 * each_lane<libm_erfc>(-kInverseSqrt2 * x); }

template <typename V>
AX_INLINE V sigmoid_of(V x) {
  return 1 / (1 + exp_of(-x));
}

template <typename V>
struct ActivationValue {
  V value;
  V derivative;
};

// Value and derivative of an activation; they share their transcendental function, and the compiler drops the half that
// is not used. A: the type of one element of the vector V.
template <Activation kActivation>
struct Formula;

template <>
struct Formula<Activation::relu> {
  template <typename A, typename V>
  static AX_INLINE ActivationValue<V> of(V x) {
    return {x < A(0) ? V{} : x, x > A(0) ? splat<V>(A(1)) : V{}};
  }
};

template <>
struct Formula<Activation::leaky_relu> {
  template <typename A, typename V>
  static AX_INLINE ActivationValue<V> of(V x) {
    return {x > A(0) ? x : x * A(kLeakyReluSlope), x > A(0) ? splat<V>(A(1)) : splat<V>(A(kLeakyReluSlope))};
  }
};

template <>
struct Formula<Activation::gelu> {
  template <typename A, typename V>
  static AX_INLINE ActivationValue<V> of(V x) {
    const V cdf = normal_cdf(x);
    return {x * cdf, cdf + x * A(kInverseSqrt2Pi) * exp_of(A(-0.5) * x * x)};
  }
};

template <>
struct Formula<Activation::gelu_tanh> {
  template <typename A, typename V>
  static AX_INLINE ActivationValue<V> of(V x) {
    // tanh is +-1 long before 30; without the bound the cube overflows and the derivative becomes 0 * infinity.
    const V bounded = x > A(30) ? splat<V>(A(30)) : x < A(-30) ? splat<V>(A(-30)) : x;
    const V square = bounded * bounded;
    const V t = tanh_of(A(kSqrt2OverPi) * bounded * (A(1) + A(kGeluTanhCubic) * square));
    const V inner = A(kSqrt2OverPi) * (A(1) + A(3 * kGeluTanhCubic) * square);
    return {A(0.5) * x * (A(1) + t), A(0.5) * (A(1) + t) + A(0.5) * bounded * (A(1) - t * t) * inner};
  }
};

template <>
struct Formula<Activation::silu> {
  template <typename A, typename V>
  static AX_INLINE ActivationValue<V> of(V x) {
    const V sigma = sigmoid_of(x);
    return {x * sigma, sigma * (A(1) + x * (A(1) - sigma))};
  }
};

template <>
struct Formula<Activation::tanh> {
  template <typename A, typename V>
  static AX_INLINE ActivationValue<V> of(V x) {
    const V t = tanh_of(x);
    return {t, A(1) - t * t};
  }
};

template <>
struct Formula<Activation::sigmoid> {
  template <typename A, typename V>
  static AX_INLINE ActivationValue<V> of(V x) {
    const V sigma = sigmoid_of(x);
    return {sigma, sigma * (A(1) - sigma)};
  }
};

template <>
struct Formula<Activation::identity> {
  template <typename A, typename V>
  static AX_INLINE ActivationValue<V> of(V x) {
    return {x, splat<V>(A(1))};
  }
};

template <Activation kActivation, typename A, typename V>
AX_INLINE ActivationValue<V> activate(V x) {
  return Formula<kActivation>::template of<A>(x);
}

// The gradient at x from the one behind the activation. Where relu is off it is zero, whatever stands behind it: a product
// would make NaN of infinity, and PyTorch does not.
template <Activation kActivation, typename V>
AX_INLINE V through(V gradient, V x, V derivative) {
  if constexpr (kActivation == Activation::relu) return x <= V{} ? V{} : gradient;
  return gradient * derivative;
}

// Calls body(constant) with the activation as a compile-time constant.
template <Activation kActivation>
struct ActivationConstant {
  static constexpr Activation value = kActivation;
};
template <typename Body>
AX_INLINE void with_activation(Activation activation, Body&& body) {
  switch (activation) {
#define ADAPTERX_CASE(name) \
  case Activation::name: return body(ActivationConstant<Activation::name>{});
    ADAPTERX_ACTIVATIONS(ADAPTERX_CASE)
#undef ADAPTERX_CASE
  }
}

}  // namespace
}  // namespace adapterx::cpu::ADAPTERX_ISA
