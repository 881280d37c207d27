// Decoding.  kv_store: row r of qkv gives its keys and values to cache row dst[r] (2^32 - 1: nowhere).
//            attention_decode: one query per sequence and head against cache rows s stride .. s stride + len[s].
// Shapes     qkv (rows, (heads + 2 kv_heads) head_dim)   k, v (cache rows, kv_heads head_dim)   dst (rows)   len (sequences)
//            out (sequences, heads head_dim).   Storage T, computed in f32.
// Launch     kv_store: grid = (ceil(packs of kv_width / 256), min(rows, 65535)). attention_decode: grid = (heads, sequences),
//            block = 128: 128 keys at a time, a thread per key for the scores and per column for the values; 1552 bytes shared.
// Traffic    kv_store 4 kv_width elements a row; attention_decode reads every key and value once per query head (once per
//            group of heads would be the least).
// Order      running maximum over tiles of 128 keys; values in the order of keys. No atomics.
// Limits     head_dim <= 256, sequences <= 65535, len >= 1: checked by the wrapper. Plain: generation is not the hot path.
// Reference  src/backend/cpu/decode.rs.   Measured: docs/results/2026-11-26-h100.md.
#include "common.cuh"

KERNEL(256, kv_store)(T* __restrict__ k, T* __restrict__ v, const T* __restrict__ qkv, const unsigned* __restrict__ dst,
                      int rows, int q_width, int kv_width) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * PACK(T);
    if (c >= kv_width) return;
    if_whole(kv_width | q_width, [&](auto whole) {
        for (size_t r = blockIdx.y; r < size_t(rows); r += gridDim.y) {
            if (dst[r] == 0xffffffffu) continue;
            const T* row = qkv + r * (size_t(q_width) + 2 * kv_width) + q_width;
            const size_t to = size_t(dst[r]) * kv_width + c;
            store_pack<whole>(k + to, load_pack<whole>(row + c, kv_width - c), kv_width - c);
            store_pack<whole>(v + to, load_pack<whole>(row + kv_width + c, kv_width - c), kv_width - c);
        }
    }, k, v, qkv);
}
EXPORT_KERNEL(kv_store)

KERNEL(128, attention_decode)(T* __restrict__ out, const T* __restrict__ qkv, const T* __restrict__ k, const T* __restrict__ v,
                              const unsigned* __restrict__ lens, int stride, int heads, int kv_heads, int head_dim,
                              float scale) {
    SHARED(float, query, 256);
    SHARED(float, p, 128);
    SHARED(float, part, 4);
    const int head = blockIdx.x, width = kv_heads * head_dim, len = int(lens[blockIdx.y]);
    const T* q = qkv + size_t(blockIdx.y) * (heads + 2 * kv_heads) * head_dim + head * head_dim;
    const size_t cache = size_t(blockIdx.y) * stride * width + head / (heads / kv_heads) * head_dim;
    for (int c = threadIdx.x; c < head_dim; c += 128) query[c] = to_float(q[c]) * scale;
    if_whole(head_dim, [&](auto whole) {
        float max = -INFINITY, sum = 0.0f, acc[2] = {0.0f, 0.0f};
        for (int first = 0; first < len; first += 128) {
            __syncthreads();
            const int key = first + threadIdx.x;
            float score = -INFINITY;
            if (key < len) {
                const T* row = k + cache + size_t(key) * width;
                score = 0.0f;
                for (int c = 0; c < head_dim; c += PACK(T)) {
                    const auto pack = load_pack<whole>(row + c, head_dim - c);
#pragma unroll
                    for (int i = 0; i < PACK(T); ++i) score += c + i < head_dim ? query[c + i] * pack[i] : 0.0f;
                }
            }
            const float warp_best = warp_max(score);
            if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = warp_best;
            __syncthreads();
            const float best = fmaxf(max, fmaxf(fmaxf(part[0], part[1]), fmaxf(part[2], part[3])));
            const float f = fast_exp2((max - best) * LOG2E);
            p[threadIdx.x] = fast_exp2((score - best) * LOG2E);
            max = best;
            __syncthreads();
            const int keys = len - first < 128 ? len - first : 128;
            sum *= f;
            acc[0] *= f;
            acc[1] *= f;
            for (int j = 0; j < keys; ++j) {
                sum += p[j];
                const T* row = v + cache + size_t(first + j) * width;
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    if (int(threadIdx.x) + 128 * h < head_dim) acc[h] += p[j] * to_float(row[threadIdx.x + 128 * h]);
            }
        }
        T* to = out + size_t(blockIdx.y) * heads * head_dim + head * head_dim;
#pragma unroll
        for (int h = 0; h < 2; ++h)
            if (int(threadIdx.x) + 128 * h < head_dim) from_float(acc[h] / sum, to[threadIdx.x + 128 * h]);
    }, qkv, k, v);
}
EXPORT_KERNEL(attention_decode)
