// The part of cuBLASLt that csrc/kernels/cuda/cublas_product.cpp calls, on the host, written from its documentation
// (cuBLAS Library, chapter 3): column-major products with epilogues. It is strict: sizes, leading dimensions, promised
// alignments (the bias and the auxiliary matrix are held to that of D), overlaps and the rules of each epilogue are
// checked, and what breaks one throws. Sums are rounded as on a GPU, in an order that depends on the strides.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "host_types.h"

enum cublasStatus_t {
  CUBLAS_STATUS_SUCCESS = 0,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_ARCH_MISMATCH = 8,
  CUBLAS_STATUS_NOT_SUPPORTED = 15,
};
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_64F = 1, CUDA_R_16F = 2, CUDA_R_16BF = 14 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_FAST_TF32 = 77, CUBLAS_COMPUTE_64F = 70 };
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasLtEpilogue_t {
  CUBLASLT_EPILOGUE_DEFAULT = 1,
  CUBLASLT_EPILOGUE_BIAS = 4,
  CUBLASLT_EPILOGUE_GELU = 32,
  CUBLASLT_EPILOGUE_GELU_BIAS = 36,
  CUBLASLT_EPILOGUE_GELU_AUX = 160,
  CUBLASLT_EPILOGUE_GELU_AUX_BIAS = 164,
};
enum cublasLtMatmulDescAttributes_t {
  CUBLASLT_MATMUL_DESC_TRANSA = 3,
  CUBLASLT_MATMUL_DESC_TRANSB = 4,
  CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
  CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8,
  CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER = 11,
  CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD = 12,
};
enum cublasLtMatmulPreferenceAttributes_t {
  CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
  CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8,
};
inline constexpr uint32_t CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2;

namespace fake_cublaslt {

// Tests plant what a device might not serve.
enum class Refusal {
  none,
  epilogues,  // any but the default one
  alignment,  // whatever promises more than the alignment of an element
  workspace,  // whatever may use one
  products,   // everything
  launches,   // everything, though an algorithm is found
};
inline Refusal refusal = Refusal::none;

inline Refusal refusal_named(const std::string& name) {
  const char* names[] = {"none", "epilogues", "alignment", "workspace", "products", "launches"};
  for (int i = 0; i < 6; ++i) {
    if (name == names[i]) return static_cast<Refusal>(i);
  }
  throw std::runtime_error("fake cuBLASLt: no refusal has the name " + name);
}

[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error("fake cuBLASLt: " + message); }
inline void require(bool condition, const char* message) {
  if (!condition) fail(message);
}

struct Layout {
  cudaDataType_t type;
  int64_t rows, columns, ld;
};
struct Description {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  cublasOperation_t transa = CUBLAS_OP_N, transb = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  void* bias = nullptr;
  void* aux = nullptr;
  int64_t aux_ld = 0;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t reductions = 7;
  uint32_t alignment[4] = {256, 256, 256, 256};  // of A, B, C, D: cuBLASLt's default
};

inline int64_t size_of(cudaDataType_t type) { return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2; }

inline double load(const void* data, cudaDataType_t type, int64_t index) {
  switch (type) {
    case CUDA_R_64F: return static_cast<const double*>(data)[index];
    case CUDA_R_32F: return static_cast<const float*>(data)[index];
    case CUDA_R_16F: return emulator::half_float(static_cast<const uint16_t*>(data)[index]);
    default: return emulator::bits_float(uint32_t{static_cast<const uint16_t*>(data)[index]} << 16);
  }
}

inline void store(void* data, cudaDataType_t type, int64_t index, double value) {
  const auto narrow = static_cast<float>(value);
  switch (type) {
    case CUDA_R_64F: static_cast<double*>(data)[index] = value; break;
    case CUDA_R_32F: static_cast<float*>(data)[index] = narrow; break;
    case CUDA_R_16F: static_cast<uint16_t*>(data)[index] = emulator::half_bits(narrow); break;
    default: static_cast<uint16_t*>(data)[index] = emulator::bfloat16_bits(narrow);
  }
}

// fp32 with the mantissa of TF32, 10 bits, rounded to nearest.
inline double to_tf32(double value) {
  return emulator::bits_float((emulator::float_bits(static_cast<float>(value)) + 0x1000u) & ~0x1FFFu);
}

inline double gelu(double x) { return 0.5 * x * (1 + std::tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x))); }

inline bool has_bias(cublasLtEpilogue_t epilogue) { return (epilogue & CUBLASLT_EPILOGUE_BIAS) != 0; }
inline bool has_gelu(cublasLtEpilogue_t epilogue) { return (epilogue & CUBLASLT_EPILOGUE_GELU) != 0; }
inline bool has_aux(cublasLtEpilogue_t epilogue) { return (epilogue & 128) != 0; }

