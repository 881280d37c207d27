// RoPE.      NeoX halves, in place: (a, b) -> (a cos - b sin, b cos + a sin), a = element i, b = element i + head_dim / 2 of a
//            head; backward with -sin. Queries and keys only; values stay. rope_bias adds the projection's bias to all of a row
//            before, rope_bias_bwd sums up its gradient after: one pass where a bias alone would take another.
// Source     Su et al. 2021 (arXiv 2104.09864), layout of Hugging Face's rotate_half.
// Shapes     qkv (rows, width), its first `heads` heads of head_dim turn, `more` heads of values follow   bias (width)
//            table (positions, head_dim) f32: cosines, then sines   position (rows)   part (slabs, width) f32.
//            Storage T, computed in f32.
// Launch     a thread per pack of a half head, block = (X, Y): X of the packs of a row, no more than 256, Y rows, so that small
//            models fill a block too; grid = (ceil(packs / X), min(ceil(rows / Y), 65535)), rows by grid stride. Backward with a
//            bias: grid = (same, slabs): a block takes `slab` consecutive rows, Y at a time, and leaves its part of dbias, which
//            reduce_slabs (reduce.cu) adds up; 8 X packs bytes of dynamic shared memory.
// Traffic    2 elements per element of queries and keys, and head_dim floats of the table a row (from L2); with a bias 2 per
//            element of values too, backward 1.
// Order      elementwise; dbias: rows y, y + Y, ... of the slab in a thread, y in order, slabs as reduce.cu says. No atomics.
// Limits     head_dim even; positions within the table: checked by the wrapper.
// Reference  src/backend/cpu/rope.rs.   Measured: docs/results/2026-11-26-h100.md.
#include "rope.cuh"

KERNEL(256, rope)(T* __restrict__ qkv, const float* __restrict__ table, const unsigned* __restrict__ position, int rows,
                  int width, int heads, int head_dim, float sign) {
    const int half = head_dim / 2, packs = (half + PACK(T) - 1) / PACK(T);
    const int i = blockIdx.x * blockDim.x + threadIdx.x, head = i / packs, c = i % packs * PACK(T);
    if (head >= heads) return;
    if_whole(half, [&](auto whole) {
        for (size_t r = size_t(blockIdx.y) * blockDim.y + threadIdx.y; r < size_t(rows); r += size_t(gridDim.y) * blockDim.y) {
            T* at = qkv + r * width + size_t(head) * head_dim + c;
            auto a = load_pack<whole>(at, half - c), b = load_pack<whole>(at + half, half - c);
            const float* angles = table + size_t(position[r]) * head_dim + c;  // waits for the position; a and b do not
            const auto cosine = load_floats<whole>(angles, half - c), sine = load_floats<whole>(angles + half, half - c);
            turn(a, b, cosine, sine, sign);
            store_pack<whole>(at, a, half - c);
            store_pack<whole>(at + half, b, half - c);
        }
    }, qkv, table);
}
EXPORT_KERNEL(rope)

KERNEL(256, rope_bias)(T* __restrict__ qkv, const T* __restrict__ bias, const float* __restrict__ table,
                       const unsigned* __restrict__ position, int rows, int width, int heads, int head_dim, int more) {
    const int half = head_dim / 2, packs = (half + PACK(T) - 1) / PACK(T);
    const int i = blockIdx.x * blockDim.x + threadIdx.x, head = i / packs, c = i % packs * PACK(T);
    if (head >= heads + more) return;
    if_whole(half, [&](auto whole) {
        const T* bias_at = bias + size_t(head) * head_dim + c;
        const auto to_a = load_pack<whole>(bias_at, half - c), to_b = load_pack<whole>(bias_at + half, half - c);
        for (size_t r = size_t(blockIdx.y) * blockDim.y + threadIdx.y; r < size_t(rows); r += size_t(gridDim.y) * blockDim.y) {
            T* at = qkv + r * width + size_t(head) * head_dim + c;
            auto a = load_pack<whole>(at, half - c), b = load_pack<whole>(at + half, half - c);
#pragma unroll
            for (int e = 0; e < PACK(T); ++e) a[e] += to_a[e], b[e] += to_b[e];
            if (head < heads) {
                const float* angles = table + size_t(position[r]) * head_dim + c;
                const auto cosine = load_floats<whole>(angles, half - c), sine = load_floats<whole>(angles + half, half - c);
                turn(a, b, cosine, sine, 1.0f);
            }
            store_pack<whole>(at, a, half - c);
            store_pack<whole>(at + half, b, half - c);
        }
    }, qkv, bias, table);
}
EXPORT_KERNEL(rope_bias)

