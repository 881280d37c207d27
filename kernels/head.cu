// Head.      For a row z of logits, m = max z, s = sum e^(z-m), p = e^(z-m) / s:
//              logp = z[target] - m - ln s,   entropy = -sum p ln p = ln s - (sum e^(z-m) (z-m)) / s,
//              log_sum_p2 = ln(sum e^(2(z-m))) - 2 ln s,   hit = (the lowest index among the largest z is target),
//            and where `train`, in place of z, G = onehot(target) - p in storage T: the gradient of logp by z. The loss multiplies
//            a row of G by one number, which commutes with the GEMMs that follow (docs/step-model.md).
//            head_narrow has z in bf16, but z[target] as target_logits computes it in f32, in the sums too: logp is never above 0.
// Source     Milakov & Gimelshein 2018 (arXiv 1805.02867) for the running maximum; the sums ride along.
// Shapes     logits (rows, vocab) f32 (head_narrow: bf16); G starts where its row of logits does, so its leading dimension is 2 vocab
//            where it is narrower than they are.   exact (rows) f32   x (rows, dim)   w (vocab, dim).
//            logp, entropy, log_sum_p2, hit (rows) f32   target (rows).
// Launch     grid = rows, block = 1024, 640 bytes of shared memory, and as dynamic one the logits of the lowest `keep` groups. Groups of
//            4 x 4096 logits: a thread has four loads of 16 bytes on their way in both passes, 64 KB a block.
// Traffic    least: z read and G written once, 6 bytes a logit for bf16 (head_narrow: 4), 4 (2) where only scored. z is needed twice:
//            what a thread read of the lowest groups it keeps in shared memory (where rows are whole packs), three groups of f32 on
//            an H100; the first pass goes from the row's end to its start and the second back, so that of the rest what was read
//            last is read again first, from L2. G is stored, and z read for the last time, as what may leave L2 first.
// In place   ascending groups; a group of bf16 ends at half of where its logits end: group i lies over logits of group i / 2. A
//            barrier after the loads of group b says that all threads have read groups <= b, which frees 0 .. 2 b + 1: barriers
//            at groups 0, 2, 6, 14, ... are enough, and with k groups kept, all read by the end of the first pass, at 2 k, 4 k + 2, ...
//            f32 replaces what the same thread has read: none.
// Order      a thread's groups descending, inside one ascending; butterfly in a warp, butterfly over warps. No atomics.
// Limits     target < vocab: checked by the wrapper. vocab < 2^31 - 2^14. NaN in z gives NaN.
// Reference  src/backend/cpu/head.rs.   Measured: docs/results/2026-11-26-h100.md.
// Predicted  the limiter is HBM, at 6 bytes a logit up to 49k logits, 7.5 to 8 (8.8 to 9.2 without what is kept) at 152k. One block an SM
//            (1024 threads, at most 64 registers): docs/kernels.md says why not two of 512.
#include "common.cuh"

constexpr int THREADS = 1024;
constexpr int TILES = 4;  // in flight per thread
constexpr int TILE = 4 * THREADS, GROUP = TILES * TILE;

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

// Four logits as they lie in memory.
template <class Z> struct Four { typedef uint4 Raw; };
template <> struct Four<bf16> { typedef uint2 Raw; };
// Where STREAMING they are not read again from there.
template <bool STREAMING> __device__ __forceinline__ uint4 load_four(const float* z) { return STREAMING ? load16_streaming(z) : load16(z); }
template <bool STREAMING> __device__ __forceinline__ uint2 load_four(const bf16* z) { return STREAMING ? load8_streaming(z) : load8(z); }
__device__ __forceinline__ void unpack_four(uint4 raw, Floats<4>& v) { unpack(raw, v); }
__device__ __forceinline__ void unpack_four(uint2 raw, Floats<4>& v) {
    v[0] = __uint_as_float(raw.x << 16), v[1] = __uint_as_float(raw.x & 0xffff0000u);
    v[2] = __uint_as_float(raw.y << 16), v[3] = __uint_as_float(raw.y & 0xffff0000u);
}
// The one at `at` is not as it is stored where they are narrow.
__device__ __forceinline__ void set_exact(Floats<4>&, int, float, const float*) {}
__device__ __forceinline__ void set_exact(Floats<4>& v, int at, float exact, const bf16*) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i == at) v[i] = exact;
}

// A thread's own logits of the lowest groups, from the first pass for the second: four by four, as they lie in the row.
template <class Z> struct Kept {
    typename Four<Z>::Raw* packs;
    int groups;
    __device__ __forceinline__ typename Four<Z>::Raw& at(int group, int t) const {
        return packs[(group * TILES + t) * THREADS + int(threadIdx.x)];
    }
};

