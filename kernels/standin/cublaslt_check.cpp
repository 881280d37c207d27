// Compiles only if cublaslt_names.h says what NVIDIA's header says. Nothing where that header is not installed.
#include "cublaslt_names.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

#define SAME(name) static_assert(int64_t(lt::name) == int64_t(::name), #name)
SAME(CUBLAS_STATUS_SUCCESS);
SAME(CUBLAS_STATUS_NOT_INITIALIZED);
SAME(CUBLAS_STATUS_ALLOC_FAILED);
SAME(CUBLAS_STATUS_INVALID_VALUE);
SAME(CUBLAS_STATUS_EXECUTION_FAILED);
SAME(CUBLAS_STATUS_INTERNAL_ERROR);
SAME(CUBLAS_STATUS_NOT_SUPPORTED);
SAME(CUDA_R_32F);
SAME(CUDA_R_16F);
SAME(CUDA_R_16BF);
SAME(CUBLAS_COMPUTE_32F);
SAME(CUBLAS_OP_N);
SAME(CUBLAS_OP_T);
SAME(CUBLASLT_MATMUL_DESC_TRANSA);
SAME(CUBLASLT_MATMUL_DESC_TRANSB);
SAME(CUBLASLT_MATMUL_DESC_TRANSC);
SAME(CUBLASLT_MATMUL_DESC_EPILOGUE);
SAME(CUBLASLT_MATMUL_DESC_BIAS_POINTER);
SAME(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);
SAME(CUBLASLT_EPILOGUE_DEFAULT);
SAME(CUBLASLT_EPILOGUE_BIAS);
SAME(CUBLASLT_EPILOGUE_BGRADA);
SAME(CUBLASLT_EPILOGUE_BGRADB);
SAME(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
SAME(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
SAME(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
SAME(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
SAME(CUBLASLT_REDUCTION_SCHEME_NONE);
SAME(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
SAME(CUBLASLT_REDUCTION_SCHEME_MASK);
SAME(CUBLASLT_ALGO_CONFIG_ID);
SAME(CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
static_assert(sizeof(lt::Algorithm) == sizeof(cublasLtMatmulAlgo_t), "an algorithm");
static_assert(sizeof(lt::Result) == sizeof(cublasLtMatmulHeuristicResult_t), "a result");
static_assert(offsetof(lt::Result, workspaceSize) == offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize), "a result");
static_assert(offsetof(lt::Result, state) == offsetof(cublasLtMatmulHeuristicResult_t, state), "a result");
static_assert(offsetof(lt::Result, wavesCount) == offsetof(cublasLtMatmulHeuristicResult_t, wavesCount), "a result");
#endif