DENSE_KERNEL(256, 3, rope_bias_bwd)(T* __restrict__ dqkv, float* __restrict__ part, const float* __restrict__ table,
                           const unsigned* __restrict__ position, int rows, int width, int heads, int head_dim, int more,
                           int slab) {
    DYNAMIC_SHARED(float, columns);
    const int half = head_dim / 2, packs = (half + PACK(T) - 1) / PACK(T);
    const int i = blockIdx.x * blockDim.x + threadIdx.x, head = i / packs, c = i % packs * PACK(T);
    const bool live = head < heads + more;
    if_whole(half, [&](auto whole) {
        const size_t first = size_t(blockIdx.y) * slab;
        const size_t end = first + slab < size_t(rows) ? first + slab : size_t(rows);
        Pack sum_a{}, sum_b{};
        constexpr bool AHEAD = decltype(whole)::value;  // else there are no registers for it
        Coming<AHEAD, T> a_in, b_in;
        unsigned position_in = 0;
        const auto ask = [&](size_t r) {  // a row is on its way while the one before it turns
            const int have = live && r < end ? half - c : 0;
            const T* at = dqkv + r * width + size_t(head) * head_dim + c;
            a_in.load(at, have);
            b_in.load(at + half, have);
            if (r < end) position_in = position[r];
        };
        if (AHEAD) ask(first + threadIdx.y);
        for (size_t r = first + threadIdx.y; live && r < end; r += blockDim.y) {
            T* at = dqkv + r * width + size_t(head) * head_dim + c;
            if (!AHEAD) ask(r);
            auto a = a_in.get(), b = b_in.get();
            const float* angles = table + size_t(position_in) * head_dim + c;
            if (AHEAD) ask(r + blockDim.y);
            if (head < heads) {
                const auto cosine = load_floats<whole>(angles, half - c), sine = load_floats<whole>(angles + half, half - c);
                turn(a, b, cosine, sine, -1.0f);
                store_pack<whole>(at, a, half - c);
                store_pack<whole>(at + half, b, half - c);
            }
#pragma unroll
            for (int e = 0; e < PACK(T); ++e) sum_a[e] += a[e], sum_b[e] += b[e];
        }
        // The Y sums of a column meet in shared memory, in the order of y.
        float* mine = columns + threadIdx.x * 2 * PACK(T);
        for (int y = 0; y < int(blockDim.y); ++y) {
            if (int(threadIdx.y) == y) {
#pragma unroll
                for (int e = 0; e < PACK(T); ++e) {
                    mine[e] = y ? mine[e] + sum_a[e] : sum_a[e];
                    mine[PACK(T) + e] = y ? mine[PACK(T) + e] + sum_b[e] : sum_b[e];
                }
            }
            __syncthreads();
        }
        if (!live || threadIdx.y) return;
        float* to = part + size_t(blockIdx.y) * width + size_t(head) * head_dim;
        for (int e = 0; e < PACK(T) && c + e < half; ++e) {
            to[c + e] = mine[e];
            to[half + c + e] = mine[PACK(T) + e];
        }
    }, dqkv, table);
}
EXPORT_KERNEL(rope_bias_bwd)
