// Weights in four bits (NF4).   w[i] = round(CODE[c_i] a_j),  j = i / 64;   a_j = absmax[j], or with double quantisation
//            map[nested[j]] absmax[j / 256] + offset, product and sum rounded one by one.
// Source     Dettmers et al. 2023 (arXiv 2305.14314), appendix E for CODE; layout as bitsandbytes.
// Shapes     w (n)   codes (ceil(n / 2)): two a byte, the first in the upper half   nested (blocks)   map (256)   offset (1).
//            absmax one a block of 64, or of 256 blocks.   Storage T, computed in f32; `round` first: 0 no, 1 bf16, 2 f16.
// Launch     grid = ceil(packs of n / 1024), block = 256, 16 floats of shared memory; 4 packs a thread, a block's side by side.
// Traffic    0.5 + 0.0625 bytes read (0.516 nested) and one element written for each; the loads of 4 packs are in flight at once.
//            Eight threads share a magnitude. The table has a bank for each entry: lanes never wait for each other.
// Order      elementwise.
// Limits     n < 2^63. n a multiple of a pack, w aligned to 16 bytes and codes to 4: whole accesses, else element by element.
// Reference  src/backend/cpu/quant.rs.   Measured: not yet on a GPU.
#include "common.cuh"
#ifndef __CUDACC__
#include <cmath>
#endif

constexpr int NF4_BLOCK = 64, NF4_NESTED = 256, NF4_PACKS = 4;

__device__ __forceinline__ float nf4_code(int i) {
    constexpr float CODE[16] = {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
        -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f,
        0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};
    return CODE[i];
}

// a b + c, never in one rounding.
__device__ __forceinline__ float product_plus(float a, float b, float c) {
#ifdef __CUDACC__
    return __fadd_rn(__fmul_rn(a, b), c);
#else
    const volatile float product = a * b;
    return product + c;
#endif
}

// f as IEEE half precision has it, nearest even.
__device__ __forceinline__ float rounded_f16(float f) {
#ifdef __CUDACC__
    float r;
    asm("{ .reg .f16 h; cvt.rn.f16.f32 h, %1; cvt.f32.f16 %0, h; }" : "=f"(r) : "f"(f));
    return r;
#else
    const float size = std::fabs(f);
    if (!(size < 65520.0f)) return size == size ? std::copysign(INFINITY, f) : f;
    const int exponent = size < 6.103515625e-05f ? -14 : std::ilogb(size);
    const float spacing = std::ldexp(1.0f, exponent - 10);
    return std::nearbyint(f / spacing) * spacing;
#endif
}

// The codes of a pack, of which `live` elements exist, as they lie in memory.
template <bool WHOLE> __device__ __forceinline__ uint32_t load_codes(const unsigned char* codes, int live) {
    if (live <= 0) return 0;
    if constexpr (WHOLE) {
#ifndef __CUDACC__
        cuda_host::expect_aligned("codes", codes, PACK(T) / 2);
#endif
        if constexpr (PACK(T) == 8) return *reinterpret_cast<const uint32_t*>(codes);
        else return *reinterpret_cast<const uint16_t*>(codes);
    } else {
        uint32_t all = 0;
#pragma unroll
        for (int i = 0; i < PACK(T); i += 2)
            if (i < live) all |= uint32_t(codes[i / 2]) << 4 * i;
        return all;
    }
}

KERNEL(256, dequantize_nf4)(T* __restrict__ w, const unsigned char* __restrict__ codes, const float* __restrict__ absmax,
                            const unsigned char* __restrict__ nested, const float* __restrict__ map,
                            const float* __restrict__ offset, long long n, int is_nested, int round) {
    SHARED(float, table, 16);
    if (threadIdx.x < 16) table[threadIdx.x] = nf4_code(threadIdx.x);
    __syncthreads();
    const long long first = (static_cast<long long>(blockIdx.x) * NF4_PACKS * blockDim.x + threadIdx.x) * PACK(T);
    const long long step = static_cast<long long>(blockDim.x) * PACK(T);
    const float mean = is_nested ? *offset : 0.0f;
    const bool bytes = reinterpret_cast<uintptr_t>(codes) % 4 != 0;
    if_whole(bytes ? 1 : n, [&](auto whole) {
        uint32_t packed_codes[NF4_PACKS];
        float scale[NF4_PACKS];
#pragma unroll
        for (int p = 0; p < NF4_PACKS; ++p) {
            const long long at = first + p * step;
            const int live = n - at < PACK(T) ? int(n - at) : PACK(T);
            packed_codes[p] = load_codes<whole>(codes + at / 2, live);
            scale[p] = 0.0f;
            if (live > 0) {
                const long long j = at / NF4_BLOCK;
                scale[p] = is_nested ? product_plus(map[nested[j]], absmax[j / NF4_NESTED], mean) : absmax[j];
            }
        }
#pragma unroll
        for (int p = 0; p < NF4_PACKS; ++p) {
            const long long at = first + p * step;
            if (at >= n) break;
            const int live = n - at < PACK(T) ? int(n - at) : PACK(T);
            Floats<PACK(T)> out;
#pragma unroll
            for (int i = 0; i < PACK(T); ++i) {
                const float level = table[packed_codes[p] >> (4 * i ^ 4) & 15] * scale[p];
                out[i] = round == 2 ? rounded_f16(level) : round == 1 ? rounded<bf16>(level) : level;
            }
            store_pack<whole>(w + at, out, live);
        }
    }, w);
}
EXPORT_KERNEL(dequantize_nf4)
