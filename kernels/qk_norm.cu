// Q/K norm.  RMSNorm (norm.cu has the formulas) of every query head by w[0], of every key head by w[1], and behind it the rotation
//            (rope.cu), in place in qkv. Backward: the gradient of the rotated in, of the raw out.
// Source     Qwen3, as in Hugging Face.
// Shapes     qkv, dqkv (rows, (heads + 2 kv_heads) head_dim)   raw (rows, (heads + kv_heads) head_dim): queries and keys from before
//            rstd (rows, heads + kv_heads) f32   w (2, head_dim)   table (positions, head_dim) f32: cosines, then sines
//            position (rows)   part (blocks, 2, head_dim) f32: dw.   Storage T; nothing is rounded between norm and rotation.
// Launch     `width` lanes (a power of two) hold one head, each a pack of either half, so that a pair turns in one thread; block = 256.
//            Forward: a group of lanes per head. Backward: a block takes `slab` rows, its groups their heads in turn; reduce_slabs
//            (reduce.cu) adds up part.
// Traffic    forward 3, backward 3 elements per element of queries and keys, and head_dim floats of the table a row (from L2). By
//            itself the rotation takes 2 more each way.
// Order      packs a and b in a thread, butterfly within a head; dw: heads g, g + groups, ... in a thread, groups in order, then
//            reduce.cu. No atomics.
// Limits     head_dim even, <= 64 packs (512 bf16, 256 f32); (rows + slab) (heads + kv_heads) < 2^32: the wrapper takes up to 2^31;
//            positions within the table: checked by the wrapper.
// Reference  src/backend/cpu/norm.rs.   Measured: docs/results/2026-11-26-h100.md, before the rotation was here.
// Predicted  HBM is the limiter; backward 2 blocks an SM, 32 KB of reads on their way, where 18 are needed.
#include "rope.cuh"

struct Angles {
    Pack cosine, sine;
};
template <bool WHOLE> __device__ __forceinline__ Angles load_angles(const float* table, unsigned position, int head_dim, int c, int have) {
    const float* angles = table + size_t(position) * head_dim + c;
    return Angles{load_floats<WHOLE>(angles, have), load_floats<WHOLE>(angles + head_dim / 2, have)};
}

DENSE_KERNEL(256, 3, qk_norm_fwd)(T* __restrict__ qkv, T* __restrict__ raw, float* __restrict__ rstd, const T* __restrict__ w,
                         const float* __restrict__ table, const unsigned* __restrict__ position, int rows, int heads, int kv_heads,
                         int head_dim, int width, float eps) {
    const int half = head_dim / 2;
    if_whole(half, [&](auto whole) {
        const unsigned all = heads + kv_heads;
        const int c = int(threadIdx.x % width) * PACK(T);
        const unsigned item = blockIdx.x * (blockDim.x / width) + threadIdx.x / width, row = item / all, head = item % all;
        const bool live = row < unsigned(rows);
        const int have = live ? half - c : 0;
        T* at = qkv + size_t(row) * ((all + kv_heads) * head_dim) + head * head_dim + c;
        auto a = load_pack<whole>(at, have), b = load_pack<whole>(at + half, have);
        const unsigned where = live ? position[row] : 0;
        T* keep = raw + size_t(item) * head_dim + c;
        store_pack<whole>(keep, a, have);
        store_pack<whole>(keep + half, b, have);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < PACK(T); ++i) sum += a[i] * a[i];
#pragma unroll
        for (int i = 0; i < PACK(T); ++i) sum += b[i] * b[i];
        const float scale = rsqrtf(warp_sum(sum, width) / float(head_dim) + eps);
        if (live && c == 0) rstd[item] = scale;
        const T* weights = w + (head < unsigned(heads) ? 0 : head_dim) + c;
        const auto to_a = load_pack<whole>(weights, have), to_b = load_pack<whole>(weights + half, have);
#pragma unroll
        for (int i = 0; i < PACK(T); ++i) a[i] = a[i] * scale * to_a[i], b[i] = b[i] * scale * to_b[i];
        const auto angles = load_angles<whole>(table, where, head_dim, c, have);
        turn(a, b, angles.cosine, angles.sine, 1.0f);
        store_pack<whole>(at, a, have);
        store_pack<whole>(at + half, b, have);
    }, qkv, raw, w, table);
}
EXPORT_KERNEL(qk_norm_fwd)

DENSE_KERNEL(256, 2, qk_norm_bwd)(T* __restrict__ dqkv, float* __restrict__ part, const T* __restrict__ raw,
                         const float* __restrict__ rstd, const T* __restrict__ w, const float* __restrict__ table,
                         const unsigned* __restrict__ position, int rows, int heads, int kv_heads, int head_dim, int width, int slab) {
    SHARED(float, sums, 4 * 256 * PACK(T));
    const int half = head_dim / 2;
    if_whole(half, [&](auto whole) {
        const unsigned all = heads + kv_heads, group = threadIdx.x / width, groups = 256 / width;
        const int c = int(threadIdx.x % width) * PACK(T);
        const unsigned first = blockIdx.x * slab * all, last = rows * all;
        const unsigned end = first + slab * all < last ? first + slab * all : last;
        Pack dw[2][2]{};  // of queries and keys, of either half
        for (unsigned item0 = first; item0 < end; item0 += groups) {
            const unsigned item = item0 + group, row = item / all, head = item % all;
            const bool live = item < end, query = head < unsigned(heads);
            const int have = live ? half - c : 0;
            const float scale = live ? rstd[item] : 0.0f;
            T* at = dqkv + size_t(row) * ((all + kv_heads) * head_dim) + head * head_dim + c;
            Pack g[2] = {load_pack<whole>(at, have), load_pack<whole>(at + half, have)};
            const T* before = raw + size_t(item) * head_dim + c;
            const Pack v[2] = {load_pack<whole>(before, have), load_pack<whole>(before + half, have)};
            const auto angles = load_angles<whole>(table, live ? position[row] : 0, head_dim, c, have);
            turn(g[0], g[1], angles.cosine, angles.sine, -1.0f);
            const T* weights = w + (query ? 0 : head_dim) + c;
            float sum = 0.0f;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const auto weight = load_pack<whole>(weights + h * half, have);
#pragma unroll
                for (int i = 0; i < PACK(T); ++i) {
                    const float more = g[h][i] * v[h][i] * scale;
                    if (query) dw[0][h][i] += more;
                    else dw[1][h][i] += more;
                    g[h][i] *= weight[i];
                    sum += g[h][i] * v[h][i];
                }
            }
            const float mean = warp_sum(sum, width) / float(head_dim) * scale * scale;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
#pragma unroll
                for (int i = 0; i < PACK(T); ++i) g[h][i] = scale * (g[h][i] - v[h][i] * mean);
                store_pack<whole>(at + h * half, g[h], have);
            }
        }
        const int lanes = width * PACK(T);  // columns of a half, and what they are filled up with
#pragma unroll
        for (int which = 0; which < 2; ++which)
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int i = 0; i < PACK(T); ++i) sums[((group * 2 + which) * 2 + h) * lanes + c + i] = dw[which][h][i];
        __syncthreads();
        for (int o = threadIdx.x; o < 2 * head_dim; o += blockDim.x) {
            const int side = o / half, column = o % half;  // queries' halves, keys' halves
            float sum = 0.0f;
            for (unsigned g = 0; g < groups; ++g) sum += sums[(g * 4 + side) * lanes + column];
            part[size_t(blockIdx.x) * 2 * head_dim + o] = sum;
        }
    }, dqkv, raw, w, table);
}
EXPORT_KERNEL(qk_norm_bwd)
