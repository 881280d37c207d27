// AdamW on bf16 weights that are their own master, with moments in bf16 or in 8 bits: the update of optim.cu on small states.
//   adamw_in_bf16   m and v bf16.  w, m, v rounded stochastically: of the 16 bits that bf16 has no room for, the carry of adding 16 random
//                ones decides.
//   adamw_in_8bit   m = scale code(m), v likewise, a scale a block of 256 parameters: the largest size in it. Codes to nearest; v is not
//                rounded to 0 where it is not 0. w rounded stochastically.
//   random bits  of (seed, step) in key and the parameter's place: lowbias32 twice, and a third time for v. No state.
// Source     Loshchilov & Hutter 2019, as torch.optim.AdamW; Dettmers et al. 2022 (arXiv 2110.02861): bitsandbytes' dynamic code.
// Shapes     w (n) bf16   m, v (n) bf16 or bytes   scales (ceil(n / 256)) f32   g (n) f32, or bf16 (_narrow)   norm (1) f64.
// Launch     adamw_in_bf16: a thread per 8 parameters. adamw_in_8bit: a warp per block of 256. block = 256.
// Traffic    adamw_in_bf16 16 bytes a parameter, adamw_in_8bit 12; 2 fewer with gradients in bf16: the least.
// Order      the largest size alone is of several parameters, by butterfly: exact in any order. No atomics.
// Limits     none that memory does not set.
// Bits       every product and sum is rounded by itself: those of the CPU.
// Predicted  adamw_in_bf16: HBM. adamw_in_8bit: as many instructions as HBM leaves time for, most of them finding codes: a guess by a
//            logarithm, corrected by one place, 10 loads of shared memory a parameter at random places.
// Reference  src/backend/cpu/small_state.rs.
#include "random.cuh"

#ifdef STORAGE_BF16
// ---- arithmetic without fused products ------------------------------------------------------------------------------
#ifdef __CUDACC__
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
#else
inline float mul(float a, float b) { return a * b; }
inline float add(float a, float b) { return a + b; }
#endif
__device__ __forceinline__ float no_smaller(float x, float least) { return fabsf(x) < least ? 0.0f : x; }
constexpr float NORMAL = 1.17549435e-38f, SHARED_OUT = 7.888609e-31f, SQUARABLE = 3.469447e-18f, MOST = 3.4028234664e38f;

struct Numbers {
    float clip, lr, decay, beta1c, beta2, beta2c, root, eps;
};

// The new weight, not rounded; moments in place.
__device__ __forceinline__ float step(float w, float& m, float& v, float g, const Numbers& s) {
    g = no_smaller(mul(no_smaller(g, NORMAL), s.clip), SQUARABLE);
    const float old = no_smaller(m, SHARED_OUT);
    m = add(old, mul(add(g, -old), s.beta1c));
    v = add(mul(no_smaller(v, NORMAL), s.beta2), mul(mul(g, g), s.beta2c));
    m = m > MOST ? MOST : m < -MOST ? -MOST : m;
    v = v > MOST ? MOST : v;
    const float denom = add(sqrtf(v) / s.root, s.eps);
    return add(mul(no_smaller(w, NORMAL), s.decay), -mul(s.lr, m / denom));
}

// The factor for the gradient; false: leave everything as it is.
__device__ __forceinline__ bool clip(const double* norm, double max_norm, float& factor) {
    const double n = norm[0], f = max_norm / (n + 1e-6);
    factor = max_norm > 0.0 && f < 1.0 ? float(f) : 1.0f;
    return n - n == 0.0;  // finite
}

// ---- random bits ----------------------------------------------------------------------------------------------------
// A draw has 16 for the weight (upper half) and 16 for the first moment (lower half); `second` makes those of the second moment.
__device__ __forceinline__ uint32_t second(uint32_t draw) { return mixed(draw + GOLDEN) & 0xffff; }

// As the float that it will be read back as, so that storing it rounds no more.
__device__ __forceinline__ float stochastic(float x, uint32_t draw) {
    constexpr uint32_t EXPONENT = 0x7f800000u;
    const uint32_t bits = __float_as_uint(x), up = bits + draw;
    const uint32_t finite = (up & EXPONENT) == EXPONENT ? (bits & 0x80000000u) | 0x7f7f0000u : up;
    const uint32_t quiet = bits & 0x007fffffu ? bits | 0x00400000u : bits;
    return __uint_as_float(((bits & EXPONENT) == EXPONENT ? quiet : finite) & 0xffff0000u);
}

