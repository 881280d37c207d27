// Q/K norm.  RMSNorm (norm.cu has the formulas) of every query head by w[0], of every key head by w[1], in place in qkv.
// Source     Qwen3, as in Hugging Face.
// Shapes     qkv, dqkv (rows, (heads + 2 kv_heads) head_dim)   raw (rows, (heads + kv_heads) head_dim): queries and keys from before
//            rstd (rows, heads + kv_heads) f32   w (2, head_dim)   part (blocks, 2, head_dim) f32: dw.   Storage T.
// Launch     `width` lanes (a power of two) hold one head, a pack each; block = 256. Forward: a group of lanes per head.
//            Backward: a block takes `slab` rows, its groups their heads in turn; reduce_slabs (reduce.cu) adds up part.
// Traffic    forward 3, backward 3 elements per element of queries and keys.
// Order      butterfly within a head; dw: heads g, g + groups, ... in a thread, groups in order, then reduce.cu. No atomics.
// Limits     head_dim <= 32 packs (256 bf16, 128 f32); (rows + slab) (heads + kv_heads) < 2^32: the wrapper takes up to 2^31.
// Reference  src/backend/cpu/norm.rs.   Measured: docs/results/2026-11-26-h100.md.
#include "common.cuh"

KERNEL(256, qk_norm_fwd)(T* __restrict__ qkv, T* __restrict__ raw, float* __restrict__ rstd, const T* __restrict__ w, int rows,
                         int heads, int kv_heads, int head_dim, int width, float eps) {
    if_whole(head_dim, [&](auto whole) {
        const unsigned all = heads + kv_heads;
        const int c = int(threadIdx.x % width) * PACK(T);
        const unsigned item = blockIdx.x * (blockDim.x / width) + threadIdx.x / width, row = item / all, head = item % all;
        const bool live = row < unsigned(rows);
        const int have = live ? head_dim - c : 0;
        T* at = qkv + size_t(row) * ((all + kv_heads) * head_dim) + head * head_dim + c;
        auto v = load_pack<whole>(at, have);
        store_pack<whole>(raw + size_t(item) * head_dim + c, v, have);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < PACK(T); ++i) sum += v[i] * v[i];
        const float scale = rsqrtf(warp_sum(sum, width) / float(head_dim) + eps);
        if (live && c == 0) rstd[item] = scale;
        const auto weight = load_pack<whole>(w + (head < unsigned(heads) ? 0 : head_dim) + c, have);
#pragma unroll
        for (int i = 0; i < PACK(T); ++i) v[i] = v[i] * scale * weight[i];
        store_pack<whole>(at, v, have);
    }, qkv, raw, w);
}
EXPORT_KERNEL(qk_norm_fwd)

DENSE_KERNEL(256, 4, qk_norm_bwd)(T* __restrict__ dqkv, float* __restrict__ part, const T* __restrict__ raw,
                         const float* __restrict__ rstd, const T* __restrict__ w, int rows, int heads, int kv_heads,
                         int head_dim, int width, int slab) {
    SHARED(float, sums, 2 * 256 * PACK(T));
    if_whole(head_dim, [&](auto whole) {
        const unsigned all = heads + kv_heads, group = threadIdx.x / width, groups = 256 / width;
        const int c = int(threadIdx.x % width) * PACK(T);
        const unsigned first = blockIdx.x * slab * all, last = rows * all;
        const unsigned end = first + slab * all < last ? first + slab * all : last;
        Floats<PACK(T)> dwq{}, dwk{};
        for (unsigned item0 = first; item0 < end; item0 += groups) {
            const unsigned item = item0 + group, row = item / all, head = item % all;
            const int have = item < end ? head_dim - c : 0;
            const float scale = item < end ? rstd[item] : 0.0f;
            T* at = dqkv + size_t(row) * ((all + kv_heads) * head_dim) + head * head_dim + c;
            auto g = load_pack<whole>(at, have);
            const auto v = load_pack<whole>(raw + size_t(item) * head_dim + c, have);
            const auto weight = load_pack<whole>(w + (head < unsigned(heads) ? 0 : head_dim) + c, have);
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < PACK(T); ++i) {
                const float dw = g[i] * v[i] * scale;
                if (head < unsigned(heads)) dwq[i] += dw;
                else dwk[i] += dw;
                g[i] *= weight[i];
                sum += g[i] * v[i];
            }
            const float mean = warp_sum(sum, width) / float(head_dim) * scale * scale;
#pragma unroll
            for (int i = 0; i < PACK(T); ++i) g[i] = scale * (g[i] - v[i] * mean);
            store_pack<whole>(at, g, have);
        }
#pragma unroll
        for (int i = 0; i < PACK(T); ++i) {
            sums[(group * 2 + 0) * width * PACK(T) + c + i] = dwq[i];
            sums[(group * 2 + 1) * width * PACK(T) + c + i] = dwk[i];
        }
        __syncthreads();
        for (int o = threadIdx.x; o < 2 * head_dim; o += blockDim.x) {
            const int which = o / head_dim, column = o % head_dim;
            float sum = 0.0f;
            for (unsigned g = 0; g < groups; ++g) sum += sums[(g * 2 + which) * width * PACK(T) + column];
            part[size_t(blockIdx.x) * 2 * head_dim + o] = sum;
        }
    }, dqkv, raw, w);
}
EXPORT_KERNEL(qk_norm_bwd)
