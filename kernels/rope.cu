// RoPE.      NeoX halves, in place: (a, b) -> (a cos - b sin, b cos + a sin), a = element i, b = element i + head_dim / 2 of a
//            head; backward with -sin. Queries and keys only; values stay.
// Source     Su et al. 2021 (arXiv 2104.09864), layout of Hugging Face's rotate_half.
// Shapes     qkv (rows, width), its first `heads` heads of head_dim   table (positions, head_dim) f32: cosines, then sines
//            position (rows).   Storage T, computed in f32.
// Launch     a thread per pack of a half head, block = (X, Y): X of the packs of a row, no more than 256, Y rows, so that small
//            models fill a block too; grid = (ceil(heads * packs of half / X), min(ceil(rows / Y), 65535)), rows by grid stride.
// Traffic    2 elements per element of queries and keys, and head_dim floats of the table a row (from L2).
// Order      elementwise.
// Limits     head_dim even; positions within the table: checked by the wrapper.
// Reference  src/backend/cpu/rope.rs.   Tried: not yet measured on a GPU.
#include "common.cuh"

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
#pragma unroll
            for (int e = 0; e < PACK(T); ++e) {
                const float s = sign * sine[e], old = a[e];
                a[e] = old * cosine[e] - b[e] * s;
                b[e] = b[e] * cosine[e] + old * s;
            }
            store_pack<whole>(at, a, half - c);
            store_pack<whole>(at + half, b, half - c);
        }
    }, qkv, table);
}
EXPORT_KERNEL(rope)