// The first `live` of four logits; as they lie in memory in `raw`, where they are whole.
template <bool WHOLE, bool STREAMING, class Z>
__device__ __forceinline__ Floats<4> load_logits(const Z* z, int live, int at, float exact, typename Four<Z>::Raw& raw) {
    Floats<4> v;
    raw = typename Four<Z>::Raw{};
    if constexpr (WHOLE) {
        if (live > 0) raw = load_four<STREAMING>(z);
        unpack_four(raw, v);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = i < live ? to_float(z[i]) : 0.0f;
    }
    set_exact(v, at, exact, z);
    return v;
}

// Groups of logits come in descending order. Until the END every pack exists.
template <bool WHOLE, bool END, bool KEEP, class Z>
__device__ __forceinline__ void scan_group(Running& r, const Z* z, int group, int vocab, int aim, float exact, const Kept<Z>& kept) {
    const int c0 = group * GROUP + int(threadIdx.x) * 4;
    if (END && c0 >= vocab) return;
    Floats<4> v[TILES];
    typename Four<Z>::Raw raw[TILES];
    float max = -INFINITY;
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        const int live = END ? vocab - (c0 + t * TILE) : 4;
        const int at = c0 + t * TILE;
        v[t] = load_logits<WHOLE, KEEP>(z + at, live, aim - at, exact, raw[t]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i >= live) v[t][i] = -INFINITY;
            max = fmaxf(max, v[t][i]);
        }
    }
    if (KEEP) {  // behind the loads, which are all on their way
#pragma unroll
        for (int t = 0; t < TILES; ++t)
            if (!END || c0 + t * TILE < vocab) kept.at(group, t) = raw[t];
    }
    if (max >= r.max && max > -INFINITY) {  // rare once the row's large logits have been seen
        rebase(r, max);
#pragma unroll
        for (int t = TILES - 1; t >= 0; --t)
#pragma unroll
            for (int i = 3; i >= 0; --i)
                if (v[t][i] == max) r.index = c0 + t * TILE + i;  // lower than any seen: the groups descend
    }
    const float base = r.max > -INFINITY ? r.max : 0.0f;  // so far all are -infinity (or NaN): e is 0 (NaN)
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float d = v[t][i] - base, e = fast_exp2(d * LOG2E);
            r.sum += e;
            r.sum_d += e == 0.0f ? 0.0f : e * d;  // 0 * -infinity
            r.sum_sq += e * e;
        }
}

// A thread's share of the row.
template <bool WHOLE, class Z>
__device__ __forceinline__ Running scan(const Z* z, int vocab, int aim, float exact, const Kept<Z>& kept) {
    Running r{-INFINITY, 0.0f, 0.0f, 0.0f, 0x7fffffff};
    const int full = WHOLE ? vocab / GROUP : 0;
    int g = (vocab + GROUP - 1) / GROUP - 1;
    for (; g >= full; --g)
        if (WHOLE && g < kept.groups) scan_group<WHOLE, true, WHOLE>(r, z, g, vocab, aim, exact, kept);
        else scan_group<WHOLE, true, false>(r, z, g, vocab, aim, exact, kept);
    for (; WHOLE && g >= kept.groups; --g) scan_group<WHOLE, false, false>(r, z, g, vocab, aim, exact, kept);
    for (; WHOLE && g >= 0; --g) scan_group<WHOLE, false, WHOLE>(r, z, g, vocab, aim, exact, kept);
    return r;
}

// The whole row, to all threads.
__device__ __forceinline__ Running combine_block(Running r, Running* warps) {
#pragma unroll
    for (int lanes = 16; lanes; lanes >>= 1) r = combine(r, shuffled(r, lanes));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = r;
    __syncthreads();
    static_assert(THREADS == 32 * 32, "a lane a warp");
    r = warps[threadIdx.x % 32];
#pragma unroll
    for (int lanes = 16; lanes; lanes >>= 1) r = combine(r, shuffled(r, lanes));
    return r;
}

template <bool WHOLE> __device__ __forceinline__ void store_gradient(float* to, const Floats<4>& g, int live) {
    if constexpr (WHOLE) {
        if (live > 0) store16_streaming(to, packed(g));
    } else {
        store_pack<WHOLE>(to, g, live);
    }
}
template <bool WHOLE> __device__ __forceinline__ void store_gradient(bf16* to, const Floats<4>& g, int live) {
    if constexpr (WHOLE) {
        if (live > 0) store8_streaming(to, uint2{pack_bf16(g[0], g[1]), pack_bf16(g[2], g[3])});
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < live) from_float(g[i], to[i]);
    }
}

