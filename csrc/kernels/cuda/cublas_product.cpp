// cuBLASLt is column-major: a row-major matrix is the transpose of what it sees, so it is asked for the transposed
// result, with the operands exchanged: result^T = op(b)^T @ op(a)^T.
#include "cublas_product.h"

#include <algorithm>
#include <memory>
#include <type_traits>

namespace adapterx::cuda {

const char* const kNoAlgorithm = "cuBLASLt has no algorithm for this product";

namespace {

template <typename Handle, cublasStatus_t (*destroy)(Handle)>
struct Owner {
  Handle handle = nullptr;

  Owner() = default;
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;
  ~Owner() {
    if (handle != nullptr) destroy(handle);
  }
};

using Layout = Owner<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owner<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;
using Description = Owner<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;

cudaDataType_t data_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::float64: return CUDA_R_64F;
    case ScalarType::bfloat16: return CUDA_R_16BF;
    case ScalarType::float16: return CUDA_R_16F;
    default: return CUDA_R_32F;
  }
}

cublasComputeType_t compute_type(ScalarType dtype, bool allow_tf32) {
  if (dtype == ScalarType::float64) return CUBLAS_COMPUTE_64F;
  return dtype == ScalarType::float32 && allow_tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

cublasLtEpilogue_t epilogue_of(const Product& p) {
  const bool bias = p.bias != nullptr;
  switch (p.epilogue) {
    case Epilogue::bias: return CUBLASLT_EPILOGUE_BIAS;
    case Epilogue::gelu_tanh: return bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    case Epilogue::gelu_tanh_aux: return bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    default: return CUBLASLT_EPILOGUE_DEFAULT;
  }
}

// The bytes to which a pointer is aligned, as far as cuBLASLt cares.
uint32_t alignment_of(const void* pointer) {
  uint32_t bytes = 256;
  while (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) bytes /= 2;
  return bytes;
}

// The matrix as cuBLASLt sees it: columns x rows, column-major.
cublasStatus_t create_layout(Layout& layout, ScalarType dtype, const RowMajor& m) {
  return cublasLtMatrixLayoutCreate(&layout.handle, data_type(dtype), static_cast<uint64_t>(m.columns),
                                    static_cast<uint64_t>(m.rows), std::max(m.stride, m.columns));
}

template <typename T>
cublasStatus_t set(const Description& description, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  return cublasLtMatmulDescSetAttribute(description.handle, attribute, &value, sizeof(value));
}

template <typename T>
cublasStatus_t set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
  return cublasLtMatmulPreferenceSetAttribute(preference.handle, attribute, &value, sizeof(value));
}

// The first status that is not success; calls are made in order and the later ones only after successes.
template <class... Calls>
cublasStatus_t all_of(const Calls&... calls) {
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  ((status = status == CUBLAS_STATUS_SUCCESS ? calls() : status), ...);
  return status;
}

cublasStatus_t describe(Description& description, const Product& p, const CublasMeans& cublas, int64_t columns) {
  const auto scale_type = p.dtype == ScalarType::float64 ? CUDA_R_64F : CUDA_R_32F;
  const cublasOperation_t first = p.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second = p.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  return all_of(
      [&] {
        return cublasLtMatmulDescCreate(&description.handle, compute_type(p.dtype, cublas.library.allow_tf32),
                                        scale_type);
      },
      [&] { return set(description, CUBLASLT_MATMUL_DESC_TRANSA, first); },
      [&] { return set(description, CUBLASLT_MATMUL_DESC_TRANSB, second); },
      [&] { return set(description, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(p)); },
      [&] {
        return p.bias == nullptr ? CUBLAS_STATUS_SUCCESS : set(description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
      },
      [&] {
        return p.aux == nullptr ? CUBLAS_STATUS_SUCCESS
                                : set(description, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.aux);
      },
      [&] {
        return p.aux == nullptr ? CUBLAS_STATUS_SUCCESS
                                : set(description, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, columns);
      });
}

cublasStatus_t prefer(Preference& preference, const Product& p, const CublasMeans& cublas, const void* addend) {
  // No sums of rounded parts: split sums are exact to the compute type.
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  return all_of([&] { return cublasLtMatmulPreferenceCreate(&preference.handle); },
                [&] {
                  return set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                             static_cast<uint64_t>(cublas.workspace_bytes));
                },
                [&] { return set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions); },
                [&] { return set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(p.b.data)); },
                [&] { return set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(p.a.data)); },
                [&] { return set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(addend)); },
                [&] { return set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(p.result)); });
}

const char* in_words(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? nullptr : cublasLtGetStatusString(status);
}

template <typename Scale>
cublasStatus_t run(const Product& p, const CublasMeans& cublas, const Description& description, const Layout& a,
                   const Layout& b, const RowMajor& addend, const Layout& c, const Layout& d,
                   const cublasLtMatmulAlgo_t& algorithm, cudaStream_t stream) {
  const Scale alpha = static_cast<Scale>(p.alpha), beta = p.addend.data == nullptr ? Scale(0) : Scale(1);
  return cublasLtMatmul(cublas.library.handle, description.handle, &alpha, p.b.data, b.handle, p.a.data, a.handle,
                        &beta, addend.data, c.handle, p.result, d.handle, &algorithm, cublas.workspace,
                        static_cast<size_t>(cublas.workspace_bytes), stream);
}

}  // namespace

const char* multiply(const Product& p, const CublasMeans& cublas, cudaStream_t stream) {
  const int64_t rows = p.a_transposed ? p.a.columns : p.a.rows, columns = p.b_transposed ? p.b.rows : p.b.columns;
  const RowMajor result = {p.result, rows, columns, columns};
  const RowMajor& addend = p.addend.data == nullptr ? result : p.addend;
  Layout a, b, c, d;
  Description description;
  Preference preference;
  const cublasStatus_t prepared =
      all_of([&] { return create_layout(a, p.dtype, p.a); }, [&] { return create_layout(b, p.dtype, p.b); },
             [&] { return create_layout(c, p.dtype, addend); }, [&] { return create_layout(d, p.dtype, result); },
             [&] { return describe(description, p, cublas, columns); },
             [&] { return prefer(preference, p, cublas, addend.data); });
  if (prepared != CUBLAS_STATUS_SUCCESS) return in_words(prepared);
  cublasLtMatmulHeuristicResult_t found = {};
  int count = 0;
  const cublasStatus_t searched =
      cublasLtMatmulAlgoGetHeuristic(cublas.library.handle, description.handle, b.handle, a.handle, c.handle, d.handle,
                                     preference.handle, 1, &found, &count);
  const bool refused = searched == CUBLAS_STATUS_NOT_SUPPORTED || searched == CUBLAS_STATUS_INVALID_VALUE;
  if (count == 0 && (searched == CUBLAS_STATUS_SUCCESS || refused)) return kNoAlgorithm;
  if (searched != CUBLAS_STATUS_SUCCESS) return in_words(searched);
  const cublasStatus_t ran = p.dtype == ScalarType::float64
                                 ? run<double>(p, cublas, description, a, b, addend, c, d, found.algo, stream)
                                 : run<float>(p, cublas, description, a, b, addend, c, d, found.algo, stream);
  return ran == CUBLAS_STATUS_NOT_SUPPORTED ? kNoAlgorithm : in_words(ran);
}

}  // namespace adapterx::cuda
