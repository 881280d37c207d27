// Head.      For a row z of logits, m = max z, s = sum e^(z-m), p = e^(z-m) / s:
//              logp = z[target] - m - ln s,   entropy = -sum p ln p = ln s - (sum e^(z-m) (z-m)) / s,
//              log_sum_p2 = ln(sum e^(2(z-m))) - 2 ln s,   hit = (the lowest index among the largest z is target),
//            and where `train`, in place of z, G = onehot(target) - p in storage T: the gradient of logp by z. The loss multiplies
//            a row of G by one number, which commutes with the GEMMs that follow (DESIGN of the head: docs/architecture.md).
// Source     Milakov & Gimelshein 2018 (arXiv 1805.02867) for the running maximum; the sums ride along.
// Shapes     logits (rows, vocab) f32; G starts where its row of logits does, so its leading dimension is 2 vocab in bf16.
//            logp, entropy, log_sum_p2, hit (rows) f32   target (rows).
// Launch     grid = rows, block = 1024, 1 KB shared memory. A thread takes 4 tiles of 4 logits at a time.
// Traffic    reads z twice (the second time partly from L2), writes G once: 10 bytes a logit for bf16, 4 where only scored.
// In place   ascending tiles of 4096 logits, a barrier between the read and the write of each: the write of tile i ends at
//            half of where its read ended, so it meets only logits of tiles <= i, which all threads have read.
// Order      a thread's logits ascending; butterfly in a warp; warps in order. No atomics.
// Limits     target < vocab: checked by the wrapper. NaN in z gives NaN.
// Reference  src/backend/cpu/head.rs.   Tried: not yet measured on a GPU.
#include "common.cuh"

constexpr int THREADS = 1024;
constexpr int TILES = 4;  // in flight per thread in the first pass

struct Running {
    float max, sum, sum_d, sum_sq;  // m, sum e, sum e (z - m), sum e^2, e = exp(z - m)
    int index;                      // of the maximum, the lowest
};

// Moves the sums to a larger maximum.
__device__ __forceinline__ void rebase(Running& r, float max) {
    const float d = r.max - max, f = fast_exp2(d * LOG2E);
    // Nothing summed yet: d is -infinity.
    if (r.sum != 0.0f) r.sum_d = f * (r.sum_d + d * r.sum);
    r.sum *= f;
    r.sum_sq *= f * f;
    r.max = max;
}

__device__ __forceinline__ Running combine(Running a, Running b) {
    if (b.max > a.max || (b.max == a.max && b.index < a.index)) {
        const Running t = a;
        a = b;
        b = t;
    }
    if (b.sum == 0.0f) return a;  // a thread that saw no logit
    rebase(b, a.max);
    a.sum += b.sum;
    a.sum_d += b.sum_d;
    a.sum_sq += b.sum_sq;
    return a;
}

__device__ __forceinline__ Running shuffled(const Running& r, int lanes) {
    return Running{__shfl_xor_sync(FULL, r.max, lanes), __shfl_xor_sync(FULL, r.sum, lanes), __shfl_xor_sync(FULL, r.sum_d, lanes),
                   __shfl_xor_sync(FULL, r.sum_sq, lanes), __shfl_xor_sync(FULL, r.index, lanes)};
}

// Logits from..to of the row. Until the END every pack exists.
template <bool WHOLE, bool END> __device__ __forceinline__ void scan(Running& r, const float* z, int from, int to) {
    for (int c0 = from + threadIdx.x * 4; c0 < to; c0 += TILES * 4 * THREADS) {
        Floats<4> v[TILES];
        float max = -INFINITY;
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            const int live = !END ? 4 : to - (c0 + t * 4 * THREADS);
            v[t] = load_pack<WHOLE>(z + (c0 + t * 4 * THREADS), live);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (i >= live) v[t][i] = -INFINITY;
                max = fmaxf(max, v[t][i]);
            }
        }
        if (max > r.max) {  // rare once the row's large logits have been seen
            rebase(r, max);
#pragma unroll
            for (int t = TILES - 1; t >= 0; --t)
#pragma unroll
                for (int i = 3; i >= 0; --i)
                    if (v[t][i] == max) r.index = c0 + t * 4 * THREADS + i;
        }
#pragma unroll
        for (int t = 0; t < TILES; ++t)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float d = v[t][i] - r.max, e = fast_exp2(d * LOG2E);
                r.sum += e;
                r.sum_d += e == 0.0f ? 0.0f : e * d;  // 0 * -infinity
                r.sum_sq += e * e;
            }
    }
}

template <bool WHOLE> __device__ __forceinline__ void store_gradient(float* to, const Floats<4>& g, int live) {
    store_pack<WHOLE>(to, g, live);
}
template <bool WHOLE> __device__ __forceinline__ void store_gradient(bf16* to, const Floats<4>& g, int live) {
    if constexpr (WHOLE) {
        if (live > 0) *reinterpret_cast<uint2*>(to) = uint2{pack_bf16(g[0], g[1]), pack_bf16(g[2], g[3])};
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < live) from_float(g[i], to[i]);
    }
}

// Second pass: logits become the gradient.
template <bool WHOLE>
__device__ __forceinline__ void replace(float* z, int vocab, int aim, float max, float shift) {
    T* gradient = reinterpret_cast<T*>(z);
    for (int tile = 0; tile < vocab; tile += 4 * THREADS) {
        const int c = tile + threadIdx.x * 4, live = vocab - c;
        Floats<4> g = load_pack<WHOLE>(z + c, live);
#pragma unroll
        for (int i = 0; i < 4; ++i) g[i] = (c + i == aim ? 1.0f : 0.0f) - fast_exp2((g[i] - max) * LOG2E - shift);
        __syncthreads();
        store_gradient<WHOLE>(gradient + c, g, live);
    }
}

KERNEL(1024, head)(float* __restrict__ logp, float* __restrict__ entropy, float* __restrict__ log_sum_p2, float* __restrict__ hit,
                   float* logits, const unsigned* __restrict__ target, int vocab, int train) {
    SHARED(Running, warps, THREADS / 32);
    float* z = logits + size_t(blockIdx.x) * vocab;
    const int aim = int(target[blockIdx.x]);
    const float at_target = z[aim];  // before anything is overwritten
    const bool whole = vocab % 4 == 0 && aligned16(logits);
    const int loops = whole ? vocab / (TILES * 4 * THREADS) * (TILES * 4 * THREADS) : 0;
    Running r{-INFINITY, 0.0f, 0.0f, 0.0f, 0x7fffffff};
    scan<true, false>(r, z, 0, loops);
    if (whole) scan<true, true>(r, z, loops, vocab);
    else scan<false, true>(r, z, 0, vocab);
#pragma unroll
    for (int lanes = 16; lanes; lanes >>= 1) r = combine(r, shuffled(r, lanes));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = r;
    __syncthreads();
    r = warps[0];
    for (int w = 1; w < THREADS / 32; ++w) r = combine(r, warps[w]);
    const float log_sum = logf(r.sum);
    if (threadIdx.x == 0) {
        logp[blockIdx.x] = at_target - r.max - log_sum;
        entropy[blockIdx.x] = log_sum - r.sum_d / r.sum;
        log_sum_p2[blockIdx.x] = logf(r.sum_sq) - 2.0f * log_sum;
        hit[blockIdx.x] = r.index == aim ? 1.0f : 0.0f;
    }
    if (!train) return;
    const float shift = log_sum * LOG2E;
    if (whole) replace<true>(z, vocab, aim, r.max, shift);
    else replace<false>(z, vocab, aim, r.max, shift);
}
EXPORT_KERNEL(head)
