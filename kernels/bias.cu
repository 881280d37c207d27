// Bias.      y[r] += bias,   dbias = sum over rows of dy.
// Shapes     y, dy (rows, dim)   bias (dim)   part (slabs, dim) f32.   Storage T, computed in f32.
// Launch     forward grid = (ceil(packs of dim / 256), min(rows, 65535)), rows by grid stride; backward grid = (same, slabs):
//            a thread adds up `slab` rows of its pack of columns, reduce_slabs (reduce.cu) the slabs.
// Traffic    forward 2, backward 1 elements per element, each once.
// Order      rows in order within a slab, slabs as reduce.cu says. No atomics.
// Limits     rows, dim <= 2^31 - 1.
// Reference  src/backend/cpu/linear.rs.   Measured: docs/results/2026-11-26-h100.md (why forward is no epilogue of the product: docs/kernels.md).
#include "common.cuh"

KERNEL(256, bias_fwd)(T* __restrict__ y, const T* __restrict__ bias, int rows, int dim) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * PACK(T);
    if (c >= dim) return;
    if_whole(dim, [&](auto whole) {
        const auto b = load_pack<whole>(bias + c, dim - c);
        for (size_t r = blockIdx.y; r < size_t(rows); r += gridDim.y) {
            auto v = load_pack<whole>(y + r * dim + c, dim - c);
#pragma unroll
            for (int i = 0; i < PACK(T); ++i) v[i] += b[i];
            store_pack<whole>(y + r * dim + c, v, dim - c);
        }
    }, y, bias);
}
EXPORT_KERNEL(bias_fwd)

KERNEL(256, bias_bwd)(float* __restrict__ part, const T* __restrict__ dy, int rows, int dim, int slab) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * PACK(T);
    if (c >= dim) return;
    if_whole(dim, [&](auto whole) {
        const size_t first = size_t(blockIdx.y) * slab;
        const size_t end = first + slab < size_t(rows) ? first + slab : size_t(rows);
        Floats<PACK(T)> sum{};
#pragma unroll 4
        for (size_t r = first; r < end; ++r) {
            const auto d = load_pack<whole>(dy + r * dim + c, dim - c);
#pragma unroll
            for (int i = 0; i < PACK(T); ++i) sum[i] += d[i];
        }
        store_floats<whole>(part + size_t(blockIdx.y) * dim + c, sum, dim - c);
    }, part, dy);
}
EXPORT_KERNEL(bias_bwd)
