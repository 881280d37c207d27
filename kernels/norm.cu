// RMSNorm.   y = x rstd w,  rstd = 1 / sqrt(mean_c(x^2) + eps).
//            dx {=,+=} rstd (w dy - x rstd^2 mean_c(w dy x)),   dw_c = sum over rows of dy x rstd. With `again` y goes
//            where dy was: the next product reads it, so it need not be kept.
// Source     Zhang & Sennrich 2019, eq. 4; eps inside the root as in Hugging Face Llama.
// Shapes     x, y, dx, dy (rows, dim)   w (dim)   rstd (rows) f32   part (blocks, dim) f32.   Storage T, computed in f32.
// Launch     block = (X, Y): X threads, whole warps, hold a row in registers, K packs each (a kernel per K); Y rows at a time.
//            Forward: grid = ceil(rows / Y). Backward: a block takes `slab` consecutive rows, Y at a time, and leaves its
//            part of dw, which reduce_slabs (reduce.cu) adds up. Backward has 4 dim bytes of dynamic shared memory.
// Traffic    forward 2, backward 3 elements per element of x (one more where it adds, one with `again`), each once: the least; plus
//            8 dim bytes a block in backward.
// Predicted  HBM is the limiter; a block's loads are all on their way before its barrier. One pack a thread (bf16 up to 4096): forward 6
//            blocks of 256 threads an SM and 21 KB of reads on their way at width 896; backward 4 blocks, so 512 slabs are one wave of
//            an H100, and 43 KB where it adds.
// Order      a row's sum: within a thread by pack, butterfly in a warp, warps in order. dw: rows y, y + Y, ... of the slab
//            in a thread, y in order, slabs as reduce.cu says. All depend on shapes alone. No atomics.
// Limits     dim <= 8192: 512 threads with 16 elements each.
// Reference  src/backend/cpu/norm.rs.   Measured: docs/results/2026-11-26-h100.md.
#include "common.cuh"

template <int K, bool WHOLE>
__device__ __forceinline__ void fwd_row(T* __restrict__ y, float* __restrict__ rstd, const T* __restrict__ x,
                                        const T* __restrict__ w, int rows, int dim, float eps, float* part) {
    const size_t row = size_t(blockIdx.x) * blockDim.y + threadIdx.y;
    const bool live = row < size_t(rows);
    Floats<PACK(T)> v[K], weight[K];
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const int c = (threadIdx.x + k * blockDim.x) * PACK(T), have = live ? dim - c : 0;
        v[k] = load_pack<WHOLE>(x + row * dim + c, have);
        weight[k] = load_pack<WHOLE>(w + c, have);  // on its way while the row is summed
    }
#pragma unroll
    for (int k = 0; k < K; ++k)
#pragma unroll
        for (int i = 0; i < PACK(T); ++i) sum += v[k][i] * v[k][i];
    const float scale = rsqrtf(block_sum_x(sum, part) / float(dim) + eps);
    if (!live) return;
    if (threadIdx.x == 0) rstd[row] = scale;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const int c = (threadIdx.x + k * blockDim.x) * PACK(T);
#pragma unroll
        for (int i = 0; i < PACK(T); ++i) v[k][i] = v[k][i] * scale * weight[k][i];
        store_pack<WHOLE>(y + row * dim + c, v[k], dim - c);
    }
}

