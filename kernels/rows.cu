// Rows.      gather: out[n] = x[row[n]] (embed_fwd too: its rows are tokens).   scatter: dx[r] = sum of dout[n] over the predictions n of row r, in order of n; 0 for rows
//            without any.   scale: y[n] = c[n] x[n] (y may be x).
// Shapes     out, dout, x, y (n, dim)   x, dx (rows, dim)   row (n)   by_row: predictions by (row, n), those of row r at
//            start[r]..start[r + 1].   Storage T, computed in f32.
// Launch     grid = (ceil(packs of dim / 256), min(rows of the output, 65535)), rows by grid stride, no shared memory.
// Traffic    2 dim elements a row (scatter: 1, and 1 per prediction): the least.
// Order      scatter: predictions in order. No atomics.
// Limits     indices within bounds: checked when the batch is loaded.
// Reference  src/backend/cpu/rows.rs, head.rs.   Measured: docs/results/2026-11-26-h100.md.
#include "common.cuh"

KERNEL(256, gather_rows)(T* __restrict__ out, const T* __restrict__ x, const unsigned* __restrict__ row, int n, int dim) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * PACK(T);
    if (c >= dim) return;
    if_whole(dim, [&](auto whole) {
        for (size_t i = blockIdx.y; i < size_t(n); i += gridDim.y)
            store_pack<whole>(out + i * dim + c, load_pack<whole>(x + size_t(row[i]) * dim + c, dim - c), dim - c);
    }, out, x);
}
EXPORT_KERNEL(gather_rows)

KERNEL(256, scatter_rows)(T* __restrict__ dx, const T* __restrict__ dout, const unsigned* __restrict__ start,
                          const unsigned* __restrict__ by_row, int rows, int dim) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * PACK(T);
    if (c >= dim) return;
    if_whole(dim, [&](auto whole) {
        for (size_t r = blockIdx.y; r < size_t(rows); r += gridDim.y) {
            Floats<PACK(T)> sum{};
            for (unsigned i = start[r]; i < start[r + 1]; ++i) {
                const auto d = load_pack<whole>(dout + size_t(by_row[i]) * dim + c, dim - c);
#pragma unroll
                for (int e = 0; e < PACK(T); ++e) sum[e] += d[e];
            }
            store_pack<whole>(dx + r * dim + c, sum, dim - c);
        }
    }, dx, dout);
}
EXPORT_KERNEL(scatter_rows)

KERNEL(256, scale_rows)(T* y, const T* x, const float* __restrict__ factor, int rows, int dim) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * PACK(T);
    if (c >= dim) return;
    if_whole(dim, [&](auto whole) {
        for (size_t r = blockIdx.y; r < size_t(rows); r += gridDim.y) {
            auto v = load_pack<whole>(x + r * dim + c, dim - c);
            const float by = factor[r];
#pragma unroll
            for (int e = 0; e < PACK(T); ++e) v[e] *= by;
            store_pack<whole>(y + r * dim + c, v, dim - c);
        }
    }, y, x);
}
EXPORT_KERNEL(scale_rows)