template <class G>
__device__ __forceinline__ void in_bf16(bf16* __restrict__ w, bf16* __restrict__ m, bf16* __restrict__ v, const G* __restrict__ g,
                                        const double* __restrict__ norm, long long n, Numbers s, double max_norm, long long key,
                                        long long index) {
    const long long i = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (i >= n) return;
    if_whole(n - i < 8 ? n - i : 0, [&](auto whole) {  // the last pack alone may be cut short
        const int live = int(n - i < 8 ? n - i : 8);
        auto p = load_pack<whole>(w + i, live), first = load_pack<whole>(m + i, live), other = load_pack<whole>(v + i, live);
        const auto gradient = load_gradient<whole>(g + i, live);
        if (!clip(norm, max_norm, s.clip)) return;  // behind the loads, which are on their way meanwhile
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const uint32_t bits = draw(key, index + i + e);
            const float next = step(p[e], first[e], other[e], gradient[e], s);
            p[e] = stochastic(next, bits >> 16);
            first[e] = stochastic(first[e], bits & 0xffff);
            other[e] = stochastic(other[e], second(bits));
        }
        store_pack<whole>(w + i, p, live);
        store_pack<whole>(m + i, first, live);
        store_pack<whole>(v + i, other, live);
    }, w, m, v, g);
}
#define ADAMW_BF16(name, G)                                                                                                        \
    KERNEL(256, name)(bf16* __restrict__ w, bf16* __restrict__ m, bf16* __restrict__ v, const G* __restrict__ g,                   \
                      const double* __restrict__ norm, long long n, float lr, float decay, float beta1c, float beta2,              \
                      float beta2c, float root, float eps, double max_norm, long long key, long long index) {                      \
        in_bf16(w, m, v, g, norm, n, Numbers{1.0f, lr, decay, beta1c, beta2, beta2c, root, eps}, max_norm, key, index);            \
    }                                                                                                                              \
    EXPORT_KERNEL(name)
ADAMW_BF16(adamw_in_bf16, float)
ADAMW_BF16(adamw_in_bf16_narrow, bf16)

// ---- the dynamic code -----------------------------------------------------------------------------------------------
// Size p of a code with 2^MORE parts in its lowest decade: a quotient of two whole numbers, rounded once. Signed codes (MORE 0) have
// sizes 0..128, others (MORE 1) 0..255.
template <int MORE> __device__ __forceinline__ float magnitude(int p, const float* power) {
    if (p == 0) return 0.0f;
    if (p == (MORE ? 255 : 128)) return 1.0f;
    int d = 0;
    while ((p + MORE) >> (d + 1)) ++d;
    const int n = 1 << d, i = d - MORE, j = p + MORE - n;
    return float(2 * n + 18 * j + 9) / mul(float(20 * n), power[6 - i]);
}

// The size nearest to x, in [0, 1]; of two that are equally near, the smaller.
template <int MORE> __device__ __forceinline__ int nearest(const float* size, const float* power, float x) {
    if (x < 1.5e-7f) return 0;
    const int decade = int(floorf(fast_log2(x) * 0.30103f)) + 7, i = decade < 0 ? 0 : decade > 6 ? 6 : decade;
    const int n = 1 << (i + MORE), part = int((x * power[6 - i] - 0.1f) * float(n) * (1.0f / 0.9f));
    const int j = part < 0 ? 0 : part > n - 1 ? n - 1 : part, p = n - MORE + j;
    // The guess is the place or one beside it.
    if (x > mul(add(size[p], size[p + 1]), 0.5f)) return p + 1;
    return x > mul(add(size[p - 1], size[p]), 0.5f) ? p : p - 1;
}

// Eight codes.
template <bool WHOLE> __device__ __forceinline__ uint2 load_codes(const unsigned char* p, int live) {
    uint2 codes{0, 0};
    if constexpr (WHOLE) {
#ifndef __CUDACC__
        if (live > 0) cuda_host::expect_aligned("8-byte load", p, 8);
#endif
        if (live > 0) codes = *reinterpret_cast<const uint2*>(p);
    } else {
#pragma unroll
        for (int e = 0; e < 8; ++e)
            if (e < live) (e < 4 ? codes.x : codes.y) |= uint32_t(p[e]) << e % 4 * 8;
    }
    return codes;
}
template <bool WHOLE> __device__ __forceinline__ void store_codes(unsigned char* p, uint2 codes, int live) {
    if constexpr (WHOLE) {
#ifndef __CUDACC__
        if (live > 0) cuda_host::expect_aligned("8-byte store", p, 8);
#endif
        if (live > 0) *reinterpret_cast<uint2*>(p) = codes;
    } else {
#pragma unroll
        for (int e = 0; e < 8; ++e)
            if (e < live) p[e] = (unsigned char)((e < 4 ? codes.x : codes.y) >> e % 4 * 8);
    }
}
__device__ __forceinline__ int code_at(uint2 codes, int e) { return (e < 4 ? codes.x : codes.y) >> e % 4 * 8 & 0xff; }