#define RMSNORM_FWD(K)                                                                                                  \
    DENSE_KERNEL(512, K == 1 ? 3 : 1, rmsnorm_fwd_##K)(T* __restrict__ y, float* __restrict__ rstd,                     \
                                                       const T* __restrict__ x, const T* __restrict__ w, int rows,      \
                                                       int dim, float eps) {                                            \
        SHARED(float, part, 32);                                                                                        \
        if_whole(dim, [&](auto whole) { fwd_row<K, whole>(y, rstd, x, w, rows, dim, eps, part); }, y, x, w);            \
    }                                                                                                                   \
    EXPORT_KERNEL(rmsnorm_fwd_##K)
RMSNORM_FWD(1)
RMSNORM_FWD(2)
#ifdef STORAGE_F32
RMSNORM_FWD(4)
#endif

template <int K, bool WHOLE>
__device__ __forceinline__ void bwd_slab(T* __restrict__ dx, float* __restrict__ part, T* __restrict__ dy,
                                         const T* __restrict__ x, const T* __restrict__ w, const float* __restrict__ rstd,
                                         int rows, int dim, int slab, int add, int again, float* sums, float* columns) {
    Floats<PACK(T)> dw[K] = {};
    const size_t first = size_t(blockIdx.x) * slab;
    const size_t end = first + slab < size_t(rows) ? first + slab : size_t(rows);
    Coming<WHOLE, T> x_in[K], dy_in[K];
    float rstd_in;
    const auto ask = [&](size_t row) {  // a row is on its way while the one before it is worked on
        const bool live = row < end;
        rstd_in = live ? rstd[row] : 0.0f;
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const int c = (threadIdx.x + k * blockDim.x) * PACK(T), have = live ? dim - c : 0;
            x_in[k].load(x + row * dim + c, have);
            dy_in[k].load(dy + row * dim + c, have);
        }
    };
    constexpr bool AHEAD = WHOLE && K < 4;  // else there are no registers for it
    if (AHEAD) ask(first + threadIdx.y);
    for (size_t row0 = first; row0 < end; row0 += blockDim.y) {
        const size_t row = row0 + threadIdx.y;
        const bool live = row < end;
        if (!AHEAD) ask(row);
        const float scale = rstd_in;
        Floats<PACK(T)> v[K], g[K];
        Coming<WHOLE, T> old[K];
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const int c = (threadIdx.x + k * blockDim.x) * PACK(T);
            if (K < 4) old[k].load(dx + row * dim + c, add && live ? dim - c : 0);  // needed last, but on its way by then
            v[k] = x_in[k].get(), g[k] = dy_in[k].get();
        }
        if (AHEAD) ask(row + blockDim.y);
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const int c = (threadIdx.x + k * blockDim.x) * PACK(T);
            const auto weight = load_pack<WHOLE>(w + c, dim - c);
#pragma unroll
            for (int i = 0; i < PACK(T); ++i) {
                dw[k][i] += g[k][i] * v[k][i] * scale;
                g[k][i] *= weight[i];
                sum += g[k][i] * v[k][i];
            }
        }
        const float mean = block_sum_x(sum, sums) / float(dim) * scale * scale;
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const int c = (threadIdx.x + k * blockDim.x) * PACK(T), have = live ? dim - c : 0;
            if (K == 4) old[k].load(dx + row * dim + c, add ? have : 0);
            const auto before = old[k].get();
#pragma unroll
            for (int i = 0; i < PACK(T); ++i) g[k][i] = before[i] + scale * (g[k][i] - v[k][i] * mean);
            store_pack<WHOLE>(dx + row * dim + c, g[k], have);
            if (!again) continue;
            const auto weight = load_pack<WHOLE>(w + c, dim - c);
#pragma unroll
            for (int i = 0; i < PACK(T); ++i) v[k][i] = v[k][i] * scale * weight[i];
            store_pack<WHOLE>(dy + row * dim + c, v[k], have);
        }
    }
    // The Y sums of a column meet in shared memory, in the order of y.
    for (int y = 0; y < int(blockDim.y); ++y) {
        if (int(threadIdx.y) == y) {
#pragma unroll
            for (int k = 0; k < K; ++k)
#pragma unroll
                for (int i = 0; i < PACK(T); ++i) {
                    const int c = (threadIdx.x + k * blockDim.x) * PACK(T) + i;
                    if (c < dim) columns[c] = y ? columns[c] + dw[k][i] : dw[k][i];
                }
        }
        __syncthreads();
    }
    for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < dim; c += blockDim.x * blockDim.y)
        part[size_t(blockIdx.x) * dim + c] = columns[c];
}

#define RMSNORM_BWD(K)                                                                                                  \
    DENSE_KERNEL(512, K == 1 ? 2 : 1, rmsnorm_bwd_##K)(T* __restrict__ dx, float* __restrict__ part,                    \
                                                       T* __restrict__ dy, const T* __restrict__ x,                     \
                                                       const T* __restrict__ w, const float* __restrict__ rstd,         \
                                                       int rows, int dim, int slab, int add, int again) {               \
        SHARED(float, sums, 32);                                                                                        \
        DYNAMIC_SHARED(float, columns);                                                                                 \
        if_whole(dim, [&](auto whole) {                                                                                 \
            bwd_slab<K, whole>(dx, part, dy, x, w, rstd, rows, dim, slab, add, again, sums, columns);                   \
        }, dx, part, dy, x, w);                                                                                         \
    }                                                                                                                   \
    EXPORT_KERNEL(rmsnorm_bwd_##K)
RMSNORM_BWD(1)
RMSNORM_BWD(2)
#ifdef STORAGE_F32
RMSNORM_BWD(4)
#endif
