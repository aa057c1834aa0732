// cuBLASLt is column-major: a row-major matrix is the transpose of what it sees, so it is asked for the transposed
// result, with the operands exchanged: result^T = op(b)^T @ op(a)^T.
//
// It searches a kernel for what it is promised: alignments, and memory to work in. A plain product that it refuses is
// asked for again with fewer promises, and then served by product.cu. An epilogue is itself more than must be: where
// one is refused, the caller goes on with the plain product.
#include "cublas_product.h"

#include <algorithm>
#include <initializer_list>

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

// The bytes to which all of the pointers are aligned (null is), as far as cuBLASLt cares.
uint32_t alignment_of(std::initializer_list<const void*> pointers) {
  uint32_t bytes = 256;
  for (const void* pointer : pointers) {
    while (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) bytes /= 2;
  }
  return bytes;
}

// What cuBLASLt may rely on; A, B, C and D in its terms.
struct Promises {
  uint32_t a, b, c, d;  // alignments in bytes
  int64_t workspace_bytes;
};

// All that is true. There is no promise for the bias and the auxiliary matrix of their own: an epilogue moves them in
// vectors as it does D.
Promises all_promises(const Product& p, const CublasMeans& cublas) {
  const uint32_t result = alignment_of({p.result, p.addend.data, p.bias, p.aux});
  return {alignment_of({p.b.data}), alignment_of({p.a.data}), result, result, cublas.workspace_bytes};
}

// No alignment beyond that of an element.
Promises few_promises(const Product& p, int64_t workspace_bytes) {
  const auto element = static_cast<uint32_t>(element_size(p.dtype));
  return {element, element, element, element, workspace_bytes};
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

cublasStatus_t prefer(Preference& preference, const Promises& promises) {
  // No sums of rounded parts: split sums are exact to the compute type.
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  const auto workspace_bytes = static_cast<uint64_t>(promises.workspace_bytes);
  return all_of([&] { return cublasLtMatmulPreferenceCreate(&preference.handle); },
                [&] { return set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes); },
                [&] { return set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions); },
                [&] { return set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, promises.a); },
                [&] { return set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, promises.b); },
                [&] { return set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, promises.c); },
                [&] { return set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, promises.d); });
}

// Null, kNoAlgorithm for what cuBLASLt or this device does not do, or what went wrong.
const char* in_words(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return nullptr;
    case CUBLAS_STATUS_NOT_SUPPORTED:
    case CUBLAS_STATUS_INVALID_VALUE:
    case CUBLAS_STATUS_ARCH_MISMATCH: return kNoAlgorithm;
    default: return cublasLtGetStatusString(status);
  }
}

const char* in_words(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

template <typename Scale>
cublasStatus_t run(const Product& p, const CublasMeans& cublas, const Description& description, const Layout& a,
                   const Layout& b, const RowMajor& addend, const Layout& c, const Layout& d,
                   const cublasLtMatmulAlgo_t& algorithm, int64_t workspace_bytes, cudaStream_t stream) {
  const Scale alpha = static_cast<Scale>(p.alpha), beta = p.addend.data == nullptr ? Scale(0) : Scale(1);
  return cublasLtMatmul(cublas.library.handle, description.handle, &alpha, p.b.data, b.handle, p.a.data, a.handle,
                        &beta, addend.data, c.handle, p.result, d.handle, &algorithm,
                        workspace_bytes == 0 ? nullptr : cublas.workspace, static_cast<size_t>(workspace_bytes),
                        stream);
}

// One attempt. Nothing has been launched where it returns kNoAlgorithm.
const char* multiply(const Product& p, const CublasMeans& cublas, const Promises& promises, cudaStream_t stream) {
  const RowMajor result = {p.result, p.rows(), p.columns(), p.columns()};
  const RowMajor& addend = p.addend.data == nullptr ? result : p.addend;
  Layout a, b, c, d;
  Description description;
  Preference preference;
  const cublasStatus_t prepared = all_of(
      [&] { return create_layout(a, p.dtype, p.a); }, [&] { return create_layout(b, p.dtype, p.b); },
      [&] { return create_layout(c, p.dtype, addend); }, [&] { return create_layout(d, p.dtype, result); },
      [&] { return describe(description, p, cublas, result.columns); }, [&] { return prefer(preference, promises); });
  if (prepared != CUBLAS_STATUS_SUCCESS) return in_words(prepared);
  cublasLtMatmulHeuristicResult_t found = {};
  int count = 0;
  const cublasStatus_t searched =
      cublasLtMatmulAlgoGetHeuristic(cublas.library.handle, description.handle, b.handle, a.handle, c.handle, d.handle,
                                     preference.handle, 1, &found, &count);
  if (searched != CUBLAS_STATUS_SUCCESS) return in_words(searched);
  if (count == 0) return kNoAlgorithm;
  const auto run_in = p.dtype == ScalarType::float64 ? run<double> : run<float>;
  return in_words(run_in(p, cublas, description, a, b, addend, c, d, found.algo, promises.workspace_bytes, stream));
}

}  // namespace

const char* multiply(const Product& p, const CublasMeans& cublas, cudaStream_t stream) {
  if (cublas.library.handle == nullptr) {
    return serves_plainly(p.epilogue) ? in_words(multiply_plainly(p, stream)) : kNoAlgorithm;
  }
  const Promises attempts[] = {all_promises(p, cublas), few_promises(p, cublas.workspace_bytes), few_promises(p, 0)};
  for (const Promises& promises : attempts) {
    const char* error = multiply(p, cublas, promises, stream);
    if (error != kNoAlgorithm) return error;
    if (p.epilogue != Epilogue::none) return kNoAlgorithm;
  }
  return in_words(multiply_plainly(p, stream));
}

}  // namespace adapterx::cuda