// A matrix op(X) of one operand.
struct Operand {
  const void* data;
  const Layout& layout;
  bool transposed;
  bool tf32;

  int64_t rows() const { return transposed ? layout.columns : layout.rows; }
  int64_t columns() const { return transposed ? layout.rows : layout.columns; }
  double at(int64_t row, int64_t column) const {
    const double value = load(data, layout.type, transposed ? row * layout.ld + column : column * layout.ld + row);
    return tf32 ? to_tf32(value) : value;
  }
};

inline bool overlap(const void* x, const Layout& a, const void* y, const Layout& b) {
  const auto bytes = [](const Layout& m) { return ((m.columns - 1) * m.ld + m.rows) * size_of(m.type); };
  const auto *p = static_cast<const char*>(x), *q = static_cast<const char*>(y);
  return p < q + bytes(b) && q < p + bytes(a);
}

// Whether the planted refusal meets a product.
inline bool refused(const Description& o, const Preference& preference, const Layout& d) {
  switch (refusal) {
    case Refusal::epilogues: return o.epilogue != CUBLASLT_EPILOGUE_DEFAULT;
    case Refusal::alignment:
      return std::any_of(preference.alignment, preference.alignment + 4,
                         [&](uint32_t bytes) { return bytes > size_of(d.type); });
    case Refusal::workspace: return preference.workspace > 0;
    case Refusal::products: return true;
    default: return false;
  }
}

// The rules of an epilogue that its pointers must obey.
inline void check_epilogue(const Description& o, const Layout& d) {
  const auto e = o.epilogue;
  require(!has_bias(e) || o.bias != nullptr, "the epilogue needs a bias pointer");
  require(!has_aux(e) || (o.aux != nullptr && o.aux_ld >= d.rows && o.aux_ld % 8 == 0),
          "the auxiliary matrix needs a leading dimension that is a multiple of 8");
}

}  // namespace fake_cublaslt

struct cublasLtContext {};
using cublasLtHandle_t = cublasLtContext*;
inline cublasLtContext fake_cublaslt_handle;
using cublasLtMatrixLayout_t = fake_cublaslt::Layout*;
using cublasLtMatmulDesc_t = fake_cublaslt::Description*;
using cublasLtMatmulPreference_t = fake_cublaslt::Preference*;
struct cublasLtMatmulAlgo_t {
  fake_cublaslt::Preference promised;
  bool found;
};
struct cublasLtMatmulHeuristicResult_t {
  cublasLtMatmulAlgo_t algo;
};

inline const char* cublasLtGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_NOT_SUPPORTED ? "not supported" : "invalid value";
}

inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type, uint64_t rows,
                                                 uint64_t columns, int64_t ld) {
  fake_cublaslt::require(rows > 0 && columns > 0 && ld >= static_cast<int64_t>(rows), "the layout is not valid");
  *layout = new fake_cublaslt::Layout{type, static_cast<int64_t>(rows), static_cast<int64_t>(columns), ld};
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description, cublasComputeType_t compute,
                                               cudaDataType_t scale) {
  *description = new fake_cublaslt::Description{compute, scale};
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  delete description;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t o, cublasLtMatmulDescAttributes_t attribute,
                                                     const void* value, size_t bytes) {
  const auto set = [&](auto& field) {
    fake_cublaslt::require(bytes == sizeof(field), "an attribute has the wrong size");
    std::memcpy(&field, value, bytes);
  };
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA: set(o->transa); break;
    case CUBLASLT_MATMUL_DESC_TRANSB: set(o->transb); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: set(o->epilogue); break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: set(o->bias); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: set(o->aux); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: set(o->aux_ld); break;
  }
  return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new fake_cublaslt::Preference;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                           cublasLtMatmulPreferenceAttributes_t attribute,
                                                           const void* value, size_t bytes) {
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
    fake_cublaslt::require(bytes == sizeof(p->workspace), "the workspace's size must be 64 bits wide");
    std::memcpy(&p->workspace, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  }
  fake_cublaslt::require(bytes == sizeof(uint32_t), "a preference must be 32 bits wide");
  uint32_t* field = attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK
                        ? &p->reductions
                        : &p->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES];
  std::memcpy(field, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t o,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                     cublasLtMatmulPreference_t preference, int requested,
                                                     cublasLtMatmulHeuristicResult_t* results, int* count) {
  using namespace fake_cublaslt;
  require(handle != nullptr && requested == 1, "a handle and one algorithm are expected");
  const Operand first{nullptr, *a, o->transa == CUBLAS_OP_T, false},
      second{nullptr, *b, o->transb == CUBLAS_OP_T, false};
  require(first.columns() == second.rows() && first.rows() == d->rows && second.columns() == d->columns,
          "the sizes of the product do not fit");
  require(c->rows == d->rows && c->columns == d->columns, "C must have the size of D");
  require(a->type == d->type && b->type == d->type && c->type == d->type, "the types do not fit");
  require((d->type == CUDA_R_64F) == (o->compute == CUBLAS_COMPUTE_64F) &&
              (o->scale == CUDA_R_64F) == (d->type == CUDA_R_64F),
          "the compute and scale types do not fit");
  check_epilogue(*o, *d);
  *count = refused(*o, *preference, *d) ? 0 : 1;
  results[0].algo = {*preference, *count == 1};
  return *count == 1 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

namespace fake_cublaslt {

inline void check_pointers(const cublasLtMatmulAlgo_t& algo, const Description& o, const void* a, const Layout& la,
                           const void* b, const Layout& lb, const void* c, const Layout& lc, const void* d,
                           const Layout& ld, const void* workspace, size_t bytes) {
  require(algo.found, "the algorithm was not found");
  const void* pointers[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    require(reinterpret_cast<uintptr_t>(pointers[i]) % algo.promised.alignment[i] == 0,
            "a matrix is less aligned than promised");
  }
  const auto aligned = [&](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % algo.promised.alignment[3] == 0;
  };
  require(!has_bias(o.epilogue) || aligned(o.bias), "the bias is less aligned than promised for D");
  require(!has_aux(o.epilogue) || aligned(o.aux), "the auxiliary matrix is less aligned than promised for D");
  require(bytes >= algo.promised.workspace && reinterpret_cast<uintptr_t>(workspace) % 256 == 0 &&
              (bytes == 0 || workspace != nullptr),
          "the workspace is too small or not aligned to 256 bytes");
  require(!overlap(a, la, d, ld) && !overlap(b, lb, d, ld), "the result overlaps an operand");
  require(!overlap(c, lc, d, ld) || (c == d && lc.ld == ld.ld), "C overlaps D and is not D");
}

// Rounded at every step. `backwards`: as another kernel would add.
template <typename Scale>
Scale sum_of_products(const Operand& a, const Operand& b, int64_t row, int64_t column, bool backwards) {
  constexpr int kParts = 8;
  const int64_t terms = a.columns();
  Scale parts[kParts] = {}, sum = 0;
  for (int64_t i = 0; i < terms; ++i) {
    const int64_t k = backwards ? terms - 1 - i : i;
    parts[i % kParts] += static_cast<Scale>(a.at(row, k) * b.at(k, column));
  }
  for (const Scale part : parts) sum += part;
  return sum;
}

template <typename Scale>
void run(const Description& o, Scale alpha, const Operand& a, const Operand& b, Scale beta, const void* c,
         const Layout& lc, void* d, const Layout& ld) {
  const bool tight = a.layout.ld == a.layout.rows && b.layout.ld == b.layout.rows;
  for (int64_t column = 0; column < ld.columns; ++column) {
    for (int64_t row = 0; row < ld.rows; ++row) {
      double value = alpha * sum_of_products<Scale>(a, b, row, column, !tight);
      if (beta != Scale(0)) value += beta * load(c, lc.type, column * lc.ld + row);  // C is not read where beta is 0
      if (has_bias(o.epilogue)) value += load(o.bias, ld.type, row);
      if (has_aux(o.epilogue)) store(o.aux, ld.type, column * o.aux_ld + row, value);
      if (has_gelu(o.epilogue)) value = gelu(value);
      store(d, ld.type, column * ld.ld + row, value);
    }
  }
}

}  // namespace fake_cublaslt

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t o, const void* alpha, const void* a,
                                     cublasLtMatrixLayout_t la, const void* b, cublasLtMatrixLayout_t lb,
                                     const void* beta, const void* c, cublasLtMatrixLayout_t lc, void* d,
                                     cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t* algo, void* workspace,
                                     size_t workspace_bytes, cudaStream_t) {
  using namespace fake_cublaslt;
  check_pointers(*algo, *o, a, *la, b, *lb, c, *lc, d, *ld, workspace, workspace_bytes);
  if (refusal == Refusal::launches) return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool tf32 = o->compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  const Operand first{a, *la, o->transa == CUBLAS_OP_T, tf32}, second{b, *lb, o->transb == CUBLAS_OP_T, tf32};
  if (o->scale == CUDA_R_64F) {
    run(*o, *static_cast<const double*>(alpha), first, second, *static_cast<const double*>(beta), c, *lc, d, *ld);
  } else {
    run(*o, *static_cast<const float*>(alpha), first, second, *static_cast<const float*>(beta), c, *lc, d, *ld);
  }
  return CUBLAS_STATUS_SUCCESS;
}