// Second pass: logits become the gradient.
template <bool WHOLE, class Z>
__device__ __forceinline__ void replace(Z* z, int vocab, int aim, float exact, float max, float shift, const Kept<Z>& kept) {
    T* gradient = reinterpret_cast<T*>(z);
    int freed = WHOLE ? 2 * kept.groups : 0;  // groups of G that lie over logits which all threads have read
    for (int group = 0, first = 0; first < vocab; ++group, first += GROUP) {
        const int c0 = first + int(threadIdx.x) * 4;
        Floats<4> g[TILES];
        if (WHOLE && group < kept.groups) {
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                const int at = c0 + t * TILE;
                typename Four<Z>::Raw raw{};
                if (at < vocab) raw = kept.at(group, t);
                unpack_four(raw, g[t]);
                set_exact(g[t], aim - at, exact, z);
            }
        } else {
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                const int at = c0 + t * TILE;
                typename Four<Z>::Raw raw;
                g[t] = load_logits<WHOLE, true>(z + at, vocab - at, aim - at, exact, raw);
            }
        }
#pragma unroll
        for (int t = 0; t < TILES; ++t)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                g[t][i] = (c0 + t * TILE + i == aim ? 1.0f : 0.0f) - fast_exp2((g[t][i] - max) * LOG2E - shift);
        if (sizeof(T) < sizeof(Z) && group >= freed) {
            __syncthreads();
            freed = 2 * group + 2;
        }
#pragma unroll
        for (int t = 0; t < TILES; ++t) store_gradient<WHOLE>(gradient + c0 + t * TILE, g[t], vocab - (c0 + t * TILE));
    }
}

// Statistics of a row whose target has the logit `exact`, and where `train` its gradient in place.
template <class Z>
__device__ __forceinline__ void row(float* logp, float* entropy, float* log_sum_p2, float* hit, Z* z, float exact, int aim,
                                    int vocab, int train, bool whole, Running* warps, const Kept<Z>& kept) {
    const Running r = combine_block(whole ? scan<true>(z, vocab, aim, exact, kept) : scan<false>(z, vocab, aim, exact, kept), warps);
    const float log_sum = logf(r.sum);
    if (threadIdx.x == 0) {
        logp[blockIdx.x] = exact - r.max - log_sum;
        entropy[blockIdx.x] = log_sum - r.sum_d / r.sum;
        log_sum_p2[blockIdx.x] = logf(r.sum_sq) - 2.0f * log_sum;
        hit[blockIdx.x] = r.index == aim ? 1.0f : 0.0f;
    }
    if (!train) return;
    const float shift = log_sum * LOG2E;
    if (whole) replace<true>(z, vocab, aim, exact, r.max, shift, kept);
    else replace<false>(z, vocab, aim, exact, r.max, shift, kept);
}

KERNEL(1024, head)(float* __restrict__ logp, float* __restrict__ entropy, float* __restrict__ log_sum_p2, float* __restrict__ hit,
                   float* logits, const unsigned* __restrict__ target, int vocab, int train, int keep) {
    SHARED(Running, warps, THREADS / 32);
    DYNAMIC_SHARED(uint4, packs);
    float* z = logits + size_t(blockIdx.x) * vocab;
    const int aim = int(target[blockIdx.x]);
    const float at_target = z[aim];  // before anything is overwritten
    const bool whole = vocab % 4 == 0 && aligned16(logits);
    row(logp, entropy, log_sum_p2, hit, z, at_target, aim, vocab, train, whole, warps, Kept<float>{packs, keep});
}
EXPORT_KERNEL(head)

#ifdef STORAGE_BF16
KERNEL(1024, head_narrow)(float* __restrict__ logp, float* __restrict__ entropy, float* __restrict__ log_sum_p2,
                          float* __restrict__ hit, bf16* logits, const float* __restrict__ exact,
                          const unsigned* __restrict__ target, int vocab, int train, int keep) {
    SHARED(Running, warps, THREADS / 32);
    DYNAMIC_SHARED(uint2, packs);
    bf16* z = logits + size_t(blockIdx.x) * vocab;
    const bool whole = vocab % 4 == 0 && aligned16(logits);
    const Kept<bf16> kept{packs, keep};
    row(logp, entropy, log_sum_p2, hit, z, exact[blockIdx.x], int(target[blockIdx.x]), vocab, train, whole, warps, kept);
}
EXPORT_KERNEL(head_narrow)

// A warp a row, its packs in order within a lane, butterfly over lanes.
KERNEL(256, target_logits)(float* __restrict__ exact, const T* __restrict__ x, const T* __restrict__ w,
                           const unsigned* __restrict__ target, int rows, int dim) {
    const size_t row = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    const int lane = threadIdx.x % 32;
    if (row >= size_t(rows)) return;  // the whole warp
    if_whole(dim, [&](auto whole) {
        const T *mine = x + row * dim, *its = w + size_t(target[row]) * dim;
        float sum = 0.0f;
        for (int c = lane * PACK(T); c < dim; c += 32 * PACK(T)) {
            const auto a = load_pack<whole>(mine + c, dim - c), b = load_pack<whole>(its + c, dim - c);
#pragma unroll
            for (int i = 0; i < PACK(T); ++i) sum += a[i] * b[i];
        }
        sum = warp_sum(sum);
        if (lane == 0) exact[row] = sum;
    }, x, w);
}
EXPORT_KERNEL(target_logits)
#endif