template <class G>
__device__ __forceinline__ void in_8bit(bf16* __restrict__ w, unsigned char* __restrict__ m, float* __restrict__ m_scale,
                                        unsigned char* __restrict__ v, float* __restrict__ v_scale, const G* __restrict__ g,
                                        const double* __restrict__ norm, long long n, Numbers s, double max_norm, long long key,
                                        long long index) {
    SHARED(float, power, 7);
    SHARED(float, signs, 129);
    SHARED(float, sizes, 256);
    if (threadIdx.x < 7) {
        float ten = 1.0f;
        for (int i = 0; i < int(threadIdx.x); ++i) ten *= 10.0f;
        power[threadIdx.x] = ten;
    }
    __syncthreads();
    if (threadIdx.x < 129) signs[threadIdx.x] = magnitude<0>(threadIdx.x, power);
    sizes[threadIdx.x] = magnitude<1>(threadIdx.x, power);
    __syncthreads();
    if (!clip(norm, max_norm, s.clip)) return;
    const long long block = static_cast<long long>(blockIdx.x) * 8 + threadIdx.x / 32, i = block * 256 + threadIdx.x % 32 * 8;
    if (block * 256 >= n) return;  // the warp as a whole
    if_whole(n, [&](auto whole) {  // the same for all threads
        const int live = int(n - i < 0 ? 0 : n - i < 8 ? n - i : 8);
        auto p = load_pack<whole>(w + i, live);
        const auto gradient = load_gradient<whole>(g + i, live);
        uint2 codes = load_codes<whole>(m + i, live), others = load_codes<whole>(v + i, live);
        const float unit = m_scale[block], other_unit = v_scale[block];
        Floats<8> first, other;
        float largest = 0.0f, other_largest = 0.0f;
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const int c = code_at(codes, e);
            const float size = signs[c < 127 ? 127 - c : c - 127];
            first[e] = mul(c < 127 ? -size : size, unit);
            other[e] = mul(sizes[code_at(others, e)], other_unit);
            const float next = step(p[e], first[e], other[e], gradient[e], s);
            p[e] = stochastic(next, draw(key, index + i + e) >> 16);
            first[e] = no_smaller(first[e], SHARED_OUT);
            other[e] = no_smaller(other[e], NORMAL);
            if (e < live) {
                largest = fmaxf(largest, fabsf(first[e]));
                other_largest = fmaxf(other_largest, other[e]);
            }
        }
        largest = warp_max(largest);
        other_largest = warp_max(other_largest);
        codes = others = uint2{0, 0};
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const float x = first[e] / (largest > 0.0f ? largest : 1.0f), y = other[e] / (other_largest > 0.0f ? other_largest : 1.0f);
            const int a = nearest<0>(signs, power, fminf(fabsf(x), 1.0f)), b = nearest<1>(sizes, power, fminf(y, 1.0f));
            const uint32_t code = x < 0.0f ? 127 - (a < 127 ? a : 127) : 127 + a, other_code = b > 0 ? b : y > 0.0f;
            (e < 4 ? codes.x : codes.y) |= code << e % 4 * 8;
            (e < 4 ? others.x : others.y) |= other_code << e % 4 * 8;
        }
        store_pack<whole>(w + i, p, live);
        store_codes<whole>(m + i, codes, live);
        store_codes<whole>(v + i, others, live);
        if (threadIdx.x % 32 == 0) {
            m_scale[block] = largest;
            v_scale[block] = other_largest;
        }
    }, w, m, v, g);
}
#define ADAMW_8BIT(name, G)                                                                                                        \
    KERNEL(256, name)(bf16* __restrict__ w, unsigned char* __restrict__ m, float* __restrict__ m_scale,                            \
                      unsigned char* __restrict__ v, float* __restrict__ v_scale, const G* __restrict__ g,                         \
                      const double* __restrict__ norm, long long n, float lr, float decay, float beta1c, float beta2,              \
                      float beta2c, float root, float eps, double max_norm, long long key, long long index) {                      \
        const Numbers s{1.0f, lr, decay, beta1c, beta2, beta2c, root, eps};                                                        \
        in_8bit(w, m, m_scale, v, v_scale, g, norm, n, s, max_norm, key, index);                                                   \
    }                                                                                                                              \
    EXPORT_KERNEL(name)
ADAMW_8BIT(adamw_in_8bit, float)
ADAMW_8BIT(adamw_in_8bit_narrow, bf16)
#endif
