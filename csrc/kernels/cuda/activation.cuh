// The activations and their derivatives, by the formulas of torch.nn.functional (exact erf in "gelu").
// The choice is a run-time switch: it is the same for all threads, and a kernel for each activation would multiply the
// size of the library for a step that touches one value in d.
#pragma once

#include "element.cuh"

namespace adapterx::cuda {

inline constexpr double kSqrtHalf = 0.70710678118654752440;       // 1 / sqrt(2)
inline constexpr double kSqrtTwoOverPi = 0.79788456080286535588;  // sqrt(2 / pi), also 2 / sqrt(2 pi)
inline constexpr double kGeluCubic = 0.044715;                    // Hendrycks and Gimpel 2016, section 2

__device__ __forceinline__ float math_erf(float x) { return erff(x); }
__device__ __forceinline__ double math_erf(double x) { return erf(x); }
__device__ __forceinline__ float math_exp(float x) { return expf(x); }
__device__ __forceinline__ double math_exp(double x) { return exp(x); }
__device__ __forceinline__ float math_tanh(float x) { return tanhf(x); }
__device__ __forceinline__ double math_tanh(double x) { return tanh(x); }

template <typename Real>
__device__ __forceinline__ Real sigmoid(Real x) {
  return Real(1) / (Real(1) + math_exp(-x));
}

template <typename Real>
__device__ __forceinline__ Real gelu_tanh_inner(Real x) {
  return math_tanh(Real(kSqrtTwoOverPi) * (x + Real(kGeluCubic) * x * x * x));
}

// Value and derivative of an activation. Comparisons are written so that a NaN passes through, as in PyTorch.
template <Activation kActivation>
struct Formula;

template <>
struct Formula<Activation::relu> {
  template <typename Real>
  static __device__ __forceinline__ Real value(Real x) {
    return x <= Real(0) ? Real(0) : x;
  }
  template <typename Real>
  static __device__ __forceinline__ Real derivative(Real x) {
    return x <= Real(0) ? Real(0) : Real(1);
  }
};

template <>
struct Formula<Activation::gelu> {
  template <typename Real>
  static __device__ __forceinline__ Real value(Real x) {
    return Real(0.5) * x * (Real(1) + math_erf(x * Real(kSqrtHalf)));
  }
  template <typename Real>
  static __device__ __forceinline__ Real derivative(Real x) {
    const Real cdf = Real(0.5) * (Real(1) + math_erf(x * Real(kSqrtHalf)));
    return cdf + x * Real(0.5 * kSqrtTwoOverPi) * math_exp(Real(-0.5) * x * x);
  }
};

template <>
struct Formula<Activation::gelu_tanh> {
  template <typename Real>
  static __device__ __forceinline__ Real value(Real x) {
    return Real(0.5) * x * (Real(1) + gelu_tanh_inner(x));
  }
  template <typename Real>
  static __device__ __forceinline__ Real derivative(Real x) {
    const Real t = gelu_tanh_inner(x);
    const Real inner = Real(kSqrtTwoOverPi) * (Real(1) + Real(3 * kGeluCubic) * x * x);
    return Real(0.5) * (Real(1) + t) + Real(0.5) * x * (Real(1) - t * t) * inner;
  }
};

template <>
struct Formula<Activation::silu> {
  template <typename Real>
  static __device__ __forceinline__ Real value(Real x) {
    return x / (Real(1) + math_exp(-x));
  }
  template <typename Real>
  static __device__ __forceinline__ Real derivative(Real x) {
    const Real s = sigmoid(x);
    return s * (Real(1) + x * (Real(1) - s));
  }
};

template <>
struct Formula<Activation::tanh> {
  template <typename Real>
  static __device__ __forceinline__ Real value(Real x) {
    return math_tanh(x);
  }
  template <typename Real>
  static __device__ __forceinline__ Real derivative(Real x) {
    const Real t = math_tanh(x);
    return Real(1) - t * t;
  }
};

template <>
struct Formula<Activation::sigmoid> {
  template <typename Real>
  static __device__ __forceinline__ Real value(Real x) {
    return sigmoid(x);
  }
  template <typename Real>
  static __device__ __forceinline__ Real derivative(Real x) {
    const Real s = sigmoid(x);
    return s * (Real(1) - s);
  }
};

template <>
struct Formula<Activation::leaky_relu> {
  template <typename Real>
  static __device__ __forceinline__ Real value(Real x) {
    return x > Real(0) ? x : x * Real(kLeakyReluSlope);
  }
  template <typename Real>
  static __device__ __forceinline__ Real derivative(Real x) {
    return x > Real(0) ? Real(1) : Real(kLeakyReluSlope);
  }
};

template <>
struct Formula<Activation::identity> {
  template <typename Real>
  static __device__ __forceinline__ Real value(Real x) {
    return x;
  }
  template <typename Real>
  static __device__ __forceinline__ Real derivative(Real) {
    return Real(1);
  }
};

template <typename Real>
__device__ __forceinline__ Real activate(Activation activation, Real x) {
  switch (activation) {
#define ADAPTERX_CASE(name) \
  case Activation::name: return Formula<Activation::name>::value(x);
    ADAPTERX_ACTIVATIONS(ADAPTERX_CASE)
#undef ADAPTERX_CASE
  }
  return x;
}

template <typename Real>
__device__ __forceinline__ Real activation_derivative(Activation activation, Real x) {
  switch (activation) {
#define ADAPTERX_CASE(name) \
  case Activation::name: return Formula<Activation::name>::derivative(x);
    ADAPTERX_ACTIVATIONS(ADAPTERX_CASE)
#undef ADAPTERX_CASE
  }
  return Real(1);
}

// The gradient before the activation, whose argument was x, from the one behind it. Where relu is off it is zero,
// whatever stands behind it: a product would make NaN of infinity, and PyTorch does not.
template <Activation kActivation, typename Real>
__device__ __forceinline__ Real activation_gradient(Real x, Real gradient) {
  if constexpr (kActivation == Activation::relu) return x <= Real(0) ? Real(0) : gradient;
  return Formula<kActivation>::derivative(x) * gradient;
}
template <typename Real>
__device__ __forceinline__ Real activation_gradient(Activation activation, Real x, Real gradient) {
  if (activation == Activation::relu) return activation_gradient<Activation::relu>(x, gradient);
  return activation_derivative(activation, x) * gradient;
}

// values[i] = activation(values[i]) with one switch for all, so that their arithmetic overlaps.
template <int kCount>
__device__ __forceinline__ void activate(Activation activation, float (&values)[kCount]) {
  switch (activation) {
#define ADAPTERX_CASE(name) \
  case Activation::name: _Pragma("unroll") for (float& x : values) x = Formula<Activation::name>::value(x); break;
    ADAPTERX_ACTIVATIONS(ADAPTERX_CASE)
#undef ADAPTERX_CASE
  }
}

// gradients[i] *= activation'(values[i]), as activation_gradient does, and values[i] = activation(values[i]).
template <int kCount>
__device__ __forceinline__ void differentiate(Activation activation, float (&values)[kCount],
                                              float (&gradients)[kCount]) {
  switch (activation) {
#define ADAPTERX_CASE(name)                                                          \
  case Activation::name:                                                             \
    _Pragma("unroll") for (int i = 0; i < kCount; ++i) {                             \
      gradients[i] = activation_gradient<Activation::name>(values[i], gradients[i]); \
      values[i] = Formula<Activation::name>::value(values[i]);                       \
    }                                                                                \
    break;
    ADAPTERX_ACTIVATIONS(ADAPTERX_CASE)
#undef ADAPTERX_CASE
  }
}

}  // namespace adapterx::cuda
