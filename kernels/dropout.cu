// Dropout.   forward: y = scale x where it is kept, else 0.   backward: dx += scale dy where it was kept.
//            An element is kept where draw `column` of the stream of (its row's two words, the site) is not below `below`: made again
//            backward, not stored. Words come with the batch, so that a recorded launch draws anew with every one.
// Source     Srivastava et al. 2014, as torch's nn.Dropout.
// Shapes     x, y, dx, dy (rows, dim)   draws (rows, 2).   Storage T, computed in f32.
// Launch     grid = (ceil(packs of dim / 256), min(rows, 65535)), block = 256, no shared memory; rows by grid stride.
// Traffic    forward 2, backward 3 dim elements a row, each once: the least.
// Order      elementwise.
// Limits     rows, dim <= 2^31 - 1. dim a multiple of a pack (8 bf16, 4 f32): 16-byte accesses, else element by element.
// Predicted  about 20 instructions of integers an element for what is drawn: bf16 forward is bound by those and by HBM alike.
// Reference  src/backend/cpu/dropout.rs.
#include "random.cuh"

// As `stream` in src/backend/dropout.rs.
__device__ __forceinline__ unsigned long long stream(const unsigned* __restrict__ row, unsigned site) {
    const uint32_t low = mixed(row[0] + site * GOLDEN);
    return static_cast<unsigned long long>(mixed(row[1] ^ low)) << 32 | low;
}

template <class F>
__device__ __forceinline__ void each_row(const unsigned* __restrict__ draws, int rows, int site, const F& body) {
    for (size_t r = blockIdx.y; r < size_t(rows); r += gridDim.y) body(r, stream(draws + 2 * r, unsigned(site)));
}

KERNEL(256, dropout_fwd)(T* __restrict__ y, const T* __restrict__ x, const unsigned* __restrict__ draws, int rows, int dim, int site,
                         int below, float scale) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * PACK(T);
    if (c >= dim) return;
    if_whole(dim, [&](auto whole) {
        each_row(draws, rows, site, [&](size_t r, unsigned long long key) {
            auto v = load_pack<whole>(x + r * dim + c, dim - c);
#pragma unroll
            for (int e = 0; e < PACK(T); ++e) v[e] = draw(key, unsigned(c + e)) < unsigned(below) ? 0.0f : v[e] * scale;
            store_pack<whole>(y + r * dim + c, v, dim - c);
        });
    }, y, x);
}
EXPORT_KERNEL(dropout_fwd)

KERNEL(256, dropout_bwd)(T* __restrict__ dx, const T* __restrict__ dy, const unsigned* __restrict__ draws, int rows, int dim, int site,
                         int below, float scale) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * PACK(T);
    if (c >= dim) return;
    if_whole(dim, [&](auto whole) {
        each_row(draws, rows, site, [&](size_t r, unsigned long long key) {
            auto sum = load_pack<whole>(dx + r * dim + c, dim - c);
            const auto d = load_pack<whole>(dy + r * dim + c, dim - c);
#pragma unroll
            for (int e = 0; e < PACK(T); ++e) sum[e] += draw(key, unsigned(c + e)) < unsigned(below) ? 0.0f : d[e] * scale;
            store_pack<whole>(dx + r * dim + c, sum, dim - c);
        });
    }, dx, dy);
}
EXPORT_KERNEL(dropout_bwd)
